"""The HTTP API for its three kinds of users: every route, over a whole embedded platform."""

import base64
import json
import time
from collections.abc import Iterator
from urllib.parse import quote

import httpx2
import numpy as np
import orjson
import pyarrow as pa
import pytest
from gate import Caller, platform, problem, serving
from resources import eventually

from query.parsers import SMALL_BYTES
from tenants import provisioning
from tenants.registry import Registry
from vicinage.log import Record
from vicinage.settings import GatewaySettings
from vicinage.wire import ARROW


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with platform(
        tmp_path_factory.mktemp("api"), GatewaySettings(body_bytes_max=1 << 20, timeout_ms=5_000)
    ) as caller:
        yield caller


def doc(name: str, *vector: float, **metadata: object) -> dict[str, object]:
    return {"id": name, "vector": list(vector), "metadata": metadata}


def ids(found: dict) -> list[str]:
    return [h["document_id"] for h in found["hits"]]


def test_a_write_belongs_to_the_collection_with_that_name_now(call: Caller) -> None:
    tenant, key = call.tenant()
    elsewhere = Registry(call.base.engine, call.base.clock)
    for turn in range(5):
        call.collection(key)
        old = call.write(key, [doc("old", 0, 1, 0, 0)])
        call.search(key, vector=[1, 0, 0, 0], wait_for=old)
        # By another gateway: this one's memory is behind for a moment.
        elsewhere.delete_collection(tenant, "c", actor="test")
        place = provisioning.placer(call.base.log, tenant, "c", 1, 8)
        elsewhere.create_collection(tenant, "c", dimension=4, place=place, actor="test")
        token = call.write(key, [doc(f"new{turn}", 1, 0, 0, 0)])
        assert ids(call.search(key, vector=[1, 0, 0, 0], wait_for=token)) == [f"new{turn}"]
        token = call("DELETE", f"/v1/collections/c/documents/new{turn}", key).json()["token"]
        assert ids(call.search(key, vector=[1, 0, 0, 0], wait_for=token)) == []
        elsewhere.delete_collection(tenant, "c", actor="test")
        eventually(lambda: call("GET", "/v1/collections/c", key).status_code == 404)


# search


def test_a_document_written_is_found_through_its_token(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc("a", 1, 0, 0, 0, lang="en"), doc("b", 0, 2, 0, 0)])
    found = call.search(key, vector=[3, 0.1, 0, 0], wait_for=token, k=2)
    assert ids(found) == ["a", "b"]
    best = found["hits"][0]
    assert best["score"] == pytest.approx(3 / np.hypot(3, 0.1), abs=1e-6)
    assert (best["passage"], best["metadata"]) == (0, {"lang": "en"})
    assert found["freshness"]["lag_ms"] >= 0
    slot, offset = found["freshness"]["watermark"].split("-")
    assert int(offset) >= 1
    assert int(slot) in range(8)
    assert (found["generation"], found["degraded"]) == (1, None)


def test_text_is_embedded_on_both_sides(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key, model="all-minilm-l6-v2")
    token = call.write(
        key, [{"id": "cat", "text": "the cat sat"}, {"id": "dog", "text": "a dog barked loudly"}]
    )
    found = call.search(key, text="dog barked", wait_for=token, k=1)
    assert ids(found) == ["dog"]
    assert found["hits"][0]["text"] == "a dog barked loudly"
    assert (found["hits"][0]["start"], found["hits"][0]["end"]) == (0, 19)


def test_a_vector_is_accepted_as_numbers_base64_or_raw_body(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(
        key, [doc("a", 1, 0, 0, 0, n=1), doc("b", 0, 1, 0, 0, n=2), doc("c", 0, 0, 1, 0, n=3)]
    )
    vector = np.array([0.9, 0.5, 0.1, 0], "<f4")
    asked = {"k": 2, "filter": {"n": {"$gte": 2}}, "wait_for": token, "include": ["metadata"]}
    as_numbers = call.search(key, vector=vector.tolist(), **asked)
    as_base64 = call.search(key, vector_base64=base64.b64encode(vector.tobytes()).decode(), **asked)
    raw = call(
        "POST",
        "/v1/collections/c/search",
        key,
        content=vector.tobytes(),
        headers={"content-type": "application/octet-stream"},
        params={
            "k": "2",
            "filter": '{"n": {"$gte": 2}}',
            "wait_for": token,
            "include": "metadata",
            "exact": "false",
        },
    )
    assert raw.status_code == 200, raw.text
    assert ids(as_numbers) == ["b", "c"]
    assert as_numbers["hits"] == as_base64["hits"] == raw.json()["hits"]


def test_include_decides_what_a_hit_carries(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(
        key,
        [{"id": "a", "text": "words", "vector": [1, 2, 2, 0], "metadata": {"x": [1, {"y": None}]}}],
    )
    usual = call.search(key, vector=[1, 0, 0, 0], wait_for=token)["hits"][0]
    assert (usual["text"], usual["metadata"]) == ("words", {"x": [1, {"y": None}]})
    assert "vector" not in usual
    bare = call.search(key, vector=[1, 0, 0, 0], include=[])["hits"][0]
    assert set(bare) == {"document_id", "passage", "score"}
    whole = call.search(key, vector=[1, 0, 0, 0], include=["vector"])["hits"][0]
    assert whole["vector"] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 0])


@pytest.mark.parametrize(
    ("metric", "best"), [("cosine", "near"), ("dot", "long"), ("euclidean", "near")]
)
def test_each_metric_has_its_own_order(call: Caller, metric: str, best: str) -> None:
    _, key = call.tenant()
    call.collection(key, metric=metric)
    token = call.write(key, [doc("near", 1, 0.1, 0, 0), doc("long", 8, 8, 0, 0)])
    assert ids(call.search(key, vector=[1, 0, 0, 0], wait_for=token))[0] == best


def test_a_collection_of_many_shards_answers_as_one(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key, shards=5)
    chance = np.random.default_rng(3)
    vectors = chance.standard_normal((60, 4))
    token = call.write(key, [doc(f"d{i}", *v) for i, v in enumerate(vectors)])
    asked = chance.standard_normal(4)
    found = call.search(key, vector=asked.tolist(), wait_for=token, k=10)
    cosines = vectors @ asked / np.linalg.norm(vectors, axis=1)
    assert ids(found) == [f"d{i}" for i in np.argsort(-cosines)[:10]]
    assert len(found["freshness"]["watermark"].split(".")) == 5


def test_kafkas_own_partition_and_offset_is_a_token(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    partition, offset = call.write(key, [doc("a", 1, 0, 0, 0)]).split("-")
    wait_for = {"partition": int(partition), "offset": int(offset)}
    assert ids(call.search(key, vector=[1, 0, 0, 0], wait_for=wait_for)) == ["a"]


def test_a_batch_streams_an_answer_or_a_problem_for_every_search(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc("a", 1, 0, 0, 0), doc("b", 0, 1, 0, 0)])
    call.search(key, vector=[1, 0, 0, 0], wait_for=token)
    searches = [
        {"vector": [1, 0, 0, 0], "k": 1},
        {"vector": [1]},
        "nonsense",
        {"vector": [0, 1, 0, 0], "k": 1},
    ]
    found = call("POST", "/v1/collections/c/search:batch", key, json={"searches": searches})
    assert found.headers["content-type"] == "application/x-ndjson"
    lines = {line["index"]: line for line in map(orjson.loads, found.content.splitlines())}
    assert sorted(lines) == [0, 1, 2, 3]
    assert (ids(lines[0]), ids(lines[3])) == (["a"], ["b"])
    assert lines[1]["problem"]["field"] == "vector"
    assert lines[2]["problem"]["status"] == 400


def test_a_large_batch_is_answered_like_a_small_one_and_blocks_nothing(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc("a", 1, 0, 0, 0, n=1), doc("b", 0, 1, 0, 0, n=2)])
    call.search(key, vector=[1, 0, 0, 0], wait_for=token)
    wide = {"n": {"$in": [2, *range(10, 1_000)]}}
    searches = [{"vector": [1, 0, 0, 0], "k": 1, "filter": wide} for _ in range(40)]
    searches += [{"vector": [1, 0, 0, 0], "filter": {"n": 2**64}}, {"text": "x" * (33 << 10)}]
    data = json.dumps({"searches": searches}).encode()
    assert len(data) > SMALL_BYTES
    headers = {"content-type": "application/json"}
    found = call("POST", "/v1/collections/c/search:batch", key, content=data, headers=headers)
    assert found.status_code == 200, found.text
    lines = {line["index"]: line for line in map(orjson.loads, found.content.splitlines())}
    assert sorted(lines) == list(range(42))
    assert not [line for i, line in lines.items() if i < 40 and "problem" in line]
    assert all(ids(lines[i]) == ["b"] for i in range(40))
    assert lines[40]["problem"]["field"] == "filter", "not rounded"
    assert lines[41]["problem"]["field"] == "text"
    wrong = b'{"searches": [' + b"[]," * 60_000 + b"[]]}"
    found = call("POST", "/v1/collections/c/search:batch", key, content=wrong, headers=headers)
    assert found.status_code == 400
    assert found.json()["field"] == "searches"


# writing, reading, deleting


@pytest.mark.parametrize("kind", ["json", "ndjson", "arrow"])
def test_documents_are_accepted_as_json_lines_or_arrow(call: Caller, kind: str) -> None:
    _, key = call.tenant()
    call.collection(key)
    documents = [doc("a", 1, 0, 0, 0, lang="en"), doc("b", 0, 1, 0, 0, lang="fr")]
    if kind == "json":
        content, media = orjson.dumps({"documents": documents}), "application/json; charset=utf-8"
    elif kind == "ndjson":
        content, media = b"\n".join(map(orjson.dumps, documents)) + b"\n\n", "application/x-ndjson"
    else:
        batch = pa.record_batch(
            {
                "id": ["a", "b"],
                "vector": pa.array([d["vector"] for d in documents], pa.list_(pa.float32())),
                "metadata": ['{"lang": "en"}', '{"lang": "fr"}'],
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content, media = sink.getvalue().to_pybytes(), ARROW
    found = call(
        "POST", "/v1/collections/c/documents", key, content=content, headers={"content-type": media}
    )
    assert found.status_code == 202, found.text
    body = found.json()
    assert (body["accepted"], body["rejected"]) == (2, [])
    answer = call.search(key, vector=[1, 0, 0, 0], filter={"lang": "fr"}, wait_for=body["token"])
    assert ids(answer) == ["b"]


def test_an_error_in_one_document_rejects_that_one_alone(
    call: Caller,
) -> None:
    _, key = call.tenant()
    call.collection(key)
    bad = {
        "dimension": {"id": "dimension", "vector": [1, 2, 3]},
        "zero": {"id": "zero", "vector": [0, 0, 0, 0]},
        "huge": {"id": "huge", "vector": [1e39, 0, 0, 0]},
        "type": {"id": "type", "vector": "1,2,3,4"},
        "nothing": {"id": "nothing"},
        "unknown": {"id": "unknown", "vector": [1, 0, 0, 0], "shade": "red"},
        "text": {"id": "text", "text": "this collection has no model"},
        "empty": {"id": "empty", "text": " ", "vector": [1, 0, 0, 0]},
        "control\u0007": {"id": "control\u0007", "vector": [1, 0, 0, 0]},
        "x" * 128: {"id": "x" * 10_240, "vector": [1, 0, 0, 0]},
        "metadata": {"id": "metadata", "vector": [1, 0, 0, 0], "metadata": {"$set": 1}},
        "foreign": {"id": "foreign", "vector": [1, 0, 0, 0], "tenant": "somebody-else"},
    }
    documents = [*bad.values(), doc("good", 1, 0, 0, 0), "not an object"]
    found = call("POST", "/v1/collections/c/documents", key, json={"documents": documents})
    body = found.json()
    assert (found.status_code, body["accepted"]) == (202, 1)
    assert [r["id"] for r in body["rejected"]] == [*bad, None]
    assert all(r["reason"] and r["field"] for r in body["rejected"])
    assert ids(call.search(key, vector=[1, 0, 0, 0], wait_for=body["token"])) == ["good"]


def test_a_batch_of_rejected_documents_has_no_token(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    found = call("POST", "/v1/collections/c/documents", key, json={"documents": [{"id": ""}]})
    assert (found.status_code, found.json()["accepted"], found.json()["token"]) == (202, 0, None)


def test_the_last_of_several_writes_of_one_document_in_a_batch_wins(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc("a", 1, 0, 0, 0, n=1), doc("a", 0, 1, 0, 0, n=2)])
    found = call.search(key, vector=[1, 1, 0, 0], wait_for=token)
    assert [h["metadata"] for h in found["hits"]] == [{"n": 2}]


NAMES = [
    "plain",
    "a/b/c",
    "with space",
    'quo"te',
    "ünïcode-名前",
    "50%",
    "a?b#c",
    "...",
    "..b",
    "a//b",
    "/lead",
    "trail/",
    "%2F",
    "+",
]


def test_any_printable_id_can_be_read_and_deleted_percent_encoded(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc(name, 1, 0, 0, 0, called=name) for name in NAMES])
    call.search(key, vector=[1, 0, 0, 0], wait_for=token)
    with serving(call.another()) as url:
        for name in NAMES:
            path = f"{url}/v1/collections/c/documents/{quote(name, safe='')}"
            found = httpx2.get(path, headers={"authorization": f"Bearer {key}"}, trust_env=False)
            assert found.status_code == 200, (name, found.text)
            assert (found.json()["id"], found.json()["metadata"]) == (name, {"called": name})
            gone = httpx2.delete(path, headers={"authorization": f"Bearer {key}"}, trust_env=False)
            assert gone.status_code == 202, (name, gone.text)
            token = gone.json()["token"]
    assert ids(call.search(key, vector=[1, 0, 0, 0], wait_for=token)) == []


def test_a_document_is_read_back_with_its_passages_and_its_version(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(
        key, [{"id": "a", "passages": ["one", "two"], "vectors": [[1, 0, 0, 0], [0, 1, 0, 0]]}]
    )
    found = call("GET", f"/v1/collections/c/documents/a?wait_for={token}", key).json()
    assert [p["text"] for p in found["passages"]] == ["one", "two"]
    again = call.write(key, [doc("a", 0, 0, 1, 0, second=True)])
    newer = call("GET", f"/v1/collections/c/documents/a?wait_for={again}", key).json()
    assert newer["version"] > found["version"]
    assert (newer["metadata"], len(newer["passages"])) == ({"second": True}, 1)
    problem(call("GET", "/v1/collections/c/documents/b", key), 404, "not-found")


def test_deleting_by_ids_and_by_filter(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key, shards=3)
    token = call.write(key, [doc(f"d{i}", 1, i, 0, 0, even=i % 2 == 0) for i in range(10)])
    call.search(key, vector=[1, 0, 0, 0], wait_for=token)
    found = call(
        "POST", "/v1/collections/c/documents:delete", key, json={"ids": ["d1", "d3", "never-was"]}
    )
    assert (found.status_code, found.json()["accepted"]) == (202, 3)
    found = call("POST", "/v1/collections/c/documents:delete", key, json={"filter": {"even": True}})
    assert (found.status_code, found.json()["accepted"]) == (202, 5)
    left = call.search(key, vector=[1, 0, 0, 0], wait_for=found.json()["token"])
    assert sorted(ids(left)) == ["d5", "d7", "d9"]
    none = call("POST", "/v1/collections/c/documents:delete", key, json={"filter": {"even": True}})
    assert none.json() == {
        "accepted": 0,
        "matched": 0,
        "judged": found.json()["token"],
        "token": None,
    }


def test_a_deletion_by_filter_covers_what_was_just_written(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key, shards=2)
    path = "/v1/collections/c/documents:delete"
    for turn in range(5):
        token = call.write(
            key, [doc(f"old{turn}", 1, 0, 0, 0, old=True), doc(f"new{turn}", 1, 0, 0, 0, old=True)]
        )
        token = call.write(key, [doc(f"new{turn}", 1, 0, 0, 0, old=False)])
        found = call("POST", path, key, json={"filter": {"old": True}, "wait_for": token}).json()
        assert (found["accepted"], found["matched"], found["judged"]) == (1, 1, token)
        left = call.search(key, vector=[1, 0, 0, 0], wait_for=found["token"], k=100)
        assert sorted(ids(left)) == sorted(f"new{i}" for i in range(turn + 1))
    refused = call("POST", path, key, json={"filter": {"old": True}, "wait_for": "0-99999"})
    problem(refused, 400, "refused")


def test_dead_letters_are_read_in_pages(call: Caller) -> None:
    name, key = call.tenant()
    call.collection(key)
    values = [b"{", b"[]", orjson.dumps({"collection": "nope", "id": "x"}), b"\xff"]
    call.base.log.append(f"vicinage.docs.{name}", 0, [Record(v) for v in values])
    eventually(lambda: len(call("GET", "/v1/dead-letters", key).json()["letters"]) == 4)
    first = call("GET", "/v1/dead-letters?limit=3", key).json()
    rest = call("GET", f"/v1/dead-letters?after={first['next']}", key).json()
    letters = first["letters"] + rest["letters"]
    assert [base64.b64decode(w["value_base64"]) for w in letters] == values
    assert all(w["reason"] for w in letters)
    assert call("GET", f"/v1/dead-letters?after={rest['next']}", key).json() == {
        "letters": [],
        "next": None,
    }


# collections


def test_a_collection_states_its_settings_and_its_contents(call: Caller) -> None:
    _, key = call.tenant()
    made = call.collection(
        key, metric="dot", shards=2, objectives={"recall": 0.9, "latency_ms": 50}
    )
    assert made["counts"] == {"documents": 0, "passages": 0, "at_least": False}
    assert made["objectives"] == {"recall": 0.9, "freshness_ms": 1000, "latency_ms": 50}
    token = call.write(key, [doc("a", 1, 0, 0, 0), doc("b", 0, 1, 0, 0)])
    call.search(key, vector=[1, 0, 0, 0], wait_for=token, exact=True)
    eventually(lambda: call("GET", "/v1/collections/c", key).json()["freshness"]["lag_ms"] == 0)
    found = call("GET", "/v1/collections/c", key).json()
    assert found["counts"] == {"documents": 2, "passages": 2, "at_least": False}
    assert (found["dimension"], found["metric"], found["generation"]) == (4, "dot", 1)
    assert found["shards"] == {"asked": 2, "answered": 2}
    assert call("GET", "/v1/collections", key).json() == {"collections": [found]}


def test_recall_of_live_searches_appears_with_its_interval(call: Caller) -> None:
    name, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc(f"d{i}", 1, i, 0, 0) for i in range(20)])
    for i in range(5):
        call.search(key, vector=[1, i, 0, 0], wait_for=token, k=5)
    eventually(lambda: call("GET", "/v1/collections/c", key).json()["recall"] is not None)
    found = call("GET", "/v1/collections/c", key).json()["recall"]
    assert (found["recall"], found["k"], found["interval"][1]) == (1.0, 5, 1.0)
    (row,) = call.admin("GET", f"/recall?tenant={name}")
    assert (row["collection"], row["verdict"]) == ("c", "not_enough_samples")
    call.admin("GET", f"/recall?tenant={name}&collection=other", status=404)


def test_a_deleted_collections_name_starts_empty(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc("old", 1, 0, 0, 0)])
    call.search(key, vector=[1, 0, 0, 0], wait_for=token)
    assert call("DELETE", "/v1/collections/c?confirm=c", key).status_code == 202
    problem(
        call("POST", "/v1/collections/c/search", key, json={"vector": [1, 0, 0, 0]}),
        404,
        "not-found",
    )
    call.collection(key, dimension=2)
    token = call.write(key, [{"id": "new", "vector": [1, 0]}])
    assert ids(call.search(key, vector=[1, 0], wait_for=token)) == ["new"]


@pytest.mark.parametrize(
    "query", ["", "?confirm=", "?confirm=true", "?confirm=C", "?confirm=c&confirm=other"]
)
def test_a_container_is_deleted_only_with_its_name_as_confirmation(
    call: Caller, query: str
) -> None:
    name, key = call.tenant()
    call.collection(key)
    problem(call("DELETE", f"/v1/collections/c{query}", key), 400, "refused", "confirm")
    problem(
        call("DELETE", f"/v1/admin/tenants/{name}{query}", call.operator), 400, "refused", "confirm"
    )
    assert call("GET", "/v1/collections/c", key).status_code == 200


def test_a_collection_is_created_once(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    problem(
        call("POST", "/v1/collections", key, json={"name": "c", "dimension": 4}), 409, "conflict"
    )


# operators


def test_the_life_of_a_tenant(call: Caller) -> None:
    made = call.admin("POST", "/tenants", {"name": "acme", "class": "gold"}, status=201)
    assert (made["tenant"], made["class"], made["topic"]) == ("acme", "gold", "vicinage.docs.acme")
    key = made["key"]
    call.collection(key)
    shown = call.admin("GET", "/tenants/acme")
    assert (shown["state"], shown["collections"]) == ("active", ["c"])
    assert shown in call.admin("GET", "/tenants")
    assert call.admin("POST", "/tenants/acme/suspend")["state"] == "suspended"
    eventually(lambda: call("GET", "/v1/collections", key).status_code == 403)
    assert call.admin("POST", "/tenants/acme/resume")["state"] == "active"
    eventually(lambda: call("GET", "/v1/collections", key).status_code == 200)
    assert call.admin("DELETE", "/tenants/acme?confirm=acme") == {"deleted": "acme"}
    eventually(lambda: call("GET", "/v1/collections", key).status_code == 401)
    assert "acme" not in [t["tenant"] for t in call.admin("GET", "/tenants")]
    problem(
        call("POST", "/v1/admin/tenants", call.operator, json={"name": "acme"}), 409, "conflict"
    )


def test_keys_are_shown_once_and_end_when_revoked(call: Caller) -> None:
    name, _ = call.tenant()
    made = call.admin(
        "POST", "/keys", {"tenant": name, "scopes": ["read"], "expires_s": 3600}, status=201
    )
    assert made["key"].startswith(f"vk_{made['id']}_")
    assert made["expires_ms"] - made["created_ms"] == pytest.approx(3_600_000, abs=5_000)
    problem(
        call("POST", "/v1/collections", made["key"], json={"name": "c", "dimension": 2}),
        403,
        "forbidden",
    )
    listed = call.admin("GET", f"/keys?tenant={name}")
    assert made["id"] in [k["id"] for k in listed]
    assert all("key" not in k and "sha256" not in k for k in listed)
    assert call("GET", "/v1/collections", made["key"]).status_code == 200
    assert call.admin("DELETE", f"/keys/{made['id']}")["revoked_ms"]
    problem(call("GET", "/v1/collections", made["key"]), 401, "unauthenticated")
    operator = call.admin("POST", "/keys", {"tenant": None, "scopes": ["operate"]}, status=201)[
        "key"
    ]
    assert call("GET", "/v1/admin/tenants", operator).status_code == 200


def test_collections_of_any_tenant(call: Caller) -> None:
    name, key = call.tenant()
    made = call.admin(
        "POST", f"/tenants/{name}/collections", {"name": "c", "dimension": 3}, status=201
    )
    assert (made["tenant"], made["dimension"]) == (name, 3)
    assert call.admin("GET", f"/tenants/{name}/collections/c")["name"] == "c"
    assert [c["name"] for c in call.admin("GET", f"/collections?tenant={name}")] == ["c"]
    assert len(call.admin("GET", "/collections")) > 1
    assert call("GET", "/v1/collections/c", key).status_code == 200


def test_every_change_leaves_an_audit_record_and_the_chain_verifies(call: Caller) -> None:
    name, _ = call.tenant()
    records = call.admin("GET", "/audit?limit=1000")
    mine = [r for r in records if r["subject"].startswith(name)]
    assert [r["action"] for r in mine] == ["tenant.create", "key.create"]
    assert mine[0]["actor"].startswith("operator/")
    assert call.admin("GET", f"/audit?after={records[-1]['seq']}") == []
    newest = {name: records[-1][name] for name in ("seq", "hash")}
    checked = call.admin("POST", "/audit/verify", newest)
    assert {name: checked[name] for name in ("seq", "hash", "records", "compared")} == {
        "records": newest["seq"],
        "compared": True,
        **newest,
    }
    assert checked["keyed_from"] == 1 and checked["checked"].startswith("intact")
    later = {"seq": newest["seq"] + 1, "hash": newest["hash"]}
    assert call.admin("POST", "/audit/verify", later, status=500)["type"].endswith("corrupt")


def test_a_reindex_is_started_followed_and_canceled(call: Caller) -> None:
    name, key = call.tenant()
    call.collection(key)
    job = call.admin(
        "POST", "/reindex", {"tenant": name, "collection": "c", "index": "flat"}, status=202
    )
    assert (job["state"], job["index"], job["tenant"]) == ("pending", "flat", name)
    assert call.admin("GET", f"/reindex/{job['id']}") == job
    assert call.admin("GET", f"/reindex?tenant={name}") == [job]
    again = call(
        "POST", "/v1/admin/reindex", call.operator, json={"tenant": name, "collection": "c"}
    )
    problem(again, 409, "conflict")
    assert call.admin("POST", f"/reindex/{job['id']}/cancel")["state"] == "canceled"
    problem(call("POST", f"/v1/admin/reindex/{job['id']}/cancel", call.operator), 409, "conflict")


def test_freshness_per_tenant(call: Caller) -> None:
    name, key = call.tenant()
    call.collection(key)
    call.search(key, vector=[1, 0, 0, 0])
    call.search(key, vector=[1, 0, 0, 0], wait_for=call.write(key, [doc("a", 1, 0, 0, 0)]))
    (row,) = call.admin("GET", f"/freshness?tenant={name}")
    assert (row["tenant"], row["lag_ms"], row["n"], row["replayed"]) == (name, 0, 1, 0)
    assert 0 <= row["p50_ms"] <= row["p99_ms"] < 15_000
    assert name in [r["tenant"] for r in call.admin("GET", "/freshness")]
    assert (row["ingest"], row["partitions"]) == ("reading", [])


def test_a_recreated_topic_is_noticed_and_resumed(call: Caller) -> None:
    name, key = call.tenant()
    call.collection(key)
    call.search(key, vector=[1, 0, 0, 0], wait_for=call.write(key, [doc("old", 1, 0, 0, 0)]))
    log, topic = call.base.log, f"vicinage.docs.{name}"
    log.delete_topic(topic)
    log.ensure_topic(topic)
    eventually(lambda: call.admin("GET", f"/freshness?tenant={name}")[0]["ingest"] == "halted")
    [partition] = call.admin("GET", f"/freshness?tenant={name}")[0]["partitions"]
    assert (partition["kind"], partition["position"]) == ("topic_replaced", 1)
    late = {
        "vector": [1, 0, 0, 0],
        "wait_for": call.write(key, [doc("x", 1, 0, 0, 0)]),
        "timeout_ms": 600,
    }
    told = call("POST", "/v1/collections/c/search", key, json=late)
    assert (
        told.status_code,
        "its partition is halted (topic_replaced)" in told.json()["detail"],
    ) == (504, True)
    plan = call.admin("POST", f"/tenants/{name}/resume-ingest", {"dry_run": True})
    assert [(p["resume_at"], p["skipped"]) for p in plan["partitions"]] == [(0, None)]
    token = call.write(key, [doc("new", 0, 1, 0, 0)])
    assert call.admin("POST", f"/tenants/{name}/resume-ingest", {}) == plan
    hits = call.search(key, vector=[0, 1, 0, 0], k=5, wait_for=token)["hits"]
    assert sorted(h["document_id"] for h in hits) == ["new", "old", "x"]
    eventually(lambda: call.admin("GET", f"/freshness?tenant={name}")[0]["ingest"] == "reading")


def test_models_are_listed(call: Caller) -> None:
    assert "all-minilm-l6-v2" in [m["name"] for m in call.admin("GET", "/models")]


def test_a_model_is_registered_once_and_collections_use_it(call: Caller) -> None:
    entry = {
        "name": "own/model",
        "kind": "openai",
        "location": "http://127.0.0.1:9/v1",
        "dimension": 8,
    }
    entry |= {"window_tokens": 512, "normalized": False}
    added = {**entry, "query_prompt": "", "document_prompt": "", "retired": False}
    assert call.admin("POST", "/models", entry, status=201) == added
    assert added in call.admin("GET", "/models")
    assert call.admin("GET", "/audit?limit=1000")[-1]["action"] == "model.register"
    call.admin("POST", "/models", entry, status=409)
    _, key = call.tenant()
    assert call.collection(key, model="own/model")["dimension"] == 8


# health


def test_health_readiness_metrics_and_openapi_need_no_key(call: Caller) -> None:
    assert call("GET", "/healthz").json() == {"status": "ok"}
    ready = call("GET", "/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert set(ready.json()["parts"]) == {"catalog", "log", "ingest", "searcher", "embedder"}
    metrics = call("GET", "/metrics")
    assert "vicinage_query_searches_total" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")


# how long it takes


def test_a_search_that_waits_is_answered_soon_after_the_write_is_searchable(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    call.search(key, vector=[1, 0, 0, 0], wait_for=call.write(key, [doc("a", 1, 0, 0, 0)]))
    start = time.perf_counter()
    call.search(key, vector=[1, 0, 0, 0], wait_for=call.write(key, [doc("b", 1, 0, 0, 0)]))
    assert time.perf_counter() - start < 2
