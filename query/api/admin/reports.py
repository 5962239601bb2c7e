"""Reports over all tenants: capacity, freshness and recall."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from query.api.admin.operator import known_tenant, operator
from query.api.http import answer
from query.api.models.admin import RecallParameters, TenantParameters
from query.api.models.collections import MeasuredRecall
from query.api.models.reports import CapacityReport, TenantFreshness
from query.api.operations import list_of, operation
from query.freshness_report import freshness_report

router = APIRouter(prefix="/v1/admin")


@router.get(
    "/capacity",
    response_model=None,
    openapi_extra=operation("getCapacity", "Reports", "operate", answers={200: CapacityReport}),
)
async def capacity(request: Request) -> Response:
    """Returns what every tenant and collection holds, and the headroom that is left."""
    state, _ = await operator(request)
    return answer(await state.measure_capacity(state.searchers))


@router.get(
    "/freshness",
    response_model=None,
    openapi_extra=operation(
        "getFreshness",
        "Reports",
        "operate",
        query=TenantParameters,
        answers={200: list_of(TenantFreshness)},
        errors=(404,),
    ),
)
async def freshness(request: Request) -> Response:
    """Returns each tenant's freshness lag, recent index lags, and waits for a model.

    An index lag is the time at which a message was searchable minus its event time.
    """
    state, _ = await operator(request)
    return answer(await freshness_report(state, known_tenant(state, request)))


@router.get(
    "/recall",
    response_model=None,
    openapi_extra=operation(
        "getRecall",
        "Reports",
        "operate",
        query=RecallParameters,
        answers={200: list_of(MeasuredRecall)},
        errors=(404,),
    ),
)
async def recall(request: Request) -> Response:
    """Returns the recall of each collection, measured on sampled live searches."""
    state, _ = await operator(request)
    targets = {(c.tenant, c.name): c.objectives.recall for c in state.registry.collections()}
    tenant, collection = known_tenant(state, request), request.query_params.get("collection")
    if tenant is not None and collection is not None:
        state.registry.collection(tenant, collection)
    return answer(state.recall.report(targets, tenant, collection))
