"""Reads and validates the requests of the embedder role's HTTP API."""

import asyncio
import hmac
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request

from ingest.embedding import Lane
from vicinage.clock import Deadline
from vicinage.errors import Refused, TooLarge, Unauthenticated
from vicinage.tenant_context import TenantContext

INPUTS_MAX: Final = 2_048
BODY_BYTES_MAX: Final = 32 << 20
BODY_S: Final = 60
"""Longest time, in seconds, for a body to arrive."""
TIMEOUT_MS: Final = 60_000
WEIGHT_MAX: Final = 100


def authorize(request: Request, key: str | None) -> None:
    """Raises Unauthenticated unless the request has the key. Without a key, all requests pass."""
    sent_key = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key is not None and not hmac.compare_digest(sent_key.encode(), key.encode()):
        raise Unauthenticated("the embedder needs its key")


def deadline_of(request: Request) -> Deadline:
    """Returns the caller's deadline, by default TIMEOUT_MS from now."""
    return Deadline.after(_number(request.headers.get("x-vicinage-timeout-ms"), TIMEOUT_MS) / 1000)


def tenant_of(request: Request) -> TenantContext:
    """Returns the tenant and its weight, from 1 to WEIGHT_MAX."""
    weight = max(1, min(WEIGHT_MAX, _number(request.headers.get("x-vicinage-weight"), 1)))
    return TenantContext(request.headers.get("x-vicinage-tenant", ""), weight)


def lane_of(request: Request) -> Lane:
    """Returns the lane of the texts, by default that of documents."""
    return Lane.QUERY if request.headers.get("x-vicinage-lane") == "query" else Lane.DOCUMENT


async def json_body(request: Request) -> dict[str, Any]:
    """Returns the body. Raises Refused unless it is a JSON object, and the errors of `_body`."""
    data = await _body(request)
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Refused(f"the body is not JSON: {error}", field="body") from None
    if not isinstance(body, dict):
        raise Refused("the body is not a JSON object", field="body")
    return body


def input_texts(value: object) -> list[str]:
    """Returns the texts of `input`: a string or a list of strings. Raises Refused."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise Refused("input is a string or a list of strings, none of them empty", field="input")
    return _bounded(texts, "input")


def rerank_texts(body: dict[str, Any]) -> tuple[str, list[str]]:
    """Returns the query and the texts to score. Raises Refused."""
    query, texts = body.get("query"), body.get("texts")
    if not isinstance(query, str) or not query:
        raise Refused("query is a string that is not empty", field="query")
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise Refused("texts is a list of strings", field="texts")
    return query, _bounded(texts, "texts")


def _bounded(texts: list[str], field: str) -> list[str]:
    if len(texts) > INPUTS_MAX:
        raise Refused(f"{len(texts)} texts; at most {INPUTS_MAX}", field=field, limit=INPUTS_MAX)
    return texts


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() and len(text) < 12 else default


async def _body(request: Request) -> bytes:
    """Returns the whole body.

    Raises TooLarge as soon as it exceeds the limit, and Refused if it is late or incomplete.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > BODY_BYTES_MAX:
                    detail = f"the body is over {BODY_BYTES_MAX} bytes"
                    raise TooLarge(detail, field="input", limit=BODY_BYTES_MAX)
                chunks.append(chunk)
    except TimeoutError:
        detail = f"the body did not arrive within {BODY_S} s"
        raise Refused(detail, field="body", limit=BODY_S) from None
    except ClientDisconnect:
        raise Refused("the body is incomplete", field="body") from None
    return b"".join(chunks)
