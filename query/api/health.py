"""Liveness, readiness and metrics; these routes need no key."""

from typing import Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from query.api.http import answer, state_of
from query.api.models.health import Alive, Ready
from query.api.operations import Media, operation
from query.readiness import ready as is_ready
from vicinage.metrics import metrics_text

router = APIRouter()
_METRICS: Final = "text/plain; version=0.0.4"
_TEXT: Final = Media("text/plain", {"type": "string"}, {"example1": "vicinage_query_in_flight 0\n"})


@router.get(
    "/healthz",
    response_model=None,
    openapi_extra=operation("getHealth", "Health", None, answers={200: Alive}),
)
async def alive() -> Response:
    """Returns 200 while the process answers."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    response_model=None,
    openapi_extra=operation("getReadiness", "Health", None, answers={200: Ready, 503: Ready}),
)
async def ready(request: Request) -> Response:
    """Returns the readiness of each part, measured within the last seconds.

    Ready: a write, a wait and a search would succeed.

    The embedder does not count: without it, only searches by text and documents of text wait.
    """
    parts = await state_of(request).readiness.parts()
    whole = is_ready(parts)
    return answer({"ready": whole, "parts": parts}, 200 if whole else 503)


@router.get(
    "/metrics",
    response_model=None,
    openapi_extra=operation("getMetrics", "Health", None, answers={200: _TEXT}),
)
async def metrics() -> Response:
    """Returns metrics in the text format of Prometheus, at most a second old."""
    return Response(await run_in_threadpool(metrics_text), media_type=_METRICS)
