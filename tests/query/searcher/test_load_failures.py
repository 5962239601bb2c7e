"""Corrupt shards: refused or served from an older manifest, and retried with backoff."""

from indexer.index.objects import Damaged
from query.searcher.load_failures import CORRUPT_RETRY_S, LoadFailures
from vicinage.errors import Corrupt
from vicinage.records import ShardId

SHARD, OTHER = ShardId("acme", "docs", 1, 0), ShardId("other", "docs", 1, 0)
DAMAGED = Damaged("its checksum differs", path="p", role="searcher", fault="corrupt")


def test_a_stale_shard_is_retried_with_a_backoff_up_to_a_bound() -> None:
    failures = LoadFailures()
    waits = [failures.serve_stale(SHARD, DAMAGED) for _ in range(12)]
    assert waits[:3] == [1, 2, 4]
    assert max(waits) == waits[-1] == CORRUPT_RETRY_S[1]
    failures.serve_stale(OTHER, DAMAGED)
    assert failures.stale_reasons("acme") == {SHARD: "its checksum differs"}
    assert failures.stale_reasons(None).keys() == {SHARD, OTHER}


def test_a_damaged_segment_is_retried_and_a_corrupt_row_is_not() -> None:
    failures = LoadFailures()
    failures.serve_stale(SHARD, DAMAGED)
    assert [failures.refuse(SHARD, DAMAGED) for _ in range(3)] == [1, 2, 4]
    assert failures.refuse(OTHER, Corrupt("no row", path="p")) is None
    assert (failures.backing_off(), failures.stale) == ({SHARD, OTHER}, {})


def test_a_cleared_shard_begins_a_new_backoff() -> None:
    failures = LoadFailures()
    failures.refuse(SHARD, DAMAGED)
    assert failures.clear(SHARD)
    assert not failures.clear(SHARD)
    assert (failures.failed, failures.backing_off()) == ({}, set())
    assert failures.refuse(SHARD, DAMAGED) == 1
