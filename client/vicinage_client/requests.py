"""Requests as values, and the decision to retry. Pure: both clients share all of it."""

import base64
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import quote

import httpx2

from vicinage_client import documents, errors

RETRY_STATUSES = (429, 502, 503)
BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
JSON = {"content-type": "application/json"}
SEARCHES_MAX = 1_000
"""Largest number of searches in one batch."""
DELETE_MAX = 10_000
"""Largest number of ids in one deletion."""
SEARCH_FIELDS = frozenset(
    {
        "text",
        "vector",
        "k",
        "filter",
        "wait_for",
        "include",
        "exact",
        "timeout_ms",
        "mode",
        "fusion",
        "rerank",
    }
)
_NEVER = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `wait_s`: how long the answer may take beyond the client's own timeout.

    `repeatable`: the request is idempotent, so it may be sent again if its answer was lost.
    """

    method: str
    path: str
    body: Any = None
    """Bytes of JSON, or a value to encode as JSON."""
    wait_s: float = 0.0
    repeatable: bool = True
    lines: bool = False
    """The answer is NDJSON, and is returned as bytes."""

    def content(self) -> dict[str, Any]:
        """Returns body and headers as arguments of httpx2.

        Raises InvalidArgument for a value that JSON cannot express.
        """
        if self.body is None:
            return {}
        if isinstance(self.body, bytes):
            return {"content": self.body, "headers": JSON}
        try:
            text = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            return {"content": text.encode(), "headers": JSON}
        except (TypeError, ValueError, RecursionError) as error:
            raise errors.InvalidArgument(
                f"the request cannot be sent as JSON: {documents.fault(self.body, error)}"
            ) from error


class Attempts:
    """Decides when to send a call again, and when to give up. The clients do the waiting."""

    def __init__(self, call: Call, timeout_s: float) -> None:
        self._call = call
        self._end = time.monotonic() + timeout_s + call.wait_s
        self._n = 0

    def left_s(self) -> float:
        """Returns the seconds left for the call, the timeout of an attempt."""
        return max(0.001, self._end - time.monotonic())

    def answered(self, status: int, retry_after: str | None) -> float | None:
        """Returns the seconds to wait before sending again; None if this answer is final."""
        return self._pause_s(retry_after) if status in RETRY_STATUSES else None

    def failed(self, error: httpx2.TransportError, where: object) -> float:
        """Returns the same after a call without an answer.

        Raises Unreachable if the call is not sent again.
        """
        sendable = not isinstance(error, _NEVER) and (
            self._call.repeatable or isinstance(error, _NOT_SENT)
        )
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
    """Returns a Retry-After in seconds; 0 for its other form, a date: the backoff applies."""
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
    """Returns a search; the platform's defaults apply to omitted arguments."""
    sent = search_body(
        text,
        vector,
        k,
        condition,
        wait_for,
        include,
        exact=exact,
        timeout_ms=timeout_ms,
        mode=mode,
        fusion=fusion,
        rerank=rerank,
    )
    return Call("POST", f"{collection(name)}/search", sent, wait_s=(timeout_ms or 0) / 1000)


def search_body(
    text: str | None,
    vector: Any,
    k: int,
    condition: Mapping[str, Any] | None,
    wait_for: Any,
    include: Sequence[str] | None,
    *,
    exact: bool,
    timeout_ms: int | None,
    mode: str | None,
    fusion: Mapping[str, Any] | None,
    rerank: int | None,
) -> dict[str, Any]:
    """Returns the body of a search, without omitted arguments."""
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
    return {key: value for key, value in body.items() if value is not None}


def search_batches(name: str, searches: Iterable[Mapping[str, Any] | str]) -> Iterator[Call]:
    """Yields calls of at most SEARCHES_MAX searches each.

    A search is a text, or a mapping of `Client.search`'s arguments. Raises InvalidArgument, which
    names the invalid search.
    """
    if isinstance(searches, str | bytes | Mapping) or not isinstance(searches, Iterable):
        raise errors.InvalidArgument(f"searches is a list of searches, not {_kind(searches)}")
    bodies: list[dict[str, Any]] = []
    for number, given in enumerate(searches):
        bodies.append(_search_of(number, given))
        if len(bodies) == SEARCHES_MAX:
            yield Call("POST", f"{collection(name)}/search:batch", {"searches": bodies}, lines=True)
            bodies = []
    if bodies:
        yield Call("POST", f"{collection(name)}/search:batch", {"searches": bodies}, lines=True)


def _search_of(number: int, given: Mapping[str, Any] | str) -> dict[str, Any]:
    if isinstance(given, str):
        given = {"text": given}
    if not isinstance(given, Mapping) or (unknown := sorted(set(given) - SEARCH_FIELDS)):
        what = (
            f"has the unknown field {unknown[0]!r}"
            if isinstance(given, Mapping)
            else "is a text or a mapping"
        )
        raise errors.InvalidArgument(
            f"search {number} {what}; known are {', '.join(sorted(SEARCH_FIELDS))}"
        )
    body = {key: value for key, value in given.items() if key != "vector" and value is not None}
    if "wait_for" in body:
        body["wait_for"] = token(body["wait_for"])
    return body | _vector(given.get("vector"))


def upsert(name: str, body: bytes) -> Call:
    """Returns a write of encoded documents (`documents.batches`)."""
    return Call("POST", f"{collection(name)}/documents", body)


def deletions(
    name: str, ids: Iterable[str] | None, condition: Mapping[str, Any] | None, wait_for: Any
) -> Iterator[Call]:
    """Yields the calls that delete documents by id, DELETE_MAX at a time, or by filter.

    Raises InvalidArgument.
    """
    path = f"{collection(name)}/documents:delete"
    if (ids is None) == (condition is None):
        raise errors.InvalidArgument("delete takes ids or a filter: exactly one of them")
    if condition is not None:
        body = {"filter": condition, "wait_for": token(wait_for)}
        yield Call("POST", path, {k: v for k, v in body.items() if v is not None})
        return
    if isinstance(ids, str | bytes) or wait_for is not None:
        raise errors.InvalidArgument(
            "ids is a list of ids, not a text"
            if wait_for is None
            else "wait_for belongs to a deletion by filter"
        )
    source = iter(_checked(ids or ()))
    while some := list(islice(source, DELETE_MAX)):
        yield Call("POST", path, {"ids": some})


def _checked(ids: Iterable[str]) -> Iterator[str]:
    for found in ids:
        if not isinstance(found, str) or not found:
            raise errors.InvalidArgument(f"an id is a text that is not empty, not {found!r}"[:200])
        yield found


def create_collection(
    name: str,
    model: str | None,
    dimension: int | None,
    metric: str | None,
    index: str | None,
    shards: int | None,
    objectives: Mapping[str, Any] | None,
) -> Call:
    """Returns the creation of a collection; the platform's defaults apply to omitted arguments.

    It is not repeatable: the second one is a conflict.
    """
    body = {
        "name": name,
        "model": model,
        "dimension": dimension,
        "metric": metric,
        "index": index,
        "shards": shards,
        "objectives": objectives,
    }
    return Call(
        "POST",
        "/v1/collections",
        {k: v for k, v in body.items() if v is not None},
        repeatable=False,
    )


def dead_letters(after: int, limit: int) -> Call:
    """Returns the request for dead letters."""
    return Call("GET", f"/v1/dead-letters?after={after}&limit={limit}")


def wait(name: str, wait_for: Any, timeout_s: float) -> Call:
    """Returns a wait of at most `timeout_s` until a write is searchable in a collection."""
    token_text = quote(text_of(wait_for) or "latest", safe="")
    query = f"wait_for={token_text}&timeout_ms={max(1, int(timeout_s * 1000))}"
    return Call("GET", f"{collection(name)}?{query}", wait_s=timeout_s)


def text_of(wait_for: Any) -> str | None:
    """Returns the text of a token, in any form that `token` accepts."""
    waited = token(wait_for)
    return f"{waited['partition']}-{waited['offset']}" if isinstance(waited, Mapping) else waited


def delete_collection(name: str) -> Call:
    """Returns the deletion of a collection.

    The platform requires the name twice, as a guard against a wrong path.
    """
    return Call("DELETE", f"{collection(name)}?confirm={quote(name, safe='')}")


def _vector(given: Any) -> dict[str, Any]:
    """Returns the vector field of a search: numpy as binary, anything else as a list.

    Raises InvalidArgument.
    """
    if given is None:
        return {}
    if not hasattr(given, "astype"):
        return {"vector": documents.vector(given)}
    if given.ndim != 1:
        raise errors.InvalidArgument(
            f"vector has the shape {given.shape}: a search takes one vector; use search_batch for"
            " many"
        )
    return {"vector_base64": base64.b64encode(given.astype("<f4").tobytes()).decode()}


def token(wait_for: Any) -> Any:
    """Returns the token of a write as JSON.

    `wait_for` is a text, {partition, offset}, a value with those attributes (the result of a Kafka
    producer's send), or a value with a `token`.
    """
    if wait_for is None or isinstance(wait_for, str | Mapping):
        return wait_for
    if hasattr(wait_for, "token"):
        return wait_for.token
    try:
        return {"partition": wait_for.partition, "offset": wait_for.offset}
    except AttributeError:
        raise errors.InvalidArgument(
            "wait_for is a token, the result of a write, or {partition, offset}, not"
            f" {_kind(wait_for)}"
        ) from None


def _kind(given: object) -> str:
    return {"str": "a text", "bytes": "bytes"}.get(
        type(given).__name__, f"a value of type {type(given).__name__}"
    )


def collection(name: str) -> str:
    """Returns the path of a collection."""
    return f"/v1/collections/{_segment(name)}"


def _segment(name: str) -> str:
    """Returns the name as one segment of a path.

    Percent-encodes every character that a URL parser would remove or merge.
    """
    return quote(name, safe="").replace(".", "%2E") if not name.strip(".") else quote(name, safe="")


def document(name: str, document_id: str, wait_for: Any = None) -> Call:
    """Returns the request for one document."""
    text = text_of(wait_for)
    query = f"?wait_for={quote(text, safe='')}" if text else ""
    return Call("GET", f"{collection(name)}/documents/{_segment(document_id)}{query}")


def headers(key: str) -> dict[str, str]:
    """Returns the headers with the key.

    Raises InvalidArgument, without the key, if it is not valid in a header.
    """
    bare = key.strip() if isinstance(key, str) else ""
    if not bare or not bare.isascii() or not bare.isprintable() or " " in bare:
        raise errors.InvalidArgument(
            "the key is one line of ASCII without spaces, as the platform returned it"
        )
    return {"authorization": f"Bearer {bare}"}


def outcome(call: Call, status: int, content: bytes) -> Any:
    """Returns the answer's JSON, or its bytes if it is NDJSON.

    Raises the error of the status and the problem document.
    """
    if call.lines and status < 400:
        return content
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        body = {"detail": content[:200].decode(errors="replace")}
    if status >= 400:
        raise errors.of(status, body if isinstance(body, dict) else {})
    return body
