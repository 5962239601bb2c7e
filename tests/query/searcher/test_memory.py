"""Loaded shards: eviction order, no lost rows, and a bound on memory."""

import asyncio
import gc
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resources import eventually
from rows import message, unit
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

from cluster.wiring import Resources
from indexer.backends import open_backend
from indexer.index.rows import newest
from indexer.seal import Builder
from query.searcher.catalog_view import EAGER_PASSAGES
from query.searcher.memory import IN_USE_S, ResidentShard, choose_evictions
from tenants import provisioning
from tenants.entities import Collection
from tenants.leases import Leases
from tenants.provisioning import VECTORS_TOPIC
from vicinage.clock import Deadline, ManualClock
from vicinage.errors import Unavailable
from vicinage.log import Record
from vicinage.records import ShardId, ShardQuery
from vicinage.stats import SHARD_BYTES
from vicinage.tenant_context import TenantContext
from vicinage.wire import rows_key


@pytest.fixture
def base(base: Resources) -> Resources:
    """A searcher with a tenant and a manual clock."""
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    return replace(base, clock=ManualClock())


def held(tenant: str, number: int, n_bytes: int, idle_s: float, weight: int = 1) -> ResidentShard:
    return ResidentShard(ShardId(tenant, "c", 1, number), n_bytes, idle_s, weight)


def names(going: tuple[ShardId, ...]) -> list[str]:
    return [f"{s.tenant}{s.slot}" for s in going]


def test_the_least_recently_used_shard_is_evicted_first_and_no_more_than_needed() -> None:
    every = [held("a", 1, 10, 5), held("b", 2, 10, 90), held("c", 3, 10, 30)]
    assert names(choose_evictions(every, 5, 100)) == ["b2"]
    assert names(choose_evictions(every, 20, 100)) == ["b2", "c3"]


def test_a_shard_in_use_stays_even_if_there_is_no_room() -> None:
    assert choose_evictions([held("a", 1, 10, IN_USE_S / 2)], 1, 100) == ()
    assert choose_evictions([held("a", 1, 10, 9), held("b", 2, 10, 0)], 15, 100) == (), (
        "evicting one alone would not help"
    )


def test_a_class_of_greater_weight_stays_as_many_times_longer() -> None:
    gold, bronze = held("gold", 1, 10, 39, weight=4), held("bronze", 2, 10, 10)
    assert names(choose_evictions([gold, bronze], 5, 1_000)) == ["bronze2"]


def test_a_tenant_that_walks_through_its_collections_evicts_its_own() -> None:
    quiet = held("quiet", 0, 10, 60)
    walker = [held("walker", 1 + i, 10, 10) for i in range(90)]
    assert set(names(choose_evictions([quiet, *walker], 100, 100))) <= {
        f"walker{1 + i}" for i in range(90)
    }


def test_a_tenant_that_uses_everything_keeps_only_its_share_from_others() -> None:
    everything = [held("busy", i, 10, 0.1) for i in range(10)]
    assert choose_evictions(everything, 10, 100, requester=TenantContext("busy", 1)) == (), (
        "it does not evict its own shards in use"
    )
    assert len(choose_evictions(everything, 10, 100, requester=TenantContext("new", 1))) == 1
    other = held("other", 20, 10, 3)
    assert names(
        choose_evictions([*everything[:9], other], 10, 100, requester=TenantContext("new", 1))
    )[0].startswith("busy")


def test_room_is_made_for_several_shards_at_once_if_it_is_cheap() -> None:
    every = [held("a", i, 10, 9) for i in range(9)]
    assert len(choose_evictions(every, 10, 1_000, spare=30)) == 4
    assert len(choose_evictions(every[:2], 10, 1_000, spare=30)) == 2


def test_an_exceeded_budget_is_reduced_as_far_as_possible() -> None:
    every = [held("a", 0, 10, 9), held("b", 1, 10, 0)]
    assert choose_evictions(every, 50, 100) == ()
    assert names(choose_evictions(every, 50, 100, partial=True)) == ["a0"]


@given(
    st.lists(
        st.builds(
            held,
            st.sampled_from("abc"),
            st.integers(0, 99),
            st.integers(0, 50),
            st.floats(0, 100),
            st.just(2),
        ),
        max_size=12,
        unique_by=lambda h: h.shard,
    ),
    st.integers(1, 300),
)
def test_evictions_suffice_or_none_happens_and_shards_in_use_stay_within_a_share(
    every: list[ResidentShard], need: int
) -> None:
    going = choose_evictions(every, need, 100)
    by_shard = {h.shard: h for h in every}
    holders = {h.shard.tenant for h in every}
    for shard in going:
        own = sum(h.bytes for h in every if h.shard.tenant == shard.tenant)
        assert by_shard[shard].idle_s >= IN_USE_S or own > 100 / len(holders)
    assert not going or sum(by_shard[s].bytes for s in going) >= need


def test_an_unrequested_load_evicts_nothing(base: Resources) -> None:
    of, big = collection(base, "big"), sealed(base, "small")[1]
    rows = message([(f"d{i}", i + 1, [unit(i)], "{}") for i in range(EAGER_PASSAGES + 1)])
    shard = shard_of(of)
    end = send(base, shard, rows)
    with searching(base, resident_bytes_max=4 << 20) as searcher:
        ask(searcher, big)
        searcher.shards.budget.bytes_max = searcher.shards.budget.resident_bytes() + 10_000
        base.clock.advance(5)
        seal(base, shard, of, [rows], end)
        eventually(
            lambda: (
                searcher.shards.view.stored(shard).version
                and shard not in searcher.shards.states.queue.due
            )
        )
        assert list(searcher.tail.shards) == [big]


def test_steady_writes_during_a_load_block_no_search(base: Resources) -> None:
    """The log is read while others continue; the tail stands for the newest records alone."""
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        reach(searcher, {docs.slot: send(base, docs, one("d0", 1))})
        held_while_reading: list[bool] = []
        missed = searcher.tail._read_skipped

        def watched(*given):
            held_while_reading.append(searcher.tail._apply_lock._is_owned())
            if len(held_while_reading) == 1:
                reach(searcher, {docs.slot: send(base, docs, one("d1", 2))})
            return list(missed(*given))

        searcher.tail._read_skipped = watched  # type: ignore[method-assign]
        assert ask(searcher, docs) == [("d0", 1), ("d1", 2)]
        assert held_while_reading[:2] == [False, False]


def sealed(
    base: Resources, name: str, n: int = 3, tenant: str = "acme"
) -> tuple[Collection, ShardId]:
    """Creates a collection with `n` documents in a segment."""
    of = collection(base, name, tenant=tenant)
    batches = [one(f"{name}-{i}", i + 1) for i in range(n)]
    end = [send(base, shard_of(of), b) for b in batches][-1]
    seal(base, shard_of(of), of, batches, end)
    return of, shard_of(of)


def test_nothing_is_loaded_before_the_first_request(base: Resources) -> None:
    _, docs = sealed(base, "docs")
    with searching(base) as searcher:
        reach(searcher, {docs.slot: send(base, docs, one("late", 9))})
        assert not searcher.tail.shards
        [stats] = asyncio.run(searcher.stats()).shards
        assert (stats.resident, stats.host_bytes, stats.segments) == (False, 0, 1)
        assert (stats.documents, stats.exact) in {(0, False), (4, True)}, (
            "a lower bound, until it is counted"
        )
        assert ask(searcher, docs) == [("docs-0", 1), ("docs-1", 2), ("docs-2", 3), ("late", 9)]
        [stats] = asyncio.run(searcher.stats()).shards
        assert (stats.resident, stats.documents) == (True, 4)
        loaded = sum(r.loaded_bytes() for r in base.manifests.of(docs, start=0).segments)
        assert stats.host_bytes > loaded, "the delta too"


def test_a_requested_collection_is_loaded_and_counted_exactly(base: Resources) -> None:
    of, docs = sealed(base, "docs")
    seal(base, docs, of, [one("docs-0", 7)], send(base, docs, one("docs-0", 7)))
    with searching(base) as searcher:
        [stats] = asyncio.run(searcher.stats("acme")).shards
        assert (stats.documents, stats.passages, stats.exact, stats.resident) == (3, 3, True, False)
        [stats] = asyncio.run(searcher.stats("acme", "docs")).shards
        assert (stats.documents, stats.resident) == (3, True)


def room_for(base: Resources, *shards: ShardId) -> int:
    """Returns as many bytes as these need, and no more."""
    manifests = base.manifests.changed_since(0, range(base.settings.slots))[1]
    return sum(
        SHARD_BYTES + sum(r.loaded_bytes() for r in m.segments)
        for m in manifests
        if m.shard in shards
    )


def test_an_evicted_shard_is_loaded_again_completely(base: Resources) -> None:
    of, first = sealed(base, "first")
    _, second = sealed(base, "second")
    with searching(base, resident_bytes_max=int(1.9 * room_for(base, first))) as searcher:
        assert len(ask(searcher, first)) == 3
        end = send(base, first, message([("first-0", 20, None, ""), ("new", 21, [unit(5)], "{}")]))
        reach(searcher, {first.slot: end})
        base.clock.advance(2)
        assert len(ask(searcher, second)) == 3
        assert list(searcher.tail.shards) == [second]
        reach(searcher, {first.slot: send(base, first, one("newer", 22))})
        base.clock.advance(2)
        assert ask(searcher, first) == [("first-1", 2), ("first-2", 3), ("new", 21), ("newer", 22)]
        base.clock.advance(2)
        ask(searcher, second)
        seal(
            base,
            first,
            of,
            [message([("first-0", 20, None, ""), ("new", 21, [unit(5)], "{}")]), one("newer", 22)],
            end + 1,
        )
        base.clock.advance(2)
        eventually(
            lambda: (
                ask(searcher, first) == [("first-1", 2), ("first-2", 3), ("new", 21), ("newer", 22)]
            )
        )
        assert searcher.tail.shards[first].stats().segments == 2


def test_while_all_shards_are_in_use_a_new_one_is_refused_with_retry_after(
    base: Resources,
) -> None:
    _, first = sealed(base, "first")
    _, second = sealed(base, "second")
    with searching(base, resident_bytes_max=room_for(base, first) + SHARD_BYTES) as searcher:
        ask(searcher, first)
        with pytest.raises(Unavailable, match="in use") as refused:
            ask(searcher, second)
        assert refused.value.retry_after_s
        assert len(ask(searcher, first)) == 3, "and the loaded shard stays"
        base.clock.advance(2)
        assert len(ask(searcher, second)) == 3


def test_a_shard_that_can_never_fit_is_refused_with_what_to_do(base: Resources) -> None:
    _, docs = sealed(base, "docs")
    with (
        searching(base, resident_bytes_max=SHARD_BYTES + 1) as searcher,
        pytest.raises(Unavailable, match="resident_bytes_max"),
    ):
        ask(searcher, docs)


def test_a_shard_without_room_for_old_and_new_segments_is_loaded_again(
    base: Resources,
) -> None:
    of, docs = sealed(base, "docs")
    with searching(base, resident_bytes_max=int(1.5 * room_for(base, docs))) as searcher:
        assert len(ask(searcher, docs)) == 3
        old = base.manifests.of(docs, start=0)
        lease = Leases(base.engine, base.clock).acquire(f"slot/{docs.slot}", "test", ttl_s=30)
        builder = Builder(base.manifests, base.store, open_backend(), base.settings.indexer)
        ref = builder.write(
            docs, of.generation(), *newest([one(f"docs-{i}", i + 1) for i in range(3)])
        )
        new = base.manifests.swap(old, segments=(ref,), sealed=old.sealed, lease=lease)
        eventually(lambda: docs not in searcher.tail.shards)
        assert len(ask(searcher, docs)) == 3
        assert searcher.tail.shards[docs].snapshot.manifest == new


def test_bytes_are_counted_until_the_last_search_in_them_ends(base: Resources) -> None:
    _, docs = sealed(base, "docs")
    with searching(base) as searcher:
        gate = Gate(searcher, docs)
        waiting = searcher.submit(ShardQuery(docs, unit(0)[None], 1), Deadline.after(10))
        assert gate.entered.wait(5)
        before = searcher.shards.budget.resident_bytes()
        searcher.shards.unload(docs)
        segments = room_for(base, docs) - SHARD_BYTES
        assert searcher.shards.budget.resident_bytes() == before - SHARD_BYTES == segments
        gate.open.set()
        assert waiting.result(5).hits[0]
        del gate
        gc.collect()  # the gate and the shard refer to each other
        eventually(lambda: searcher.shards.budget.resident_bytes() == 0)


def test_held_bytes_never_exceed_the_budget(base: Resources) -> None:
    shards = [sealed(base, f"c{i}", 4)[1] for i in range(12)]
    allowed = room_for(base, *shards[:3]) + 1_000
    with searching(base, resident_bytes_max=allowed) as searcher:
        seen: list[int] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.001):
                seen.append(searcher.shards.budget.resident_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        for turn in range(60):
            base.clock.advance(2)
            shard = shards[(turn * 7) % 12]
            assert len(ask(searcher, shard)) == 4
        done.set()
        watcher.join()
        assert max(seen) <= allowed
        assert len(searcher.tail.shards) <= 3


def test_growing_deltas_evict_other_shards(base: Resources) -> None:
    _, first = sealed(base, "first")
    _, second = sealed(base, "second")
    with searching(base, resident_bytes_max=room_for(base, first, second) + 4_000) as searcher:
        load_needed(searcher, first, second)
        base.clock.advance(2)
        ask(searcher, second)
        rows = [(f"n{i}", 50 + i, [unit(i)], "{}") for i in range(200)]
        reach(searcher, {second.slot: send(base, second, message(rows))})

        def shed() -> bool:
            base.clock.advance(
                0.1
            )  # shards are evicted at each check of the catalog, by this clock
            return list(searcher.tail.shards) == [second]

        eventually(shed)
        assert len(ask(searcher, second)) == 100


def test_a_large_shard_is_loaded_without_a_request(base: Resources) -> None:
    of, small = collection(base, "big"), sealed(base, "small")[1]
    big = shard_of(of)
    rows = message([(f"d{i}", i + 1, [unit(i)], "{}") for i in range(EAGER_PASSAGES + 1)])
    end = send(base, big, rows)
    seal(base, big, of, [rows], end)
    with searching(base) as searcher:
        assert list(searcher.tail.shards) == [big], "before it is ready"
        assert small not in searcher.tail.shards
    with searching(base, resident_bytes_max=room_for(base, small)) as searcher:
        assert not searcher.tail.shards, "if there is room"
        assert len(ask(searcher, small)) == 3


def test_the_next_generation_of_a_used_collection_is_loaded_without_a_request(
    base: Resources,
) -> None:
    of, docs = sealed(base, "docs")
    idle = sealed(base, "idle")[0]
    with searching(base) as searcher:
        ask(searcher, docs)
        made = [
            base.registry.add_generation(
                "acme",
                c.name,
                index="flat",
                model=None,
                dimension=D,
                place=provisioning.placer(base.log, "acme", c.name, 1, base.settings.slots),
                actor="test",
            ).shards()[0]
            for c in (of, idle)
        ]
        eventually(lambda: made[0] in searcher.tail.shards)
        assert made[1] not in searcher.tail.shards


def test_unreadable_rows_are_skipped_by_an_unloaded_shard_too(
    base: Resources,
) -> None:
    _, docs = sealed(base, "docs")
    with searching(base) as searcher:
        offset = base.log.append(
            VECTORS_TOPIC, docs.slot, [Record(b"no arrow", rows_key("acme", "docs", 1))]
        )[0]
        reach(searcher, {docs.slot: offset + 1})
        assert len(ask(searcher, docs)) == 3
        assert docs not in asyncio.run(searcher.stats()).failed


def test_rows_far_apart_in_the_log_are_found_by_a_loaded_shard(base: Resources) -> None:
    docs, others = shard_of(collection(base)), [collection(base, f"c{i}") for i in range(30)]
    near = next(shard_of(c) for c in others if shard_of(c).slot == docs.slot)
    with searching(base) as searcher:
        for i in range(1, 121):
            end = send(base, docs if i in (1, 2, 40, 119, 120) else near, one(f"d{i}", i))
        reach(searcher, {docs.slot: end})
        reads: list[int] = []
        read = searcher.tail._log.read

        def counted(*args, **more):
            reads.append(1)
            return read(*args, **more)

        searcher.tail._log.read = counted  # type: ignore[method-assign]
        try:
            assert ask(searcher, docs) == sorted((f"d{i}", i) for i in (1, 2, 40, 119, 120))
        finally:
            searcher.tail._log.read = read  # type: ignore[method-assign]
        assert len(reads) == 3, "not the whole log"


def test_a_shard_without_rows_in_the_log_reads_none_of_it(base: Resources) -> None:
    _, docs = sealed(base, "docs")
    others = [collection(base, f"c{i}") for i in range(30)]
    near = next(shard_of(c) for c in others if shard_of(c).slot == docs.slot)
    with searching(base) as searcher:
        reach(searcher, {near.slot: send(base, near, one("x", 9))})
        searcher.tail._log = None  # type: ignore[assignment]
        try:
            assert len(ask(searcher, docs)) == 3
        finally:
            searcher.tail._log = base.log


MEASURE = Path(__file__).with_name("resident.py")


@pytest.mark.parametrize("spec", ["flat", "auto", "hnsw", "ivf", "rabitq"])
def test_accounted_bytes_match_the_memory_of_a_process(spec: str, tmp_path: Path) -> None:
    """Another process loads, touches and searches a segment; its growth is measured."""
    done = subprocess.run(
        [sys.executable, str(MEASURE), spec, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    measured = json.loads(done.stdout)
    assert measured["resident"] == pytest.approx(measured["accounted"], rel=0.05), measured
