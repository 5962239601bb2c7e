"""Batches: which requests run together, how many, and that each gets its own result."""

import numpy as np
from rows import unit

from query.searcher.batch import (
    COST_MAX,
    HITS_MAX,
    QueuedSearch,
    batch_key,
    batch_size_max,
    combine,
    set_results,
)
from vicinage.clock import Deadline
from vicinage.filters import Filter
from vicinage.records import Hit, ShardId, ShardQuery, ShardResult

SHARD = ShardId("acme", "docs", 1, 0)


def queued(i: int = 0, *, k: int = 5, cost: int = 1) -> QueuedSearch:
    query = ShardQuery(SHARD, unit(i)[None], k, mode="hybrid", texts=(f"text {i}",))
    return QueuedSearch(query, Deadline.after(5), cost=cost)


def test_filters_that_python_takes_for_equal_are_not_combined() -> None:
    vector = unit(0)[None]

    def are_combined(one: object, other: object) -> bool:
        one_key, other_key = (
            batch_key(ShardQuery(SHARD, vector, 5, filter=Filter.parse({"x": x})))
            for x in (one, other)
        )
        return one_key == other_key

    assert not are_combined(1, True)
    assert not are_combined(0, False)
    assert are_combined(1, 1)
    key = batch_key(ShardQuery(SHARD, vector, 5))
    assert key == batch_key(ShardQuery(SHARD, unit(1)[None], 5))
    assert key != batch_key(ShardQuery(SHARD, vector, 6))
    assert key != batch_key(ShardQuery(ShardId("evil", "docs", 1, 0), vector, 5))


def test_a_batch_is_bounded_by_number_cost_and_hits() -> None:
    assert batch_size_max(queued(), 64) == 64
    assert batch_size_max(queued(cost=COST_MAX // 2), 64) == 2
    assert batch_size_max(queued(k=HITS_MAX // 3), 64) == 3
    assert batch_size_max(queued(k=10 * HITS_MAX, cost=10 * COST_MAX), 64) == 1


def test_each_request_gets_its_part_of_the_combined_result() -> None:
    batch = [queued(i) for i in range(3)]
    combined = combine(batch)
    np.testing.assert_array_equal(combined.vectors, np.stack([unit(i) for i in range(3)]))
    assert combined.texts == ("text 0", "text 1", "text 2")
    hits = tuple((Hit(f"d{i}", 0, 1.0, 1),) for i in range(3))
    set_results(batch, ShardResult(SHARD, hits, 7, 16, lexical=hits[::-1]), watermark=9)
    results = [each.future.result(0) for each in batch]
    assert [(r.hits, r.lexical) for r in results] == [
        ((hits[i],), (hits[2 - i],)) for i in range(3)
    ]
    assert {r.watermark for r in results} == {9}, "the greater one of the slot and the shard"
