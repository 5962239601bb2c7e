"""Planning of shards and merging of their results: pure."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.merge import merge
from query.plan import SearchRequest, make_plan
from tenants.entities import Collection, Generation, Objectives
from vicinage.errors import Refused
from vicinage.filters import Filter
from vicinage.records import Hit, ShardId, ShardResult


def generation(number: int, slots: tuple[int, ...], state: str = "live") -> Generation:
    return Generation("t", "c", number, state, None, 2, "cosine", "auto", slots, (0,) * len(slots))


def shard_result(slot: int, scores: list[float]) -> ShardResult:
    hits = tuple(Hit(f"{slot}-{i}", 0, score, 1) for i, score in enumerate(scores))
    return ShardResult(ShardId("t", "c", 1, slot), (hits,), 0, 0)


def test_every_shard_of_the_live_generation_is_searched_and_no_other() -> None:
    generations = (generation(1, (0, 1)), generation(2, (2, 3, 4), "building"))
    collection = Collection("t", "c", "active", 1, generations, Objectives())
    request = SearchRequest(
        "c",
        7,
        vector=np.ones(2, np.float32),
        filter=Filter.parse({"a": 1}),
        exact=True,
        include=frozenset({"text"}),
    )
    plan = make_plan(request, collection, np.array([1, 0], np.float32), 42)
    assert [q.shard for q in plan.queries] == [ShardId("t", "c", 1, 0), ShardId("t", "c", 1, 1)]
    for query in plan.queries:
        assert query.vectors.shape == (1, 2)
        assert (query.k, query.filter, query.exact, query.include) == (
            7,
            request.filter,
            True,
            {"text"},
        )
        assert query.catalog == 42


def test_more_vectors_than_one_answer_may_hold_are_refused_with_the_k_that_is_allowed() -> None:
    wide = replace(generation(1, (0,)), dimension=4_096)
    collection, vector = (
        Collection("t", "c", "active", 1, (wide,), Objectives()),
        np.ones(4_096, np.float32),
    )
    make_plan(
        SearchRequest("c", 1_000, vector=vector, include=frozenset({"text"})), collection, vector, 1
    )
    make_plan(
        SearchRequest("c", 256, vector=vector, include=frozenset({"vector"})), collection, vector, 1
    )
    with pytest.raises(Refused, match="k of at most 256") as refused:
        make_plan(
            SearchRequest("c", 257, vector=vector, include=frozenset({"vector"})),
            collection,
            vector,
            1,
        )
    assert (refused.value.field, refused.value.limit) == ("k", 256)


def test_the_result_of_one_shard_is_truncated_to_k() -> None:
    assert [h.document_id for h in merge([shard_result(0, [0.9, 0.8, 0.7])], 2)] == ["0-0", "0-1"]


def test_empty_results_merge_to_no_hits() -> None:
    assert merge([shard_result(0, []), shard_result(1, [])], 5) == ()


def test_equal_scores_keep_the_order_of_shards_and_hits() -> None:
    found = merge([shard_result(0, [0.5, 0.5]), shard_result(1, [0.5])], 3)
    assert [h.document_id for h in found] == ["0-0", "0-1", "1-0"]


Scores = st.lists(st.floats(-10, 10, width=32), max_size=8).map(lambda s: sorted(s, reverse=True))


@given(shards=st.lists(Scores, min_size=1, max_size=5), k=st.integers(1, 12))
def test_the_merge_of_shards_is_the_best_k_of_all_of_them(
    shards: list[list[float]], k: int
) -> None:
    found = merge([shard_result(slot, scores) for slot, scores in enumerate(shards)], k)
    assert [h.score for h in found] == sorted(
        (s for scores in shards for s in scores), reverse=True
    )[:k]
    assert len({h.document_id for h in found}) == len(found)
