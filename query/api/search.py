"""POST /v1/collections/{c}/search and search:batch. The body is parsed once, straight into an array."""

import asyncio
import base64
import binascii
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing
from functools import partial
from itertools import islice
from typing import Any, Final

import numpy as np
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from indexer.index import filters
from query.admission import Place
from query.answer import Answer
from query.api.http import (
    body,
    check_json,
    checked_object,
    content_type,
    gateway,
    integer,
    json_object,
    number,
    parsed_object,
    principal,
    typed,
    unless_gone,
)
from query.api.modes import VECTORS, fusion_of, mode_of, rerank_of
from query.api.sending import SLICE_BYTES, sent
from query.batch import split
from query.boundary import said
from query.parsers import SMALL_BYTES
from query.plan import Question
from tenants.entities import CLASS_WEIGHT, Principal, Tenant
from tenants.registry import DIMENSION_MAX
from vicinage.errors import Refused, TooLarge
from vicinage.exact_json import Exactly, has_long_digits
from vicinage.records import LATEST, Floats, Hit, Position, Token
from vicinage.settings import GatewaySettings
from vicinage.telemetry import counter, histogram
from vicinage.texts import is_blank
from vicinage.wire import load_json

router = APIRouter()
TEXT_BYTES_MAX: Final = 32 << 10
SEARCH_BYTES_MAX: Final = 1 << 20
"""The largest question: it is parsed on the event loop that everybody shares."""
FILTER_BYTES_MAX: Final = 256 << 10
BATCH_BYTES_MAX: Final = 16 << 20
"""Of as many questions each may take 16 KiB: a vector of 3,000 numbers in base64. Longer ones go in smaller batches."""
BATCH_AT_ONCE: Final = 16
FIELDS: Final = frozenset(
    {"text", "vector", "vector_base64", "k", "filter", "wait_for", "timeout_ms", "include", "exact", "mode", "fusion"}
    | {"rerank"}
)
BASE64_MAX: Final = -(-4 * DIMENSION_MAX // 3) * 4
"""Characters of the longest vector there can be."""
INCLUDE: Final = frozenset({"text", "metadata", "vector"})
BINARY: Final = "application/octet-stream"
K_DEFAULT: Final = 10
TIMEOUT_MS_MAX: Final = 600_000
_searches = counter("vicinage_query_searches_total", "searches answered, by outcome", ("outcome",))
_whole, _degraded = _searches.labels("whole"), _searches.labels("degraded")
_seconds = histogram("vicinage_query_search_seconds", "time from request to answer")

_EXAMPLE: Final = {"text": "who finds neighbours?", "k": 3, "filter": {"lang": "en"}, "wait_for": "0-41"}
_ANSWER: Final = {
    "hits": [
        {"document_id": "hello", "passage": 0, "score": 0.61, "text": "Vicinage finds…", "metadata": {"lang": "en"}}
    ],
    "freshness": {"watermark": "3-118", "lag_ms": 0},
    "generation": 1,
    "effort": 0,
    "degraded": None,
}
_DOCS: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "text": {
                            "type": "string",
                            "description": "the question in words; or send a vector (in mode hybrid perhaps both)",
                        },
                        "vector": {"type": "array", "items": {"type": "number"}},
                        "vector_base64": {"type": "string", "description": "little-endian float32"},
                        "k": {"type": "integer", "minimum": 1, "default": K_DEFAULT},
                        "filter": {"type": "object", "description": "conditions on metadata"},
                        "wait_for": {"description": "a token, or {partition, offset} as Kafka acknowledged it"},
                        "timeout_ms": {"type": "integer", "minimum": 1},
                        "include": {"type": "array", "items": {"enum": sorted(INCLUDE)}},
                        "exact": {"type": "boolean", "default": False},
                        "mode": {
                            "enum": ["dense", "lexical", "hybrid"],
                            "default": "dense",
                            "description": "ranked by vectors, by words (BM25), or by both; the last two need text",
                        },
                        "fusion": {
                            "type": "object",
                            "description": "of mode hybrid: weighted (by standardized scores, the default) or rrf (by reciprocal rank)",
                            "properties": {
                                "method": {"enum": ["weighted", "rrf"], "default": "weighted"},
                                "dense_weight": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.75},
                            },
                            "additionalProperties": False,
                        },
                        "rerank": {
                            "type": "integer",
                            "minimum": 1,
                            "description": "so many of the best are read again, each with the question's text, by the platform's cross-encoder, and the k best of those are given in its order",
                        },
                    },
                    "additionalProperties": False,
                },
                "example": _EXAMPLE,
            },
            BINARY: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "little-endian float32; the rest as query parameters",
                }
            },
        },
    },
    "responses": {"200": {"description": "The best passages.", "content": {"application/json": {"example": _ANSWER}}}},
}


@router.post("/v1/collections/{collection}/search", openapi_extra=_DOCS, response_model=None)
async def search(collection: str, request: Request) -> Response:
    """Text (or a vector) in, the best passages out by vectors, words or both (`mode`); and how fresh and how whole the answer is."""
    start = time.perf_counter()
    who = await principal(request, "read")
    house = gateway(request)
    tenant, where = await house.answerer.find(who, collection)
    with ExitStack() as held:
        place = held.enter_context(house.answerer.admitted(tenant))
        question = await _asked(request, collection, place)
        answering = house.answerer.answer(question, tenant, where)
        found = await (answering if question.wait_for is None else unless_gone(request, answering))
        response = sent(await written(found), place, held)
    (_degraded if found.reason else _whole).inc()
    _seconds.observe(time.perf_counter() - start)
    return response


async def _asked(request: Request, collection: str, place: Place) -> Question:
    settings = gateway(request).settings
    if content_type(request) == BINARY:
        data = await body(request, place, SEARCH_BYTES_MAX)
        return from_binary(collection, data, request.query_params, settings)
    return from_json(collection, await json_object(request, FIELDS, place, SEARCH_BYTES_MAX), settings)


@router.post("/v1/collections/{collection}/search:batch", response_model=None)
async def search_batch(collection: str, request: Request) -> StreamingResponse:
    """`{"questions": [...]}`; answers stream as NDJSON in the order they are done, each with its question's `index`."""
    who = await principal(request, "read")
    house = gateway(request)
    tenant, _ = await house.answerer.find(who, collection)
    with ExitStack() as held:
        place = held.enter_context(house.answerer.admitted(tenant))
        check_json(request)
        given = await _split(house, tenant, await body(request, place, BATCH_BYTES_MAX))
        place.leave()  # each question takes one of its own
        return _Lines(stream(house, partial(principal, request, "read"), collection, given), held.pop_all())


async def _split(house: Any, tenant: Tenant, data: bytes) -> list[bytes]:
    """Returns the JSON of each search. A large body is parsed in a worker: here it would stop the event loop."""
    if len(data) <= SMALL_BYTES:
        return split(data)
    found: list[bytes] = await house.parsers.run(
        split, data, len(data), tenant=tenant.name, weight=CLASS_WEIGHT[tenant.priority]
    )
    return found


class _Lines(StreamingResponse):
    """Lines of JSON; what is held for them is given back when the last was sent, or the reader has gone."""

    def __init__(self, lines: AsyncGenerator[bytes, None], held: ExitStack) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self._lines, self._held = lines, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        with self._held:
            async with aclosing(self._lines):
                await super().__call__(scope, receive, send)


async def stream(
    house: Any, whoever: Callable[[], Awaitable[Principal]], collection: str, given: list[bytes]
) -> AsyncGenerator[bytes, None]:
    """A line of JSON for each question, as soon as it has its answer or its problem.

    A question holds its place until its line was sent, and `whoever` asks proves it for each anew: a reader who is slow holds up
    his own questions, and a key that was revoked ends the rest.
    """
    waiting = iter(enumerate(given))
    running: set[asyncio.Task[_Line]] = set()
    try:
        while True:
            for index, data in islice(waiting, BATCH_AT_ONCE - len(running)):
                running.add(asyncio.create_task(_line(house, whoever, collection, index, data)))
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            task = done.pop()  # the others are found done at the next turn
            line, place = task.result()
            with place:
                yield line
            running.discard(task)
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_give_back)


async def _line(
    house: Any, whoever: Callable[[], Awaitable[Principal]], collection: str, index: int, data: bytes
) -> "_Line":
    with ExitStack() as place:
        try:
            if len(data) > SEARCH_BYTES_MAX:
                raise TooLarge(f"a search has at most {SEARCH_BYTES_MAX} bytes", field="body", limit=SEARCH_BYTES_MAX)
            question = from_json(collection, parsed_object(data, FIELDS), house.settings)
            tenant, where = await house.answerer.find(await whoever(), collection)
            own: Place = place.enter_context(house.answerer.admitted(tenant))
            line = await written(await house.answerer.answer(question, tenant, where), index=index)
            own.hold_answer(len(line))  # until its reader has it
        except Exception as error:  # noqa: BLE001  (the request boundary: each question of a batch is one)
            line = orjson.dumps({"index": index, "problem": orjson.loads(bytes(said(error, "search:batch").body))})
        return line + b"\n", place.pop_all()


_Line = tuple[bytes, ExitStack]


def _give_back(task: "asyncio.Task[_Line]") -> None:
    if not task.cancelled():
        task.result()[1].close()


def from_json(collection: str, value: Mapping[str, Any], settings: GatewaySettings) -> Question:
    """A checked question. Raises Refused naming the field."""
    mode = mode_of(value)
    text = typed(value, "text", str, "a string")
    if text is not None:
        _check_text(text)
    k = integer(value, "k", 1, settings.k_max, K_DEFAULT)
    return Question(
        collection=collection,
        k=k,
        text=text,
        vector=_vector(value),
        filter=_filter(value.get("filter")),
        include=_include(value.get("include")),
        exact=bool(typed(value, "exact", bool, "true or false")),
        wait_for=token_of(value.get("wait_for")),
        timeout_s=integer(value, "timeout_ms", 1, TIMEOUT_MS_MAX, settings.timeout_ms) / 1000,
        mode=mode,
        fusion=fusion_of(value),
        rerank=rerank_of(value, k, settings.rerank_max),
    )


def from_binary(collection: str, data: bytes, parameters: Mapping[str, str], settings: GatewaySettings) -> Question:
    """The same from a raw vector and query parameters."""
    value: dict[str, Any] = dict(parameters)
    alone = {"text"} if value.get("mode", "dense") == "dense" else set()  # the body is the question
    checked_object(value, FIELDS - set(VECTORS) - alone)
    for name, high in (("k", settings.k_max), ("timeout_ms", TIMEOUT_MS_MAX), ("rerank", settings.rerank_max)):
        if name in value:
            value[name] = number(value[name], name, 1, high, 1)
    for name in ("filter", "fusion"):
        if name in value:
            value[name] = _parameter(name, value[name].encode())
    if "include" in value:
        value["include"] = [part for part in value["include"].split(",") if part]
    if "exact" in value:
        value["exact"] = {"true": True, "false": False}.get(value["exact"], value["exact"])
    return from_json(collection, {**value, "vector": _from_bytes(data, "body")}, settings)


def _parameter(name: str, data: bytes) -> Any:
    """Returns the JSON value of a query parameter, its integers exact."""
    value = load_json(data, field=name)
    return Exactly(data).value if has_long_digits(data) else value


async def written(found: Answer, **first: int) -> bytes:
    """The answer's JSON, after what stands `first`. A long one is written in slices, between which others have their turn."""
    hits: list[orjson.Fragment] = []
    size = 0
    for hit in found.hits:
        data = orjson.dumps(_hit(hit), option=orjson.OPT_SERIALIZE_NUMPY)
        hits.append(orjson.Fragment(data))
        size += len(data)
        if size > SLICE_BYTES:
            size = 0
            await asyncio.sleep(0)
    degraded = {"reason": found.reason, "missing_share": found.missing_share} if found.reason else None
    return orjson.dumps(
        {
            **first,
            "hits": hits,
            "freshness": {"watermark": found.watermark, "lag_ms": found.lag_ms},
            "generation": found.generation,
            "effort": found.effort,
            "degraded": degraded,
        }
    )


def _hit(hit: Hit) -> dict[str, Any]:
    line: dict[str, Any] = {"document_id": hit.document_id, "passage": hit.passage, "score": hit.score}
    if hit.dense_score is not None:
        line["dense_score"] = hit.dense_score
    if hit.lexical_score is not None:
        line["lexical_score"] = hit.lexical_score
    if hit.text is not None:
        line |= {"text": hit.text, "start": hit.start, "end": hit.end}
    if hit.metadata is not None:
        line["metadata"] = hit.metadata
    if hit.vector is not None:
        line["vector"] = np.ascontiguousarray(hit.vector)  # written as float32: half the digits of a Python float
    return line


def _check_text(text: str) -> None:
    if is_blank(text):
        raise Refused("text is empty: it needs more than white space, control and invisible characters", field="text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Refused("text holds half of a surrogate pair", field="text") from None
    if size > TEXT_BYTES_MAX:
        raise Refused(f"text has {size} bytes; at most {TEXT_BYTES_MAX}", field="text", limit=TEXT_BYTES_MAX)


def _vector(value: Mapping[str, Any]) -> Floats | None:
    given = value.get("vector")
    if isinstance(given, np.ndarray):
        return given
    if given is not None:
        return _from_list(given)
    encoded = typed(value, "vector_base64", str, "base64 of little-endian float32")
    if encoded is None:
        return None
    if len(encoded) > BASE64_MAX:
        raise Refused(f"vector_base64 has over {DIMENSION_MAX} numbers", field="vector_base64", limit=DIMENSION_MAX)
    try:
        return _from_bytes(base64.b64decode(encoded, validate=True), "vector_base64")
    except (binascii.Error, ValueError):
        raise Refused("vector_base64 is not base64", field="vector_base64") from None


def _from_list(given: object) -> Floats:
    if isinstance(given, list) and len(given) > DIMENSION_MAX:  # before what they are: there may be half a million
        raise Refused(f"vector has {len(given)} numbers; at most {DIMENSION_MAX}", field="vector", limit=DIMENSION_MAX)
    if not isinstance(given, list) or not given or not set(map(type, given)) <= {int, float}:  # no booleans, no null
        raise Refused("vector must be a list of numbers", field="vector")
    with np.errstate(over="ignore"):
        return np.array(given, np.float64).astype(np.float32)


def _from_bytes(data: bytes, field: str) -> Floats:
    if not data or len(data) % 4:
        raise Refused(f"{field} has {len(data)} bytes; float32 takes 4 each", field=field)
    return np.frombuffer(data, "<f4")


def _filter(given: object) -> Mapping[str, Any] | None:
    if given is None:
        return None
    filters.parse(given)  # refuses integers that orjson cannot write
    if len(orjson.dumps(given)) > FILTER_BYTES_MAX:
        raise Refused(f"a filter has at most {FILTER_BYTES_MAX} bytes", field="filter", limit=FILTER_BYTES_MAX)
    assert isinstance(given, dict)
    return given or None


def _include(given: object) -> frozenset[str]:
    if given is None:
        return frozenset({"text", "metadata"})
    if (
        not isinstance(given, list)
        or len(given) > len(INCLUDE)
        or not all(isinstance(g, str) and g in INCLUDE for g in given)
    ):
        raise Refused(f"include is a list of {', '.join(sorted(INCLUDE))}", field="include")
    return frozenset(given)


def token_of(given: object) -> Token | None:
    """Returns a token from its text, from Kafka's {partition, offset}, or from `latest`. Raises Refused."""
    if given is None:
        return None
    if given == "latest":
        return LATEST
    if isinstance(given, dict):
        partition = integer(given, "partition", 0, 1_023, -1)
        offset = integer(given, "offset", 0, 2**53, -1)
        if partition < 0 or offset < 0 or len(given) > 2:  # these two are there
            raise Refused("wait_for is a token, or {partition, offset}", field="wait_for")
        return Token((Position(partition, offset),))
    if not isinstance(given, str):
        raise Refused("wait_for is a token, or {partition, offset}", field="wait_for")
    return Token.parse(given)
