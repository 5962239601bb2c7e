"""★ The embedder role's HTTP API.

Serves the OpenAI embeddings API over the local models, and the `/rerank` of
text-embeddings-inference over a cross-encoder. `server_requests` validates what callers send;
`server_responses` has the form of responses and errors.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ingest.embedding.local import LocalEmbedder
from ingest.embedding.reranker import LocalReranker
from ingest.embedding.server_requests import (
    authorize,
    deadline_of,
    input_texts,
    json_body,
    lane_of,
    rerank_texts,
    tenant_of,
)
from ingest.embedding.server_responses import ERROR_HANDLERS, encoded, json_response
from vicinage.errors import DeadlineExceeded, Refused
from vicinage.metrics import metrics_text
from vicinage.records import Floats

THREAD_FROM: Final = 8
"""From this many texts on, a worker thread tokenizes them instead of the event loop."""


def create_app(
    models: Mapping[str, LocalEmbedder], *, key: str | None, reranker: LocalReranker | None = None
) -> Starlette:
    """Returns the app over models by name; it closes them when it stops.

    If `key` is given, calls for vectors, scores and the list of models must send it.
    """

    async def embeddings(request: Request) -> Response:
        authorize(request, key)
        return await _embed(request, models)

    async def rerank(request: Request) -> Response:
        authorize(request, key)
        return await _rerank(request, reranker)

    async def list_models(request: Request) -> Response:
        authorize(request, key)
        data = [_entry(name, model) for name, model in models.items()]
        return json_response({"object": "list", "data": data})

    async def health(_request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(_request: Request) -> Response:
        alive = {name: model.alive() for name, model in models.items()}
        alive |= {"rerank": reranker.alive()} if reranker else {}
        is_ready = bool(alive) and all(alive.values())
        return json_response({"ready": is_ready, "models": alive}, 200 if is_ready else 503)

    async def metrics(_request: Request) -> Response:
        text = await run_in_threadpool(metrics_text)
        return Response(text, media_type="text/plain; version=0.0.4")

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        for model in (*models.values(), *((reranker,) if reranker else ())):
            await run_in_threadpool(model.close)

    routes = [
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/rerank", rerank, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/healthz", health),
        Route("/readyz", ready),
        Route("/metrics", metrics),
    ]
    app = Starlette(routes=routes, exception_handlers=ERROR_HANDLERS, lifespan=lifespan)
    # A redirect repeats the caller's Host header, and may repeat its body elsewhere.
    app.router.redirect_slashes = False
    return app


async def _embed(request: Request, models: Mapping[str, LocalEmbedder]) -> Response:
    """Embeds the texts of `input`. See the OpenAI embeddings API for the fields."""
    body = await json_body(request)
    model = models.get(str(body.get("model")))
    if model is None:
        detail = f"there is no model {body.get('model')!r} here; there are {', '.join(models)}"
        raise Refused(detail, field="model")
    texts = input_texts(body.get("input"))
    if body.get("dimensions") not in (None, model.dimension):
        raise Refused(f"{model.model} has {model.dimension} dimensions", field="dimensions")
    encoding_format = body.get("encoding_format", "float")
    if encoding_format not in ("float", "base64"):
        raise Refused("encoding_format is float or base64", field="encoding_format")
    vectors, tokens = await _vectors(request, model, texts)
    data = [
        {"object": "embedding", "index": i, "embedding": encoded(vector, encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "data": data, "model": model.model, "usage": usage})


async def _vectors(request: Request, model: LocalEmbedder, texts: list[str]) -> tuple[Floats, int]:
    """Returns the vectors and the number of tokens. Raises DeadlineExceeded."""
    deadline = deadline_of(request)
    arguments: dict[str, Any] = {
        "tenant": tenant_of(request),
        "lane": lane_of(request),
        "deadline": deadline,
    }
    if len(texts) < THREAD_FROM:
        pending = model.submit(texts, **arguments)
    else:
        pending = await run_in_threadpool(model.submit, texts, **arguments)
    try:
        vectors = await asyncio.wait_for(asyncio.wrap_future(pending.vectors), deadline.left_s())
    except TimeoutError:
        raise DeadlineExceeded("the text was not embedded in time", dependency="embedder") from None
    return vectors, pending.tokens


async def _rerank(request: Request, reranker: LocalReranker | None) -> Response:
    """Scores texts against a query; returns them by score, the highest first."""
    if reranker is None:
        raise Refused("no cross-encoder is served here: see rerank.model", field="model")
    query, texts = rerank_texts(await json_body(request))
    deadline = deadline_of(request)
    pending = reranker.submit(query, texts, tenant=tenant_of(request), deadline=deadline)
    try:
        scores = await asyncio.wait_for(asyncio.wrap_future(pending), deadline.left_s())
    except TimeoutError:
        raise DeadlineExceeded("the texts were not scored in time", dependency="reranker") from None
    order = np.argsort(-scores, kind="stable").tolist()
    return json_response([{"index": i, "score": float(scores[i])} for i in order])


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
