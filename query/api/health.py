"""Is it alive, is it ready, what does it count."""

from fastapi import APIRouter
from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import Response

from query.api.http import answer, gateway
from vicinage.telemetry import REGISTRY

router = APIRouter()


@router.get("/healthz", response_model=None)
async def alive() -> Response:
    """The process answers."""
    return answer({"status": "ok"})


@router.get("/readyz", response_model=None)
async def ready(request: Request) -> Response:
    """Each part by itself. Ready means: everything but the embedder is; without that, only searches by text wait."""
    parts = await gateway(request).parts()
    whole = all(p["ready"] for name, p in parts.items() if name != "embedder")
    return answer({"ready": whole, "parts": parts}, 200 if whole else 503)


@router.get("/metrics", response_model=None)
async def metrics() -> Response:
    """Prometheus text."""
    return Response(generate_latest(REGISTRY), media_type="text/plain; version=0.0.4")
