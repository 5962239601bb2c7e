"""POST /v1/collections/{c}/search: parses the body once, directly into an array."""

import time
from contextlib import ExitStack
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from query.admission import Permit
from query.api.bounds import SEARCH_BYTES_MAX
from query.api.http import authenticate, body, content_type, json_object, state_of, unless_gone
from query.api.models.search import RawSearchParameters, SearchAnswer
from query.api.models.search import SearchRequest as SearchBody
from query.api.operations import Media, operation
from query.api.search_request import BINARY, FIELDS, from_binary, from_json
from query.api.search_response import written
from query.api.sending import sent
from query.plan import SearchRequest
from vicinage.metrics import counter, histogram

router = APIRouter()
_searches = counter("vicinage_query_searches_total")
_whole, _degraded = _searches.labels("whole"), _searches.labels("degraded")
_seconds = histogram("vicinage_query_search_seconds")
_VECTOR: Final = Media(
    BINARY,
    {
        "type": "string",
        "format": "binary",
        "description": "The vector, little-endian float32; every other field is a parameter.",
    },
)


@router.post(
    "/v1/collections/{collection}/search",
    response_model=None,
    openapi_extra=operation(
        "search",
        "Search",
        "read",
        body=(SearchBody, _VECTOR),
        query=RawSearchParameters,
        answers={200: SearchAnswer},
        errors=(404, 504),
    ),
)
async def search(collection: str, request: Request) -> Response:
    """Returns the best passages for a text or a vector, by vectors, words or both.

    The answer states its freshness and completeness.
    """
    start = time.perf_counter()
    principal = await authenticate(request, "read")
    state = state_of(request)
    tenant, where = await state.pipeline.find(principal, collection)
    with ExitStack() as held:
        permit = held.enter_context(state.pipeline.admitted(tenant))
        search = await _parsed(request, collection, permit)
        answering = state.pipeline.answer(search, tenant, where)
        found = await (answering if search.wait_for is None else unless_gone(request, answering))
        response = sent(await written(found), permit, held)
    (_degraded if found.reason else _whole).inc()
    _seconds.observe(time.perf_counter() - start)
    return response


async def _parsed(request: Request, collection: str, permit: Permit) -> SearchRequest:
    settings = state_of(request).settings
    if content_type(request) == BINARY:
        data = await body(request, permit, SEARCH_BYTES_MAX)
        return from_binary(collection, data, request.query_params, settings)
    return from_json(
        collection, await json_object(request, FIELDS, permit, SEARCH_BYTES_MAX), settings
    )
