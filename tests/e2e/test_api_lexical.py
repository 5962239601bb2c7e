"""Lexical and hybrid searches over HTTP: what is found, what is refused, and isolation."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from gate import Caller, build, calling, platform, problem
from resources import HashEmbedder, eventually, resources_in, running

from vicinage.errors import Unavailable
from vicinage.settings import GatewaySettings


class EmbedderAway(HashEmbedder):
    """An embedder that never answers."""

    async def embed_query(self, *_: Any, **__: Any) -> Any:
        raise Unavailable("the embedder is away", dependency="embedder")


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with platform(
        tmp_path_factory.mktemp("api"), GatewaySettings(body_bytes_max=1 << 20, timeout_ms=5_000)
    ) as caller:
        yield caller


def doc(name: str, text: str, *vector: float, **metadata: object) -> dict[str, object]:
    return {"id": name, "text": text, "vector": list(vector) or [1, 0, 0, 0], "metadata": metadata}


def ids(found: dict) -> list[str]:
    return [h["document_id"] for h in found["hits"]]


def test_a_document_written_is_found_by_its_words_through_its_token(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(
        key, [doc("cat", "the cat sat", lang="en"), doc("dog", "a dog barked loudly at a cat")]
    )
    found = call.search(key, text="Barking dogs", mode="lexical", wait_for=token)
    assert ids(found) == ["dog"]
    best = found["hits"][0]
    assert best["score"] > 0
    assert (best["text"], best["passage"], best["start"], best["end"]) == (
        "a dog barked loudly at a cat",
        0,
        0,
        28,
    )
    assert set(best) == {"document_id", "passage", "score", "text", "start", "end", "metadata"}
    assert (found["generation"], found["degraded"]) == (1, None)
    assert ids(call.search(key, text="cat", mode="lexical", k=1)) == ["cat"], "the shorter text"
    assert ids(
        call.search(key, text="cat", mode="lexical", filter={"lang": {"$exists": False}})
    ) == ["dog"]
    assert ids(call.search(key, text="zebra", mode="lexical")) == []
    assert ids(call.search(key, text="a dog", mode="lexical", exact=True)) == ["dog"]


def test_replaced_and_deleted_documents_are_not_found(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    call.write(key, [doc("a", "apples"), doc("b", "apples and pears")])
    token = call.write(key, [doc("a", "plums")])
    assert ids(call.search(key, text="apple", mode="lexical", wait_for=token)) == ["b"]
    assert ids(call.search(key, text="plum", mode="lexical")) == ["a"]
    token = call("DELETE", "/v1/collections/c/documents/b", key).json()["token"]
    assert ids(call.search(key, text="apple pear", mode="lexical", wait_for=token)) == []


def test_both_lists_are_fused_and_each_score_is_returned(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(
        key,
        [
            doc("both", "the quick fox", 0.9, 0.1, 0, 0),
            doc("words", "quick quick fox fox", 0, 0, 1, 0),
            doc("near", "nothing alike", 1, 0, 0, 0),
        ],
    )
    asked = {"text": "quick fox", "vector": [1, 0, 0, 0], "mode": "hybrid", "wait_for": token}
    assert [h["document_id"] for h in call.search(key, **asked)["hits"]] == [
        "both",
        "near",
        "words",
    ]
    hits = call.search(key, **asked, fusion={"method": "rrf"})["hits"]
    assert {h["document_id"] for h in hits} == {"both", "words", "near"}
    assert hits[0]["document_id"] in {"both", "words"}
    by_id = {h["document_id"]: h for h in hits}
    assert "lexical_score" not in by_id["near"]
    assert by_id["near"]["dense_score"] == pytest.approx(1)
    assert by_id["near"]["score"] == pytest.approx(1 / 61)
    assert {h["score"] for h in hits[:2]} <= {1 / 61 + 1 / 63, 1 / 62 + 1 / 62, 1 / 61 + 1 / 62}
    by_vector = call.search(key, **asked, fusion={"method": "weighted", "dense_weight": 1})["hits"]
    assert [h["document_id"] for h in by_vector] == ["near", "both", "words"]
    by_words = call.search(key, **asked, fusion={"method": "weighted", "dense_weight": 0}, k=1)[
        "hits"
    ]
    assert by_words[0]["document_id"] == ids(call.search(key, text="quick fox", mode="lexical"))[0]
    assert call.search(key, **asked, fusion={"dense_weight": 0}, k=1)["hits"] == by_words, (
        "weighted is the default"
    )


def test_hybrid_embeds_the_text_unless_a_vector_is_given(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key, model="all-minilm-l6-v2")
    token = call.write(
        key, [{"id": "cat", "text": "the cat sat"}, {"id": "dog", "text": "a dog barked loudly"}]
    )
    found = call.search(key, text="dog barked", mode="hybrid", wait_for=token)["hits"]
    assert found[0]["document_id"] == "dog"
    assert {"dense_score", "lexical_score"} <= set(found[0])
    dense = call.search(key, text="dog barked", exact=True)["hits"]
    assert found[0]["dense_score"] == pytest.approx(dense[0]["score"])
    assert "dense_score" not in dense[0]


def test_lexical_search_needs_no_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    with platform(
        tmp_path_factory.mktemp("away"), embedder_for=lambda _model: EmbedderAway()
    ) as caller:
        _, key = caller.tenant()
        caller.collection(key)
        token = caller.write(key, [doc("a", "apples")])
        assert ids(caller.search(key, text="apples", mode="lexical", wait_for=token)) == ["a"]
        asked = {"text": "apples", "mode": "hybrid"}
        assert ids(caller.search(key, **asked, vector=[1, 0, 0, 0])) == ["a"]
        caller.collection(key, "m", model="all-minilm-l6-v2")
        assert "lexical search only" in caller.search(key, "m", **asked)["degraded"]["reason"]
        problem(caller("POST", "/v1/collections/m/search", key, json={"text": "apples"}), 503)
        assert ids(caller.search(key, "m", text="apples", mode="lexical")) == []


BAD: list[tuple[dict[str, Any], str]] = [
    ({"mode": "lexical"}, "text"),
    ({"mode": "lexical", "vector": [1, 0, 0, 0]}, "text"),
    ({"mode": "lexical", "text": "a", "vector": [1, 0, 0, 0]}, "vector"),
    ({"mode": "lexical", "text": "a", "vector_base64": "AAAA"}, "vector_base64"),
    ({"mode": "lexical", "text": "a", "fusion": {}}, "fusion"),
    ({"mode": "lexical", "text": "  "}, "text"),
    ({"mode": "lexical", "text": "\u200b\u00ad\u0000"}, "text"),
    ({"text": "\ufeff \u200d"}, "text"),
    ({"mode": "lexical", "text": 7}, "text"),
    ({"mode": "hybrid"}, "text"),
    ({"mode": "hybrid", "vector": [1, 0, 0, 0]}, "text"),
    (
        {"mode": "hybrid", "text": "a", "vector": [1, 0, 0, 0], "vector_base64": "AAAA"},
        "vector_base64",
    ),
    ({"mode": "hybrid", "text": "a", "vector": [1, 0, 0]}, "vector"),
    ({"mode": "hybrid", "text": "a"}, "text"),  # this collection has no model
    ({"mode": "dense", "text": "a", "vector": [1, 0, 0, 0]}, "vector"),
    ({"text": "a", "vector": [1, 0, 0, 0]}, "vector"),
    ({"vector": [1, 0, 0, 0], "fusion": {"method": "rrf"}}, "fusion"),
    ({"mode": "sparse", "text": "a"}, "mode"),
    ({"mode": ["lexical"], "text": "a"}, "mode"),
    ({"mode": 1, "text": "a"}, "mode"),
    *(
        ({"mode": "hybrid", "text": "a", "vector": [1, 0, 0, 0], "fusion": fusion}, "fusion")
        for fusion in (
            "rrf",
            ["rrf"],
            {"method": "max"},
            {"method": None},
            {"method": ["rrf"]},
            {"method": "rrf", "dense_weight": 0.5},
            {"method": "weighted", "dense_weight": 1.1},
            {"method": "weighted", "dense_weight": -0.1},
            {"method": "weighted", "dense_weight": True},
            {"method": "weighted", "dense_weight": "0.5"},
            {"method": "weighted", "k": 60},
        )
    ),
]


@pytest.mark.parametrize(("asked", "field"), BAD, ids=str)
def test_conflicting_fields_are_refused_by_name(call: Caller, asked: dict, field: str) -> None:
    _, key = call.tenant()
    call.collection(key)
    problem(call("POST", "/v1/collections/c/search", key, json=asked), 400, "refused", field)


def test_a_search_text_is_never_parsed_as_a_query_language(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc("a", "alpha beta"), doc("b", "gamma")])
    for text in (
        '"alpha',
        "alpha AND (",
        "+alpha -beta",
        "text:alpha",
        "row:[* TO *] alpha",
        "alpha^9e999",
        "al\u0000pha alpha",
    ):
        assert ids(call.search(key, text=text, mode="lexical", wait_for=token)) == ["a"], text
    for text in ("*", "row:0", "[a TO z]", "NOT zeta", "al*", "/al.*/"):
        assert ids(call.search(key, text=text, mode="lexical")) == [], text


def test_raw_vector_bodies_and_batches_accept_modes(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc("near", "pears", 1, 0, 0, 0), doc("words", "apples", 0, 1, 0, 0)])

    def binary(**parameters: str) -> Any:
        return call(
            "POST",
            "/v1/collections/c/search",
            key,
            content=np.array([1, 0, 0, 0], "<f4").tobytes(),
            headers={"content-type": "application/octet-stream"},
            params={"wait_for": token, **parameters},
        )

    found = binary(
        mode="hybrid", text="apples", fusion='{"method": "weighted", "dense_weight": 0.1}'
    )
    assert found.status_code == 200, found.text
    assert ids(found.json()) == ["words", "near"]
    problem(binary(mode="lexical", text="apples"), 400, "refused", "vector")
    problem(binary(mode="hybrid"), 400, "refused", "text")
    problem(binary(text="apples"), 400, "refused", "text")
    problem(binary(text="apples", mode="dense"), 400, "refused", "text")
    problem(binary(mode="hybrid", text="a", fusion="rrf"), 400, "refused", "fusion")

    searches = [
        {"text": "apples", "mode": "lexical"},
        {"text": "pears", "mode": "lexical"},
        {"vector": [1, 0, 0, 0], "k": 1},
        {"text": "apples", "vector": [0, 1, 0, 0], "mode": "hybrid", "k": 1},
        {"text": "apples", "mode": "sparse"},
    ]
    lines = call(
        "POST", "/v1/collections/c/search:batch", key, json={"searches": searches}
    ).content.splitlines()
    answers = {line["index"]: line for line in map(orjson.loads, lines)}
    assert [ids(answers[i]) for i in range(4)] == [["words"], ["near"], ["near"], ["words"]]
    assert answers[4]["problem"]["field"] == "mode"


def test_no_tenant_finds_another_tenants_words(call: Caller) -> None:
    _, mine = call.tenant()
    _, theirs = call.tenant()
    for key, text in ((mine, "secret apples"), (theirs, "public pears")):
        call.collection(key)
        token = call.write(key, [doc("d", text)])
        assert ids(call.search(key, text="apples pears", mode="lexical", wait_for=token)) == ["d"]
    assert call.search(theirs, text="secret apples", mode="lexical")["hits"] == []
    hybrid = call.search(theirs, text="secret apples", vector=[1, 0, 0, 0], mode="hybrid")["hits"]
    assert [h["text"] for h in hybrid] == ["public pears"]
    assert "lexical_score" not in hybrid[0]
    alone = call.search(mine, text="secret", mode="lexical")["hits"][0]["score"]
    call.write(theirs, [doc(f"d{i}", "secret") for i in range(50)])
    assert call.search(mine, text="secret", mode="lexical")["hits"][0]["score"] == alone, (
        "nor by how rare a word is"
    )


def test_many_shards_answer_as_one_deterministically(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key, shards=5)
    token = call.write(
        key, [doc(f"d{i}", f"apple number{i}", *np.eye(4)[i % 4], n=i) for i in range(60)]
    )
    found = call.search(key, text="apple", mode="lexical", k=60, wait_for=token)
    assert sorted(ids(found)) == sorted(f"d{i}" for i in range(60))
    scores = [h["score"] for h in found["hits"]]
    assert scores == sorted(scores, reverse=True)
    asked = {"text": "number7 apple", "vector": [0, 1, 0, 0], "mode": "hybrid", "k": 20}
    hybrid = [call.search(key, **asked)["hits"] for _ in range(5)]
    assert all(h == hybrid[0] for h in hybrid)
    assert len(hybrid[0]) == 20
    few = call.search(key, text="apple", mode="lexical", k=10, filter={"n": {"$in": [3, 33, 59]}})
    assert sorted(ids(few)) == ["d3", "d33", "d59"]


def test_the_recall_monitor_samples_vectors_alone(call: Caller) -> None:
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [doc("a", "apples")])
    monitor = call.state.pipeline.recall
    samples = len(monitor._samples)
    call.search(key, text="apples", mode="lexical", wait_for=token)
    call.search(key, text="apples", mode="hybrid", vector=[1, 0, 0, 0])
    assert len(monitor._samples) == samples
    call.search(key, vector=[1, 0, 0, 0])
    assert len(monitor._samples) == samples + 1


def test_words_are_found_before_and_after_sealing_compaction_and_a_restart(
    tmp_path_factory,
) -> None:
    folder = tmp_path_factory.mktemp("sealing")
    base = resources_in(folder, seal_passages=5, segments_max=2)
    try:
        with (
            running(base, indexing=True) as searcher,
            calling(base, searcher, build(base, [searcher])) as caller,
        ):
            _, key = caller.tenant()
            caller.collection(key)

            def held() -> Any:
                [shard] = caller.portal.call(searcher.stats).shards
                return shard

            for i in range(4):
                token = caller.write(key, [doc(f"d{i}-{j}", f"apple w{i}x{j}") for j in range(6)])
                found = caller.search(key, text=f"w{i}x3", mode="lexical", wait_for=token)
                assert ids(found) == [f"d{i}-3"]
                eventually(lambda: held().manifest_version > i and held().delta_passages == 0)  # noqa: B023
            token = caller.write(key, [doc("d0-0", "pear"), doc("d1-1", "pear")])
            expected = sorted(
                f"d{i}-{j}"
                for i, j in itertools.product(range(4), range(6))
                if (i, j) not in {(0, 0), (1, 1)}
            )

            def apples() -> list[str]:
                return sorted(
                    ids(caller.search(key, text="apple", mode="lexical", k=100, wait_for=token))
                )

            assert apples() == expected
            eventually(lambda: held().segments <= 2 and held().manifest_version >= 5)
            assert held().delta_passages == 2
            assert apples() == expected
            assert sorted(ids(caller.search(key, text="pear", mode="lexical"))) == ["d0-0", "d1-1"]
        with (
            running(base, indexing=False) as searcher,
            calling(base, searcher, build(base, [searcher])) as caller,
        ):
            assert apples() == expected
    finally:
        base.close()
