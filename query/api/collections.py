"""A tenant's collections: create, list, read, change and delete."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from query.api.bounds import (
    FRESHNESS_MS_MAX,
    LATENCY_MS_MAX,
    RECALL_MAX,
    RECALL_MIN,
    TIMEOUT_MS_MAX,
)
from query.api.http import (
    answer,
    authenticate,
    check_confirmed,
    integer,
    json_object,
    number,
    state_of,
    typed,
    unknown_in,
    unless_gone,
)
from query.api.index_facts import search_facts
from query.api.models.collections import (
    CollectionFacts,
    CollectionsAnswer,
    ConfirmParameters,
    CreateCollectionRequest,
    DeletedAnswer,
    UpdateCollectionRequest,
)
from query.api.models.search import WaitTimeoutParameters
from query.api.operations import operation
from query.api.search_request import token_of
from query.api.sending import joined, sent
from query.state import GatewayState
from query.waiting import for_tenant, waiting
from tenants import provisioning
from tenants.entities import Collection, Objectives
from vicinage.clock import Deadline
from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.records import ShardId
from vicinage.stats import ShardStats

router = APIRouter()
FACTS_AT_ONCE: Final = 32
OBJECTIVES: Final = frozenset({"recall", "freshness_ms", "latency_ms"})
FIELDS: Final = frozenset({"name", "model", "dimension", "metric", "index", "shards", "objectives"})


@router.post(
    "/v1/collections",
    status_code=201,
    response_model=None,
    openapi_extra=operation(
        "createCollection",
        "Collections",
        "write",
        body=CreateCollectionRequest,
        answers={201: CollectionFacts},
        errors=(404, 409),
    ),
)
async def create(request: Request) -> Response:
    """Creates a collection with an embedding model or a dimension, a metric and objectives."""
    principal = await authenticate(request, "write")
    if principal.tenant is None:
        raise NotFound("an operator's key has no collections; use /v1/admin")
    state = state_of(request)
    with state.pipeline.admitted(state.registry.tenant(principal.tenant)) as permit:
        value = await json_object(request, FIELDS, permit)
        made = await run_in_threadpool(create_for, state, principal.tenant, value, principal.key_id)
    return answer(await facts(state, made), 201)


def create_for(
    state: GatewayState, tenant: str, value: Mapping[str, Any], actor: str
) -> Collection:
    """Creates the collection that a request body describes. Raises Refused, Conflict."""
    return provisioning.create_collection(
        state.registry,
        state.log,
        tenant,
        typed(value, "name", str, "the collection's name", needed=True),
        model=typed(value, "model", str, "a model's name"),
        dimension=typed(value, "dimension", int, "the length of a vector"),
        metric=typed(value, "metric", str, "cosine, dot or euclidean") or "cosine",
        index=typed(value, "index", str, "an index spec") or "auto",
        shards=integer(value, "shards", 1, state.slots_total, 1),
        objectives=objectives_of(value),
        slots_total=state.slots_total,
        actor=actor,
    )


def objectives_of(value: Mapping[str, Any], otherwise: Objectives | None = None) -> Objectives:
    """Returns the objectives named, and for the others those of `otherwise`, else the defaults.

    Raises Refused.
    """
    given = typed(value, "objectives", dict, "an object") or {}
    if (unknown := unknown_in(given, OBJECTIVES)) is not None:
        raise Refused(
            f"unknown objective {unknown!r}; there are recall, freshness_ms, latency_ms",
            field="objectives",
        )
    within = f"from {RECALL_MIN} to {RECALL_MAX}"
    recall = typed(given, "recall", (int, float), f"a number {within}")
    if recall is not None and not RECALL_MIN <= recall <= RECALL_MAX:
        raise Refused(f"objectives.recall goes {within}", field="objectives.recall")
    defaults = otherwise or Objectives()
    return Objectives(
        float(recall if recall is not None else defaults.recall),
        integer(given, "freshness_ms", 1, FRESHNESS_MS_MAX, defaults.freshness_ms),
        integer(given, "latency_ms", 1, LATENCY_MS_MAX, defaults.latency_ms),
    )


@router.get(
    "/v1/collections",
    response_model=None,
    openapi_extra=operation(
        "listCollections", "Collections", "read", answers={200: CollectionsAnswer}, errors=(504,)
    ),
)
async def list_all(request: Request) -> Response:
    """Returns the tenant's collections, with what each holds."""
    principal = await authenticate(request, "read")
    state = state_of(request)
    await run_in_threadpool(state.registry.refresh)
    if not principal.tenant:
        return answer({"collections": []})
    tenant = state.registry.tenant(principal.tenant)
    with ExitStack() as held:
        permit = held.enter_context(state.pipeline.admitted(tenant))
        deadline = Deadline.after(state.settings.timeout_ms / 1000)
        async with state.fetches.take(tenant.context, deadline):
            collections = state.registry.collections(principal.tenant)
            known = await _measured(state, collections, principal.tenant)
            async with state.turns.take(tenant.context, deadline):
                found = await _described(state, collections, known)
                data = await joined(
                    (orjson.dumps(each) for each in found), first=b'{"collections":[', last=b"]}"
                )
        return sent(data, permit, held)


@router.get(
    "/v1/collections/{collection}",
    response_model=None,
    openapi_extra=operation(
        "getCollection",
        "Collections",
        "read",
        query=WaitTimeoutParameters,
        answers={200: CollectionFacts},
        errors=(404, 504),
    ),
)
async def show(collection: str, request: Request) -> Response:
    """Returns counts, freshness lag, measured recall, generation and index of a collection.

    `wait_for` (a token, or `latest`) waits until that write is searchable. After `timeout_ms`, the
    answer is 504 with `ahead`.
    """
    principal = await authenticate(request, "read")
    state = state_of(request)
    tenant, found = await state.pipeline.find(principal, collection)
    token = token_of(request.query_params.get("wait_for"))
    timeout_ms = number(
        request.query_params.get("timeout_ms"),
        "timeout_ms",
        1,
        TIMEOUT_MS_MAX,
        state.settings.timeout_ms,
    )
    with state.pipeline.admitted(tenant):
        if token is not None:
            deadline = Deadline.after(timeout_ms / 1000)
            found = await unless_gone(request, state.pipeline.reach(token, tenant, found, deadline))
        return answer(await facts(state, found))


@router.patch(
    "/v1/collections/{collection}",
    response_model=None,
    openapi_extra=operation(
        "updateCollection",
        "Collections",
        "write",
        body=UpdateCollectionRequest,
        answers={200: CollectionFacts},
        errors=(404,),
    ),
)
async def update(collection: str, request: Request) -> Response:
    """Changes a collection's objectives; those that are not named stay."""
    principal = await authenticate(request, "write")
    state = state_of(request)
    tenant, found = await state.pipeline.find(principal, collection)
    with state.pipeline.admitted(tenant) as permit:
        value = await json_object(request, frozenset({"objectives"}), permit)
        changed = await run_in_threadpool(update_for, state, found, value, principal.key_id)
        return answer(await facts(state, changed))


def update_for(
    state: GatewayState, collection: Collection, value: Mapping[str, Any], actor: str
) -> Collection:
    """Makes the change that a request body describes. Raises Refused, NotFound."""
    typed(value, "objectives", dict, "an object with at least one objective", needed=True)
    objectives = objectives_of(value, collection.objectives)
    changed: Collection = state.registry.set_objectives(
        collection.tenant, collection.name, objectives, actor=actor
    )
    return changed


@router.delete(
    "/v1/collections/{collection}",
    status_code=202,
    response_model=None,
    openapi_extra=operation(
        "deleteCollection",
        "Collections",
        "write",
        query=ConfirmParameters,
        answers={202: DeletedAnswer},
        errors=(404,),
    ),
)
async def delete(collection: str, request: Request) -> Response:
    """Deletes a collection with all its documents; `confirm` must repeat its name."""
    principal = await authenticate(request, "write")
    state = state_of(request)
    tenant, _ = await state.pipeline.find(principal, collection)
    check_confirmed(request, collection)
    with state.pipeline.admitted(tenant):
        await run_in_threadpool(
            state.registry.delete_collection, tenant.name, collection, actor=principal.key_id
        )
    return answer({"deleted": collection}, 202)


async def facts(state: GatewayState, collection: Collection) -> dict[str, Any]:
    """Returns the facts of a collection: what was set, and what was measured.

    Loads the collection to count it.
    """
    return (await facts_of(state, [collection], collection.tenant, collection.name))[0]


async def facts_of(
    state: GatewayState,
    collections: Sequence[Collection],
    tenant: str | None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Returns the facts of many collections, of one tenant or of all; each searcher is asked once.

    Documents of a shard that is not in memory are counted from its segments.
    """
    return await _described(state, collections, await _measured(state, collections, tenant, name))


Waits = Mapping[tuple[str, str], Sequence[Mapping[str, object]]]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Facts of collections from the searchers, the log and the catalog.

    `lags_ms` is in the collections' order.
    """

    held: Mapping[ShardId, ShardStats]
    lags_ms: Sequence[int | None]
    waits: Waits | None


async def _measured(
    state: GatewayState,
    collections: Sequence[Collection],
    tenant: str | None,
    name: str | None = None,
) -> _Measured:
    slots = {slot for c in collections for slot in c.generation().slots}
    stats = await state.searchers.stats(tenant, name, slots=slots)
    watermarks = {slot: at for each in stats for slot, at in each.watermarks.items()}
    waits = await _waits(state, tenant, name)
    lags_ms = await _lags(state, collections, watermarks)
    return _Measured({s.shard: s for each in stats for s in each.shards}, lags_ms, waits)


async def _described(
    state: GatewayState, collections: Sequence[Collection], known: _Measured
) -> list[dict[str, Any]]:
    """Returns each collection's facts.

    Waits for nothing, and yields to other requests every FACTS_AT_ONCE.
    """
    found: list[dict[str, Any]] = []
    for collection, lag_ms in zip(collections, known.lags_ms, strict=True):
        found.append(_facts(state, collection, known.held, lag_ms, known.waits))
        if len(found) % FACTS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return found


async def _lags(
    state: GatewayState, collections: Sequence[Collection], watermarks: Mapping[int, int]
) -> list[int | None]:
    """Returns the freshness lag of each collection; each tenant's log is read once."""
    of_tenant: dict[str, list[Collection]] = {}
    for c in collections:
        of_tenant.setdefault(c.tenant, []).append(c)
    lags: dict[tuple[str, str], int | None] = {}
    for name, own in of_tenant.items():
        generations = [c.generation() for c in own]
        slots = {slot for g in generations for slot in g.slots}
        here = {slot: at for slot, at in watermarks.items() if slot in slots}
        found = await state.freshness.lags_ms(state.registry.tenant(name), generations, here)
        lags |= {(name, c.name): lag for c, lag in zip(own, found, strict=True)}
    return [lags[c.tenant, c.name] for c in collections]


async def _waits(state: GatewayState, tenant: str | None, name: str | None) -> Waits | None:
    """Returns waits for a model, by tenant and collection; None if log or catalog is away."""
    try:
        found = await run_in_threadpool(waiting, state.registry, state.log, tenant, name)
    except Unavailable:
        return None
    by_name: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for fact in found:
        by_name.setdefault((fact["tenant"], fact["collection"]), []).append(for_tenant(fact))
    return by_name


def _facts(
    state: GatewayState,
    collection: Collection,
    held: Mapping[ShardId, ShardStats],
    lag_ms: int | None,
    waits: Waits | None,
) -> dict[str, Any]:
    live = collection.generation()
    shards = [held[s] for s in live.shards() if s in held]
    return {
        "tenant": collection.tenant,
        "name": collection.name,
        "model": live.model,
        "dimension": live.dimension,
        "metric": live.metric,
        "objectives": {
            "recall": collection.objectives.recall,
            "freshness_ms": collection.objectives.freshness_ms,
            "latency_ms": collection.objectives.latency_ms,
        },
        "counts": {
            "documents": sum(s.documents for s in shards),
            "passages": sum(s.passages for s in shards),
            "at_least": len(shards) < len(live.slots) or not all(s.exact for s in shards),
        },
        "shards": {"asked": len(live.slots), "answered": len(shards)},
        "freshness": {
            "lag_ms": lag_ms,
            "waiting": None
            if waits is None
            else waits.get((collection.tenant, collection.name), []),
        },
        "recall": state.recall.of(collection),
        "generation": live.number,
        "building": [g.number for g in collection.generations if g.number != live.number],
        "index": {
            "spec": live.index,
            "kinds": sorted({k for s in shards for k in s.kinds}),
            "segments": sum(s.segments for s in shards),
            "delta_passages": sum(s.delta_passages for s in shards),
            "host_bytes": sum(s.host_bytes for s in shards),
            "resident": all(s.resident for s in shards),
            **search_facts(shards, state.recall.proof(collection)),
        },
    }
