"""Data that a search needs first is prepared beside the search threads, within bounds."""

import json
import threading
from concurrent.futures import Future

import pytest
from rows import message, unit
from searching import collection, seal, searching, send, shard_of
from shards import one
from shards import shard as new_shard

from cluster.wiring import Resources
from indexer.index import filters, preload
from query.searcher.batch import QueuedSearch
from query.searcher.futures import fail
from query.searcher.warmup import WarmUps
from tenants import provisioning
from vicinage.clock import Deadline
from vicinage.errors import Overloaded, Unavailable
from vicinage.filters import Filter
from vicinage.records import ShardId, ShardQuery

NAMES = frozenset({"lang"})
SHARD = ShardId("acme", "docs", 1, 0)


@pytest.fixture
def base(base: Resources) -> Resources:
    """A searcher with a tenant."""
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    return base


def test_while_metadata_is_read_for_a_first_filter_other_searches_continue(
    base: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = collection(base)
    docs = shard_of(of)
    batches = [
        one(f"d{i}", i + 1, metadata=f'{{"lang": "{"en" if i % 2 else "de"}", "n": {i}}}')
        for i in range(6)
    ]
    ends = [send(base, docs, b) for b in batches]
    seal(base, docs, of, batches, ends[-1])
    monkeypatch.setattr(preload, "READ_MAX", 5)
    reading, hold, made = threading.Event(), threading.Event(), filters._Column

    def slowly(values: list) -> object:
        reading.set()
        assert hold.wait(10)
        return made(values)

    monkeypatch.setattr(filters, "_Column", slowly)

    def asked(**condition: object) -> ShardQuery:
        return ShardQuery(
            docs, unit(1)[None], 10, filter=Filter.parse(condition) if condition else None
        )

    with searching(base, threads=1) as searcher:
        waiting = [
            searcher.submit(asked(lang=lang), Deadline.after(20)) for lang in ("en", "de", "en")
        ]
        assert reading.wait(5)
        plain = searcher.submit(asked(), Deadline.after(5)).result(5)
        assert len(plain.hits[0]) == 6, "not even a search of the same shard"
        assert not any(w.done() for w in waiting)
        hold.set()
        found = [sorted(h.document_id for h in w.result(5).hits[0]) for w in waiting]
        assert found == [["d1", "d3", "d5"], ["d0", "d2", "d4"], ["d1", "d3", "d5"]]
        held = searcher.tail.shards[docs]
        assert held.needs(asked(lang="fr")) is None
        assert held.needs(asked(lang="fr", n=3)) == {"lang", "n"}


def test_few_rows_are_read_on_the_search_thread(base: Resources) -> None:
    of = collection(base)
    docs = shard_of(of)
    seal(
        base,
        docs,
        of,
        [one("a", 1, metadata='{"n": 1}')],
        send(base, docs, one("a", 1, metadata='{"n": 1}')),
    )
    with searching(base) as searcher:
        query = ShardQuery(docs, unit(1)[None], 10, filter=Filter.parse({"n": 1}))
        assert len(searcher.submit(query, Deadline.after(5)).result(5).hits[0]) == 1
        assert (
            searcher.tail.shards[docs].needs(
                ShardQuery(docs, unit(1)[None], 10, filter=Filter.parse({"other": 1}))
            )
            is None
        )


def test_waiting_searches_are_bounded_and_a_stop_answers_them() -> None:
    requeued: list[QueuedSearch] = []
    warm_ups = WarmUps(requeued.extend, waiting_max=10)
    hold, entered = threading.Event(), threading.Event()

    class ResidentShard:
        def __init__(self, tenant: str) -> None:
            self.id = ShardId(tenant, "c", 1, 0)

        def load_needed(self, names: frozenset[str]) -> None:
            assert names == NAMES
            entered.set()
            assert hold.wait(10)

    def queued() -> QueuedSearch:
        return QueuedSearch(ShardQuery(SHARD, unit(0)[None], 1), Deadline.after(5))

    loud = [queued() for _ in range(7)]
    warm_ups.load_then_requeue(ResidentShard("loud"), NAMES, loud)  # type: ignore[arg-type]
    assert entered.wait(5)
    assert [q.future.done() for q in loud] == [False] * 5 + [True] * 2
    assert isinstance(loud[-1].future.exception(), Overloaded)
    quiet = [queued() for _ in range(2)]
    warm_ups.load_then_requeue(ResidentShard("quiet"), NAMES, quiet)  # type: ignore[arg-type]
    assert not any(q.future.done() for q in quiet)
    threading.Timer(0.1, hold.set).start()
    warm_ups.stop(Unavailable("the searcher is stopping", dependency="searcher"))
    assert all(isinstance(q.future.exception(), Unavailable) for q in (*loud[:5], *quiet))
    late = queued()
    warm_ups.load_then_requeue(ResidentShard("late"), NAMES, [late])  # type: ignore[arg-type]
    assert isinstance(late.future.exception(), Unavailable)


def test_an_abandoned_search_that_is_refused_ends_no_thread() -> None:
    class Canceled(Future):
        def set_exception(self, exception: BaseException | None) -> None:
            self.cancel()
            super().set_exception(exception)

    answer: Future = Canceled()
    fail(answer, Overloaded("too late", retry_after_s=1.0))
    assert answer.cancelled()


def test_unsealed_rows_are_read_beside_the_search_threads_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = new_shard()
    held.apply(message([(f"d{i}", i + 1, [unit(i)], f'{{"n": {i}}}') for i in range(10)]), 0)

    def query_with(**condition: object) -> ShardQuery:
        return ShardQuery(held.id, unit(1)[None], 10, filter=Filter.parse(condition))

    assert held.needs(query_with(n=1)) is None, "few are read on the search thread"
    monkeypatch.setattr(preload, "READ_MAX", 9)
    assert held.needs(query_with(n=1)) == {"n"}
    held.load_needed(frozenset({"n"}))
    assert held.needs(query_with(n=1)) is None
    held.apply(message([("long", 11, [unit(11)], json.dumps({"t": list(range(1_000))}))]), 1)
    monkeypatch.setattr(preload, "READ_MAX", 40)
    assert held.needs(query_with(n=1)) == {"n"}, "a list of thousands is not one value"
