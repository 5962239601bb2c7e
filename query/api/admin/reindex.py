"""Reindex jobs: start, list and cancel."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from indexer import reindex_jobs
from query.api.admin.operator import operator
from query.api.http import answer, integer, json_object, name_in, typed
from query.api.models.admin import ReindexJob, StartReindexRequest, TenantParameters
from query.api.operations import list_of, operation
from tenants.entities import Job

router = APIRouter(prefix="/v1/admin")


@router.post(
    "/reindex",
    status_code=202,
    response_model=None,
    openapi_extra=operation(
        "startReindex",
        "Reindex",
        "operate",
        body=StartReindexRequest,
        answers={202: ReindexJob},
        errors=(404, 409),
    ),
)
async def start_reindex(request: Request) -> Response:
    """Starts a reindex: builds a collection's next generation beside the live one."""
    state, actor = await operator(request)
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


@router.get(
    "/reindex",
    response_model=None,
    openapi_extra=operation(
        "listReindexJobs",
        "Reindex",
        "operate",
        query=TenantParameters,
        answers={200: list_of(ReindexJob)},
        errors=(404,),
    ),
)
async def list_reindex(request: Request) -> Response:
    """Returns reindex jobs, oldest first."""
    state, _ = await operator(request)
    return answer(
        [
            _job(j)
            for j in await run_in_threadpool(
                state.jobs.list, name_in(request.query_params.get("tenant"))
            )
        ]
    )


@router.get(
    "/reindex/{job_id}",
    response_model=None,
    openapi_extra=operation(
        "getReindexJob", "Reindex", "operate", answers={200: ReindexJob}, errors=(404,)
    ),
)
async def show_reindex(job_id: str, request: Request) -> Response:
    """Returns one job."""
    state, _ = await operator(request)
    return answer(_job(await run_in_threadpool(state.jobs.get, name_in(job_id))))


@router.post(
    "/reindex/{job_id}/cancel",
    response_model=None,
    openapi_extra=operation(
        "cancelReindexJob", "Reindex", "operate", answers={200: ReindexJob}, errors=(404, 409)
    ),
)
async def cancel_reindex(job_id: str, request: Request) -> Response:
    """Cancels a job that has not cut over."""
    state, actor = await operator(request)
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
