"""/v1/admin: what operators do.

Operator keys only; every change leaves an audit record (law 10).
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from indexer import reindex_jobs
from ingest.embedding.check import described
from query.api.collections import FIELDS, create_for, facts, facts_of, update_for
from query.api.http import (
    answer,
    authenticate,
    check_confirmed,
    integer,
    json_object,
    name_in,
    number,
    state_of,
    typed,
)
from query.freshness_report import freshness_report
from query.state import GatewayState
from tenants import growth, provisioning, resuming
from tenants.entities import EmbeddingModel, Job, Key, Tenant
from tenants.models import WINDOW_MIN, check_entry
from vicinage.errors import Conflict, Refused
from vicinage.partition_maps import PARTITIONS_MAX

router = APIRouter(prefix="/v1/admin")
EXPIRES_S_MAX: Final = 10 * 365 * 86_400


async def _operator(request: Request) -> tuple[GatewayState, str]:
    principal = await authenticate(request, "operate")
    state = state_of(request)
    await run_in_threadpool(state.registry.refresh)
    return state, f"operator/{principal.key_id}"


@router.post("/tenants", status_code=201, response_model=None)
async def create_tenant(request: Request) -> Response:
    """Creates a tenant with its topics and a first key (read and write), which is shown once."""
    state, actor = await _operator(request)
    value = await json_object(request, frozenset({"name", "class"}))
    name = typed(value, "name", str, "the tenant's name", needed=True)
    priority: Any = typed(value, "class", str, "gold, silver or bronze") or "silver"

    def make() -> tuple[Tenant, str]:
        tenant = provisioning.create_tenant(
            state.registry,
            state.log,
            name,
            priority=priority,
            partitions=state.limits.partitions,
            actor=actor,
        )
        return tenant, state.keys.create(name, {"read", "write"}, actor=actor)[1]

    tenant, key = await run_in_threadpool(make)
    return answer(
        {
            "tenant": tenant.name,
            "class": tenant.priority,
            "key": key,
            "topic": tenant.documents_topic,
        },
        201,
    )


@router.get("/tenants", response_model=None)
async def list_tenants(request: Request) -> Response:
    """Returns all tenants."""
    state, _ = await _operator(request)
    names: dict[str, list[str]] = {}
    for c in state.registry.collections():
        names.setdefault(c.tenant, []).append(c.name)
    return answer([_tenant(t, names.get(t.name, [])) for t in state.registry.tenants()])


@router.get("/tenants/{tenant}", response_model=None)
async def show_tenant(tenant: str, request: Request) -> Response:
    """Returns one tenant."""
    state, _ = await _operator(request)
    return answer(_shown(state, state.registry.tenant(tenant)))


@router.patch("/tenants/{tenant}", response_model=None)
async def update_tenant(tenant: str, request: Request) -> Response:
    """Changes a tenant's class: `{"class": "gold"}`."""
    state, actor = await _operator(request)
    value = await json_object(request, frozenset({"class"}))
    priority: Any = typed(value, "class", str, "gold, silver or bronze", needed=True)
    changed = await run_in_threadpool(
        state.registry.set_tenant_class, tenant, priority, actor=actor
    )
    return answer(_shown(state, changed))


@router.post("/tenants/{tenant}/suspend", response_model=None)
async def suspend_tenant(tenant: str, request: Request) -> Response:
    """Suspends a tenant: refuses its keys and pauses its topic; nothing is lost."""
    state, actor = await _operator(request)
    return answer(
        _shown(state, await run_in_threadpool(state.registry.suspend_tenant, tenant, actor=actor))
    )


@router.post("/tenants/{tenant}/resume", response_model=None)
async def resume_tenant(tenant: str, request: Request) -> Response:
    """Ends a suspension."""
    state, actor = await _operator(request)
    return answer(
        _shown(state, await run_in_threadpool(state.registry.resume_tenant, tenant, actor=actor))
    )


@router.post("/tenants/{tenant}/resume-ingest", response_model=None)
async def resume_ingest(tenant: str, request: Request) -> Response:
    """Resumes halted partitions and returns what that skips; with `dry_run`, changes nothing."""
    state, actor = await _operator(request)
    value = await json_object(request, frozenset({"dry_run"}))
    found = state.registry.tenant(tenant)
    if typed(value, "dry_run", bool, "true: change nothing"):
        plan = await run_in_threadpool(resuming.plan, state.log, state.registry, found)
    else:
        plan = await run_in_threadpool(
            partial(resuming.apply, state.log, state.registry, found, actor=actor)
        )
    return answer(resuming.facts(plan))


@router.post("/tenants/{tenant}/partitions", response_model=None)
async def set_partitions(tenant: str, request: Request) -> Response:
    """Adds partitions to the tenant's documents topic; with `dry_run`, returns what share of documents changes partition."""
    state, actor = await _operator(request)
    value = await json_object(request, frozenset({"partitions", "dry_run"}))
    if "partitions" not in value:
        raise Refused(
            "partitions is missing: how many the documents topic is to have", field="partitions"
        )
    wanted = integer(value, "partitions", 1, PARTITIONS_MAX, 1)
    run = (
        growth.plan
        if typed(value, "dry_run", bool, "true: change nothing")
        else growth.set_partitions
    )
    found = state.registry.tenant(tenant)
    planned = await run_in_threadpool(
        partial(run, state.registry, state.log, found, wanted, actor=actor)
    )
    return answer(asdict(planned))


@router.delete("/tenants/{tenant}", response_model=None)
async def delete_tenant(tenant: str, request: Request) -> Response:
    """Deletes a tenant, its collections and its topics; `?confirm=` must repeat its name.

    The name cannot be used again.
    """
    state, actor = await _operator(request)
    state.registry.tenant(tenant)
    check_confirmed(request, tenant)
    await run_in_threadpool(
        provisioning.delete_tenant, state.registry, state.log, tenant, actor=actor
    )
    return answer({"deleted": tenant})


def _shown(state: GatewayState, tenant: Tenant) -> dict[str, Any]:
    return _tenant(tenant, [c.name for c in state.registry.collections(tenant.name)])


def _tenant(tenant: Tenant, collections: list[str]) -> dict[str, Any]:
    return {
        "tenant": tenant.name,
        "class": tenant.priority,
        "state": tenant.state,
        "collections": collections,
        "topic": tenant.documents_topic,
        "created_ms": tenant.created_ms,
    }


@router.post("/keys", status_code=201, response_model=None)
async def create_key(request: Request) -> Response:
    """Creates a key, which is shown once: of a tenant (scopes read, write) or of an operator (tenant null, scope operate)."""
    state, actor = await _operator(request)
    value = await json_object(request, frozenset({"tenant", "scopes", "expires_s"}))
    scopes = typed(value, "scopes", list, "a list of scopes", needed=True)
    if not all(isinstance(s, str) for s in scopes):
        raise Refused("scopes is a list of strings", field="scopes")
    expires_s = integer(value, "expires_s", 1, EXPIRES_S_MAX, 0)
    expires_ms = state.clock.now_ms() + expires_s * 1000 if expires_s else None
    tenant = typed(value, "tenant", str, "a tenant's name")
    key, text = await run_in_threadpool(
        state.keys.create, tenant, scopes, expires_ms=expires_ms, actor=actor
    )
    return answer({**_key(key), "key": text}, 201)


@router.get("/keys", response_model=None)
async def list_keys(request: Request) -> Response:
    """Returns keys without their secrets, of one tenant or of all."""
    state, _ = await _operator(request)
    tenant = _known_tenant(state, request)
    return answer([_key(k) for k in await run_in_threadpool(state.keys.list, tenant)])


def _known_tenant(state: GatewayState, request: Request) -> str | None:
    """Returns the tenant that the query names, if any.

    Raises NotFound where there is none of that name.
    """
    name = name_in(request.query_params.get("tenant"))
    if name is not None and state.registry.deleted_tenant(name) is None:
        state.registry.tenant(name)
    return name


@router.delete("/keys/{key_id}", response_model=None)
async def revoke_key(key_id: str, request: Request) -> Response:
    """Revokes a key; within a second it is valid nowhere."""
    state, actor = await _operator(request)
    return answer(_key(await run_in_threadpool(state.keys.revoke, name_in(key_id), actor=actor)))


def _key(key: Key) -> dict[str, Any]:
    return {**asdict(key), "scopes": sorted(key.scopes)}


@router.post("/tenants/{tenant}/collections", status_code=201, response_model=None)
async def create_collection(tenant: str, request: Request) -> Response:
    """Creates a collection for a tenant."""
    state, actor = await _operator(request)
    made = await run_in_threadpool(
        create_for, state, tenant, await json_object(request, FIELDS), actor
    )
    return answer(await facts(state, made), 201)


@router.get("/collections", response_model=None)
async def list_collections(request: Request) -> Response:
    """Returns the collections of one tenant or of all, with what each holds."""
    state, _ = await _operator(request)
    tenant = _known_tenant(state, request)
    return answer(await facts_of(state, state.registry.collections(tenant), tenant))


@router.get("/tenants/{tenant}/collections/{collection}", response_model=None)
async def show_collection(tenant: str, collection: str, request: Request) -> Response:
    """Returns one collection."""
    state, _ = await _operator(request)
    return answer(await facts(state, state.registry.collection(tenant, collection)))


@router.patch("/tenants/{tenant}/collections/{collection}", response_model=None)
async def update_collection(tenant: str, collection: str, request: Request) -> Response:
    """Changes a collection's objectives; those that are not named stay."""
    state, actor = await _operator(request)
    value = await json_object(request, frozenset({"objectives"}))
    found = state.registry.collection(tenant, collection)
    return answer(
        await facts(state, await run_in_threadpool(update_for, state, found, value, actor))
    )


@router.delete("/tenants/{tenant}/collections/{collection}", response_model=None)
async def delete_collection(tenant: str, collection: str, request: Request) -> Response:
    """Deletes a collection with all its documents; `?confirm=` must repeat its name."""
    state, actor = await _operator(request)
    state.registry.collection(tenant, collection)
    check_confirmed(request, collection)
    await run_in_threadpool(state.registry.delete_collection, tenant, collection, actor=actor)
    return answer({"deleted": collection})


@router.get("/models", response_model=None)
async def list_models(request: Request) -> Response:
    """Returns the model registry."""
    state, _ = await _operator(request)
    return answer([asdict(m) for m in state.registry.models()])


MODEL_FIELDS: Final = frozenset(
    {
        "name",
        "kind",
        "location",
        "dimension",
        "window_tokens",
        "normalized",
        "query_prompt",
        "document_prompt",
        "check",
    }
)


@router.post("/models", status_code=201, response_model=None)
async def register_model(request: Request) -> Response:
    """Adds a model to the registry: `kind` local (files) or openai (a server that speaks its API).

    Entries never change.

    What is not given is read from a local model's files. The model is loaded, or its server called,
    unless `check` is false.
    """
    state, actor = await _operator(request)
    value = await json_object(request, MODEL_FIELDS)
    given = {
        "name": typed(value, "name", str, "the model's name", needed=True),
        "kind": typed(value, "kind", str, "local or openai", needed=True),
        "location": typed(
            value, "location", str, "package:MODULE, a path, or a server's base URL", needed=True
        ),
        "dimension": typed(value, "dimension", int, "the length of its vectors"),
        "window_tokens": typed(
            value, "window_tokens", int, "the longest input that it reads, in tokens"
        ),
        "normalized": typed(value, "normalized", bool, "whether its vectors are made unit length"),
        "query_prompt": typed(value, "query_prompt", str, "the text before a search text"),
        "document_prompt": typed(value, "document_prompt", str, "the text before a passage"),
    }
    checked = typed(value, "check", bool, "whether the model is tried first") is not False
    made = await run_in_threadpool(_registered, state, given, checked=checked, actor=actor)
    return answer(asdict(made), 201)


def _registered(
    state: GatewayState, given: Mapping[str, Any], *, checked: bool, actor: str
) -> EmbeddingModel:
    check_entry(EmbeddingModel(given["name"], given["kind"], given["location"], 1, WINDOW_MIN))
    if any(m.name == given["name"] for m in state.registry.models()):
        raise Conflict(f"model {given['name']!r} exists already; entries never change")
    model = described(given)
    check_entry(model)
    if checked:
        state.check_model(model)
    registered: EmbeddingModel = state.registry.register_model(model, actor=actor)
    return registered


@router.post("/models/{name:path}/retire", response_model=None)
async def retire_model(name: str, request: Request) -> Response:
    """Retires a model: no new collection or generation may use it. 409 while one that receives writes does."""
    state, actor = await _operator(request)
    return answer(asdict(await run_in_threadpool(state.registry.retire_model, name, actor=actor)))


@router.get("/audit", response_model=None)
async def list_audit(request: Request) -> Response:
    """Returns audit records, oldest first; continue with `?after=` the last `seq`."""
    state, _ = await _operator(request)
    after = number(request.query_params.get("after"), "after", 0, 2**53, 0)
    limit = number(request.query_params.get("limit"), "limit", 1, 1_000, 100)
    records = await run_in_threadpool(state.audit.records, after=after, limit=limit)
    return answer([asdict(r) for r in records])


@router.post("/audit/verify", response_model=None)
async def verify_audit(request: Request) -> Response:
    """Verifies the chain and, with the audit key, each MAC; with `{"seq", "hash"}` also that it contains that record."""
    state, _ = await _operator(request)
    value = await json_object(request, frozenset({"seq", "hash"}))
    digest = typed(value, "hash", str, "the hash of the record that was kept")
    kept = None if digest is None else (integer(value, "seq", 1, 2**53, 1), digest)
    found = await run_in_threadpool(state.audit.verify, kept)
    return answer(
        {
            "records": found.seq,
            "compared": kept is not None,
            "checked": found.checked,
            **asdict(found),
        }
    )


@router.post("/reindex", status_code=202, response_model=None)
async def start_reindex(request: Request) -> Response:
    """Starts a reindex: builds a collection's next generation beside the live one."""
    state, actor = await _operator(request)
    value = await json_object(
        request, frozenset({"tenant", "collection", "index", "model", "shards"})
    )
    job = await run_in_threadpool(
        reindex_jobs.start,
        state.registry,
        state.jobs,
        typed(value, "tenant", str, "a tenant's name", needed=True),
        typed(value, "collection", str, "a collection's name", needed=True),
        index=typed(value, "index", str, "an index spec") or "",
        model=typed(value, "model", str, "a model's name"),
        shards=integer(value, "shards", 1, state.slots_total, 0),
        actor=actor,
    )
    return answer(_job(job), 202)


@router.get("/reindex", response_model=None)
async def list_reindex(request: Request) -> Response:
    """Returns reindex jobs, oldest first."""
    state, _ = await _operator(request)
    return answer(
        [
            _job(j)
            for j in await run_in_threadpool(
                state.jobs.list, name_in(request.query_params.get("tenant"))
            )
        ]
    )


@router.get("/reindex/{job_id}", response_model=None)
async def show_reindex(job_id: str, request: Request) -> Response:
    """Returns one job."""
    state, _ = await _operator(request)
    return answer(_job(await run_in_threadpool(state.jobs.get, name_in(job_id))))


@router.post("/reindex/{job_id}/cancel", response_model=None)
async def cancel_reindex(job_id: str, request: Request) -> Response:
    """Cancels a job that has not cut over."""
    state, actor = await _operator(request)
    job = await run_in_threadpool(
        reindex_jobs.cancel, state.registry, state.jobs, name_in(job_id), actor=actor
    )
    return answer(_job(job))


def _job(job: Job) -> dict[str, Any]:
    return {
        name: value
        for name, value in asdict(job).items()
        if name not in ("barrier", "version", "uid")
    }


@router.get("/capacity", response_model=None)
async def capacity(request: Request) -> Response:
    """Returns what every tenant and collection holds, and what is left."""
    state, _ = await _operator(request)
    return answer(await state.measure_capacity(state.searchers))


@router.get("/freshness", response_model=None)
async def freshness(request: Request) -> Response:
    """Returns per tenant: freshness lag, percentiles of recent index lags, and what waits for a model.

    An index lag is the time at which a message was searchable minus its event time.
    """
    state, _ = await _operator(request)
    return answer(await freshness_report(state, _known_tenant(state, request)))


@router.get("/recall", response_model=None)
async def recall(request: Request) -> Response:
    """Returns for each collection the recall measured on sampled live searches, with interval, n, target and verdict."""
    state, _ = await _operator(request)
    targets = {(c.tenant, c.name): c.objectives.recall for c in state.registry.collections()}
    tenant, collection = _known_tenant(state, request), request.query_params.get("collection")
    if tenant is not None and collection is not None:
        state.registry.collection(tenant, collection)
    return answer(state.recall.report(targets, tenant, collection))
