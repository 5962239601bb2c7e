"""Shared by all routes: the credential, the body within bounds, its JSON, and the answer."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope as ASGIScope

from query.admission import Permit
from query.decoding import decoded
from query.state import GatewayState
from tenants.entities import Principal, Scope
from vicinage.errors import NotFound, Refused, TooLarge
from vicinage.exact_json import Exactly, has_long_digits, has_rounded
from vicinage.wire import load_json

T = TypeVar("T")
Name = TypeVar("Name", str, str | None)
BODY_S: Final = 60
"""Seconds that a body may take to arrive."""
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
SMALL_BYTES_MAX: Final = 1 << 20
"""The largest body without documents: it is parsed on the event loop, which requests share."""
PARTS_MAX: Final = 50_000
"""Objects and lists in a body that is parsed on the event loop: each takes a microsecond of it."""
VALUES_MAX: Final = 600_000
"""Values in such a body: they take about 50 milliseconds.

Parsing holds Python's lock from the first byte to the last, so it stops the event loop from any
thread (16 MiB of names: 0.45 s). Only a bound helps.
"""
EXACT_BYTES_MAX: Final = 256 << 10
"""Largest body with a filter that is parsed a second time for exact integers, in about 10 ms.

The fast parser rounds integers beyond 64 bits.
"""
SHOWN_MAX: Final = 80
"""Characters of an unknown name that an error repeats."""
NOT_TEXT: Final = "the path and the query must be UTF-8, percent-encoded"
JSON_TYPES: Final = ("", "application/json", "text/json")


def state_of(request: Request) -> GatewayState:
    """Returns the state of the gateway that answers this request."""
    found: GatewayState = request.app.state.gateway
    return found


def has_text_path(scope: ASGIScope) -> bool:
    """Returns whether path and query are UTF-8 once decoded.

    Starlette replaces what is not UTF-8 by U+FFFD, which is another id: a DELETE would name another
    document.
    """
    sent = scope.get("raw_path") or b"", scope["query_string"]
    try:
        for part in sent:
            if b"%" in part:
                unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        return False
    return all(part.isascii() for part in sent)


async def authenticate(request: Request, scope: Scope) -> Principal:
    """Returns the principal that the request's bearer key proves.

    Raises Unauthenticated, Forbidden; Unavailable for a key not seen lately.
    """
    state = state_of(request)
    if state.local_operator and scope == "operate":
        return Principal("local", None, frozenset({"operate"}))
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    text = key.strip() if scheme.lower() == "bearer" else None
    address = request.client.host if request.client else ""
    return await state.key_gate.principal(text, scope, address)


async def body(request: Request, permit: Permit | None, bytes_max: int | None = None) -> bytes:
    """Returns the complete body; `permit` holds its bytes.

    Decompresses gzip and zstd within the same limit. Raises TooLarge as soon as the body is over
    the limit, UnsupportedMedia, Overloaded, and Refused for a body that is cut off or too slow.
    """
    settings = state_of(request).settings
    limit = (
        settings.body_bytes_max if bytes_max is None else min(bytes_max, settings.body_bytes_max)
    )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > limit):
        raise TooLarge(
            f"the body has {announced[:20]} bytes; at most {limit}", field="body", limit=limit
        )
    try:
        async with asyncio.timeout(BODY_S):
            data = await _collected(request, limit, permit)
    except ClientDisconnect:
        raise Refused("the body was cut off", field="body") from None
    except TimeoutError:
        raise Refused(
            f"the body did not come whole within {BODY_S} s", field="body", limit=BODY_S
        ) from None
    encoding = request.headers.get("content-encoding")
    return data if encoding is None else await decoded(data, encoding, limit, _holder(permit))


def _holder(permit: Permit | None) -> Callable[[int], None]:
    return (lambda _n: None) if permit is None else permit.hold


async def _collected(request: Request, limit: int, permit: Permit | None) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body is over {limit} bytes", field="body", limit=limit)
        if permit is not None:
            permit.hold(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Returns the result of `work`; cancels it as soon as the client disconnects.

    For long waits only: it costs two tasks. Read the body first, because this discards the rest.
    Raises Refused after a disconnect, which no client receives.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused("the client disconnected")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def content_type(request: Request) -> str:
    """Returns the media type, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_json(request: Request) -> None:
    """Raises Refused unless the body is sent as JSON."""
    if content_type(request) not in JSON_TYPES:
        raise Refused(
            f"content-type {content_type(request)!r} is not understood here; send application/json",
            field="content-type",
        )


async def json_object(
    request: Request,
    known: frozenset[str],
    permit: Permit | None = None,
    bytes_max: int | None = SMALL_BYTES_MAX,
) -> dict[str, Any]:
    """Returns the body as a JSON object of known names. Raises as `body` does, and Refused."""
    check_json(request)
    return parsed_object(await body(request, permit, bytes_max) or b"{}", known)


def parsed_object(data: bytes, known: frozenset[str]) -> dict[str, Any]:
    """Returns the JSON object, its names all known, with every integer of its filter exact.

    Raises Refused.
    """
    if data.count(b"{") + data.count(b"[") > PARTS_MAX:
        raise Refused(
            f"the body has more than {PARTS_MAX} objects and lists", field="body", limit=PARTS_MAX
        )
    if data.count(b",") > VALUES_MAX:
        raise Refused(
            f"the body has more than {VALUES_MAX} values: send fewer at once, or vectors as "
            "vector_base64",
            field="body",
            limit=VALUES_MAX,
        )
    return checked_object(_exact(data, load_json(data)), known)


def _exact(data: bytes, value: Any) -> Any:
    """Returns the value with every integer of its filter exact.

    Raises Refused for a large body that has a rounded one.
    """
    if b'"filter"' not in data or not has_long_digits(data):
        return value
    if len(data) <= EXACT_BYTES_MAX:
        return Exactly(data).value
    if isinstance(value, dict) and has_rounded(value.get("filter")):
        raise Refused(
            "a number of a filter may be an integer beyond 64 bits, which a body of over "
            f"{EXACT_BYTES_MAX} bytes cannot hold exactly: documents hold those as strings",
            field="filter",
            limit=EXACT_BYTES_MAX,
        )
    return value


def checked_object(value: object, known: frozenset[str]) -> dict[str, Any]:
    """Returns `value` if it is an object of known names only. Raises Refused."""
    if not isinstance(value, dict):
        raise Refused("the body is a JSON object", field="body")
    if (unknown := unknown_in(value, known)) is not None:
        raise Refused(
            f"unknown field {unknown!r}; known are {', '.join(sorted(known))}", field=unknown
        )
    return value


def unknown_in(value: Mapping[str, Any], known: frozenset[str]) -> str | None:
    """Returns the first unknown name, truncated; there may be a million others."""
    return next((name[:SHOWN_MAX] for name in value if name not in known), None)


def typed(
    value: Mapping[str, Any],
    name: str,
    kind: type | tuple[type, ...],
    what: str,
    *,
    needed: bool = False,
) -> Any:
    """Returns `value[name]` if it is of `kind`, None if absent or null. Raises Refused.

    A boolean is not an integer.
    """
    found = value.get(name)
    if found is None:
        if needed:
            raise Refused(f"{name} is missing: {what}", field=name)
        return None
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        raise Refused(f"{name} must be {what}", field=name)
    return found


def integer(value: Mapping[str, Any], name: str, low: int, high: int, otherwise: int) -> int:
    """Returns the integer of that name if it is within bounds. Raises Refused naming the bound."""
    found = typed(value, name, int, f"an integer from {low} to {high}")
    if found is None:
        return otherwise
    if not low <= found <= high:
        raise Refused(
            f"{name} is {found}; it goes from {low} to {high}",
            field=name,
            limit=high if found > high else low,
        )
    return int(found)


def number(text: str | None, name: str, low: int, high: int, otherwise: int) -> int:
    """Returns a query parameter as an integer within bounds. Raises Refused naming it."""
    if text is None:
        return otherwise
    if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise Refused(f"{name} is an integer from {low} to {high}", field=name, limit=high)
    return int(text)


def name_in(text: Name) -> Name:
    """Returns a name from a path or a query. Raises NotFound if nothing can have such a name."""
    if text is not None and not (text.isascii() and text.isprintable()):
        raise NotFound("there is nothing of that name")
    return text


def check_confirmed(request: Request, name: str) -> None:
    """Raises Refused unless `?confirm=` repeats the name of what is deleted with its contents.

    The path alone does not decide: a URL parser may have shortened it.
    """
    if request.query_params.getlist("confirm") != [name]:
        raise Refused(
            f"this deletes {name!r} with everything it has: add ?confirm={name} to the path",
            field="confirm",
        )


def answer(value: object, status: int = 200) -> Response:
    """Returns the value as a JSON response."""
    return Response(
        orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY),
        status,
        media_type="application/json",
    )
