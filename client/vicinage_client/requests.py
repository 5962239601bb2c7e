"""Requests as values, and when to try again. Pure: both clients share all of it."""

import base64
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import quote

import httpx

from vicinage_client import errors

RETRY_STATUSES = (429, 502, 503)
BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
JSON = {"content-type": "application/json"}
_NEVER = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `wait_s`: how long the answer may take beyond the client's own timeout.

    `repeatable`: doing it twice is as good as once, so it may be sent again when its answer was lost.
    """

    method: str
    path: str
    body: Any = None
    wait_s: float = 0.0
    repeatable: bool = True

    def content(self) -> dict[str, Any]:
        """Body and headers as httpx takes them. Raises ValueError for what JSON cannot say (NaN, infinity)."""
        if self.body is None:
            return {}
        text = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return {"content": text.encode(), "headers": JSON}


class Attempts:
    """When to send a call again, and when its time is up. Both clients ask it; neither waits in here."""

    def __init__(self, call: Call, timeout_s: float) -> None:
        self._call = call
        self._end = time.monotonic() + timeout_s + call.wait_s
        self._n = 0

    def left_s(self) -> float:
        """What is left of the call's time: no single attempt outlives it."""
        return max(0.001, self._end - time.monotonic())

    def answered(self, status: int, retry_after: str | None) -> float | None:
        """Seconds to wait before sending again; None: this answer is final."""
        return self._pause_s(retry_after) if status in RETRY_STATUSES else None

    def failed(self, error: httpx.TransportError, where: object) -> float:
        """The same for a call without an answer. Raises Unreachable when it will have none."""
        sendable = not isinstance(error, _NEVER) and (self._call.repeatable or isinstance(error, _NOT_SENT))
        pause_s = self._pause_s(None) if sendable else None
        if pause_s is None:
            raise errors.Unreachable(f"{where}: {error or type(error).__name__}") from error
        return pause_s

    def _pause_s(self, retry_after: str | None) -> float | None:
        base = BACKOFF_S[min(self._n, len(BACKOFF_S) - 1)]
        self._n += 1
        pause_s = max(_seconds(retry_after), base) + random.uniform(0, base / 2)  # noqa: S311  (spreading retries, not secrets)
        return pause_s if time.monotonic() + pause_s < self._end else None


def _seconds(retry_after: str | None) -> float:
    """A Retry-After in seconds; its other form, a date, is left to the backoff."""
    return float(retry_after) if retry_after and retry_after.replace(".", "", 1).isdigit() else 0.0


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
    mode: str | None = None,
    fusion: Mapping[str, Any] | None = None,
    rerank: int | None = None,
) -> Call:
    """A search. What is not named, the platform decides."""
    body: dict[str, Any] = {
        "text": text,
        "k": k,
        "filter": condition,
        "wait_for": token(wait_for),
        "timeout_ms": timeout_ms,
        "mode": mode,
        "fusion": fusion,
        "rerank": rerank,
    }
    body |= {"include": list(include) if include is not None else None, "exact": exact or None}
    body |= _vector(vector)
    sent = {key: value for key, value in body.items() if value is not None}
    return Call("POST", f"{collection(name)}/search", sent, wait_s=(timeout_ms or 0) / 1000)


def upsert(name: str, documents: Iterable[Mapping[str, Any]]) -> Call:
    """Writing some documents."""
    return Call("POST", f"{collection(name)}/documents", {"documents": [plain(d) for d in documents]})


def delete(name: str, ids: Sequence[str]) -> Call:
    """Forgetting documents."""
    assert not isinstance(ids, str), "ids is a list of ids"
    return Call("POST", f"{collection(name)}/documents:delete", {"ids": list(ids)})


def create_collection(
    name: str,
    model: str | None,
    dimension: int | None,
    metric: str | None,
    index: str | None,
    shards: int | None,
    objectives: Mapping[str, Any] | None,
) -> Call:
    """Making a collection: what is not named, the platform decides. Made twice, the second is a conflict."""
    body = {
        "name": name,
        "model": model,
        "dimension": dimension,
        "metric": metric,
        "index": index,
        "shards": shards,
        "objectives": objectives,
    }
    return Call("POST", "/v1/collections", {k: v for k, v in body.items() if v is not None}, repeatable=False)


def dead_letters(after: int, limit: int) -> Call:
    """Reading dead letters."""
    return Call("GET", f"/v1/dead-letters?after={after}&limit={limit}")


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


def outcome(status: int, content: bytes) -> Any:
    """The answer's JSON. Raises the error that the status and the problem document say."""
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        body = {"detail": content[:200].decode(errors="replace")}
    if status >= 400:
        raise errors.of(status, body if isinstance(body, dict) else {})
    return body
