"""Requests as values, and when to try again. Pure: both clients share all of it."""

import base64
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import quote

from vicinage_client import errors

RETRY_STATUSES = (429, 502, 503)
BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `wait_s`: how long the answer may take beyond the client's own timeout."""

    method: str
    path: str
    body: Any = None
    wait_s: float = 0.0


def search(
    name: str,
    text: str | None,
    vector: Any,
    k: int,
    condition: Mapping[str, Any] | None,
    wait_for: Any,
    include: Sequence[str] | None,
    *,
    exact: bool,
    timeout_ms: int | None,
) -> Call:
    """A search."""
    body: dict[str, Any] = {
        "text": text,
        "k": k,
        "filter": condition,
        "wait_for": token(wait_for),
        "timeout_ms": timeout_ms,
    }
    body |= {"include": list(include) if include is not None else None, "exact": exact or None}
    body |= _vector(vector)
    sent = {key: value for key, value in body.items() if value is not None}
    return Call("POST", f"{collection(name)}/search", sent, wait_s=(timeout_ms or 0) / 1000)


def _vector(vector: Any) -> dict[str, Any]:
    if vector is None:
        return {}
    if hasattr(vector, "astype"):
        return {"vector_base64": base64.b64encode(vector.astype("<f4").tobytes()).decode()}
    return {"vector": list(vector)}


def token(wait_for: Any) -> Any:
    """A token as text, {partition, offset}, or anything with those attributes (what a Kafka producer gets back)."""
    if wait_for is None or isinstance(wait_for, str | Mapping):
        return wait_for
    if hasattr(wait_for, "token"):
        return wait_for.token
    return {"partition": wait_for.partition, "offset": wait_for.offset}


def collection(name: str) -> str:
    """The path of a collection."""
    return f"/v1/collections/{quote(name, safe='')}"


def document(name: str, document_id: str, wait_for: Any = None) -> Call:
    """Reading one document."""
    waited = token(wait_for)
    text = f"{waited['partition']}-{waited['offset']}" if isinstance(waited, Mapping) else waited
    query = f"?wait_for={quote(text, safe='')}" if text else ""
    return Call("GET", f"{collection(name)}/documents/{quote(document_id, safe='')}{query}")


def batches(documents: Iterable[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    """Runs of at most `size`, drawn as they are needed: the iterable may be endless."""
    source = iter(documents)
    while batch := list(islice(source, size)):
        yield batch


def plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document whose vectors are lists."""
    sent = dict(document)
    for name in ("vector", "vectors"):
        if hasattr(sent.get(name), "tolist"):
            sent[name] = sent[name].tolist()
    return sent


def pause_s(status: int, retry_after: str | None, attempt: int) -> float | None:
    """How long to wait before trying again; None when it would not help. Retry-After is honoured."""
    if status not in RETRY_STATUSES and status != 0:
        return None
    base = BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]
    asked = float(retry_after) if retry_after and retry_after.replace(".", "", 1).isdigit() else 0.0
    return max(asked, base) + random.uniform(0, base / 2)  # noqa: S311  (spreading retries, not secrets)


def outcome(status: int, content: bytes) -> Any:
    """The answer's JSON. Raises the error that the status and the problem document say."""
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        body = {"detail": content[:200].decode(errors="replace")}
    if status >= 400:
        raise errors.of(status, body if isinstance(body, dict) else {})
    return body
