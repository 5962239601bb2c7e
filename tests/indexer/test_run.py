"""The indexer's step: outages, the replay of a restart, and the objects that it deletes."""

import os
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from resources import make_indexer, resources_in
from rows import invalid_values, message
from sealed import append, contents, gone, make_collection, segments, up, version
from sqlalchemy import text

from cluster.wiring import Resources
from indexer.index.rows import newest
from indexer.run import Indexer
from tenants.entities import Group, IngestLane
from tenants.leases import Leases
from tenants.provisioning import VECTORS_TOPIC
from vicinage.catalog import change
from vicinage.clock import ManualClock
from vicinage.errors import Conflict, Unavailable
from vicinage.log import Record
from vicinage.records import ShardId
from vicinage.wire import encode_rows, rows_key


@pytest.fixture
def opened(tmp_path: Path):
    """Opens a platform with a manual clock and the given settings."""
    made = []

    def open_with(**indexer):
        base = resources_in(tmp_path / "data", **indexer)
        made.append(base)
        clock = ManualClock(time.time_ns() // 1_000_000)
        return replace(base, clock=clock)

    yield open_with
    for base in made:
        base.close()


def work_off(indexer: Indexer, rounds: int = 6) -> None:
    """Steps the indexer; settles its workers after each step."""
    for _ in range(rounds):
        indexer.step()
        indexer._maintenance.settle()


def seal_alone(base, generation, indexer: Indexer, rows: list) -> None:
    """Seals each row as a segment of its own, without maintenance."""
    for row in rows:
        append(base, generation, row)
        indexer._hold_leases()
        indexer._read(0)
        for pending in indexer._sealer.due(indexer._reader.positions):
            indexer._seal(pending)


@contextmanager
def store_unavailable(base):
    """Makes the store unavailable for new objects: their folder is removed."""
    incoming = Path(base.settings.store_url) / ".incoming"
    incoming.rmdir()
    yield
    incoming.mkdir()


@contextmanager
def catalog_unavailable(base):
    """Makes the catalog unavailable for manifests."""
    with change(base.engine) as connection:
        connection.execute(text("ALTER TABLE manifests RENAME TO elsewhere"))
    yield
    with change(base.engine) as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO manifests"))


def test_one_row_is_sealed_once_it_is_old(opened) -> None:
    base = opened(seal_age_s=60)
    generation, indexer = make_collection(base), make_indexer(base)
    append(base, generation, up("a", 1))
    indexer.step()
    base.clock.advance(59)
    indexer.step()
    assert segments(base, generation) == []
    base.clock.advance(1)
    indexer.step()
    assert segments(base, generation) == [(1, 0)]
    assert contents(base, generation) == {"a": (version(1), 1)}


def test_rows_that_could_not_be_sealed_stay_pending_and_are_sealed_later(opened) -> None:
    base = opened(seal_passages=3)
    generation, indexer = make_collection(base), make_indexer(base)
    append(base, generation, up("a", 1, 2), up("b", 2))
    with store_unavailable(base):
        for _ in range(3):
            with pytest.raises(Unavailable):
                indexer.step()
        append(base, generation, up("c", 3))
    indexer.step()
    assert segments(base, generation) == [(4, 0)]
    assert set(contents(base, generation)) == {"a", "b", "c"}


def test_records_read_during_a_catalog_outage_are_read_again(opened) -> None:
    base = opened(seal_passages=2)
    first, indexer = make_collection(base), make_indexer(base)
    indexer.step()
    second = make_collection(base, "second")  # the indexer has not read its manifest yet
    append(base, first, up("a", 1))
    append(base, second, up("b", 2), up("c", 3))
    append(base, first, up("d", 4))
    with catalog_unavailable(base):
        for _ in range(2):
            with pytest.raises(Unavailable):
                indexer.step()
    indexer.step()
    assert segments(base, first) == segments(base, second) == [(2, 0)]
    assert set(contents(base, first)) == {"a", "d"}
    assert set(contents(base, second)) == {"b", "c"}


def in_one_slot(base, n: int) -> list:
    """Returns live generations of n collections that share a slot."""
    found: dict[int, list] = {}
    for number in range(200):
        made = make_collection(base, f"c{number}")
        found.setdefault(made.slots[0], []).append(made)
        if len(found[made.slots[0]]) == n:
            return found[made.slots[0]]
    raise AssertionError


def sealed(base, generation) -> int:
    [shard] = generation.shards()
    return base.manifests.of(shard, start=generation.starts[0]).sealed


def test_a_restart_never_replays_more_than_one_and_a_half_times_the_bound(opened) -> None:
    base = opened(seal_passages=25, replay_records_max=40)
    busy, slow, idle = in_one_slot(base, 3)
    indexer = make_indexer(base)
    held, ends = [], []
    for number in range(1, 200):
        append(base, busy, up(f"d{number}", number))
        if number % 30 == 0:
            append(base, slow, up(f"s{number}", number))
        if number % 5 == 0:
            work_off(indexer, 1)
            end = base.log.end(VECTORS_TOPIC, busy.slots[0])
            held.append(end - min(sealed(base, g) for g in (busy, slow, idle)))
            ends.append(end)
    assert max(ends) > 3 * 60, "else the test proves nothing"
    assert max(held) <= 60 + 5, "1.5 × 40, and the records since the last step"
    assert segments(base, idle) == []
    assert len(contents(base, slow)) == 6, "advancing skipped no row"
    indexer._maintenance.stop()
    again = make_indexer(base)
    again._hold_leases()
    assert again._reader.positions[busy.slots[0]] == min(
        sealed(base, g) for g in (busy, slow, idle)
    )
    assert len(contents(base, busy)) == 199


def test_manifests_of_idle_shards_are_rewritten_rarely(opened) -> None:
    base = opened(seal_passages=1_000, replay_records_max=40)
    busy, idle = in_one_slot(base, 2)
    indexer = make_indexer(base)
    for number in range(1, 61):
        append(base, busy, up(f"d{number}", number))
        indexer.step()
    [shard] = idle.shards()
    assert 1 <= base.manifests.of(shard, start=0).version <= 3


def test_an_invalid_record_is_skipped_and_its_shard_continues(opened) -> None:
    base = opened(seal_passages=2, replay_records_max=4)
    hurt, well = in_one_slot(base, 2)
    indexer = make_indexer(base)
    append(base, hurt, up("a", 1), up("b", 2))
    indexer.step()
    poisons = [
        Record(value, rows_key("acme", hurt.collection, hurt.number))
        for value in invalid_values(hurt.collection)
    ]
    poison = base.log.append(VECTORS_TOPIC, hurt.slots[0], poisons)[-1]
    for number in range(3, 20):
        append(base, hurt, up(f"h{number}", number))
        append(base, well, up(f"w{number}", number))
        work_off(indexer, 1)
    assert sealed(base, hurt) > poison
    assert set(contents(base, hurt)) == {"a", "b", *(f"h{number}" for number in range(3, 20))}
    assert len(contents(base, well)) == 17
    assert sealed(base, well) > poison


def test_a_message_in_a_slot_outside_its_generation_is_skipped(opened) -> None:
    base = opened(seal_passages=2)
    [docs] = in_one_slot(base, 1)
    slot = next(slot for slot in range(base.settings.slots) if slot not in docs.slots)
    indexer = make_indexer(base)
    indexer.step()  # a slot without shards is read from its end
    whole = encode_rows(
        message([up("a", 1)]), tenant="acme", collection=docs.collection, generation=docs.number
    )
    base.log.append(
        VECTORS_TOPIC, slot, [Record(whole, rows_key("acme", docs.collection, docs.number))] * 3
    )
    append(base, docs, up("b", 2))
    append(base, docs, up("c", 3))
    work_off(indexer, 2)
    assert set(contents(base, docs)) == {"b", "c"}
    assert indexer._reader.positions[slot] == base.log.end(VECTORS_TOPIC, slot)


def test_rows_of_a_deleted_collection_are_dropped_and_block_no_seal(opened) -> None:
    base = opened(seal_passages=2)
    kept, dead = in_one_slot(base, 2)
    indexer = make_indexer(base)
    append(base, dead, up("x", 1))
    indexer.step()
    base.registry.delete_collection("acme", dead.collection, actor="test")
    append(base, dead, up("y", 2), up("z", 3))
    append(base, kept, up("a", 4), up("b", 5))
    indexer.step()
    assert base.manifests.of_generation("acme", dead.collection, dead.number) == []
    assert set(contents(base, kept)) == {"a", "b"}


def test_only_objects_of_a_retired_generation_and_orphans_are_swept(opened) -> None:
    base = opened(seal_passages=1, orphan_age_s=100)
    indexer, generation = make_indexer(base), make_collection(base)
    append(base, generation, up("a", 1))
    work_off(indexer)
    new = base.registry.add_generation(
        "acme",
        "docs",
        index="flat",
        model=None,
        dimension=4,
        place=lambda _n: (generation.slots, (1,)),
        actor="test",
    )
    append(base, new, up("a", 1))
    work_off(indexer)
    base.registry.set_generation_state("acme", "docs", new.number, "ready", actor="test")
    base.registry.cut_over("acme", "docs", new.number, actor="test")
    orphan = base.store.put("segments/acme/docs/1/0/left-by-a-crash/index.faiss", b"half")
    base.clock.advance(61)
    work_off(indexer)
    assert base.manifests.of_generation("acme", "docs", 1) == []
    assert len(list(base.store.list("segments"))) == 7, (
        "too young to be swept: a writer may be about to publish them"
    )
    base.clock.advance(100_000)
    work_off(indexer)
    left = {o.path for o in base.store.list("segments")}
    assert left == base.manifests.paths() | {orphan.path}, (
        "the retired generation's are deleted, at an age by this process's clock"
    )
    for object_ in base.store.list("segments"):
        os.utime(
            Path(base.settings.store_url) / object_.path, (time.time() - 101, time.time() - 101)
        )
    base.clock.advance(61)
    work_off(indexer)
    left = {o.path for o in base.store.list("segments")}
    assert orphan.path not in left
    assert left == base.manifests.paths()
    assert len(left) == 3
    assert contents(base, new) == {"a": (version(1), 1)}


def aged(base: Resources) -> None:
    """Makes every object of the store a day old."""
    for object_ in base.store.list("segments"):
        os.utime(Path(base.settings.store_url) / object_.path, (time.time() - 86_400,) * 2)


def swept(base: Resources, indexer: Indexer) -> set[str]:
    """Returns the objects in the store after a sweep."""
    base.clock.advance(61)
    indexer._maintenance._sweep.step()
    return {o.path for o in base.store.list("segments")}


def test_an_indexer_suspended_between_writing_and_publishing_loses_nothing(opened) -> None:
    base = opened(seal_passages=1, orphan_age_s=100)
    indexer, generation = make_indexer(base), make_collection(base)
    indexer.step()
    [shard] = generation.shards()
    builder, lease = indexer._builder, indexer.lease(shard.slot)
    live, deletes = newest([message([up("a", 1), up("b", 2)], 4)])
    with builder.written(shard, generation, live, deletes, lease) as segment:
        aged(base)
        assert swept(base, indexer) == {o.path for o in segment.objects.values()}, (
            "pinned at any age"
        )
        builder.publish(shard, generation, lease, lambda m: (*m.segments, segment), sealed=0)
    assert contents(base, generation) == {"a": (version(1), 1), "b": (version(2), 1)}
    assert base.manifests.drafts.pinned() == set()


def test_an_abandoned_draft_is_swept(opened) -> None:
    base = opened(seal_passages=1, orphan_age_s=100)
    indexer, generation = make_indexer(base), make_collection(base)
    indexer.step()
    [shard] = generation.shards()
    live, deletes = newest([message([up("a", 1)], 4)])

    def fail() -> None:
        with indexer._builder.written(shard, generation, live, deletes, indexer.lease(shard.slot)):
            raise Unavailable("the catalog is unavailable", dependency="catalog")

    with pytest.raises(Unavailable):
        fail()
    aged(base)
    assert swept(base, indexer) == set()


def test_the_draft_of_a_stale_indexer_is_swept_and_never_published(opened) -> None:
    base = opened(seal_passages=1, orphan_age_s=100)
    stale, generation = make_indexer(base, "stale"), make_collection(base)
    stale.step()
    [shard] = generation.shards()
    lease, builder = stale.lease(shard.slot), stale._builder
    live, deletes = newest([message([up("a", 1)], 4)])

    def overtaken() -> None:
        with builder.written(shard, generation, live, deletes, lease) as segment:
            base.clock.advance(base.settings.indexer.lease_s + 1)
            other = make_indexer(base, "other")
            other.step()
            aged(base)
            assert swept(base, other) == set()
            builder.publish(shard, generation, lease, lambda m: (*m.segments, segment), sealed=0)

    with pytest.raises(Conflict):
        overtaken()
    assert contents(base, generation) == {}


def test_a_deletion_is_forgotten_only_once_ingest_is_long_beyond_it_in_every_partition(
    opened,
) -> None:
    base = opened(tombstone_age_s=100)
    [shard] = make_collection(base).shards()
    base.log.delete_topic("vicinage.docs.acme")
    base.log.ensure_topic("vicinage.docs.acme", 2)
    indexer = make_indexer(base)

    def forgettable(offset: int, partition: int) -> bool:
        return indexer._maintenance.forgettable(shard)(version(offset, partition))

    for partition, n in ((0, 10), (1, 6)):
        base.log.append("vicinage.docs.acme", partition, [Record(b"x")] * n)
    assert not forgettable(0, 0)
    base.log.commit(Group.INGEST, {("vicinage.docs.acme", 0): 10})
    base.clock.advance(101)
    assert not forgettable(5, 0), "partition 1 may still bring an older version of the document"
    base.log.commit(Group.INGEST, {("vicinage.docs.acme", 1): 6})
    base.clock.advance(99)
    assert not forgettable(5, 0), "a suspended process may still hold an older version"
    base.clock.advance(101)
    assert not forgettable(5, 0), "ingest was not beyond it when this round began"
    base.clock.advance(101)
    assert forgettable(9, 0)
    assert forgettable(5, 1)
    assert not forgettable(6, 1)
    assert not forgettable(10, 0)


def test_a_deletion_is_kept_while_a_lane_of_its_generation_is_not_beyond_it(opened) -> None:
    base = opened(tombstone_age_s=100)
    [shard] = make_collection(base).shards()
    indexer, tp = make_indexer(base), ("vicinage.docs.acme", 0)
    base.log.commit(Group.INGEST, {tp: 10})
    [lane] = base.registry.lanes.open([IngestLane("acme", "docs", shard.generation, 0, 4, "m")])

    def forgettable(offset: int) -> bool:
        for _ in range(2):
            indexer._maintenance.forgettable(shard)
            base.clock.advance(101)
        return indexer._maintenance.forgettable(shard)(version(offset))

    assert forgettable(3)
    assert not forgettable(4), "the lane may still bring an older version of the document"
    base.registry.lanes.close(base.registry.lanes.move(lane, position=10, state="behind"))
    assert forgettable(9)


def test_a_topic_that_is_created_again_starts_a_new_wait(opened) -> None:
    base = opened(tombstone_age_s=100)
    [shard] = make_collection(base).shards()
    indexer, tp = make_indexer(base), ("vicinage.docs.acme", 0)
    base.log.commit(Group.INGEST, {tp: 10})
    assert not indexer._maintenance.forgettable(shard)(version(9))
    base.clock.advance(101)
    assert indexer._maintenance.forgettable(shard)(version(9))
    base.log.commit(Group.INGEST, {tp: 2})
    assert not indexer._maintenance.forgettable(shard)(version(1))
    base.log.commit(Group.INGEST, {tp: 20})
    assert not indexer._maintenance.forgettable(shard)(version(9))


def test_too_many_segments_of_a_killed_indexer_are_merged_by_the_next(opened) -> None:
    base = opened(seal_passages=1, segments_max=2)
    generation = make_collection(base)
    seal_alone(
        base,
        generation,
        make_indexer(base, "first"),
        [up(f"d{number}", number) for number in range(1, 6)],
    )
    assert len(segments(base, generation)) == 5
    base.clock.advance(60)
    work_off(make_indexer(base, "second"))
    assert len(segments(base, generation)) <= 2
    assert len(contents(base, generation)) == 5


def test_a_failed_compaction_is_retried_later_without_another_seal(opened) -> None:
    base = opened(seal_passages=1, segments_max=1)
    generation, indexer = make_collection(base), make_indexer(base)
    seal_alone(base, generation, indexer, [up("a", 1), up("b", 2)])
    with store_unavailable(base):
        indexer._maintenance._work()
        indexer._maintenance._work_on_jobs(leading=True)
        indexer._maintenance.settle()
    assert len(segments(base, generation)) == 2
    work_off(indexer)
    assert len(segments(base, generation)) == 2, "not at once: an outage ends by itself"
    base.clock.advance(5)
    work_off(indexer)
    assert len(segments(base, generation)) == 1


def test_too_many_dead_rows_of_a_killed_indexer_are_merged_by_the_next(opened) -> None:
    base = opened(seal_passages=1)
    generation = make_collection(base)
    seal_alone(base, generation, make_indexer(base, "one"), [up("a", 1), gone("a", 2)])
    before = segments(base, generation)
    assert len(before) == 2
    base.clock.advance(60)
    work_off(make_indexer(base, "two"))
    assert segments(base, generation) != before


def test_leases_that_an_unavailable_catalog_kept_back_are_acquired_at_the_next_step(
    opened, monkeypatch
) -> None:
    base = opened()
    acquire, failures = Leases.acquire, iter([Unavailable("down", dependency="catalog")])

    def fails_once(*given, **named):
        for failure in failures:
            raise failure
        return acquire(*given, **named)

    monkeypatch.setattr(Leases, "acquire", fails_once)
    indexer = make_indexer(base, "first")
    with pytest.raises(Unavailable):
        indexer.step()
    assert indexer.stats()["slots"] == []
    indexer.step()
    assert indexer.stats()["slots"] == list(range(base.settings.slots))


def test_a_regular_stop_releases_the_leases(opened) -> None:
    import threading

    base = opened()
    make_collection(base)
    stop = threading.Event()
    first = make_indexer(base, "first")
    running = threading.Thread(target=first.run, args=(stop,))
    running.start()
    leases = Leases(base.engine, base.clock)
    end = time.monotonic() + 10
    while len(first._leases.held) < base.settings.slots and time.monotonic() < end:
        time.sleep(0.01)
    assert leases.acquire("slot/0", "second", ttl_s=10) is None
    stop.set()
    running.join(10)
    assert leases.acquire("slot/0", "second", ttl_s=10) is not None


def test_tombstones_reach_the_segments_and_win_over_a_late_replay(opened) -> None:
    base = opened(seal_passages=1)
    generation, indexer = make_collection(base), make_indexer(base)
    append(base, generation, up("a", 1), up("b", 2))
    work_off(indexer)
    append(base, generation, gone("a", 3))
    work_off(indexer)
    append(base, generation, up("a", 1))
    work_off(indexer)
    assert set(contents(base, generation)) == {"b"}
    assert not [
        p for p in indexer._sealer.pending if p == ShardId("acme", "docs", 1, generation.slots[0])
    ]


def test_no_state_is_kept_of_a_deleted_collection(opened) -> None:
    base = opened(seal_passages=1, segments_max=1)
    generation, indexer = make_collection(base), make_indexer(base)
    for i in range(3):
        append(base, generation, up(f"d{i}", i))
        work_off(indexer)
    assert indexer._sealer.sealed
    assert indexer._maintenance._rounds
    base.registry.delete_collection("acme", "docs", actor="test")
    for _ in range(2):
        base.clock.advance(base.settings.indexer.lease_s / 2)
        work_off(indexer)
    assert not indexer._sealer.sealed
    assert not indexer._maintenance._rounds
