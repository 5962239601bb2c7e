"""The `degraded` field of answers that are less than promised."""

import numpy as np

from query.degraded import reason_of
from query.plan import Plan, SearchRequest, make_plan
from query.scatter import ScatterResult
from tenants.entities import Collection, Generation, Objectives
from vicinage.errors import Unavailable
from vicinage.records import Bound, ShardResult

GENERATION = Generation("t", "c", 1, "live", None, 2, "cosine", "auto", (0, 1), (0, 0))
COLLECTION = Collection("t", "c", "active", 1, (GENERATION,), Objectives(recall=0.95))


def planned() -> Plan:
    return make_plan(
        SearchRequest("c", 10), COLLECTION, np.array([1, 0], np.float32), 1, 0.95, scan=True
    )


def shard_result(slot: int, scanned: int = 0, unscanned: Bound | None = None) -> ShardResult:
    return ShardResult(GENERATION.shards()[slot], ((),), 7, 0, scanned=scanned, unscanned=unscanned)


def test_a_complete_answer_has_no_reason() -> None:
    assert reason_of(planned(), ScatterResult((shard_result(0), shard_result(1)), ())) is None


def test_missing_shards_are_counted() -> None:
    missing = ScatterResult((shard_result(0),), (Unavailable("away", dependency="searcher"),))
    assert reason_of(planned(), missing) == "1 of 2 shards did not answer"


def test_a_scan_in_place_of_an_index_is_named_with_its_objective_and_its_passages() -> None:
    reason = reason_of(planned(), ScatterResult((shard_result(0, 300), shard_result(1, 200)), ()))
    assert reason == (
        "live searches prove that the index misses the recall objective of 0.95; "
        "500 passages were compared one by one in its place"
    )


def test_an_index_that_serves_below_its_objective_because_of_a_bound_is_named() -> None:
    for bound in ("rows", "cpu"):
        reason = reason_of(
            planned(), ScatterResult((shard_result(0, 0, bound), shard_result(1)), ())
        )
        assert reason is not None
        assert "misses the recall objective of 0.95" in reason
        assert "searched at its greatest effort" in reason
        assert "compared one by one in" not in reason
