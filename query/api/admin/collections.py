"""Any tenant's collections, for operators."""

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from query.api.admin.operator import known_tenant, operator
from query.api.collections import FIELDS, create_for, facts, facts_of, update_for
from query.api.http import answer, check_confirmed, json_object
from query.api.models.admin import TenantParameters
from query.api.models.collections import (
    CollectionFacts,
    ConfirmParameters,
    CreateCollectionRequest,
    DeletedAnswer,
    UpdateCollectionRequest,
)
from query.api.operations import list_of, operation

router = APIRouter(prefix="/v1/admin")


@router.post(
    "/tenants/{tenant}/collections",
    status_code=201,
    response_model=None,
    openapi_extra=operation(
        "createTenantCollection",
        "Collections",
        "operate",
        body=CreateCollectionRequest,
        answers={201: CollectionFacts},
        errors=(404, 409),
    ),
)
async def create_collection(tenant: str, request: Request) -> Response:
    """Creates a collection for a tenant."""
    state, actor = await operator(request)
    made = await run_in_threadpool(
        create_for, state, tenant, await json_object(request, FIELDS), actor
    )
    return answer(await facts(state, made), 201)


@router.get(
    "/collections",
    response_model=None,
    openapi_extra=operation(
        "listAllCollections",
        "Collections",
        "operate",
        query=TenantParameters,
        answers={200: list_of(CollectionFacts)},
        errors=(404,),
    ),
)
async def list_collections(request: Request) -> Response:
    """Returns the collections of one tenant or of all, with what each holds."""
    state, _ = await operator(request)
    tenant = known_tenant(state, request)
    return answer(await facts_of(state, state.registry.collections(tenant), tenant))


@router.get(
    "/tenants/{tenant}/collections/{collection}",
    response_model=None,
    openapi_extra=operation(
        "getTenantCollection",
        "Collections",
        "operate",
        answers={200: CollectionFacts},
        errors=(404,),
    ),
)
async def show_collection(tenant: str, collection: str, request: Request) -> Response:
    """Returns one collection."""
    state, _ = await operator(request)
    return answer(await facts(state, state.registry.collection(tenant, collection)))


@router.patch(
    "/tenants/{tenant}/collections/{collection}",
    response_model=None,
    openapi_extra=operation(
        "updateTenantCollection",
        "Collections",
        "operate",
        body=UpdateCollectionRequest,
        answers={200: CollectionFacts},
        errors=(404,),
    ),
)
async def update_collection(tenant: str, collection: str, request: Request) -> Response:
    """Changes a collection's objectives; those that are not named stay."""
    state, actor = await operator(request)
    value = await json_object(request, frozenset({"objectives"}))
    found = state.registry.collection(tenant, collection)
    return answer(
        await facts(state, await run_in_threadpool(update_for, state, found, value, actor))
    )


@router.delete(
    "/tenants/{tenant}/collections/{collection}",
    response_model=None,
    openapi_extra=operation(
        "deleteTenantCollection",
        "Collections",
        "operate",
        query=ConfirmParameters,
        answers={200: DeletedAnswer},
        errors=(404,),
    ),
)
async def delete_collection(tenant: str, collection: str, request: Request) -> Response:
    """Deletes a collection with all its documents; `confirm` must repeat its name."""
    state, actor = await operator(request)
    state.registry.collection(tenant, collection)
    check_confirmed(request, collection)
    await run_in_threadpool(state.registry.delete_collection, tenant, collection, actor=actor)
    return answer({"deleted": collection})
