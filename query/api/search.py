"""POST /v1/collections/{c}/search. The body is parsed once, straight into an array."""

import time
from contextlib import ExitStack
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from query.admission import Permit
from query.api.http import authenticate, body, content_type, json_object, state_of, unless_gone
from query.api.search_request import (
    BINARY,
    FIELDS,
    INCLUDE,
    K_DEFAULT,
    SEARCH_BYTES_MAX,
    from_binary,
    from_json,
)
from query.api.search_response import written
from query.api.sending import sent
from query.plan import SearchRequest
from vicinage.metrics import counter, histogram

router = APIRouter()
_searches = counter("vicinage_query_searches_total")
_whole, _degraded = _searches.labels("whole"), _searches.labels("degraded")
_seconds = histogram("vicinage_query_search_seconds")
_EXAMPLE: Final = {
    "text": "who finds neighbours?",
    "k": 3,
    "filter": {"lang": "en"},
    "wait_for": "0-41",
}
_ANSWER: Final = {
    "hits": [
        {
            "document_id": "hello",
            "passage": 0,
            "score": 0.61,
            "text": "Vicinage finds…",
            "metadata": {"lang": "en"},
        }
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
                        "wait_for": {
                            "description": "a token, or {partition, offset} as Kafka acknowledged it"
                        },
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
                                "dense_weight": {
                                    "type": "number",
                                    "minimum": 0,
                                    "maximum": 1,
                                    "default": 0.75,
                                },
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
    "responses": {
        "200": {
            "description": "The best passages.",
            "content": {"application/json": {"example": _ANSWER}},
        }
    },
}


@router.post("/v1/collections/{collection}/search", openapi_extra=_DOCS, response_model=None)
async def search(collection: str, request: Request) -> Response:
    """Returns the best passages for a text or a vector, by vectors, words or both (`mode`), with freshness and completeness."""
    start = time.perf_counter()
    principal = await authenticate(request, "read")
    state = state_of(request)
    tenant, where = await state.pipeline.find(principal, collection)
    with ExitStack() as held:
        permit = held.enter_context(state.pipeline.admitted(tenant))
        search = await _asked(request, collection, permit)
        answering = state.pipeline.answer(search, tenant, where)
        found = await (answering if search.wait_for is None else unless_gone(request, answering))
        response = sent(await written(found), permit, held)
    (_degraded if found.reason else _whole).inc()
    _seconds.observe(time.perf_counter() - start)
    return response


async def _asked(request: Request, collection: str, permit: Permit) -> SearchRequest:
    settings = state_of(request).settings
    if content_type(request) == BINARY:
        data = await body(request, permit, SEARCH_BYTES_MAX)
        return from_binary(collection, data, request.query_params, settings)
    return from_json(
        collection, await json_object(request, FIELDS, permit, SEARCH_BYTES_MAX), settings
    )
