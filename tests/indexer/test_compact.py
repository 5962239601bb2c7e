"""Compaction: the segments that it picks, and the deletions that it keeps or forgets."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resources import make_indexer
from rows import message
from sealed import DIMENSION, append, contents, gone, make_collection, segments, up, version

from indexer.backends import open_backend
from indexer.compact import Weight, compact, pick
from indexer.seal import Builder, Pending
from tenants.leases import Leases
from vicinage.clock import ManualClock
from vicinage.errors import Conflict
from vicinage.settings import IndexerSettings

SETTINGS = IndexerSettings(segments_max=4, dead_share_max=0.25)


def weights(*rows: int, dead: int = 0) -> list[Weight]:
    return [Weight(str(i), n, dead) for i, n in enumerate(rows)]


def test_few_segments_with_little_dead_are_left_alone() -> None:
    assert pick(weights(100, 10, 10, 10), SETTINGS) == ()
    assert pick(weights(100, 100, dead=25), SETTINGS) == ()
    assert pick((), SETTINGS) == ()


def test_too_many_dead_rows_rewrite_all_segments() -> None:
    assert pick(weights(100, 100, dead=26), SETTINGS) == ("0", "1")


def test_too_many_segments_merge_the_small_ones_and_spare_the_large() -> None:
    assert set(pick(weights(100_000, 10, 12, 11, 9), SETTINGS)) == {"1", "2", "3", "4"}


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), max_size=12),
    st.integers(1, 6),
)
def test_merges_end_with_few_enough_segments(sizes, most) -> None:
    settings = IndexerSettings(segments_max=most, dead_share_max=0.25)
    held = [Weight(str(i), rows, min(rows, dead)) for i, (rows, dead) in enumerate(sizes)]
    for _ in range(len(held) + 2):
        chosen = set(pick(held, settings))
        if not chosen:
            break
        merged = [w for w in held if w.id in chosen]
        held = [w for w in held if w.id not in chosen]
        held.append(Weight(min(chosen) + "+", sum(w.rows - w.dead for w in merged), 0))
    else:
        pytest.fail("it never comes to rest")
    assert len(held) <= max(most, 1)


def test_a_row_is_rewritten_a_logarithmic_number_of_times() -> None:
    held, written = [], 0
    for number in range(1_000):
        held.append(Weight(str(number), 10, 0))
        while chosen := set(pick(held, SETTINGS)):
            rows = sum(w.rows for w in held if w.id in chosen)
            written += rows
            held = [*(w for w in held if w.id not in chosen), Weight(f"m{number}", rows, 0)]
    assert written / 10_000 < 12, "log2(1,000) is 10"


def test_deleted_rows_leave_an_old_segment_at_any_share() -> None:
    day_ms = 86_400_000
    old, young = Weight("old", 1_000, 0, 0), Weight("young", 10, 1, day_ms)
    assert pick([old, young], SETTINGS, now_ms=2 * day_ms - 1) == ()
    assert pick([replace(old, dead=1), young], SETTINGS, now_ms=day_ms - 1) == ()
    assert pick([replace(old, dead=1), young], SETTINGS, now_ms=day_ms) == ("old", "young")


def test_a_deletion_is_erased_from_an_old_segment_in_time(base) -> None:
    base = replace(base, clock=ManualClock(time.time_ns() // 1_000_000))
    generation, indexer = make_collection(base), make_indexer(base)
    for rows in ([up(f"d{i}", i) for i in range(20)], [gone("d0", 30)]):
        append(base, generation, *rows)
        base.clock.advance(3_700)
        indexer.step()
        indexer._maintenance.settle()
    assert segments(base, generation) == [(20, 0), (0, 1)] or segments(base, generation) == [
        (19, 1)
    ]
    for _ in range(30):
        base.clock.advance(3_600)
        indexer.step()
        indexer._maintenance.settle()
    assert [n for n, _ in segments(base, generation)] == [19], "its row is in no segment any more"


@pytest.fixture
def platform(base):
    generation = make_collection(base)
    [shard] = generation.shards()
    settings = IndexerSettings(segments_max=1, threads=1)
    builder = Builder(base.manifests, base.store, open_backend(), settings)
    lease = Leases(base.engine, base.clock).acquire(f"slot/{shard.slot}", "one", ttl_s=60)
    at = iter(range(1, 100))

    def sealed(*rows):
        pending = Pending(shard, 0.0)
        pending.add(0, message(list(rows), DIMENSION))
        return builder.seal(pending, generation, lease, sealed=next(at))

    return base, generation, builder, lease, sealed


def never(_version: int) -> bool:
    return False


def always(_version: int) -> bool:
    return True


def test_live_rows_of_all_segments_become_one(platform) -> None:
    base, generation, builder, lease, sealed = platform
    sealed(up("a", 1, 3), up("b", 2, 2))
    sealed(up("a", 3, 1), up("c", 4))
    manifest = sealed(gone("b", 5))
    before = contents(base, generation)
    done = compact(builder, manifest, generation, lease, forgettable=always)
    assert done.sealed == manifest.sealed
    assert segments(base, generation) == [(2, 0)]
    assert contents(base, generation) == before == {"a": (version(3), 1), "c": (version(4), 1)}


def test_a_deletion_whose_older_version_may_still_be_replayed_is_kept(platform) -> None:
    base, generation, builder, lease, sealed = platform
    sealed(up("a", 1), up("b", 2), up("c", 3), up("d", 4))
    manifest = sealed(gone("b", 5))
    manifest = compact(builder, manifest, generation, lease, forgettable=never)
    assert segments(base, generation) == [(3, 1)]
    sealed(up("b", 2))  # ingest was killed and delivers it again, late
    assert "b" not in contents(base, generation)


def test_a_generation_that_is_being_built_keeps_its_deletions(platform) -> None:
    """Older rows may still be copied into it."""
    base, generation, builder, lease, sealed = platform
    sealed(up("a", 1))
    manifest = sealed(gone("a", 5), gone("x", 6))
    compact(builder, manifest, replace(generation, state="building"), lease, forgettable=always)
    assert segments(base, generation) == [(0, 2)]
    sealed(up("x", 2), up("a", 1))
    assert contents(base, generation) == {}


def test_a_deletion_stays_while_a_segment_is_not_merged(platform) -> None:
    base, generation, builder, lease, sealed = platform
    sealed(*[up(f"d{i}", i + 1, 5) for i in range(20)])
    sealed(gone("d3", 50))
    manifest = sealed(gone("d4", 51))
    builder = replace(builder, settings=IndexerSettings(segments_max=2, threads=1))
    compact(builder, manifest, generation, lease, forgettable=always)
    assert segments(base, generation) in ([(0, 2), (100, 0)], [(100, 0), (0, 2)])
    assert set(contents(base, generation)) == {f"d{i}" for i in range(20)} - {"d3", "d4"}


def test_everything_deleted_leaves_nothing(platform) -> None:
    base, generation, builder, lease, sealed = platform
    sealed(up("a", 1))
    manifest = sealed(gone("a", 2))
    compact(builder, manifest, generation, lease, forgettable=always)
    assert segments(base, generation) == []
    assert contents(base, generation) == {}


def test_a_segment_sealed_during_the_merge_is_kept(platform) -> None:
    base, generation, builder, lease, sealed = platform
    sealed(up("a", 1))
    old = sealed(up("b", 2))
    sealed(up("a", 3), up("c", 4))
    compact(builder, old, generation, lease, forgettable=always)
    assert segments(base, generation) == [(2, 0), (2, 0)]
    assert contents(base, generation) == {
        "a": (version(3), 1),
        "b": (version(2), 1),
        "c": (version(4), 1),
    }


def test_a_merge_of_segments_that_another_has_merged_is_abandoned(platform) -> None:
    base, generation, builder, lease, sealed = platform
    sealed(up("a", 1))
    old = sealed(up("b", 2))
    compact(builder, old, generation, lease, forgettable=always)
    after = contents(base, generation)
    with pytest.raises(Conflict):
        compact(builder, old, generation, lease, forgettable=always)
    assert contents(base, generation) == after
    assert segments(base, generation) == [(2, 0)]
