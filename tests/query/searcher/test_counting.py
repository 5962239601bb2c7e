"""Counts of unloaded shards: a restart shows the counts before it, or a marked bound."""

import asyncio
import threading
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from resources import eventually
from rows import message, unit
from searching import collection, one, reach, seal, searching, send, shard_of

from cluster.wiring import Resources
from indexer.backends import open_backend
from indexer.index.loader import Loading
from indexer.index.objects import Keys
from query.searcher.counting import Counting, Part, live_counts
from query.searcher.run import Searcher
from tenants import provisioning
from tenants.entities import Generation
from vicinage.clock import Deadline
from vicinage.records import ShardId
from vicinage.stats import ShardStats

Rows = list[tuple[str, int, int]]


@pytest.fixture
def base(base: Resources) -> Resources:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    return base


def part(rows: Rows) -> Part:
    """Returns (ID, version, passages) of each document."""
    ids, versions, counts = zip(*rows, strict=True) if rows else ((), (), ())
    return Part(Keys.of(ids), np.array(versions, np.int64), np.array(counts, np.int32))


documents = st.dictionaries(
    st.sampled_from("abcdefgh"), st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=8
)


@given(st.lists(documents, max_size=6))
def test_the_newest_version_of_each_document_is_live(
    parts: list[dict[str, tuple[int, int]]],
) -> None:
    newest: dict[str, tuple[int, int]] = {}
    for each in parts:
        for name, (version, passages) in each.items():
            if version >= newest.get(name, (-1, 0))[0]:
                newest[name] = (version, passages)
    counts = [passages for _, passages in newest.values() if passages]
    found = live_counts([part([(name, *of) for name, of in each.items()]) for each in parts])
    assert found == (len(counts), sum(counts))


def stats_of(searcher: Searcher, *of: str) -> ShardStats:
    [found] = asyncio.run(searcher.stats(*of)).shards
    return found


def counts(found: ShardStats) -> tuple[int, int, bool, bool]:
    return found.documents, found.passages, found.exact, found.resident


def test_an_unloaded_shard_is_counted_exactly_from_segments_and_log(
    base: Resources,
) -> None:
    of = collection(base)
    docs = shard_of(of)
    first = message([(f"d{i}", i + 1, [unit(i), unit(i + 50)], "{}") for i in range(5)])
    seal(base, docs, of, [first], send(base, docs, first))
    second = message(
        [("d0", 100, [unit(7)], "{}"), ("d1", 101, None, "{}"), ("new", 102, [unit(8)], "{}")]
    )
    seal(base, docs, of, [second], send(base, docs, second))
    send(
        base,
        docs,
        message(
            [
                ("d2", 200, [unit(9)] * 3, "{}"),
                ("d3", 201, None, "{}"),
                ("tail", 202, [unit(3)], "{}"),
            ]
        ),
    )
    end = send(base, docs, message([("tail", 203, [unit(4)] * 2, "{}"), ("gone", 204, None, "{}")]))
    with searching(base) as searcher:
        reach(searcher, {docs.slot: end})
        found = stats_of(searcher, "acme")
        # Passages: one of d0, three of d2, two of d4, one of new, two of tail.
        assert counts(found) == (5, 9, True, False)
        assert found.log_bytes > 0
        reach(searcher, {docs.slot: send(base, docs, one("later", 300))})
        assert counts(stats_of(searcher, "acme")) == (6, 10, True, False), (
            "with the rows that arrived meanwhile"
        )
        named = stats_of(searcher, "acme", "docs")
        assert counts(named) == (6, 10, True, True), "and as it is counted in memory"
        assert named.segment_passages == 12


def test_the_background_counts_serve_reports_of_everything(base: Resources) -> None:
    docs = shard_of(collection(base))
    end = [send(base, docs, one(f"d{i}", i + 1)) for i in range(32)][-1]
    with searching(base) as searcher:
        reach(searcher, {docs.slot: end})
        found = stats_of(searcher)
        assert counts(found) in {(0, 0, False, False), (32, 32, True, False)}, (
            "a bound, until it is counted"
        )
        eventually(lambda: counts(stats_of(searcher)) == (32, 32, True, False))


def test_one_segment_without_rows_in_the_log_needs_no_counting(base: Resources) -> None:
    of = collection(base)
    docs = shard_of(of)
    batch = message([(f"d{i}", i + 1, [unit(i)], "{}") for i in range(4)])
    end = send(base, docs, batch)
    seal(base, docs, of, [batch], end)
    with searching(base) as searcher:
        reach(searcher, {docs.slot: end})
        assert counts(stats_of(searcher)) == (4, 4, True, False)


def test_an_uncountable_shard_has_a_lower_bound(base: Resources) -> None:
    of = collection(base)
    docs = shard_of(of)
    for name in ("a", "b"):
        batch = message([(f"{name}{i}", i + 1, [unit(i)] * 2, "{}") for i in range(4)])
        seal(base, docs, of, [batch], send(base, docs, batch))
    for path in base.manifests.paths():
        if path.endswith("documents.arrow"):
            file = base.settings.data / "store" / path
            file.write_bytes(b"x" * file.stat().st_size)
    with searching(base) as searcher:
        found = stats_of(searcher, "acme")
        assert (found.documents, found.exact) == (4, False), (
            "those of one segment are known in any case"
        )


class Meanwhile(dict[ShardId, Generation]):
    """Served shards; another thread's action runs when one is looked up."""

    def __init__(self, served: Mapping[ShardId, Generation], run: Callable[[], object]) -> None:
        super().__init__(served)
        self._run = run

    def __contains__(self, shard: object) -> bool:
        self._run()
        return super().__contains__(shard)


def test_a_tenant_is_answered_while_the_background_counts(base: Resources) -> None:
    provisioning.create_tenant(base.registry, base.log, "other", actor="test")
    served = {
        shard_of(of): of.generation() for of in (collection(base), collection(base, tenant="other"))
    }
    end = {shard.slot: send(base, shard, one("d", 1)) for shard in served}
    stop = threading.Event()

    def meanwhile() -> None:
        counting.count_tenant("other", Deadline.after(5))
        stop.set()

    with searching(base) as searcher:
        reach(searcher, end)
        counting = Counting(
            tail=searcher.tail,
            manifests=base.manifests,
            loading=Loading(base.store, open_backend(), base.manifests.quarantine, "searcher"),
            served=lambda: Meanwhile(served, meanwhile),
            version_of=lambda _shard: 0,
            to_count=lambda tenant: [s for s in served if tenant in (None, s.tenant)],
        )
        counting.count_tenant("acme", Deadline.after(5))
        counting.run(stop)
        counted = {shard.tenant: counting.known(shard) for shard in served}
    assert {tenant: found and found.documents for tenant, found in counted.items()} == {
        "acme": 1,
        "other": 1,
    }
