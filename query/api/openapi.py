"""★ Builds the OpenAPI 3.1 document from the routers and the models."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from query.api.bounds import OFFSET_MAX
from query.api.models.base import RequestModel, ResponseModel, bound_by
from query.api.models.common import FILTER_SCHEMAS, CollectionName, ModelName, TenantName
from query.api.models.documents import DocumentId
from query.api.operations import (
    NAMES,
    RETRY_AFTER,
    SCHEMAS,
    TAGS,
    WWW_AUTHENTICATE,
    Json,
    documented_problem,
)
from query.problems import problem_body
from query.state import GatewayState
from vicinage import __version__
from vicinage.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    Overloaded,
    Refused,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    VicinageError,
)

ABOUT: Final = (
    "Vicinage is a managed vector retrieval platform. Every error is a problem document "
    "(RFC 9457); problems of HTTP itself (a head that is too late or too large, an unknown path or "
    "method) have one, too. Every GET route answers HEAD."
)
ERRORS: Final[Mapping[int, VicinageError]] = {
    400: Refused("k is 0; it goes from 1 to 1000", field="k", limit=1),
    401: Unauthenticated("send an API key: Authorization: Bearer vk_…"),
    403: Forbidden("the key lacks the scope write"),
    404: NotFound("there is no collection 'articles'"),
    409: Conflict("collection 'articles' exists already"),
    413: TooLarge("the body is over 1048576 bytes", field="body", limit=1_048_576),
    415: UnsupportedMedia("content-encoding 'br' is not supported", field="content-encoding"),
    429: Overloaded("too many requests in flight"),
    500: VicinageError("something went wrong here"),
    503: Unavailable("the log does not answer", dependency="log"),
    504: DeadlineExceeded("the write is not searchable yet", ahead=12),
}
"""An example of each error; the class's docstring describes it."""


class _Plain(GenerateJsonSchema):
    """JSON Schema without titles, which only repeat names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  (as pydantic calls it)
        return False


def document(routers: Iterable[APIRouter], bounds: Mapping[str, int]) -> Json:
    """Returns the OpenAPI document; `bounds` are this gateway's settings that models refer to."""
    paths: Json = {}
    for route in (route for router in routers for route in router.routes):
        if isinstance(route, APIRoute):
            for method in sorted(route.methods or ()):
                paths.setdefault(route.path_format, {})[method.lower()] = _operation(route)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "Vicinage",
            "version": __version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This gateway."}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": _problems(),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "vk_ID_SECRET",
                    "description": "An API key. The tenant is the key's.",
                }
            },
        },
    }
    _keep_used(made)
    bounded: Json = bound_by(made, bounds)
    return bounded


def bounds_of(state: GatewayState) -> dict[str, int]:
    """Returns the integer settings that models can refer to, by name."""
    groups = {"gateway": state.settings, "ingest": state.limits}
    found = {
        f"{group}.{name}": value
        for group, settings in groups.items()
        for name, value in settings
        if isinstance(value, int)
    }
    return {**found, "slots": state.slots_total}


def _operation(route: APIRoute) -> Json:
    extra = dict(route.openapi_extra or {})
    query = extra.pop("x-query", None)
    summary, _, rest = inspect.cleandoc(route.endpoint.__doc__ or "").partition("\n\n")
    parameters = [_path_parameter(name) for name in route.param_convertors]
    parameters += _query_parameters(query) if query is not None else []
    described = {"summary": summary, "description": f"{summary}\n\n{rest}".strip()}
    return {**described, **extra, **({"parameters": parameters} if parameters else {})}


PATH_PARAMETERS: Final[Mapping[str, tuple[Any, str, Any]]] = {
    "collection": (CollectionName, "The collection's name.", "articles"),
    "tenant": (TenantName, "The tenant's name.", "acme"),
    "document_id": (
        DocumentId,
        "The document's ID, percent-encoded, with its slashes and question marks.",
        "guide-7",
    ),
    "key_id": (str, "The key's ID.", "5d41402abc4b2a76"),
    "job_id": (str, "The job's ID.", "5d41402abc4b2a76"),
    "name": (ModelName, "The model's name, percent-encoded.", "all-minilm-l6-v2"),
    "position": (int, "Position of the letter.", 7),
}
"""Type, description and example of each parameter of a path."""


def _path_parameter(name: str) -> Json:
    kind, text, example = PATH_PARAMETERS[name]
    schema = TypeAdapter(kind).json_schema()
    schema.pop("examples", None)
    if kind is int:
        schema |= {"minimum": 0, "maximum": OFFSET_MAX}
    found = {"name": name, "in": "path", "required": True, "description": text}
    return {**found, "schema": schema, "example": example}


def _query_parameters(model: type[BaseModel]) -> list[Json]:
    schema = model.model_json_schema(ref_template=SCHEMAS + "{model}", schema_generator=_Plain)
    required = schema.get("required", [])
    return [_query_parameter(name, each, required) for name, each in schema["properties"].items()]


def _query_parameter(name: str, schema: Json, required: list[str]) -> Json:
    """Returns the parameter; a parameter is left out, so it has no null."""
    schema = dict(schema)
    found = {"name": name, "in": "query", "description": schema.pop("description")}
    if name in required:
        found["required"] = True
    if examples := schema.pop("examples", None):
        found["example"] = examples[0]
    kinds = [each for each in schema.pop("anyOf", []) if each != {"type": "null"}]
    if schema.get("default", ...) is None:
        del schema["default"]
    if len(kinds) == 1:
        schema |= {k: v for k, v in kinds[0].items() if k != "examples"}
    elif kinds:
        schema["anyOf"] = kinds
    return {**found, "schema": schema}


def _schemas() -> Json:
    models = [(model, "validation") for model in _subclasses((RequestModel, ResponseModel))]
    _, found = models_json_schema(
        models,  # type: ignore[arg-type]  # the mode is a literal
        ref_template=SCHEMAS + "{model}",
        schema_generator=_Plain,
    )
    schemas = {name: _without_null_defaults(each) for name, each in found["$defs"].items()}
    return schemas | FILTER_SCHEMAS


def _subclasses(roots: Iterable[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    for root in roots:
        for model in root.__subclasses__():
            yield model
            yield from _subclasses([model])


def _without_null_defaults(schema: Json) -> Json:
    """Returns the schema without `default: null`, which is the same as a missing field."""
    for each in schema.get("properties", {}).values():
        if each.get("default", ...) is None:
            del each["default"]
    return schema


def _problems() -> Json:
    found = {
        "Problem": documented_problem(
            "A problem of HTTP itself, or of a connection.", problem_body(ERRORS[400])
        )
    }
    for status, error in ERRORS.items():
        headers = WWW_AUTHENTICATE if status == 401 else None
        if isinstance(error, Overloaded | Unavailable):
            headers = RETRY_AFTER
        text = inspect.cleandoc(type(error).__doc__ or "").splitlines()[0]
        found[NAMES[status]] = documented_problem(text, problem_body(error), headers)
    return found


def _keep_used(made: Json) -> None:
    """Removes the schemas to which nothing refers: bases of others, and groups of parameters."""
    schemas = made["components"]["schemas"]
    used: set[str] = set()
    left = [{**made, "components": {**made["components"], "schemas": {}}}]
    while left:
        names = set(_refs(left.pop())) - used
        used |= names
        left += [schemas[name] for name in names]
    made["components"]["schemas"] = {n: each for n, each in sorted(schemas.items()) if n in used}


def _refs(value: object) -> Iterator[str]:
    text = orjson.dumps(value).decode()
    for part in text.split(f'"$ref":"{SCHEMAS}')[1:]:
        yield part.partition('"')[0]
