"""Describes one route for the OpenAPI document: its bodies, parameters, errors and credential."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel

from query.api.models.base import example_of, own_examples
from query.problems import MEDIA_TYPE
from tenants.entities import Scope

SCHEMAS: Final = "#/components/schemas/"
JSON: Final = "application/json"
NAMES: Final[Mapping[int, str]] = {
    400: "Refused",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    413: "TooLarge",
    415: "UnsupportedMedia",
    429: "Overloaded",
    500: "InternalError",
    503: "Unavailable",
    504: "DeadlineExceeded",
}
"""The name of each error's response in the document's components."""
PUBLIC: Final = (400, 500)
KEYED: Final = (*PUBLIC, 401, 403, 429, 503)
BODY: Final = (413, 415)
Tag = Literal[
    "Search",
    "Documents",
    "Collections",
    "Dead letters",
    "Tenants",
    "Keys",
    "Embedding models",
    "Reindex",
    "Reports",
    "Audit",
    "Health",
]
TAGS: Final[Mapping[Tag, str]] = {
    "Search": "Search a collection by text, by vector, or by both.",
    "Documents": "Write, read and delete the documents of a collection.",
    "Collections": "Create, look at, change and delete a tenant's collections.",
    "Dead letters": "Records that could not be accepted: list, replay and remove them.",
    "Tenants": "Create, change, suspend and delete tenants, and what belongs to their topics.",
    "Keys": "Create, list and revoke API keys.",
    "Embedding models": "The registry of embedding models.",
    "Reindex": "Build a collection's next generation beside the live one.",
    "Reports": "Capacity, freshness and recall over all tenants.",
    "Audit": "The chain of audit records.",
    "Health": "Liveness, readiness and metrics; these need no key.",
}
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Media:
    """One media type of a body: its JSON Schema, and named examples."""

    kind: str
    schema: Json
    examples: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> Json:
        """Returns the media type object."""
        examples = {name: {"value": value} for name, value in self.examples.items()}
        return {self.kind: {"schema": self.schema, **({"examples": examples} if examples else {})}}


def ref(model: type[BaseModel]) -> Json:
    """Returns the reference to the model's schema."""
    return {"$ref": f"{SCHEMAS}{model.__name__}"}


def json_of(model: type[BaseModel]) -> Media:
    """Returns the model as JSON, with its examples."""
    examples = own_examples(model) or [example_of(model)]
    return Media(JSON, ref(model), {f"example{i}": each for i, each in enumerate(examples, 1)})


def list_of(model: type[BaseModel]) -> Media:
    """Returns a JSON list of the model, with an example."""
    return Media(JSON, {"type": "array", "items": ref(model)}, {"example1": [example_of(model)]})


def lines_of(*models: type[BaseModel]) -> Json:
    """Returns the schema of lines of JSON (NDJSON): a string whose lines are the models."""
    names = " or ".join(f"`{model.__name__}`" for model in models)
    refs = [ref(model) for model in models]
    lines = {"type": "array", "items": refs[0] if len(refs) == 1 else {"anyOf": refs}}
    return {"type": "string", "description": f"One {names} a line.", "contentSchema": lines}


Body = Media | type[BaseModel]


def operation(
    operation_id: str,
    tag: Tag,
    scope: Scope | None,
    *,
    answers: Mapping[int, Body],
    body: Body | Sequence[Body] | None = None,
    query: type[BaseModel] | None = None,
    errors: Iterable[int] = (),
    body_required: bool = True,
) -> Json:
    """Returns what FastAPI keeps of a route as `openapi_extra`; `openapi.py` completes it.

    `errors` are statuses beside those that every route with this scope and a body has.
    """
    bodies = [] if body is None else [body] if not isinstance(body, Sequence) else list(body)
    statuses = {*(KEYED if scope else PUBLIC), *(BODY if bodies else ()), *errors}
    responses = {str(status): _answer(status, each) for status, each in answers.items()}
    for status in sorted(statuses - answers.keys()):
        responses[str(status)] = {"$ref": f"#/components/responses/{NAMES[status]}"}
    responses["default"] = {"$ref": "#/components/responses/Problem"}
    found: Json = {"operationId": operation_id, "tags": [tag]}
    found["security"] = [{"key": [scope]}] if scope else []
    if query is not None:
        found["x-query"] = query
    if bodies:
        found["requestBody"] = {"required": body_required, "content": _content(bodies)}
    return {**found, "responses": responses}


def _content(bodies: Iterable[Body]) -> Json:
    found: Json = {}
    for each in bodies:
        found |= (each if isinstance(each, Media) else json_of(each)).content()
    return found


DESCRIPTIONS: Final[Mapping[int, str]] = {
    200: "Done.",
    201: "Created.",
    202: "Accepted: the change is durable, and is applied soon.",
    503: "Not ready.",
}


def _answer(status: int, body: Body) -> Json:
    return {"description": DESCRIPTIONS[status], "content": _content([body])}


RETRY_AFTER: Final[Json] = {
    "Retry-After": {
        "description": "Seconds after which to send the request again.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 1,
    }
}
WWW_AUTHENTICATE: Final[Json] = {
    "WWW-Authenticate": {
        "description": "The scheme of the credential: Bearer.",
        "schema": {"type": "string"},
        "example": 'Bearer realm="vicinage"',
    }
}


def documented_problem(description: str, example: Json, headers: Json | None = None) -> Json:
    """Returns the response of an error."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"{SCHEMAS}Problem"}, "example": example}}
    found: Json = {"description": description, "content": content}
    return {**found, "headers": headers} if headers else found
