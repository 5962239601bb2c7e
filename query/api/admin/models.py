"""The registry of embedding models."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ingest.embedding.check import described
from query.api.admin.operator import operator
from query.api.http import answer, json_object, typed
from query.api.models.admin import EmbeddingModelFacts, RegisterModelRequest
from query.api.operations import list_of, operation
from query.state import GatewayState
from tenants.entities import EmbeddingModel
from tenants.models import WINDOW_MIN, check_entry
from vicinage.errors import Conflict

router = APIRouter(prefix="/v1/admin")


@router.get(
    "/models",
    response_model=None,
    openapi_extra=operation(
        "listModels", "Embedding models", "operate", answers={200: list_of(EmbeddingModelFacts)}
    ),
)
async def list_models(request: Request) -> Response:
    """Returns the model registry."""
    state, _ = await operator(request)
    return answer([asdict(m) for m in state.registry.models()])


MODEL_FIELDS: Final = frozenset(
    {
        "name",
        "kind",
        "location",
        "dimension",
        "window_tokens",
        "normalized",
        "query_prompt",
        "document_prompt",
        "check",
    }
)


@router.post(
    "/models",
    status_code=201,
    response_model=None,
    openapi_extra=operation(
        "registerModel",
        "Embedding models",
        "operate",
        body=RegisterModelRequest,
        answers={201: EmbeddingModelFacts},
        errors=(409,),
    ),
)
async def register_model(request: Request) -> Response:
    """Adds a model to the registry: local files, or a server that speaks the OpenAI API.

    Entries never change. Facts that are not given are read from a local model's files. The model is
    loaded, or its server called, unless `check` is false.
    """
    state, actor = await operator(request)
    value = await json_object(request, MODEL_FIELDS)
    given = {
        "name": typed(value, "name", str, "the model's name", needed=True),
        "kind": typed(value, "kind", str, "local or openai", needed=True),
        "location": typed(
            value, "location", str, "package:MODULE, a path, or a server's base URL", needed=True
        ),
        "dimension": typed(value, "dimension", int, "the length of its vectors"),
        "window_tokens": typed(
            value, "window_tokens", int, "the longest input that it reads, in tokens"
        ),
        "normalized": typed(value, "normalized", bool, "whether its vectors are made unit length"),
        "query_prompt": typed(value, "query_prompt", str, "the text before a search text"),
        "document_prompt": typed(value, "document_prompt", str, "the text before a passage"),
    }
    checked = typed(value, "check", bool, "whether the model is tried first") is not False
    made = await run_in_threadpool(_registered, state, given, checked=checked, actor=actor)
    return answer(asdict(made), 201)


def _registered(
    state: GatewayState, given: Mapping[str, Any], *, checked: bool, actor: str
) -> EmbeddingModel:
    check_entry(EmbeddingModel(given["name"], given["kind"], given["location"], 1, WINDOW_MIN))
    if any(m.name == given["name"] for m in state.registry.models()):
        raise Conflict(f"model {given['name']!r} exists already; entries never change")
    model = described(given)
    check_entry(model)
    if checked:
        state.check_model(model)
    registered: EmbeddingModel = state.registry.register_model(model, actor=actor)
    return registered


@router.post(
    "/models/{name:path}/retire",
    response_model=None,
    openapi_extra=operation(
        "retireModel",
        "Embedding models",
        "operate",
        answers={200: EmbeddingModelFacts},
        errors=(404, 409),
    ),
)
async def retire_model(name: str, request: Request) -> Response:
    """Retires a model: no new collection or generation may use it.

    Answers 409 while a generation that receives writes uses it.
    """
    state, actor = await operator(request)
    return answer(asdict(await run_in_threadpool(state.registry.retire_model, name, actor=actor)))
