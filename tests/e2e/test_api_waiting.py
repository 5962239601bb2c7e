"""A model that is away is visible, and tokens, lags and reindexes stay correct meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import Caller, build, calling, problem
from model_server import ModelServer
from resources import eventually, resources_in, running

Q = [1.0, 0.0, 0.0, 0.0]


@pytest.fixture
def far() -> Iterator[ModelServer]:
    server = ModelServer("far")
    yield server
    server.stop()


@pytest.fixture
def call(tmp_path: Path, far: ModelServer) -> Iterator[Caller]:
    base = resources_in(tmp_path)
    base.registry.register_model(far.entry(), actor="test")
    with (
        running(base, by_model={"far": far.client()}) as searcher,
        calling(base, searcher, build(base, [searcher])) as made,
    ):
        yield made
    base.close()


def test_a_token_waits_for_its_own_collection_and_for_no_other(
    call: Caller, far: ModelServer
) -> None:
    _, key = call.tenant()
    call.collection(key, "far", model="far")
    call.collection(key, "near")
    far.stop()
    waiting = call.write(key, [{"id": "a", "text": "x"}], "far")
    done = call.write(key, [{"id": "a", "vector": Q}], "near")
    asked = {"vector": Q, "wait_for": done, "timeout_ms": 20_000}
    found = call("POST", "/v1/collections/near/search", key, json=asked)
    assert [h["document_id"] for h in found.json()["hits"]] == ["a"]
    asked = {"text": "x", "mode": "lexical", "wait_for": waiting, "timeout_ms": 500}
    body = problem(
        call("POST", "/v1/collections/far/search", key, json=asked), 504, "deadline-exceeded"
    )
    assert "wait for the model 'far'" in body["detail"]
    assert "127.0.0.1" not in body["detail"]
    far.start()
    asked = {"text": "x", "mode": "lexical", "wait_for": waiting, "timeout_ms": 20_000}
    found = call("POST", "/v1/collections/far/search", key, json=asked)
    assert [h["document_id"] for h in found.json()["hits"]] == ["a"]


def test_a_wait_is_shown_to_its_tenant_without_addresses_and_to_operators_with_them(
    call: Caller, far: ModelServer
) -> None:
    name, key = call.tenant()
    call.collection(key, "far", model="far")
    call.collection(key, "near")
    far.stop()
    call.write(key, [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}], "far")

    def seen() -> list[dict]:
        return call("GET", "/v1/collections/far", key).json()["freshness"]["waiting"]

    eventually(lambda: [w["state"] for w in seen()] == ["unavailable"])
    [fact] = seen()
    assert (fact["model"], fact["records_at_most"], fact["collection"]) == ("far", 1, "far")
    assert not {"server", "reason", "tenant"} & fact.keys()
    assert call("GET", "/v1/collections/near", key).json()["freshness"]["waiting"] == []
    eventually(
        lambda: (call("GET", "/v1/collections/far", key).json()["freshness"]["lag_ms"] or 0) > 500
    )
    [row] = call.admin("GET", f"/freshness?tenant={name}")
    [fact] = row["waiting"]
    assert (fact["tenant"], fact["server"]) == (name, far.url)
    assert fact["reason"]
    far.start()
    eventually(lambda: seen() == [])
    eventually(lambda: call("GET", "/v1/collections/far", key).json()["freshness"]["lag_ms"] == 0)


def test_a_reindex_to_a_dead_model_leaves_the_live_generation_alone_and_is_canceled_at_once(
    call: Caller, far: ModelServer
) -> None:
    name, key = call.tenant()
    call.collection(key, "docs", model="all-minilm-l6-v2")
    token = call.write(key, [{"id": "a", "text": "one"}], "docs")
    far.stop()
    job = call.admin(
        "POST", "/reindex", {"tenant": name, "collection": "docs", "model": "far"}, status=202
    )
    eventually(lambda: _building(call, name))
    for i in range(3):
        token = call.write(key, [{"id": f"d{i}", "text": f"text {i}"}], "docs")
        asked = {"text": f"text {i}", "mode": "lexical", "wait_for": token, "timeout_ms": 5_000}
        found = call("POST", "/v1/collections/docs/search", key, json=asked)
        assert found.status_code == 200, found.text
    [lane] = call.base.registry.lanes.of(name)
    assert (lane.generation, lane.model) == (2, "far")
    call.admin("POST", f"/reindex/{job['id']}/cancel")
    eventually(lambda: call.base.registry.lanes.of(name) == [], wait_s=3)


def _building(call: Caller, name: str) -> bool:
    call.base.registry.refresh()
    return len(call.base.registry.collection(name, "docs").generations) == 2


def test_latest_waits_for_everything_acknowledged_and_a_timeout_counts_the_records_ahead(
    call: Caller, far: ModelServer
) -> None:
    _, key = call.tenant()
    call.collection(key, "far", model="far")
    call.collection(key, "near")
    assert call("GET", "/v1/collections/near?wait_for=latest", key).status_code == 200, (
        "nothing was written"
    )
    call.write(key, [{"id": "a", "vector": Q}], "near")
    call.write(key, [{"id": "b", "vector": Q}], "near")
    found = call("GET", "/v1/collections/near?wait_for=latest&timeout_ms=20000", key)
    assert found.json()["counts"]["documents"] == 2
    far.stop()
    for i in range(3):
        token = call.write(key, [{"id": f"t{i}", "text": f"text {i}"}], "far")
    waited = call("GET", "/v1/collections/far?wait_for=latest&timeout_ms=500", key)
    body = problem(waited, 504, "deadline-exceeded")
    assert 1 <= body["ahead"] <= 5
    assert body["wait_for"] == token, "the position of `latest`"
    far.start()
    asked = {"text": "text", "mode": "lexical", "wait_for": "latest", "timeout_ms": 20_000}
    assert len(call.search(key, "far", **asked)["hits"]) == 3
    problem(call("GET", "/v1/collections/far?wait_for=nonsense", key), 400, field="wait_for")
