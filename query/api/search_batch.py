"""POST /v1/collections/{c}/search:batch: streams answers as lines of JSON."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from functools import partial
from itertools import islice
from typing import Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from query.admission import Permit
from query.api.bounds import BATCH_BYTES_MAX, SEARCH_BYTES_MAX
from query.api.http import authenticate, body, check_json, parsed_object, state_of
from query.api.models.base import example_of
from query.api.models.search import SearchBatchAnswer, SearchBatchProblem, SearchBatchRequest
from query.api.operations import Media, lines_of, operation
from query.api.search_request import FIELDS, from_json
from query.api.search_response import written
from query.batch import split
from query.boundary import problem_response
from query.parsers import SMALL_BYTES
from query.state import GatewayState
from tenants.entities import Principal, Tenant
from vicinage.errors import TooLarge

router = APIRouter()
BATCH_AT_ONCE: Final = 16

_LINES: Final = Media(
    "application/x-ndjson",
    lines_of(SearchBatchAnswer, SearchBatchProblem),
    {
        "lines": "".join(
            f"{orjson.dumps(example_of(model)).decode()}\n"
            for model in (SearchBatchAnswer, SearchBatchProblem)
        )
    },
)


@router.post(
    "/v1/collections/{collection}/search:batch",
    response_model=None,
    openapi_extra=operation(
        "searchBatch",
        "Search",
        "read",
        body=SearchBatchRequest,
        answers={200: _LINES},
        errors=(404, 504),
    ),
)
async def search_batch(collection: str, request: Request) -> StreamingResponse:
    """Answers many searches as a stream of lines, in the order of completion.

    A line has the `index` of its search, and its answer or its problem.
    """
    principal = await authenticate(request, "read")
    state = state_of(request)
    tenant, _ = await state.pipeline.find(principal, collection)
    with ExitStack() as held:
        permit = held.enter_context(state.pipeline.admitted(tenant))
        check_json(request)
        given = await _split(state, tenant, await body(request, permit, BATCH_BYTES_MAX))
        permit.leave()  # each search takes its own permit
        return _Lines(
            stream(state, partial(authenticate, request, "read"), collection, given), held.pop_all()
        )


async def _split(state: GatewayState, tenant: Tenant, data: bytes) -> list[bytes]:
    """Returns the JSON of each search.

    A large body is parsed in a worker: here it would stop the event loop.
    """
    if len(data) <= SMALL_BYTES:
        return split(data)
    found: list[bytes] = await state.parsers.run(split, data, len(data), tenant=tenant.context)
    return found


class _Lines(StreamingResponse):
    """Lines of JSON; releases what it holds after the last line or a disconnect."""

    def __init__(self, lines: AsyncGenerator[bytes, None], held: ExitStack) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self._lines, self._held = lines, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the lines."""
        with self._held:
            async with aclosing(self._lines):
                await super().__call__(scope, receive, send)


async def stream(
    state: GatewayState,
    check_key: Callable[[], Awaitable[Principal]],
    collection: str,
    given: list[bytes],
) -> AsyncGenerator[bytes, None]:
    """Yields a line of JSON for each search, as soon as it has its answer or its problem.

    A search holds its permit until its line was sent, so that a slow reader delays only its own
    searches. `check_key` is called for each of them: a key that was revoked ends the rest.
    """
    waiting = iter(enumerate(given))
    running: set[asyncio.Task[_Line]] = set()
    try:
        while True:
            for index, data in islice(waiting, BATCH_AT_ONCE - len(running)):
                running.add(asyncio.create_task(_line(state, check_key, collection, index, data)))
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            task = done.pop()  # the others follow in the next iteration
            line, permit = task.result()
            with permit:
                yield line
            running.discard(task)
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_give_back)


async def _line(
    state: GatewayState,
    check_key: Callable[[], Awaitable[Principal]],
    collection: str,
    index: int,
    data: bytes,
) -> "_Line":
    with ExitStack() as held:
        try:
            if len(data) > SEARCH_BYTES_MAX:
                raise TooLarge(
                    f"a search has at most {SEARCH_BYTES_MAX} bytes",
                    field="body",
                    limit=SEARCH_BYTES_MAX,
                )
            search = from_json(collection, parsed_object(data, FIELDS), state.settings)
            tenant, where = await state.pipeline.find(await check_key(), collection)
            own: Permit = held.enter_context(state.pipeline.admitted(tenant))
            line = await written(await state.pipeline.answer(search, tenant, where), index=index)
            own.hold_answer(len(line))  # until the client has it
        except Exception as error:  # noqa: BLE001  (the request boundary: each search of a batch is one)
            line = orjson.dumps(
                {
                    "index": index,
                    "problem": orjson.loads(bytes(problem_response(error, "search:batch").body)),
                }
            )
        return line + b"\n", held.pop_all()


_Line = tuple[bytes, ExitStack]


def _give_back(task: "asyncio.Task[_Line]") -> None:
    if not task.cancelled():
        task.result()[1].close()
