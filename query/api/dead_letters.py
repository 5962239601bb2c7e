"""Dead letters, for their tenant and for operators: list, read, replay and remove."""

from contextlib import AbstractAsyncContextManager, ExitStack
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ingest import dead_letters
from ingest.intake import divided_over
from ingest.replay import replay
from query.api.bounds import LIMIT_DEFAULT, LIMIT_MAX, OFFSET_MAX
from query.api.http import answer, authenticate, integer, json_object, number, state_of
from query.api.models.dead_letters import (
    DeadLetter,
    DeadLettersAnswer,
    PageParameters,
    PurgeAnswer,
    PurgeRequest,
    ReplayAnswer,
    ReplayRequest,
)
from query.api.operations import operation
from query.api.sending import joined, sent
from query.state import GatewayState
from query.turns import Turns
from tenants.entities import Scope, Tenant
from vicinage.clock import Deadline
from vicinage.errors import NotFound, Refused

router = APIRouter()


async def _own(request: Request, scope: Scope) -> tuple[GatewayState, Tenant, str]:
    principal = await authenticate(request, scope)
    state = state_of(request)
    if principal.tenant is None:
        raise NotFound(
            "an operator's key has no dead letters of its own; use /v1/admin/tenants/T/dead-letters"
        )
    return state, state.registry.tenant(principal.tenant), principal.key_id


async def _of(request: Request, tenant: str) -> tuple[GatewayState, Tenant, str]:
    principal = await authenticate(request, "operate")
    state = state_of(request)
    await run_in_threadpool(state.registry.refresh)
    return state, state.registry.tenant(tenant), f"operator/{principal.key_id}"


@router.get(
    "/v1/dead-letters",
    response_model=None,
    openapi_extra=operation(
        "listDeadLetters",
        "Dead letters",
        "read",
        query=PageParameters,
        answers={200: DeadLettersAnswer},
        errors=(404, 504),
    ),
)
async def letters(request: Request) -> Response:
    """Returns dead letters, oldest first; continue with `after`, the last position."""
    state, tenant, _ = await _own(request, "read")
    after, limit = _page(request)
    with ExitStack() as held:
        permit = held.enter_context(state.pipeline.admitted(tenant))
        async with _turn(state, state.fetches, tenant):
            found = await run_in_threadpool(
                dead_letters.read, state.log, tenant, after=after, limit=limit
            )
            last = orjson.dumps(found[-1]["position"] if found else None)
            pieces = (orjson.dumps(each) for each in found)
            async with _turn(state, state.turns, tenant):
                data = await joined(pieces, first=b'{"letters":[', last=b'],"next":' + last + b"}")
        return sent(data, permit, held)


@router.get(
    "/v1/dead-letters/{position}",
    response_model=None,
    openapi_extra=operation(
        "getDeadLetter", "Dead letters", "read", answers={200: DeadLetter}, errors=(404, 504)
    ),
)
async def letter(position: str, request: Request) -> Response:
    """Returns one letter, complete."""
    state, tenant, _ = await _own(request, "read")
    with state.pipeline.admitted(tenant):
        async with _turn(state, state.fetches, tenant):
            return await _one(position, state, tenant)


@router.post(
    "/v1/dead-letters:replay",
    status_code=202,
    response_model=None,
    openapi_extra=operation(
        "replayDeadLetters",
        "Dead letters",
        "write",
        body=ReplayRequest,
        body_required=False,
        answers={202: ReplayAnswer},
        errors=(404, 504),
    ),
)
async def replay_letters(request: Request) -> Response:
    """Writes the originals of letters again, as new records.

    A request replays a bounded number of letters. Continue with `from` set to the answer's `next`,
    and the same `to`, until `next` is null.
    """
    state, tenant, actor = await _own(request, "write")
    with state.pipeline.admitted(tenant):
        return await _replay(request, state, tenant, actor)


@router.post(
    "/v1/dead-letters:purge",
    response_model=None,
    openapi_extra=operation(
        "purgeDeadLetters",
        "Dead letters",
        "write",
        body=PurgeRequest,
        answers={200: PurgeAnswer},
        errors=(404, 504),
    ),
)
async def purge_letters(request: Request) -> Response:
    """Removes letters up to a position permanently."""
    state, tenant, actor = await _own(request, "write")
    with state.pipeline.admitted(tenant):
        return await _purge(request, state, tenant, actor)


@router.get(
    "/v1/admin/tenants/{tenant}/dead-letters",
    response_model=None,
    openapi_extra=operation(
        "listTenantDeadLetters",
        "Dead letters",
        "operate",
        query=PageParameters,
        answers={200: DeadLettersAnswer},
        errors=(404, 504),
    ),
)
async def letters_of(tenant: str, request: Request) -> Response:
    """Returns a tenant's dead letters, oldest first; continue with `after`, the last position."""
    state, found, _ = await _of(request, tenant)
    return await _list(request, state, found)


@router.get(
    "/v1/admin/tenants/{tenant}/dead-letters/{position}",
    response_model=None,
    openapi_extra=operation(
        "getTenantDeadLetter",
        "Dead letters",
        "operate",
        answers={200: DeadLetter},
        errors=(404, 504),
    ),
)
async def letter_of(tenant: str, position: str, request: Request) -> Response:
    """Returns one letter of a tenant, complete."""
    state, found, _ = await _of(request, tenant)
    return await _one(position, state, found)


@router.post(
    "/v1/admin/tenants/{tenant}/dead-letters:replay",
    status_code=202,
    response_model=None,
    openapi_extra=operation(
        "replayTenantDeadLetters",
        "Dead letters",
        "operate",
        body=ReplayRequest,
        body_required=False,
        answers={202: ReplayAnswer},
        errors=(404, 504),
    ),
)
async def replay_letters_of(tenant: str, request: Request) -> Response:
    """Writes the originals of a tenant's letters again, as new records."""
    state, found, actor = await _of(request, tenant)
    return await _replay(request, state, found, actor)


@router.post(
    "/v1/admin/tenants/{tenant}/dead-letters:purge",
    response_model=None,
    openapi_extra=operation(
        "purgeTenantDeadLetters",
        "Dead letters",
        "operate",
        body=PurgeRequest,
        answers={200: PurgeAnswer},
        errors=(404, 504),
    ),
)
async def purge_letters_of(tenant: str, request: Request) -> Response:
    """Removes a tenant's letters up to a position permanently."""
    state, found, actor = await _of(request, tenant)
    return await _purge(request, state, found, actor)


def _turn(state: GatewayState, turns: Turns, tenant: Tenant) -> AbstractAsyncContextManager[None]:
    """Returns the tenant's turn. Read the request's body before: a slow client must not hold it."""
    deadline = Deadline.after(state.settings.timeout_ms / 1000)
    return turns.take(tenant.context, deadline)


def _page(request: Request) -> tuple[int, int]:
    after = number(request.query_params.get("after"), "after", -1, OFFSET_MAX, -1)
    return after, number(request.query_params.get("limit"), "limit", 1, LIMIT_MAX, LIMIT_DEFAULT)


async def _list(request: Request, state: GatewayState, tenant: Tenant) -> Response:
    after, limit = _page(request)
    found = await run_in_threadpool(dead_letters.read, state.log, tenant, after=after, limit=limit)
    return answer({"letters": found, "next": found[-1]["position"] if found else None})


async def _one(position: str, state: GatewayState, tenant: Tenant) -> Response:
    at = number(position, "position", 0, OFFSET_MAX, 0)
    return answer(await run_in_threadpool(dead_letters.read_one, state.log, tenant, at))


async def _replay(request: Request, state: GatewayState, tenant: Tenant, actor: str) -> Response:
    value = await json_object(request, frozenset({"from", "to"}))
    first = integer(value, "from", 0, OFFSET_MAX, 0)
    last = integer(value, "to", 0, OFFSET_MAX, -1)

    def run() -> dict[str, Any]:
        n = divided_over(state.log, tenant, state.registry.partition_maps(tenant.name))
        done = replay(
            state.log,
            tenant,
            first,
            None if last < 0 else last,
            partitions=n,
            now_ms=state.clock.now_ms(),
        )
        state.registry.note(
            "dead_letters.replay", tenant.name, {"from": first, "replayed": done.replayed}, actor
        )
        token = str(done.token) if done.token else None
        counts = {"replayed": done.replayed, "skipped": done.skipped, "token": token}
        return {**counts, "to": done.last, "next": done.next}

    async with _turn(state, state.fetches, tenant):
        return answer(await run_in_threadpool(run), 202)


async def _purge(request: Request, state: GatewayState, tenant: Tenant, actor: str) -> Response:
    value = await json_object(request, frozenset({"to"}))
    if value.get("to") is None:
        raise Refused("to is missing: the last position that is removed", field="to")
    last = integer(value, "to", 0, OFFSET_MAX, 0)

    def run() -> dict[str, Any]:
        state.registry.note("dead_letters.purge", tenant.name, {"to": last}, actor)
        return {"purged": dead_letters.purge(state.log, tenant, last)}

    async with _turn(state, state.fetches, tenant):
        return answer(await run_in_threadpool(run))
