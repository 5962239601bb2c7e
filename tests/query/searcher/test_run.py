"""The searcher role over a real log, catalog and store: visibility, waits and failures."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from resources import eventually
from rows import invalid_values, message, unit
from searching import (
    D,
    Gate,
    ask,
    collection,
    load_needed,
    one,
    reach,
    seal,
    searching,
    send,
    shard_of,
)
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from cluster.wiring import Resources, build_searcher
from indexer.backends import open_backend
from indexer.index.rows import newest
from indexer.seal import Builder
from query.searcher.batch import QueuedSearch
from query.searcher.cost import search_cost
from query.searcher.run import Searcher
from tenants import provisioning
from tenants.entities import Class, Collection, Objectives, SegmentRef
from tenants.leases import Leases
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Deadline, ManualClock
from vicinage.errors import Corrupt, DeadlineExceeded, NotFound, Overloaded, Refused, Unavailable
from vicinage.log import LogRecord, Record
from vicinage.metrics import REGISTRY
from vicinage.records import ShardId, ShardQuery, ShardResult
from vicinage.wire import rows_key


@pytest.fixture
def base(base: Resources) -> Resources:
    """A searcher with a tenant."""
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    return base


def test_applied_rows_are_searchable_and_the_answer_has_the_watermark(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        for version in range(1, 30):
            end = send(base, docs, one(f"d{version}", version))
            assert reach(searcher, {docs.slot: end})[docs.slot] >= end
            shard_result = searcher.submit(
                ShardQuery(docs, unit(version)[None], 1), Deadline.after(5)
            ).result(5)
            assert (shard_result.hits[0][0].document_id, shard_result.watermark) == (
                f"d{version}",
                end,
            )


def test_the_watermark_of_an_answer_covers_rows_of_other_shards(base: Resources) -> None:
    docs, others = collection(base), [collection(base, f"c{i}") for i in range(30)]
    near = next(shard_of(c) for c in others if shard_of(c).slot == shard_of(docs).slot)
    with searching(base) as searcher:
        end = send(base, near, one("x", 1))
        reach(searcher, {near.slot: end})
        shard_result = searcher.submit(
            ShardQuery(shard_of(docs), unit(0)[None], 1), Deadline.after(5)
        ).result(5)
        assert (shard_result.hits, shard_result.watermark) == (((),), end)
        held = {s.shard: s.watermark for s in asyncio.run(searcher.stats()).shards}
        assert held[shard_of(docs)] == end


def test_everything_logged_before_the_start_is_searchable_when_it_is_ready(base: Resources) -> None:
    of = collection(base)
    docs = shard_of(of)
    batches = [one(f"d{i}", i) for i in range(1, 41)]
    ends = [send(base, docs, b) for b in batches]
    seal(base, docs, of, batches[:25], ends[24])
    for _ in range(2):  # and again after a restart
        with searching(base) as searcher:
            assert ask(searcher, docs) == sorted((f"d{i}", i) for i in range(1, 41))
            [stats] = asyncio.run(searcher.stats()).shards
            assert (stats.segments, stats.delta_passages, stats.documents) == (1, 15, 40)


def test_a_manifest_is_adopted_while_it_serves(base: Resources) -> None:
    of = collection(base)
    docs = shard_of(of)
    with searching(base) as searcher:
        batches = [one(f"d{i}", i) for i in range(1, 11)]
        end = [send(base, docs, b) for b in batches][-1]
        reach(searcher, {docs.slot: end})
        before = ask(searcher, docs)
        seal(base, docs, of, batches, end)
        eventually(lambda: asyncio.run(searcher.stats()).shards[0].segments == 1)
        assert asyncio.run(searcher.stats()).shards[0].delta_passages == 0
        assert ask(searcher, docs) == before


def test_a_collection_created_later_is_loaded_by_its_first_search(
    base: Resources,
) -> None:
    with searching(base, adopt_s=30) as searcher:
        docs = shard_of(collection(base))
        reach(searcher, {docs.slot: send(base, docs, one("a", 1))})
        assert ask(searcher, docs, catalog=base.registry.refresh()) == [("a", 1)]
        assert asyncio.run(searcher.document(docs, "a", Deadline.after(5))).version == 1
        assert asyncio.run(searcher.document(docs, "b", Deadline.after(5))) is None


def test_rows_that_the_tail_reads_during_a_load_are_not_lost(base: Resources) -> None:
    with searching(base, adopt_s=30) as searcher:
        docs = shard_of(collection(base))
        send(base, docs, one("early", 1))
        catch_up, calls = searcher.tail._catch_up, []

        def with_a_write_in_between(*args) -> None:
            catch_up(*args)
            if not calls:
                calls.append(end := send(base, docs, one("late", 2)))
                eventually(lambda: searcher.watermarks()[docs.slot] >= end)

        searcher.tail._catch_up = with_a_write_in_between  # type: ignore[method-assign]
        assert ask(searcher, docs, catalog=base.registry.refresh()) == [("early", 1), ("late", 2)]


def test_a_recreated_collection_has_nothing_of_the_old_one(base: Resources) -> None:
    old = shard_of(collection(base))
    with searching(base, adopt_s=30) as searcher:
        end = send(base, old, one("a", 1))
        reach(searcher, {old.slot: end})
        base.registry.delete_collection("acme", "docs", actor="test")
        new = shard_of(collection(base, dimension=D + 1))
        asked = ShardQuery(new, unit(0, D + 1)[None], 5, catalog=base.registry.refresh())
        assert searcher.submit(asked, Deadline.after(5)).result(5).hits == ((),)
        with pytest.raises(NotFound):
            ask(searcher, old)


def test_a_missing_shard_is_reported_by_its_reason(base: Resources) -> None:
    docs = shard_of(collection(base))
    elsewhere = [slot for slot in range(base.settings.slots) if slot != docs.slot]
    with searching(base, elsewhere) as searcher:
        with pytest.raises(Unavailable):
            ask(searcher, docs)
        with pytest.raises(NotFound):
            ask(searcher, ShardId("acme", "nothing", 1, elsewhere[0]))
        with pytest.raises(DeadlineExceeded):
            reach(searcher, {elsewhere[0]: 10**6}, wait_s=0.05)


def test_a_query_of_the_wrong_width_is_refused_and_the_searcher_continues(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        end = send(base, docs, one("a", 1))
        reach(searcher, {docs.slot: end})
        with pytest.raises(Refused):
            searcher.submit(ShardQuery(docs, unit(0, 9)[None], 1), Deadline.after(5)).result(5)
        assert ask(searcher, docs) == [("a", 1)]


@pytest.mark.parametrize("number", range(len(invalid_values("docs"))))
def test_an_invalid_record_is_skipped_and_its_shard_continues(base: Resources, number: int) -> None:
    value = invalid_values("docs")[number]
    docs, others = shard_of(collection(base)), [collection(base, f"c{i}") for i in range(30)]
    near = next(shard_of(c) for c in others if shard_of(c).slot == docs.slot)
    with searching(base) as searcher:
        base.log.append(VECTORS_TOPIC, docs.slot, [Record(value, rows_key("acme", "docs", 1))])
        end = send(base, near, one("x", 2))
        reach(searcher, {docs.slot: end})
        assert ask(searcher, near) == [("x", 2)]
        end = send(base, docs, one("a", 1))
        reach(searcher, {docs.slot: end})
        assert ask(searcher, docs) == [("a", 1)]
        assert not asyncio.run(searcher.stats()).failed
        searcher.shards.unload(docs)  # and it is loaded again from the log
        assert ask(searcher, docs) == [("a", 1)]


def test_a_record_of_an_unknown_shard_is_skipped(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        for key in (None, b"", b"\xff/\xfe", b"a/b", b"a/b/c", b"absent/here/1"):
            base.log.append(VECTORS_TOPIC, docs.slot, [Record(b"whatever", key)])
        end = send(base, docs, one("a", 1))
        reach(searcher, {docs.slot: end})
        assert ask(searcher, docs) == [("a", 1)]


def test_unreadable_records_of_unknown_shards_take_no_memory(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        for n in range(20):
            record = Record(b"x", rows_key("absent", f"c{n}", 1), unreadable="its MAC is missing")
            searcher.tail._apply(LogRecord(VECTORS_TOPIC, docs.slot, n, record), 0)
        assert not any(
            searcher.tail.skipped(ShardId("absent", f"c{n}", 1, docs.slot)).n_rows
            for n in range(20)
        )


class AwayStore:
    """The real store, which does not answer while `away` is set."""

    def __init__(self, store) -> None:
        self.store, self.away, self.refused = store, False, 0

    def fetch(self, ref):
        if self.away:
            self.refused += 1
            raise Unavailable("the store is away", dependency="store")
        return self.store.fetch(ref)


def test_a_manifest_that_could_not_be_adopted_is_adopted_later(base: Resources) -> None:
    of = collection(base)
    docs = shard_of(of)
    with searching(base) as searcher:
        searcher.shards.loader.store = store = AwayStore(base.store)
        load_needed(searcher, docs)
        batches = [one("a", 1), one("b", 2)]
        end = [send(base, docs, b) for b in batches][-1]
        reach(searcher, {docs.slot: end})
        store.away = True
        seal(base, docs, of, batches, end)
        eventually(lambda: store.refused >= 2)
        assert ask(searcher, docs) == [("a", 1), ("b", 2)]
        store.away = False
        eventually(lambda: asyncio.run(searcher.stats()).shards[0].segments == 1)
        assert ask(searcher, docs) == [("a", 1), ("b", 2)]


def test_a_corrupt_shard_recovers_once_its_manifest_names_intact_segments(
    base: Resources,
) -> None:
    of = collection(base)
    docs = shard_of(of)
    batches = [one("a", 1), one("b", 2)]
    end = [send(base, docs, b) for b in batches][-1]
    bad = seal(base, docs, of, batches, end)
    file = Path(base.settings.store_url) / bad.segments[0].objects["passages"].path
    file.write_bytes(file.read_bytes()[:-1])
    with searching(base) as searcher:
        with pytest.raises(Corrupt):
            ask(searcher, docs)
        lease = Leases(base.engine, base.clock).acquire(f"slot/{docs.slot}", "test", ttl_s=30)
        builder = Builder(base.manifests, base.store, open_backend(), base.settings.indexer)
        whole = builder.write(docs, of.generation(), *newest(batches))
        base.manifests.swap(bad, segments=(whole,), sealed=end, lease=lease)
        eventually(lambda: not asyncio.run(searcher.stats()).failed)
        eventually(lambda: asyncio.run(searcher.stats()).shards)
        assert ask(searcher, docs) == [("a", 1), ("b", 2)]


def test_a_corrupt_unloaded_shard_answers_once_its_bytes_are_intact(
    base: Resources,
) -> None:
    clock = ManualClock()
    base = replace(base, clock=clock)
    of = collection(base)
    docs = shard_of(of)
    end = send(base, docs, one("a", 1))
    bad = seal(base, docs, of, [one("a", 1)], end)
    file = Path(base.settings.store_url) / bad.segments[0].objects["passages"].path
    whole = file.read_bytes()
    file.write_bytes(whole[::-1])
    with searching(base) as searcher:
        with pytest.raises(Corrupt):
            ask(searcher, docs)
        file.write_bytes(whole)
        clock.advance(1.5)
        eventually(lambda: searcher.shards.failures.retry_s.get(docs) == 2)
        with pytest.raises(Corrupt):
            ask(searcher, docs)
        [damage] = base.manifests.quarantine.open()
        base.manifests.quarantine.forget(damage, actor="test", why="found whole")
        clock.advance(2.5)
        eventually(lambda: not searcher.shards.failures.failed)
        assert ask(searcher, docs) == [("a", 1)]


class CountingStore:
    """The real store, with a count of its calls."""

    def __init__(self, store) -> None:
        self.store, self.fetched = store, 0

    def fetch(self, ref):
        self.fetched += 1
        return self.store.fetch(ref)


def test_a_corrupt_new_segment_keeps_the_old_snapshot_and_is_retried_with_backoff(
    base: Resources,
) -> None:
    clock = ManualClock()
    base = replace(base, clock=clock)
    of = collection(base)
    docs = shard_of(of)
    near = collection(base, "near")
    batches = [one("a", 1), one("b", 2)]
    end = send(base, docs, batches[0])
    seal(base, docs, of, batches[:1], end)
    with searching(base) as searcher:
        load_needed(searcher, docs)
        searcher.shards.loader.store = store = CountingStore(base.store)
        end = send(base, docs, batches[1])
        reach(searcher, {docs.slot: end})
        whole: list[tuple[Path, bytes]] = []

        def cut_short(ref: SegmentRef) -> None:
            file = Path(base.settings.store_url) / ref.objects["passages"].path
            whole.append((file, file.read_bytes()))
            file.write_bytes(file.read_bytes()[:-1])

        seal(base, docs, of, batches[1:], end, before_publish=cut_short)
        eventually(lambda: asyncio.run(searcher.stats()).stale)
        assert store.fetched == 1
        send(base, docs, one("c", 3))
        end = send(base, docs, message([("a", 4, None, "")]))
        reach(searcher, {docs.slot: end})
        assert ask(searcher, docs, catalog=base.registry.refresh()) == [("b", 2), ("c", 3)]
        seal(base, shard_of(near), near, [one("x", 5)], 0)
        eventually(lambda: ask(searcher, shard_of(near)) == [("x", 5)])
        assert store.fetched == 2 + 1, "the other collection's two objects, and the first of ours"
        for wait_s in (1, 2, 4):
            tried = store.fetched
            clock.advance(wait_s - 0.5)
            time.sleep(0.2)
            assert store.fetched == tried, "the wait doubles each time"
            clock.advance(0.5)
            eventually(
                lambda wait_s=wait_s: searcher.shards.failures.stale[docs].wait_s == 2 * wait_s
            )
            assert store.fetched == tried, "an object in quarantine is not read"
        assert list(asyncio.run(searcher.stats()).stale) == [docs]
        whole[0][0].write_bytes(whole[0][1])
        clock.advance(60)
        time.sleep(0.2)
        assert list(asyncio.run(searcher.stats()).stale) == [docs], (
            "nor when its bytes are back, until they were read again"
        )
        [damage] = base.manifests.quarantine.open()
        base.manifests.quarantine.forget(damage, actor="test", why="found whole")
        clock.advance(60)
        eventually(lambda: not asyncio.run(searcher.stats()).stale)
        assert ask(searcher, docs) == [("b", 2), ("c", 3)]
        [held] = [s for s in asyncio.run(searcher.stats()).shards if s.shard == docs]
        assert held.segments == 2


@pytest.mark.parametrize("seen_before_the_cut_over", [True, False])
def test_a_generation_whose_copied_rows_are_corrupt_is_refused_and_never_served_without_them(
    base: Resources, seen_before_the_cut_over: bool
) -> None:
    """Rows that a reindex copies are in no log: a searcher needs their segment."""
    of = collection(base)
    place = provisioning.placer(base.log, "acme", "docs", 1, base.settings.slots)
    new = base.registry.add_generation(
        "acme", "docs", index="flat", model=None, dimension=D, place=place, actor="test"
    )
    [shard] = new.shards()
    with searching(base, adopt_s=30) as searcher:
        reach(searcher, {shard.slot: send(base, shard, one("b", 2))})
        with pytest.raises(Unavailable):  # it is being built: it serves no search
            ask(searcher, shard, catalog=base.registry.refresh())
        lease = Leases(base.engine, base.clock).acquire(f"slot/{shard.slot}", "test", ttl_s=30)
        assert lease is not None
        builder = Builder(base.manifests, base.store, open_backend(), base.settings.indexer)
        ref = builder.write(shard, new, *newest([one("a", 1)]))
        file = Path(base.settings.store_url) / ref.objects["passages"].path
        file.write_bytes(file.read_bytes()[:-1])
        builder.publish(shard, new, lease, lambda m: (*m.segments, ref))
        base.registry.set_generation_state("acme", "docs", new.number, "ready", actor="test")
        if seen_before_the_cut_over:
            with pytest.raises((Corrupt, Unavailable)):
                ask(searcher, shard, catalog=base.registry.refresh())
        base.registry.cut_over("acme", "docs", new.number, actor="test")
        with pytest.raises(Corrupt):
            ask(searcher, shard, catalog=base.registry.refresh())
        assert shard_of(of) != shard


def cut_over(base: Resources, of: Collection, copied: list[pa.RecordBatch]) -> ShardId:
    """Makes a next generation live, with rows in a segment alone; returns its only shard."""
    place = provisioning.placer(base.log, of.tenant, of.name, 1, base.settings.slots)
    new = base.registry.add_generation(
        of.tenant, of.name, index="flat", model=None, dimension=D, place=place, actor="test"
    )
    [shard] = new.shards()
    lease = Leases(base.engine, base.clock).acquire(f"slot/{shard.slot}", "test", ttl_s=30)
    assert lease is not None
    builder = Builder(base.manifests, base.store, open_backend(), base.settings.indexer)
    ref = builder.write(shard, new, *newest(copied))
    builder.publish(shard, new, lease, lambda m: (*m.segments, ref))
    base.registry.set_generation_state(of.tenant, of.name, new.number, "ready", actor="test")
    base.registry.cut_over(of.tenant, of.name, new.number, actor="test")
    return shard


def test_a_generation_without_its_segments_does_not_answer_from_the_log_alone(
    base: Resources,
) -> None:
    of = collection(base)
    with searching(base, adopt_s=30) as searcher:
        searcher.shards.loader.store = store = AwayStore(base.store)
        store.away = True
        shard = cut_over(base, of, [one("copied", 1)])
        reach(searcher, {shard.slot: send(base, shard, one("later", 2))})
        # the first request loads it; the others find the attempt made, and the shard still missing
        for _ in range(3):
            with pytest.raises(Unavailable):
                ask(searcher, shard, catalog=base.registry.refresh())
        store.away = False
        assert ask(searcher, shard, catalog=base.registry.refresh()) == [
            ("copied", 1),
            ("later", 2),
        ]


class SlowStore:
    """The real store, which is slow for the objects of one collection."""

    def __init__(self, store, name: str) -> None:
        self.store, self.name, self.entered, self.open = (
            store,
            name,
            threading.Event(),
            threading.Event(),
        )

    def fetch(self, ref):
        if f"/{self.name}/" in ref.path:
            self.entered.set()
            assert self.open.wait(20)
        return self.store.fetch(ref)


def test_searches_of_others_continue_while_a_segment_is_fetched_and_the_catalog_changes(
    base: Resources,
) -> None:
    provisioning.create_tenant(base.registry, base.log, "other", actor="test")
    big, near = collection(base, "big"), shard_of(collection(base, tenant="other"))
    with searching(base, adopt_s=0.05) as searcher:
        reach(searcher, {near.slot: send(base, near, one("a", 1))})
        searcher.shards.loader.store = store = SlowStore(base.store, "big")
        shard = cut_over(base, big, [one("copied", 1)])
        waiting = searcher.submit(
            ShardQuery(shard, unit(0)[None], 5, catalog=base.registry.refresh()), Deadline.after(20)
        )
        assert store.entered.wait(5)
        cold = shard_of(collection(base, "cold", tenant="other"))
        assert ask(searcher, near, catalog=base.registry.refresh()) == [("a", 1)]
        assert ask(searcher, cold, catalog=base.registry.refresh()) == []
        assert not waiting.done()
        store.open.set()
        assert [h.document_id for h in waiting.result(5).hits[0]] == ["copied"]


def test_waiting_searches_are_combined_and_each_gets_its_own_result(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base, batch_max=8) as searcher:
        end = send(base, docs, message([(f"d{i}", i + 1, [unit(i)], "{}") for i in range(12)]))
        reach(searcher, {docs.slot: end})
        gate = Gate(searcher, docs)
        first = searcher.submit(ShardQuery(docs, unit(0)[None], 1), Deadline.after(10))
        assert gate.entered.wait(5)
        waiting = [
            searcher.submit(ShardQuery(docs, unit(i)[None], 1), Deadline.after(10))
            for i in range(1, 12)
        ]
        other = searcher.submit(ShardQuery(docs, unit(3)[None], 2), Deadline.after(10))
        gate.open.set()
        found = [f.result(10).hits[0][0].document_id for f in (first, *waiting)]
        assert found == [f"d{i}" for i in range(12)]
        assert len(other.result(10).hits[0]) == 2
        assert sorted(gate.widths) == [1, 1, 3, 8]


def test_searches_for_many_hits_run_alone(
    base: Resources,
) -> None:
    docs = shard_of(collection(base))
    with searching(base, batch_max=8) as searcher:
        end = send(base, docs, message([(f"d{i}", i + 1, [unit(i)], "{}") for i in range(4)]))
        reach(searcher, {docs.slot: end})
        gate = Gate(searcher, docs)
        asked = [searcher.submit(ShardQuery(docs, unit(0)[None], 1_000), Deadline.after(10))]
        assert gate.entered.wait(5)
        every = (ShardQuery(docs, unit(0)[None], k) for k in (1_000, 1_000, 300, 300, 300))
        asked.extend(searcher.submit(query, Deadline.after(10)) for query in every)
        gate.open.set()
        assert all(len(f.result(10).hits[0]) == 4 for f in asked)
        assert sorted(gate.widths) == [1, 1, 1, 3]


def test_a_full_queue_refuses_at_once_and_a_late_search_is_not_run(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base, queue_max=2) as searcher:
        gate = Gate(searcher, docs)
        held = searcher.submit(ShardQuery(docs, unit(0)[None], 1), Deadline.after(10))
        assert gate.entered.wait(5)
        late = searcher.submit(ShardQuery(docs, unit(0)[None], 1), Deadline.after(0.05))
        patient = searcher.submit(ShardQuery(docs, unit(0)[None], 1), Deadline.after(10))
        with pytest.raises(Overloaded):
            searcher.submit(ShardQuery(docs, unit(0)[None], 1), Deadline.after(10))
        time.sleep(0.06)
        gate.open.set()
        assert held.result(5).hits == patient.result(5).hits == ((),)
        with pytest.raises(DeadlineExceeded):
            late.result(5)
        assert gate.widths == [1, 1]


def neighbors(base: Resources, *classes: Class) -> list[ShardId]:
    """Creates a shard of a new tenant of each class."""
    for name, priority in zip("xyz", classes, strict=False):
        provisioning.create_tenant(base.registry, base.log, name, priority=priority, actor="test")
    return [
        shard_of(collection(base, tenant=name)) for name, _ in zip("xyz", classes, strict=False)
    ]


def test_a_flood_of_one_tenant_does_not_delay_anothers_search(base: Resources) -> None:
    loud, quiet = neighbors(base, "gold", "bronze")
    order: list[str] = []

    def ask_in_line(searcher: Searcher, shard: ShardId, k: int) -> Future[ShardResult]:
        asked = searcher.submit(ShardQuery(shard, unit(0)[None], k), Deadline.after(60))
        asked.add_done_callback(lambda _: order.append(shard.tenant))
        return asked

    with searching(base, queue_max=20_000) as searcher:
        load_needed(searcher, loud, quiet)
        gate = Gate(searcher, loud)
        flood = [ask_in_line(searcher, loud, 1)]
        assert gate.entered.wait(5)
        flood += [ask_in_line(searcher, loud, 1 + i % 100) for i in range(9_999)]
        ask_in_line(searcher, quiet, 1).add_done_callback(lambda _: order.append("done"))
        gate.open.set()
        for each in flood:
            each.result(30)
    assert len(order) == 10_002
    assert order.index("y") <= 200, (
        "one turn of the other at most, and the searches combined with its last one"
    )


def test_a_tenant_gets_no_more_by_batches_than_by_single_searches(base: Resources) -> None:
    batching, single = neighbors(base, "silver", "silver")
    order: list[str] = []
    with searching(base, queue_max=20_000) as searcher:
        load_needed(searcher, batching, single)
        gate = Gate(searcher, batching)
        searcher.submit(ShardQuery(batching, unit(0)[None], 1), Deadline.after(60))
        assert gate.entered.wait(5)
        for i in range(640):
            for shard, recall in (
                (batching, 0.5),
                (single, i / 1_000),
            ):  # different searches are not combined
                asked = searcher.submit(
                    ShardQuery(shard, unit(0)[None], 1, recall=recall), Deadline.after(60)
                )
                asked.add_done_callback(lambda _, name=shard.tenant: order.append(name))
        gate.open.set()
        eventually(lambda: len(order) == 1_280)
    for n in range(200, 1_281, 100):
        assert abs(2 * order[:n].count(batching.tenant) - n) <= 2 * 64 + 2 * 16


def test_a_tenant_that_fills_its_part_of_the_queue_leaves_room_for_others(base: Resources) -> None:
    loud, quiet = neighbors(base, "bronze", "gold")
    with searching(base, queue_max=100) as searcher:
        load_needed(searcher, loud, quiet)
        gate = Gate(searcher, loud)
        searcher.submit(ShardQuery(loud, unit(0)[None], 1), Deadline.after(10))
        assert gate.entered.wait(5)
        held = [
            searcher.submit(ShardQuery(loud, unit(0)[None], 1), Deadline.after(10))
            for _ in range(50)
        ]
        with pytest.raises(Overloaded) as refused:
            searcher.submit(ShardQuery(loud, unit(0)[None], 1), Deadline.after(10))
        assert refused.value.retry_after_s > 0
        waiting = [
            searcher.submit(ShardQuery(quiet, unit(0)[None], 1), Deadline.after(10))
            for _ in range(30)
        ]
        gate.open.set()
        assert [f.result(5).hits for f in (*held, *waiting)] == [((),)] * 80


def test_a_scan_of_many_rows_costs_its_tenant_more_than_a_look_at_few(base: Resources) -> None:
    of = collection(base, dimension=1_024)
    big = shard_of(of)
    with searching(base) as searcher:
        load_needed(searcher, big)
        small = ShardQuery(big, np.ones((1, 1_024), np.float32), 1)
        shard = searcher.tail.shards[big]
        assert search_cost(small, shard) == 1
        rows = [(f"d{i}", i + 1, [np.ones(1_024, np.float32)], "{}") for i in range(2_100)]
        reach(searcher, {big.slot: send(base, big, message(rows, 1_024))})
        assert search_cost(small, shard) == search_cost(replace(small, exact=True), shard) == 3
        assert search_cost(replace(small, vectors=np.ones((5, 1_024), np.float32)), shard) == 15
        assert search_cost(replace(small, k=1_000), shard) == 33, (
            "and so does a search for many hits"
        )


def test_stopping_is_quick_and_answers_waiting_searches(base: Resources) -> None:
    docs = shard_of(collection(base))

    async def wait_and_stop(searcher: Searcher) -> None:
        waiting = asyncio.create_task(searcher.reach({docs.slot: 10**9}, Deadline.after(30)))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(searcher.stop)
        with pytest.raises(Unavailable):
            await waiting

    with searching(base, adopt_s=30) as searcher:
        started = time.monotonic()
        asyncio.run(wait_and_stop(searcher))
        assert time.monotonic() - started < 3
        assert not [t.name for t in threading.enumerate() if t.name.startswith("searcher")]


def test_a_thread_that_dies_ends_the_role_and_answers_waiting_searches(base: Resources) -> None:
    docs, died = shard_of(collection(base)), Future()
    searcher = build_searcher(base, on_failure=died.set_result)
    searcher.start()
    try:
        eventually(searcher.ready)
        load_needed(searcher, docs)
        broken = searcher.tail.shards[docs]
        broken.search = lambda _query: 1 / 0  # type: ignore[method-assign]
        answer = searcher.submit(ShardQuery(docs, unit(0)[None], 1), Deadline.after(30))
        with pytest.raises(Unavailable):
            answer.result(5)
        assert isinstance(died.result(5), ZeroDivisionError)
    finally:
        searcher.stop()


class Racing(Registry):
    """A registry that runs `before` once at a look-up, as another thread may act at that moment."""

    before: Callable[[], object] | None = None

    def collection(self, tenant: str, name: str) -> Collection:
        before, self.before = self.before, None
        if before is not None:
            before()
        return super().collection(tenant, name)


@pytest.mark.parametrize("race", ["collection deleted", "shard evicted"])
def test_a_refresh_survives_concurrent_changes(base: Resources, race: str) -> None:
    registry = Racing(base.engine, base.clock)
    shards = [shard_of(collection(base, name)) for name in ("one", "two", "three")]
    with searching(replace(base, registry=registry), adopt_s=60) as searcher:
        load_needed(searcher, *shards)

        def other_thread() -> None:
            if race == "collection deleted":
                for shard in shards:
                    base.registry.delete_collection(shard.tenant, shard.collection, actor="test")
                registry.refresh()
            else:
                for shard in shards:
                    searcher.tail.remove(shard)

        base.registry.set_objectives("acme", "one", Objectives(recall=0.9), actor="test")
        registry.before = other_thread
        searcher.shards.refresh()
        assert registry.before is None


def test_index_lag_is_measured_from_the_event(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        end = send(base, docs, one("a", 1), event_time_ms=base.clock.now_ms() - 500)
        reach(searcher, {docs.slot: end})
        [lag] = asyncio.run(searcher.stats()).index_lag_ms["acme"]
        assert 500 <= lag < 5_000


def test_records_that_were_in_the_log_at_the_start_have_no_index_lag(base: Resources) -> None:
    docs = shard_of(collection(base))
    end = send(base, docs, one("a", 1), event_time_ms=base.clock.now_ms() - 2_460_000)
    before = REGISTRY.get_sample_value("vicinage_searcher_index_lag_seconds_count")
    with searching(base) as searcher:
        reach(searcher, {docs.slot: end})
        stats = asyncio.run(searcher.stats())
        assert (stats.index_lag_ms, stats.replayed, stats.applied) == ({}, {"acme": 1}, 0)
        assert REGISTRY.get_sample_value("vicinage_searcher_index_lag_seconds_count") == before
        end = send(base, docs, one("b", 2), event_time_ms=base.clock.now_ms() - 500)
        reach(searcher, {docs.slot: end})
        stats = asyncio.run(searcher.stats())
        [lag] = stats.index_lag_ms["acme"]
        assert 500 <= lag < 5_000
        assert (stats.replayed, stats.applied) == ({"acme": 1}, 1)
        other = asyncio.run(searcher.stats("other"))
        assert (other.index_lag_ms, other.replayed) == ({}, {})


def test_an_abandoned_search_affects_no_other(base: Resources) -> None:
    of = collection(base)
    shard = shard_of(of)
    with searching(base) as searcher:
        load_needed(searcher, shard)
        gone, also_gone, kept = (
            QueuedSearch(ShardQuery(shard, unit(1)[None], 1), Deadline.after(5)) for _ in range(3)
        )
        assert gone.future.cancel() and also_gone.future.cancel()
        searcher._run_batch([gone])  # all of them gave up: there is nothing to do, and no error
        searcher._run_batch([also_gone, kept])
        assert kept.future.result(5).hits == ((),)


def test_while_the_catalog_is_away_a_live_shard_answers_and_one_that_was_being_built_does_not(
    base: Resources,
) -> None:
    of = collection(base)
    live, away = shard_of(of), [False]
    place = provisioning.placer(base.log, "acme", "docs", 1, base.settings.slots)
    building = base.registry.add_generation(
        "acme", "docs", index="flat", model=None, dimension=D, place=place, actor="test"
    )

    @event.listens_for(base.engine, "begin")
    def begun(_connection: object) -> None:
        if away[0]:
            raise OperationalError("BEGIN", {}, Exception("the server closed the connection"))

    with searching(base) as searcher:
        load_needed(searcher, live)
        end = send(base, live, one("a", 1))
        reach(searcher, {live.slot: end})
        later = (
            base.registry.version + 1
        )  # the gateway saw one more change, and may have cut over by it
        away[0] = True
        assert ask(searcher, live, catalog=later) == [("a", 1)]
        with pytest.raises(Unavailable):
            ask(searcher, building.shards()[0], catalog=later)
        away[0] = False
        assert ask(searcher, live, catalog=base.registry.version) == [("a", 1)]
        eventually(lambda: not searcher.shards.view.unreachable)


def test_a_recreated_vectors_log_is_not_read_and_waits_fail_at_once(
    base: Resources,
) -> None:
    docs = shard_of(collection(base))
    end = send(base, docs, one("a", 1))
    with searching(base) as searcher:
        reach(searcher, {docs.slot: end})
        load_needed(searcher, docs)
        base.log.delete_topic(VECTORS_TOPIC)
        base.log.ensure_topic(VECTORS_TOPIC, base.settings.slots)
        eventually(lambda: docs.slot in searcher.tail.halted())
        assert searcher.tail.halted()[docs.slot].kind == "topic_replaced"
        with pytest.raises(Unavailable, match="not read at present"):
            asyncio.run(searcher.reach({docs.slot: end + 1}, Deadline.after(30)))
        assert ask(searcher, docs) == [("a", 1)]
