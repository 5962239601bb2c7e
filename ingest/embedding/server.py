"""The embedder role's face: the OpenAI embeddings API over the local models."""

import asyncio
import base64
import hmac
import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ingest.embedding import Lane
from ingest.embedding.local import LocalEmbedder
from vicinage.clock import Deadline
from vicinage.errors import Overloaded, Refused, Unauthenticated, Unavailable, VicinageError
from vicinage.records import Floats
from vicinage.telemetry import REGISTRY

INPUTS_MAX: Final = 2_048
BODY_BYTES_MAX: Final = 32 << 20
THREAD_FROM: Final = 8
"""From this many texts on, tokenising leaves the event loop."""


def create_app(models: Mapping[str, LocalEmbedder], *, key: str | None) -> Starlette:
    """The app over models by name. `key`, when given, is asked of every call but the health checks."""

    async def embeddings(request: Request) -> Response:
        try:
            _authorise(request, key)
            return await _embed(request, models)
        except VicinageError as error:
            return _error(error)

    async def list_models(request: Request) -> Response:
        try:
            _authorise(request, key)
        except VicinageError as error:
            return _error(error)
        return _json({"object": "list", "data": [_entry(name, m) for name, m in models.items()]})

    async def health(_request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(_request: Request) -> Response:
        return _json({"ready": bool(models)}, 200 if models else 503)

    async def metrics(_request: Request) -> Response:
        from prometheus_client import generate_latest

        return Response(generate_latest(REGISTRY), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/metrics", metrics),
        ]
    )


async def _embed(request: Request, models: Mapping[str, LocalEmbedder]) -> Response:
    body = _body(await request.body())
    model = models.get(str(body.get("model")))
    if model is None:
        raise Refused(f"there is no model {body.get('model')!r} here; there are {', '.join(models)}", field="model")
    texts = _texts(body.get("input"))
    if body.get("dimensions") not in (None, model.dimension):
        raise Refused(f"{model.model} has {model.dimension} dimensions", field="dimensions")
    if (form := body.get("encoding_format", "float")) not in ("float", "base64"):
        raise Refused("encoding_format is float or base64", field="encoding_format")
    vectors, tokens = await _vectors(request, model, texts)
    data = [{"object": "embedding", "index": i, "embedding": _encode(v, form)} for i, v in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": data, "model": model.model, "usage": usage})


async def _vectors(request: Request, model: LocalEmbedder, texts: list[str]) -> tuple[Floats, int]:
    headers = request.headers
    timeout_ms = _number(headers.get("x-vicinage-timeout-ms"), 60_000)
    arguments: dict[str, Any] = {
        "tenant": headers.get("x-vicinage-tenant", ""),
        "lane": Lane.QUERY if headers.get("x-vicinage-lane") == "query" else Lane.DOCUMENT,
        "weight": max(1, min(100, _number(headers.get("x-vicinage-weight"), 1))),
        "deadline": Deadline.after(timeout_ms / 1000),
    }
    if len(texts) < THREAD_FROM:
        future = model.submit(texts, **arguments)
    else:
        future = await run_in_threadpool(model.submit, texts, **arguments)
    vectors = await asyncio.wrap_future(future)
    return vectors, sum(len(t) // 4 + 1 for t in texts) if len(texts) >= THREAD_FROM else model.count_tokens(texts)


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdigit() and len(text) < 12 else otherwise


def _body(data: bytes) -> dict[str, Any]:
    if len(data) > BODY_BYTES_MAX:
        raise Refused(f"the body has {len(data)} bytes; at most {BODY_BYTES_MAX}", field="input", limit=BODY_BYTES_MAX)
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Refused(f"the body is not JSON: {error}", field="body") from None
    if not isinstance(body, dict):
        raise Refused("the body is a JSON object", field="body")
    return body


def _texts(given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise Refused("input is a string or a list of strings, none of them empty", field="input")
    if len(texts) > INPUTS_MAX:
        raise Refused(f"{len(texts)} inputs; at most {INPUTS_MAX}", field="input", limit=INPUTS_MAX)
    return texts


def _encode(vector: Floats, form: str) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
    floats: list[float] = vector.tolist()
    return floats


def _entry(name: str, model: LocalEmbedder) -> dict[str, Any]:
    c = model.calibration
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "vicinage",
        "dimension": model.dimension,
        "window_tokens": model.window_tokens,
        "precision": c.precision,
        "threads": c.threads,
        "texts_per_s": c.texts_per_s,
        "cosine": c.cosine,
        "tried": list(c.tried),
    }


def _authorise(request: Request, key: str | None) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
        raise Unauthenticated("the embedder needs its key")


def _error(error: VicinageError) -> Response:
    body = {
        "error": {
            "message": error.detail,
            "type": error.kind,
            "param": getattr(error, "field", None),
            "code": error.kind,
        }
    }
    headers = {}
    if isinstance(error, Overloaded | Unavailable):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return _json(body, error.status, headers)


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")
