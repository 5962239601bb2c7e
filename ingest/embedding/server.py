"""The embedder role's HTTP API.

Serves the OpenAI embeddings API over the local models, and the `/rerank` of
text-embeddings-inference over a cross-encoder.
"""

import asyncio
import base64
import contextlib
import hmac
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ingest.embedding import Lane
from ingest.embedding.local import LocalEmbedder
from ingest.embedding.reranker import LocalReranker
from vicinage.clock import Deadline
from vicinage.errors import (
    DeadlineExceeded,
    Overloaded,
    Refused,
    TooLarge,
    Unauthenticated,
    Unavailable,
    VicinageError,
)
from vicinage.metrics import metrics_text
from vicinage.records import Floats
from vicinage.telemetry import events
from vicinage.tenant_context import TenantContext

INPUTS_MAX: Final = 2_048
BODY_BYTES_MAX: Final = 32 << 20
BODY_S: Final = 60
"""Longest time, in seconds, for a body to arrive."""
TIMEOUT_MS: Final = 60_000
WEIGHT_MAX: Final = 100
THREAD_FROM: Final = 8
"""From this many texts on, a worker thread tokenizes them instead of the event loop."""

_event = events("embedder")


def create_app(
    models: Mapping[str, LocalEmbedder], *, key: str | None, reranker: LocalReranker | None = None
) -> Starlette:
    """Returns the app over models by name; it closes them when it stops.

    If `key` is given, calls for vectors, scores and the list of models must send it.
    """

    async def embeddings(request: Request) -> Response:
        _authorise(request, key)
        return await _embed(request, models)

    async def rerank(request: Request) -> Response:
        _authorise(request, key)
        return await _rerank(request, reranker)

    async def list_models(request: Request) -> Response:
        _authorise(request, key)
        return _json({"object": "list", "data": [_entry(name, m) for name, m in models.items()]})

    async def health(_request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(_request: Request) -> Response:
        parts = {name: m.alive() for name, m in models.items()}
        parts |= {"rerank": reranker.alive()} if reranker else {}
        whole = bool(parts) and all(parts.values())
        return _json({"ready": whole, "models": parts}, 200 if whole else 503)

    async def metrics(_request: Request) -> Response:
        return Response(
            await run_in_threadpool(metrics_text), media_type="text/plain; version=0.0.4"
        )

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        for model in (*models.values(), *((reranker,) if reranker else ())):
            await run_in_threadpool(model.close)

    app = Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/rerank", rerank, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/metrics", metrics),
        ],
        exception_handlers={VicinageError: _said, HTTPException: _http, Exception: _ours},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = (
        False  # a redirect repeats the caller's Host header, and may repeat its body elsewhere
    )
    return app


async def _embed(request: Request, models: Mapping[str, LocalEmbedder]) -> Response:
    body = _object(await _body(request))
    model = models.get(str(body.get("model")))
    if model is None:
        raise Refused(
            f"there is no model {body.get('model')!r} here; there are {', '.join(models)}",
            field="model",
        )
    texts = _texts(body.get("input"))
    if body.get("dimensions") not in (None, model.dimension):
        raise Refused(f"{model.model} has {model.dimension} dimensions", field="dimensions")
    if (form := body.get("encoding_format", "float")) not in ("float", "base64"):
        raise Refused("encoding_format is float or base64", field="encoding_format")
    vectors, tokens = await _vectors(request, model, texts)
    data = [
        {"object": "embedding", "index": i, "embedding": _encode(v, form)}
        for i, v in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "data": data, "model": model.model, "usage": usage})


async def _vectors(request: Request, model: LocalEmbedder, texts: list[str]) -> tuple[Floats, int]:
    headers = request.headers
    deadline = _deadline(request)
    arguments: dict[str, Any] = {
        "tenant": _tenant(request),
        "lane": Lane.QUERY if headers.get("x-vicinage-lane") == "query" else Lane.DOCUMENT,
        "deadline": deadline,
    }
    if len(texts) < THREAD_FROM:
        pending = model.submit(texts, **arguments)
    else:
        pending = await run_in_threadpool(model.submit, texts, **arguments)
    try:
        return await asyncio.wait_for(
            asyncio.wrap_future(pending.vectors), deadline.left_s()
        ), pending.tokens
    except TimeoutError:
        raise DeadlineExceeded("the text was not embedded in time", dependency="embedder") from None


async def _rerank(request: Request, reranker: LocalReranker | None) -> Response:
    if reranker is None:
        raise Refused("no cross-encoder is served here: see rerank.model", field="model")
    body = _object(await _body(request))
    question, texts = body.get("query"), body.get("texts")
    if not isinstance(question, str) or not question:
        raise Refused("query is a string that is not empty", field="query")
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise Refused("texts is a list of strings", field="texts")
    if len(texts) > INPUTS_MAX:
        raise Refused(f"{len(texts)} texts; at most {INPUTS_MAX}", field="texts", limit=INPUTS_MAX)
    deadline = _deadline(request)
    asked = reranker.submit(question, texts, tenant=_tenant(request), deadline=deadline)
    try:
        scores = await asyncio.wait_for(asyncio.wrap_future(asked), deadline.left_s())
    except TimeoutError:
        raise DeadlineExceeded("the texts were not read in time", dependency="reranker") from None
    order = np.argsort(-scores, kind="stable").tolist()
    return _json([{"index": i, "score": float(scores[i])} for i in order])


def _deadline(request: Request) -> Deadline:
    return Deadline.after(_number(request.headers.get("x-vicinage-timeout-ms"), TIMEOUT_MS) / 1000)


def _tenant(request: Request) -> TenantContext:
    return TenantContext(request.headers.get("x-vicinage-tenant", ""), _weight(request))


def _weight(request: Request) -> int:
    return max(1, min(WEIGHT_MAX, _number(request.headers.get("x-vicinage-weight"), 1)))


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdigit() and len(text) < 12 else otherwise


async def _body(request: Request) -> bytes:
    """Returns the whole body.

    Raises TooLarge as soon as it exceeds the limit, and Refused if it is late or incomplete.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > BODY_BYTES_MAX:
                    raise TooLarge(
                        f"the body is over {BODY_BYTES_MAX} bytes",
                        field="input",
                        limit=BODY_BYTES_MAX,
                    )
                chunks.append(chunk)
    except TimeoutError:
        raise Refused(
            f"the body did not come whole within {BODY_S} s", field="body", limit=BODY_S
        ) from None
    except ClientDisconnect:
        raise Refused("the body was cut off", field="body") from None
    return b"".join(chunks)


def _object(data: bytes) -> dict[str, Any]:
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
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "vicinage",
        "dimension": model.dimension,
        "window_tokens": model.window_tokens,
        **model.calibration.facts(),
    }


def _authorise(request: Request, key: str | None) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
        raise Unauthenticated("the embedder needs its key")


async def _said(_request: Request, error: Exception) -> Response:
    assert isinstance(error, VicinageError)
    headers = {}
    if isinstance(error, Overloaded | Unavailable):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return _problem(error.status, error.kind, error.detail, getattr(error, "field", None), headers)


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(
        error.status_code, "not-found" if error.status_code == 404 else "http", error.detail
    )


async def _ours(request: Request, error: Exception) -> Response:
    """The request boundary: logs an internal error and returns a problem without details."""
    _event.error("request failed", path=request.url.path, exc_info=error)
    return _problem(500, "internal", "something went wrong in the embedder")


def _problem(
    status: int,
    kind: str,
    detail: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Returns an error in the form of the OpenAI API."""
    return _json(
        {"error": {"message": detail, "type": kind, "param": param, "code": kind}}, status, headers
    )


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")
