"""Fusion of two lists by rank or score: deterministic, with each list's own score kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.merge import best_hits, fused
from query.plan import DEPTH_MIN, Fusion, SearchRequest, make_plan
from tenants.entities import Collection, Generation, Objectives
from vicinage.records import Hit, ShardId, ShardResult

RRF = Fusion("rrf")
NAMES = [f"d{i}" for i in range(12)]


def hits(**scores: float) -> list[Hit]:
    """Hits, best first."""
    return [
        Hit(name, 0, score, 1)
        for name, score in sorted(scores.items(), key=lambda s: (-s[1], s[0]))
    ]


def shown(found: tuple[Hit, ...]) -> list[tuple[str, float, float | None, float | None]]:
    return [(h.document_id, round(h.score, 6), h.dense_score, h.lexical_score) for h in found]


def test_by_rank_a_hit_in_both_lists_beats_the_first_of_either() -> None:
    found = fused(hits(a=0.9, b=0.8, c=0.1), hits(c=30, d=20, b=10), RRF, 3)
    assert shown(found) == [
        ("c", round(1 / 63 + 1 / 61, 6), 0.1, 30),
        ("b", round(1 / 62 + 1 / 63, 6), 0.8, 10),
        ("a", round(1 / 61, 6), 0.9, None),
    ]


def test_by_score_each_list_is_standardized_and_weighted() -> None:
    """Scales over the best 50: dense above the list's last, lexical above 0, which has no word."""
    dense, words = hits(a=0.9, b=0.7, c=0.5), hits(c=30, d=20, b=10)
    of_dense, of_words = np.std([0.9, 0.7, 0.5]), np.std([30, 20, 10] + [0] * (DEPTH_MIN - 3))
    expected = {
        "a": 0.25 * 0.4 / of_dense,
        "b": 0.25 * 0.2 / of_dense + 0.75 * 10 / of_words,
        "c": 0.75 * 30 / of_words,
        "d": 0.75 * 20 / of_words,
    }
    found = fused(dense, words, Fusion("weighted", 0.25), 10)
    assert {h.document_id: h.score for h in found} == pytest.approx(expected)
    assert [h.document_id for h in found] == ["c", "d", "b", "a"]
    assert [h.document_id for h in fused(dense, words, Fusion("weighted", 1), 2)] == ["a", "b"]


def test_the_only_text_with_the_word_is_among_the_best() -> None:
    dense = hits(**{f"d{i:02}": 0.5 - i / 1_000 for i in range(DEPTH_MIN)})
    assert "d40" in {hit.document_id for hit in fused(dense, hits(d40=9.0), Fusion(), 10)}


@given(
    st.lists(st.integers(0, 400), min_size=55, max_size=120),
    st.lists(st.integers(1, 400), max_size=120),
    st.data(),
)
def test_a_longer_answer_begins_as_a_shorter_one(
    dense: list[int], words: list[int], data: st.DataObject
) -> None:
    """Hits beyond the best 50 never precede a hit that is among the best of a list."""
    n = data.draw(st.integers(0, 80), label="documents of the words' own")
    of_dense = {f"d{i:03}": s / 8 for i, s in enumerate(dense)}
    of_words = {f"d{n + i:03}": s / 8 for i, s in enumerate(words)}
    every = fused(hits(**of_dense), hits(**of_words), Fusion(), 1_000)
    short = fused(hits(**of_dense)[:DEPTH_MIN], hits(**of_words)[:DEPTH_MIN], Fusion(), DEPTH_MIN)
    exact = [h for h in every if h.score > 0][:DEPTH_MIN]
    assert [h.score for h in short[: len(exact)]] == pytest.approx([h.score for h in exact])
    assert len(every) == len(of_dense | of_words)


@pytest.mark.parametrize("fusion", [RRF, Fusion(), Fusion("weighted", 0.5)])
def test_equal_scores_are_ordered_by_document_and_passage(fusion: Fusion) -> None:
    same = [Hit("b", 1, 0.5, 1), Hit("a", 0, 0.5, 1), Hit("b", 0, 0.5, 1)]
    for order in (same, same[::-1]):
        found = fused(order, [], fusion, 10)
        assert [(h.document_id, h.passage) for h in found] == [("a", 0), ("b", 0), ("b", 1)]
        assert len({h.score for h in found}) == 1


@pytest.mark.parametrize("fusion", [RRF, Fusion(), Fusion("weighted", 0.3)])
def test_empty_lists_give_nothing_and_one_list_keeps_its_order(fusion: Fusion) -> None:
    assert fused([], [], fusion, 5) == ()
    one = hits(a=3, b=2, c=1)
    assert [h.document_id for h in fused(one, [], fusion, 5)] == ["a", "b", "c"]
    assert [h.document_id for h in fused([], one, fusion, 2)] == ["a", "b"]


Lists = st.dictionaries(
    st.sampled_from(NAMES), st.integers(-40, 40).map(lambda n: n / 8), max_size=10
)
Words = st.dictionaries(
    st.sampled_from(NAMES), st.integers(1, 80).map(lambda n: n / 8), max_size=10
)


@given(
    Lists,
    Words,
    st.sampled_from([RRF, Fusion(), Fusion("weighted", 0.0), Fusion("weighted", 1.0)]),
    st.integers(1, 12),
)
def test_no_hit_is_lost_or_duplicated_and_a_better_rank_is_never_worse(
    dense: dict[str, float], words: dict[str, float], fusion: Fusion, k: int
) -> None:
    found = fused(hits(**dense), hits(**words), fusion, k)
    assert len(found) == len({h.document_id for h in found}) == min(k, len(dense | words))
    assert all(
        (h.dense_score, h.lexical_score) == (dense.get(h.document_id), words.get(h.document_id))
        for h in found
    )
    at = {h.document_id: i for i, h in enumerate(fused(hits(**dense), hits(**words), fusion, 100))}
    for a in dense.keys() & words.keys():
        for b in dense.keys() & words.keys():
            if dense[a] > dense[b] and words[a] > words[b]:
                assert at[a] < at[b]


def shard_result(slot: int, dense: list[Hit], words: list[Hit]) -> ShardResult:
    return ShardResult(ShardId("t", "c", 1, slot), (tuple(dense),), 0, 0, (tuple(words),))


def test_the_lists_of_all_shards_are_merged_before_they_are_fused() -> None:
    shards = [
        shard_result(0, hits(a=0.9, b=0.1), hits(b=5)),
        shard_result(1, hits(c=0.8), hits(c=7, d=6)),
    ]
    found = best_hits(shards, SearchRequest("c", 10, text="x", mode="hybrid"))
    expected = fused(hits(a=0.9, c=0.8, b=0.1), hits(c=7, d=6, b=5), Fusion(), 10)
    assert found == expected
    assert [
        h.document_id for h in best_hits(shards, SearchRequest("c", 2, text="x", mode="lexical"))
    ] == ["c", "d"]
    assert [h.document_id for h in best_hits(shards, SearchRequest("c", 2, text="x"))] == ["a", "c"]


def test_a_plan_carries_the_text_and_requests_deeper_lists_for_fusion() -> None:
    live = Generation("t", "c", 1, "live", None, 2, "cosine", "auto", (0, 1), (0, 0))
    collection = Collection("t", "c", "active", 1, (live,), Objectives())
    vector = np.array([1, 0], np.float32)

    def asked(
        k: int, mode: str, vector: np.ndarray | None
    ) -> tuple[int, str, tuple[str, ...], tuple[int, ...]]:
        [query, other] = make_plan(
            SearchRequest("c", k, text="red", mode=mode), collection, vector, 1
        ).queries  # type: ignore[arg-type]
        assert (query.k, query.mode, query.texts) == (other.k, other.mode, other.texts)
        return query.k, query.mode, query.texts, query.vectors.shape

    assert asked(3, "dense", vector) == (3, "dense", (), (1, 2))
    assert asked(3, "lexical", None) == (3, "lexical", ("red",), (1, 0))
    assert asked(3, "hybrid", vector) == (DEPTH_MIN, "hybrid", ("red",), (1, 2))
    assert asked(200, "hybrid", vector)[0] == 200
