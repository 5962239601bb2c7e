"""Is it alive, is it ready, what does it count."""

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from query.api.http import answer, state_of
from query.readiness import ready as is_ready
from vicinage.metrics import metrics_text

router = APIRouter()


@router.get("/healthz", response_model=None)
async def alive() -> Response:
    """Returns 200 while the process answers."""
    return answer({"status": "ok"})


@router.get("/readyz", response_model=None)
async def ready(request: Request) -> Response:
    """Returns the readiness of each part, measured within the last seconds.

    Ready: a write, a wait and a search would succeed.

    The embedder does not count: without it, only searches by text and documents of text wait.
    """
    parts = await state_of(request).readiness.parts()
    whole = is_ready(parts)
    return answer({"ready": whole, "parts": parts}, 200 if whole else 503)


@router.get("/metrics", response_model=None)
async def metrics() -> Response:
    """Returns metrics in the text format of Prometheus, at most a second old."""
    return Response(await run_in_threadpool(metrics_text), media_type="text/plain; version=0.0.4")
