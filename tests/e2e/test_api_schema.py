"""The OpenAPI document: valid, complete, and true of the settings of the gateway that serves it."""

from collections.abc import Iterator
from typing import Any

import pytest
from gate import Caller, platform, problem
from openapi_spec_validator import validate
from pydantic import BaseModel

from query.api.models.base import RequestModel, ResponseModel, example_of
from query.api.openapi import document
from query.api.routes import ROUTERS
from vicinage.settings import GatewaySettings

DOCUMENT = document(ROUTERS, {})
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def models(*roots: type[BaseModel]) -> list[type[BaseModel]]:
    own = [model for root in roots for model in root.__subclasses__()]
    return own + (models(*own) if own else [])


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    found: Any = DOCUMENT
    for part in value["$ref"].removeprefix("#/").split("/") if "$ref" in value else ():
        found = found[part]
    return found if "$ref" in value else value


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    settings = GatewaySettings(k_max=77, rerank_max=33)
    with platform(tmp_path_factory.mktemp("schema"), settings) as caller:
        yield caller


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    validate(DOCUMENT)


def test_the_gateway_serves_the_document_with_the_bounds_of_its_settings(call: Caller) -> None:
    found = call("GET", "/openapi.json").json()
    assert found["paths"].keys() == DOCUMENT["paths"].keys()
    search = found["components"]["schemas"]["SearchRequest"]["properties"]
    assert bound(search["k"])["maximum"] == 77
    assert bound(search["rerank"])["maximum"] == 33
    path = found["paths"]["/v1/collections/{collection}/search"]["post"]
    [k] = [each for each in path["parameters"] if each["name"] == "k"]
    assert k["schema"]["maximum"] == 77
    key = call.tenant()[1]
    call.collection(key)
    call.search(key, vector=[1, 0, 0, 0], k=77)
    refused = call("POST", "/v1/collections/c/search", key, json={"vector": [1] * 4, "k": 78})
    assert problem(refused, 400, field="k")["limit"] == 77


def bound(schema: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in schema["anyOf"] if "x-setting" in each)


def test_operation_ids_are_unique_verbs() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)
    verbs = {"".join(c if c.islower() else " " for c in each).split()[0] for each in ids}
    assert verbs <= {
        "cancel", "create", "delete", "get", "list", "purge", "put", "register", "replay", "resume",
        "retire", "revoke", "search", "set", "start", "suspend", "update", "verify",
    }  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_a_tag_a_scope_an_answer_and_its_errors(name: str) -> None:
    operation = OPERATIONS[name]
    tags = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    assert set(operation["tags"]) < tags
    assert operation["summary"]
    assert operation["description"]
    public = not name.partition(" ")[2].startswith("/v1/")
    assert operation["security"] == [] if public else len(operation["security"]) == 1
    answers = operation["responses"]
    assert any(status.startswith("2") for status in answers)
    assert "default" in answers
    for status, answer in answers.items():
        if status.startswith("4") or status == "default":
            [content] = resolved(answer)["content"].items()
            assert content[0] == "application/problem+json"
            assert content[1]["schema"] == {"$ref": "#/components/schemas/Problem"}
    if not public:
        assert {"400", "401", "403", "429", "503"} <= answers.keys()


@pytest.mark.parametrize("status", ["429", "503", "504"])
def test_an_error_to_retry_has_its_header(status: str) -> None:
    for operation in OPERATIONS.values():
        answer = resolved(operation["responses"].get(status, {}))
        if "application/problem+json" in answer.get("content", {}):
            assert answer["headers"]["Retry-After"]["schema"]["type"] == "integer"


@pytest.mark.parametrize(
    "model", models(RequestModel, ResponseModel), ids=lambda model: model.__name__
)
def test_a_model_describes_itself_and_every_field_and_has_a_valid_example(
    model: type[BaseModel],
) -> None:
    assert model.__doc__
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
    model.model_validate(example_of(model))


def test_every_example_of_the_document_is_valid() -> None:
    by_name = {model.__name__: model for model in models(RequestModel, ResponseModel)}
    n = 0
    for operation in OPERATIONS.values():
        bodies = [operation.get("requestBody", {}), *map(resolved, operation["responses"].values())]
        for media in [each for body in bodies for each in body.get("content", {}).values()]:
            name = media["schema"].get("$ref", "").rpartition("/")[2]
            examples = [each["value"] for each in media.get("examples", {}).values()]
            examples += [media["example"]] if "example" in media else []
            assert examples or media["schema"].get("format") == "binary"
            for example in examples if name else ():
                by_name[name].model_validate(example)
                n += 1
    assert n > 2 * len(OPERATIONS)
