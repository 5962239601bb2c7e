"""Sealing: when a shard is due, and the state after a seal."""

from collections.abc import Iterable
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from resources import resources_in
from rows import message
from sealed import DIMENSION, contents, gone, make_collection, segments, up, version

from indexer.backends import open_backend
from indexer.seal import Builder, Pending, due
from tenants.drafts import Drafts
from tenants.leases import Leases
from vicinage.errors import Conflict
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings

SETTINGS = IndexerSettings(
    seal_passages=10, seal_bytes=10_000, seal_age_s=60, replay_records_max=100
)
NEAR = {"now": 1.0, "slot_end": 6}


def pending(rows: int = 1, *, first: int = 5, since: float = 0.0) -> Pending:
    made = Pending(ShardId("acme", "docs", 1, 0), since)
    made.add(first, message([up(f"d{i}", i) for i in range(rows)], DIMENSION))
    return made


def test_a_shard_with_few_new_rows_waits() -> None:
    assert due(pending(9), SETTINGS, **NEAR) is None


def test_each_bound_by_itself_makes_a_shard_due() -> None:
    assert due(pending(10), SETTINGS, **NEAR) == "passages"
    assert due(replace(pending(), bytes=10_000), SETTINGS, **NEAR) == "bytes"
    assert due(pending(), SETTINGS, now=59.9, slot_end=6) is None
    assert due(pending(), SETTINGS, now=60.0, slot_end=6) == "age"
    assert due(pending(first=5), SETTINGS, now=1.0, slot_end=105) is None
    assert due(pending(first=5), SETTINGS, now=1.0, slot_end=106) == "replay", (
        "it holds the slot's replay back"
    )


@pytest.fixture
def platform(base):
    generation = make_collection(base)
    builder = Builder(base.manifests, base.store, open_backend(), base.settings.indexer)
    [shard] = generation.shards()
    lease = Leases(base.engine, base.clock).acquire(f"slot/{shard.slot}", "one", ttl_s=60)
    return base, generation, builder, shard, lease


def waiting(shard: ShardId, *messages: list) -> Pending:
    made = Pending(shard, 0.0)
    for offset, rows in enumerate(messages):
        made.add(offset, message(rows, DIMENSION))
    return made


def test_of_each_document_the_newest_version_is_sealed_and_deletions_are_kept(platform) -> None:
    base, generation, builder, shard, lease = platform
    rows = waiting(
        shard,
        [up("a", 1, 3), up("b", 2)],
        [up("a", 3, 2), gone("b", 4)],
        [up("c", 6), up("a", 2, 5)],
        [gone("never", 7)],
    )
    manifest = builder.seal(rows, generation, lease, sealed=4)
    assert (manifest.version, manifest.sealed, manifest.epoch) == (1, 4, lease.epoch)
    assert segments(base, generation) == [(3, 2)]
    assert contents(base, generation) == {"a": (version(3), 2), "c": (version(6), 1)}


def test_a_record_that_was_delivered_twice_counts_once(platform) -> None:
    base, generation, builder, shard, lease = platform
    builder.seal(waiting(shard, [up("a", 1, 2)], [up("a", 1, 2)]), generation, lease, sealed=2)
    assert contents(base, generation) == {"a": (version(1), 2)}
    assert segments(base, generation) == [(2, 0)]


def test_deletions_alone_make_a_segment(platform) -> None:
    base, generation, builder, shard, lease = platform
    builder.seal(waiting(shard, [up("a", 1)]), generation, lease, sealed=1)
    builder.seal(waiting(shard, [gone("a", 2)]), generation, lease, sealed=2)
    assert contents(base, generation) == {}
    assert segments(base, generation) == [(1, 0), (0, 1)]


def test_a_concurrent_swap_is_kept_and_this_one_follows_it(platform) -> None:
    _base, generation, builder, shard, lease = platform
    first = builder.write(shard, generation, *_newest(waiting(shard, [up("a", 1)])))
    second = builder.write(shard, generation, *_newest(waiting(shard, [up("b", 2)])))
    tries = []

    def ours(current):
        tries.append(current.version)
        if len(tries) == 1:  # another thread of ours publishes between our look and our swap
            builder.publish(shard, generation, lease, lambda m: (*m.segments, first), sealed=5)
        return (*current.segments, second)

    published = builder.publish(shard, generation, lease, ours)
    assert tries == [0, 1]
    assert [s.id for s in published.segments] == [first.id, second.id]
    assert published.sealed == 5, "what was sealed stays sealed"


def test_a_lost_lease_is_not_retried(platform) -> None:
    base, generation, builder, shard, lease = platform
    stolen = Leases(base.engine, base.clock).acquire(lease.resource, lease.owner, ttl_s=60)
    assert stolen.epoch == lease.epoch + 1
    with pytest.raises(Conflict):
        builder.seal(waiting(shard, [up("a", 1)]), generation, lease, sealed=1)
    assert base.manifests.of(shard, start=0).version == 0
    assert list(base.store.list("segments")) == [], "it is refused before it writes anything"
    assert base.manifests.paths() == set()
    builder.seal(waiting(shard, [up("a", 1)]), generation, stolen, sealed=1)
    assert contents(base, generation) == {"a": (version(1), 1)}


def test_sealed_segments_survive_a_reopened_platform(tmp_path) -> None:
    base = resources_in(tmp_path / "data")
    generation = make_collection(base)
    [shard] = generation.shards()
    lease = Leases(base.engine, base.clock).acquire(f"slot/{shard.slot}", "one", ttl_s=60)
    builder = Builder(base.manifests, base.store, open_backend(), base.settings.indexer)
    builder.seal(waiting(shard, [up("a", 1, 2)]), generation, lease, sealed=1)
    base.close()
    again = resources_in(tmp_path / "data")
    assert contents(again, generation) == {"a": (version(1), 2)}
    again.close()


def _newest(p: Pending):
    from indexer.index.rows import newest

    return newest([batch for _, batch in p.batches])


def test_a_seal_measures_its_effort_on_recent_queries(
    platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, generation, builder, shard, lease = platform
    measured = []
    monkeypatch.setattr(
        "indexer.index.segment_writer.effort_curve", lambda *given: measured.append(given[-1]) or ()
    )
    of_indexed = replace(generation, index="hnsw")
    builder.seal(waiting(shard, [up("a", 1)]), of_indexed, lease, sealed=1)
    base.manifests.recent_queries.keep(
        "acme", "docs", generation.model, np.ones((2, DIMENSION), np.float32)
    )
    builder.seal(waiting(shard, [up("b", 2)]), of_indexed, lease, sealed=2)
    base.manifests.recent_queries.keep(
        "acme", "docs", "another", np.ones((2, DIMENSION), np.float32)
    )
    builder.seal(waiting(shard, [up("c", 3)]), of_indexed, lease, sealed=3)
    assert [None if q is None else q.tolist() for q in measured] == [
        None,
        [[1.0] * DIMENSION],
        None,
    ], "a query that was sent twice counts once"


class EndedElsewhere(Drafts):
    """Drafts that another thread of the same builder ends first."""

    builder: Builder

    def end(self, folders: Iterable[str]) -> None:
        for folder in folders:
            super().end([folder])
            self.builder.abandoned.remove(folder)


def test_drafts_that_two_threads_end_at_once_raise_in_neither(platform) -> None:
    base, generation, builder, shard, lease = platform
    manifests = copy(base.manifests)
    manifests.drafts = EndedElsewhere(base.engine, base.clock)
    builder = manifests.drafts.builder = replace(
        builder, manifests=manifests, abandoned=["segments/left"]
    )
    rows = waiting(shard, [up("a", 1)])
    assert builder.seal(rows, generation, lease, sealed=1).sealed == 1
    assert builder.abandoned == []
