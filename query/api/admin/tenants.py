"""Tenants: create, list, change, suspend, resume and delete."""

from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from query.api.admin.operator import operator
from query.api.http import answer, check_confirmed, integer, json_object, typed
from query.api.models.admin import (
    CreatedTenant,
    CreateTenantRequest,
    DryRunRequest,
    GrowthPlan,
    ResumptionPlan,
    SetPartitionsRequest,
    TenantFacts,
    UpdateTenantRequest,
)
from query.api.models.collections import ConfirmParameters, DeletedAnswer
from query.api.operations import list_of, operation
from query.state import GatewayState
from tenants import growth, provisioning, resuming
from tenants.entities import Tenant
from vicinage.errors import Refused
from vicinage.partition_maps import PARTITIONS_MAX

router = APIRouter(prefix="/v1/admin")


@router.post(
    "/tenants",
    status_code=201,
    response_model=None,
    openapi_extra=operation(
        "createTenant",
        "Tenants",
        "operate",
        body=CreateTenantRequest,
        answers={201: CreatedTenant},
        errors=(409,),
    ),
)
async def create_tenant(request: Request) -> Response:
    """Creates a tenant with its topics and a first key (read and write), which is shown once."""
    state, actor = await operator(request)
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


@router.get(
    "/tenants",
    response_model=None,
    openapi_extra=operation(
        "listTenants", "Tenants", "operate", answers={200: list_of(TenantFacts)}
    ),
)
async def list_tenants(request: Request) -> Response:
    """Returns all tenants."""
    state, _ = await operator(request)
    names: dict[str, list[str]] = {}
    for c in state.registry.collections():
        names.setdefault(c.tenant, []).append(c.name)
    return answer([_tenant(t, names.get(t.name, [])) for t in state.registry.tenants()])


@router.get(
    "/tenants/{tenant}",
    response_model=None,
    openapi_extra=operation(
        "getTenant", "Tenants", "operate", answers={200: TenantFacts}, errors=(404,)
    ),
)
async def show_tenant(tenant: str, request: Request) -> Response:
    """Returns one tenant."""
    state, _ = await operator(request)
    return answer(_shown(state, state.registry.tenant(tenant)))


@router.patch(
    "/tenants/{tenant}",
    response_model=None,
    openapi_extra=operation(
        "updateTenant",
        "Tenants",
        "operate",
        body=UpdateTenantRequest,
        answers={200: TenantFacts},
        errors=(404,),
    ),
)
async def update_tenant(tenant: str, request: Request) -> Response:
    """Changes a tenant's class."""
    state, actor = await operator(request)
    value = await json_object(request, frozenset({"class"}))
    priority: Any = typed(value, "class", str, "gold, silver or bronze", needed=True)
    changed = await run_in_threadpool(
        state.registry.set_tenant_class, tenant, priority, actor=actor
    )
    return answer(_shown(state, changed))


@router.post(
    "/tenants/{tenant}/suspend",
    response_model=None,
    openapi_extra=operation(
        "suspendTenant", "Tenants", "operate", answers={200: TenantFacts}, errors=(404,)
    ),
)
async def suspend_tenant(tenant: str, request: Request) -> Response:
    """Suspends a tenant: refuses its keys and pauses its topic; nothing is lost."""
    state, actor = await operator(request)
    return answer(
        _shown(state, await run_in_threadpool(state.registry.suspend_tenant, tenant, actor=actor))
    )


@router.post(
    "/tenants/{tenant}/resume",
    response_model=None,
    openapi_extra=operation(
        "resumeTenant", "Tenants", "operate", answers={200: TenantFacts}, errors=(404,)
    ),
)
async def resume_tenant(tenant: str, request: Request) -> Response:
    """Ends a suspension."""
    state, actor = await operator(request)
    return answer(
        _shown(state, await run_in_threadpool(state.registry.resume_tenant, tenant, actor=actor))
    )


@router.post(
    "/tenants/{tenant}/resume-ingest",
    response_model=None,
    openapi_extra=operation(
        "resumeIngest",
        "Tenants",
        "operate",
        body=DryRunRequest,
        body_required=False,
        answers={200: ResumptionPlan},
        errors=(404, 409),
    ),
)
async def resume_ingest(tenant: str, request: Request) -> Response:
    """Resumes halted partitions and returns what that skips; with `dry_run`, changes nothing."""
    state, actor = await operator(request)
    value = await json_object(request, frozenset({"dry_run"}))
    found = state.registry.tenant(tenant)
    if typed(value, "dry_run", bool, "true: change nothing"):
        plan = await run_in_threadpool(resuming.plan, state.log, state.registry, found)
    else:
        plan = await run_in_threadpool(
            partial(resuming.apply, state.log, state.registry, found, actor=actor)
        )
    return answer(resuming.facts(plan))


@router.post(
    "/tenants/{tenant}/partitions",
    response_model=None,
    openapi_extra=operation(
        "setPartitions",
        "Tenants",
        "operate",
        body=SetPartitionsRequest,
        answers={200: GrowthPlan},
        errors=(404, 409),
    ),
)
async def set_partitions(tenant: str, request: Request) -> Response:
    """Adds partitions to the tenant's documents topic.

    The answer states the share of documents whose partition changes; with `dry_run`, nothing else
    happens.
    """
    state, actor = await operator(request)
    value = await json_object(request, frozenset({"partitions", "dry_run"}))
    if value.get("partitions") is None:
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


@router.delete(
    "/tenants/{tenant}",
    response_model=None,
    openapi_extra=operation(
        "deleteTenant",
        "Tenants",
        "operate",
        query=ConfirmParameters,
        answers={200: DeletedAnswer},
        errors=(404,),
    ),
)
async def delete_tenant(tenant: str, request: Request) -> Response:
    """Deletes a tenant, its collections and its topics; `confirm` must repeat its name.

    The name cannot be used again.
    """
    state, actor = await operator(request)
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
