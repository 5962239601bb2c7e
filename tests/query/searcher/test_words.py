"""Lexical searches of a shard and a searcher: one snapshot, exact filters and tombstones."""

import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rows import message, unit
from searching import collection, load_needed, reach, seal, searching, send, shard_of
from shards import BACKEND, SHARD, adopt, one, segment, shard

from cluster.wiring import Resources
from indexer.index import lazy, lexical
from indexer.index.costs import COUNT_PAIRS, CUT_PAIRS
from indexer.index.preload import BEHIND_MAX, LEXICAL
from indexer.index.search import search_words
from indexer.index.segment import load
from indexer.index.shard import Shard
from query.searcher.batch import batch_key
from query.searcher.cost import search_cost
from tenants import provisioning
from vicinage.clock import Deadline
from vicinage.errors import Unavailable
from vicinage.filters import Filter
from vicinage.records import Hit, ShardId, ShardQuery
from vicinage.store import LocalStore, Store


def words(text: str, k: int = 100, **given: object) -> ShardQuery:
    return ShardQuery(
        SHARD, np.empty((1, 0), np.float32), k, mode="lexical", texts=(text,), **given
    )


def ids(of: Shard, text: str, **given: object) -> list[tuple[str, int]]:
    """Row texts are "text NAME VERSION"."""
    shard_result = of.search(words(text, **given))
    assert shard_result.hits == ((),)
    return sorted((h.document_id, h.version) for h in shard_result.lexical[0])


@pytest.mark.parametrize("place", ["delta", "segment"])
def test_replaced_and_deleted_documents_are_not_found(tmp_path: Path, place: str) -> None:
    s = shard()
    batches = [one("a", 5), one("b", 6), one("c", 7)]
    for offset, batch in enumerate(batches):
        s.apply(batch, offset)
    assert ids(s, "text") == [("a", 5), ("b", 6), ("c", 7)]
    if place == "segment":
        adopt(s, [segment(LocalStore(tmp_path), batches)], 3)
        assert ids(s, "text") == [("a", 5), ("b", 6), ("c", 7)]
    s.apply(one("a", 8), 3)
    s.apply(message([("b", 9, None, "{}")]), 4)
    assert ids(s, "text") == [("a", 8), ("c", 7)]
    assert ids(s, "5 6 9") == []
    assert ids(s, "a") == [("a", 8)]


def test_a_filter_and_k_are_exact_over_delta_and_segments(tmp_path: Path) -> None:
    s, store = shard(), LocalStore(tmp_path)
    batches = [one(f"d{i}", i + 1, metadata=f'{{"i": {i}}}') for i in range(40)]
    adopt(s, [segment(store, batches[:15]), segment(store, batches[15:25], "hnsw:M=8")], 25)
    for offset, batch in enumerate(batches[25:], start=25):
        s.apply(batch, offset)
    assert len(ids(s, "text")) == 40
    assert ids(s, "text", filter=Filter.parse({"i": {"$gte": 13, "$lt": 27}})) == sorted(
        (f"d{i}", i + 1) for i in range(13, 27)
    )
    assert ids(s, "d3 d33 d20", filter=Filter.parse({"i": {"$gt": 3}})) == [
        ("d20", 21),
        ("d33", 34),
    ]
    for k in (1, 7, 39):
        assert len(ids(s, "text", k=k)) == k
        assert len(ids(s, "text", k=k, filter=Filter.parse({"i": {"$in": [1, 16, 30]}}))) == min(
            k, 3
        )


def test_one_call_answers_both_lists_from_one_snapshot(tmp_path: Path) -> None:
    s = shard()
    for i in range(10):
        s.apply(one(f"d{i}", i + 1), i)
    asked = ShardQuery(
        SHARD, np.stack([unit(4), unit(8)]), 3, mode="hybrid", texts=("d6", "text absent")
    )
    found = s.search(asked)
    assert [h[0].document_id for h in found.hits] == ["d3", "d7"]
    assert [len(h) for h in found.hits] == [3, 3]
    assert [[h.document_id for h in each] for each in found.lexical] == [["d6"], ["d0", "d1", "d2"]]
    old = s.snapshot
    s.apply(one("d6", 50), 10)
    assert [h.version for h in search_words(old, asked)[0]] == [7], (
        "an older snapshot finds what it held"
    )
    assert [h.version for h in s.search(asked).lexical[0]] == [50]


def test_a_hit_has_the_requested_fields_and_no_more(tmp_path: Path) -> None:
    s = shard()
    batch = message([("a", 1, [unit(1), unit(2)], '{"lang": "en"}')])
    s.apply(batch, 0)
    for _ in range(2):  # from the delta, then from a segment
        everything = frozenset({"text", "metadata", "vector"})
        hit: Hit = s.search(words("a", include=everything)).lexical[0][1]
        assert (hit.document_id, hit.passage, hit.text, hit.metadata) == (
            "a",
            1,
            "text a 1",
            {"lang": "en"},
        )
        np.testing.assert_array_equal(hit.vector, unit(2))
        bare = s.search(words("a", include=frozenset())).lexical[0][0]
        assert (bare.text, bare.metadata, bare.vector) == (None, None, None)
        adopt(s, [segment(LocalStore(tmp_path), [batch])], 1)


def test_rows_without_text_are_never_found_and_cost_no_file(tmp_path: Path) -> None:
    batch = one("a", 1)
    no_text = batch.set_column(4, batch.schema.field("text"), pa.nulls(1, pa.utf8()))
    s, store = shard(), LocalStore(tmp_path)
    made = segment(store, [no_text])
    assert set(made.ref.objects) == {"passages", "documents"}
    adopt(s, [made], 1)
    s.apply(no_text.set_column(0, "document_id", pa.array(["b"])), 1)
    assert ids(s, "text a b") == []


def test_nothing_is_indexed_before_the_first_lexical_search(tmp_path: Path) -> None:
    s = shard()
    s.apply(one("a", 1), 0)
    adopt(s, [segment(LocalStore(tmp_path), [one("a", 1)])], 1)
    s.apply(one("b", 2), 1)
    s.search(ShardQuery(SHARD, unit(0)[None], 5))
    snapshot = s.snapshot
    assert s.needs(words("text")) == {LEXICAL}
    assert snapshot.delta.words.behind(snapshot.delta) == 1
    assert ids(s, "text") == [("a", 1), ("b", 2)]
    assert s.needs(words("text")) is None
    assert snapshot.delta.words.behind(snapshot.delta) == 0


def test_a_segment_without_an_index_gets_one_from_its_texts(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    made = segment(store, [one("a", 1), one("b", 2)])
    older = {role: ref for role, ref in made.ref.objects.items() if role != "lexical"}
    another = {**older, "lexical": store.put("segments/x/lexical-0.tar", b"of another analyser")}
    for objects in (older, another):
        s = shard()
        adopt(s, [load(replace(made.ref, objects=objects), store, BACKEND, "cosine")], 2)
        assert ids(s, "b text") == [("a", 1), ("b", 2)]
        assert ids(s, "b") == [("b", 2)]


@pytest.mark.parametrize("harm", ["a flipped bit", "cut short", "lost", "another's"])
def test_a_corrupt_lexical_object_is_never_read_and_its_index_is_rebuilt(
    tmp_path: Path, harm: str
) -> None:
    store = LocalStore(tmp_path)
    made = segment(store, [one("a", 1), one("b", 2)])
    file = tmp_path / made.ref.objects["lexical"].path
    data = bytearray(file.read_bytes())
    match harm:
        case "a flipped bit":
            data[len(data) // 2] ^= 1
        case "cut short":
            del data[-1:]
        case "another's":
            other = segment(store, [one("x", 1), one("b", 2)])
            data = bytearray((tmp_path / other.ref.objects["lexical"].path).read_bytes())
    file.write_bytes(data) if harm != "lost" else file.unlink()
    before = lazy._rebuilt._value.get()
    s = shard()
    adopt(s, [load(made.ref, LocalStore(tmp_path), BACKEND, "cosine")], 2)
    assert ids(s, "a") == [("a", 1)]
    assert ids(s, "x") == []
    assert lazy._rebuilt._value.get() == before + 1, "and once is enough"
    assert sorted(h.document_id for h in s.search(ShardQuery(SHARD, unit(0)[None], 5)).hits[0]) == [
        "a",
        "b",
    ]


def test_held_indexes_are_bounded_and_evicted_by_last_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy, "OPEN_MAX", 3)
    store = LocalStore(tmp_path)
    made = [segment(store, [one(f"d{i}", i + 1)]) for i in range(4)]
    for each in (made[0], made[1], made[2], made[0], made[3]):
        each.lexical.index()
    assert [m.lexical.is_loaded() for m in made] == [True, False, True, True]
    assert made[1].lexical.index().search({"d1": 1.0}, 5, None)[1].tolist() == [0]
    assert [m.lexical.is_loaded() for m in made] == [True, True, False, True]


# the searcher


@pytest.fixture
def base(base: Resources) -> Resources:
    """A searcher with a tenant."""
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    return base


def asked(to: ShardId, text: str, k: int = 100) -> ShardQuery:
    return replace(words(text, k), shard=to)


def test_searches_of_one_mode_are_combined_and_each_gets_its_own_result(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base, threads=1) as searcher:
        reach(
            searcher,
            {
                docs.slot: send(
                    base, docs, message([(f"d{i}", i + 1, [unit(i)], "{}") for i in range(12)])
                )
            },
        )
        load_needed(searcher, docs)
        held = searcher.tail.shards[docs]
        entered, open_, widths = threading.Event(), threading.Event(), []
        plain = held.search

        def search(query: ShardQuery):
            widths.append((query.mode, len(query.vectors), len(query.texts)))
            entered.set()
            assert open_.wait(10)
            return plain(query)

        held.search = search  # type: ignore[method-assign]
        first = searcher.submit(ShardQuery(docs, unit(0)[None], 100), Deadline.after(10))
        assert entered.wait(5)
        of_words = [searcher.submit(asked(docs, f"d{i}"), Deadline.after(10)) for i in range(5)]
        of_both = [
            searcher.submit(
                ShardQuery(docs, unit(i)[None], 100, mode="hybrid", texts=(f"d{i + 1}",)),
                Deadline.after(10),
            )
            for i in range(4)
        ]
        dense = searcher.submit(ShardQuery(docs, unit(7)[None], 100), Deadline.after(10))
        open_.set()
        assert first.result(10).lexical == dense.result(10).lexical == ()
        assert [[h.document_id for h in f.result(10).lexical[0]] for f in of_words] == [
            [f"d{i}"] for i in range(5)
        ]
        for i, each in enumerate(of_both):
            found = each.result(10)
            assert (found.hits[0][0].document_id, [h.document_id for h in found.lexical[0]]) == (
                f"d{i}",
                [f"d{i + 1}"],
            )
        assert sorted(widths) == [
            ("dense", 1, 0),
            ("dense", 1, 0),
            ("hybrid", 4, 4),
            ("lexical", 5, 5),
        ]


def test_a_lexical_search_is_never_combined_with_another_mode() -> None:
    vector = unit(0)[None]
    every = [
        ShardQuery(SHARD, vector, 5),
        ShardQuery(SHARD, vector, 5, mode="hybrid", texts=("a",)),
        words("a", 5),
    ]
    assert len({batch_key(q) for q in every}) == 3
    assert batch_key(words("a", 5)) == batch_key(words("another text", 5))


def test_a_lexical_search_costs_by_its_words_and_rows(base: Resources) -> None:
    of = collection(base)
    docs = shard_of(of)
    with searching(base) as searcher:
        load_needed(searcher, docs)
        shard = searcher.tail.shards[docs]
        assert search_cost(asked(docs, "word " * 100), shard) == 1, "there are no rows to read"
        rows = [(f"d{i}", i + 1, [unit(i)], "{}") for i in range(5_000)]
        reach(searcher, {docs.slot: send(base, docs, message(rows))})
        short, long = (
            search_cost(asked(docs, "two words"), shard),
            search_cost(asked(docs, "word " * 6_000), shard),
        )
        work = 5_001 * CUT_PAIRS + lexical.COUNTED_MAX * COUNT_PAIRS + lexical.TERMS_MAX * 5_000
        assert (short, long) == (1, 1 + work // (1 << 18)), (
            "work before the rows are read is charged, too"
        )
        both = replace(asked(docs, "word " * 6_000), mode="hybrid", vectors=unit(0)[None])
        assert search_cost(both, shard) == long + search_cost(
            ShardQuery(docs, unit(0)[None], both.k), shard
        )


class SlowFor:
    """A store that delays lexical files until it is released."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked, self.open = threading.Event(), threading.Event()
        self.n = 0

    def fetch(self, ref):
        if ref.path.endswith(lexical.FILE):
            self.n += 1
            self.asked.set()
            assert self.open.wait(20)
        return self._store.fetch(ref)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


def test_while_an_index_is_fetched_other_searches_continue(base: Resources) -> None:
    of = collection(base)
    docs, others = shard_of(of), shard_of(collection(base, "others"))
    batches = [one("a", 1), one("b", 2)]
    ends = [send(base, docs, b) for b in batches]
    seal(base, docs, of, batches, ends[-1])
    store = SlowFor(base.store)
    with searching(replace(base, store=store), threads=1) as searcher:
        end = send(base, others, one("x", 3))
        reach(searcher, {others.slot: end})
        waiting = [searcher.submit(asked(docs, name), Deadline.after(20)) for name in "aab"]
        assert store.asked.wait(5)
        late = searcher.submit(asked(docs, "a"), Deadline.after(0.05))
        dense = searcher.submit(ShardQuery(docs, unit(1)[None], 1), Deadline.after(5)).result(5)
        assert dense.hits[0][0].document_id == "a", "not even a dense search of the same shard"
        assert len(searcher.submit(asked(others, "x"), Deadline.after(5)).result(5).lexical[0]) == 1
        assert not any(w.done() for w in waiting)
        time.sleep(0.06)
        store.open.set()
        assert [[h.document_id for h in w.result(5).lexical[0]] for w in waiting] == [
            ["a"],
            ["a"],
            ["b"],
        ]
        with pytest.raises(Unavailable):  # a deadline applies
            late.result(5)
        assert store.n == 1


class AwayFor(SlowFor):
    """A store that is away until it is back."""

    def fetch(self, ref):
        if ref.path.endswith(lexical.FILE) and not self.open.is_set():
            raise Unavailable("the store is away", dependency="store")
        return self._store.fetch(ref)


def test_while_the_store_is_away_lexical_search_is_refused_and_works_afterwards(
    base: Resources,
) -> None:
    of = collection(base)
    docs = shard_of(of)
    seal(base, docs, of, [one("a", 1)], send(base, docs, one("a", 1)))
    store = AwayFor(base.store)
    with searching(replace(base, store=store)) as searcher:
        with pytest.raises(Unavailable, match="away"):
            searcher.submit(asked(docs, "a"), Deadline.after(5)).result(5)
        store.open.set()
        assert len(searcher.submit(asked(docs, "a"), Deadline.after(5)).result(5).lexical[0]) == 1


def test_a_delta_far_behind_is_indexed_by_the_warmup_threads(base: Resources) -> None:
    docs = shard_of(collection(base))
    with searching(base, threads=1) as searcher:
        rows = [(f"d{i}", i + 1, [unit(i)], "{}") for i in range(BEHIND_MAX + 100)]
        reach(searcher, {docs.slot: send(base, docs, message(rows))})
        load_needed(searcher, docs)
        held = searcher.tail.shards[docs]
        assert held.needs(asked(docs, "d7 text")) == {LEXICAL}
        found = searcher.submit(asked(docs, "d7 text", 10_000), Deadline.after(10)).result(10)
        assert len(found.lexical[0]) == BEHIND_MAX + 100
        assert found.lexical[0][0].document_id == "d7"
        reach(searcher, {docs.slot: send(base, docs, one("new", 9_999))})
        assert held.needs(asked(docs, "new")) is None, "one more row is added on the search thread"
        assert len(searcher.submit(asked(docs, "new"), Deadline.after(5)).result(5).lexical[0]) == 1


def test_a_shard_of_more_segments_than_are_held_still_answers(
    base: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy, "OPEN_MAX", 1)
    of = collection(base)
    docs = shard_of(of)
    for name, number in (("a", 1), ("b", 2), ("c", 3)):
        seal(base, docs, of, [one(name, number)], send(base, docs, one(name, number)))
    with searching(base, threads=1) as searcher:
        for _ in range(3):
            found = searcher.submit(asked(docs, "text"), Deadline.after(5)).result(5)
            assert sorted(h.document_id for h in found.lexical[0]) == ["a", "b", "c"]


def test_a_stopping_searcher_answers_searches_that_wait_for_an_index(base: Resources) -> None:
    of = collection(base)
    docs = shard_of(of)
    seal(base, docs, of, [one("a", 1)], send(base, docs, one("a", 1)))
    store = SlowFor(base.store)
    with searching(replace(base, store=store)) as searcher:
        waiting = searcher.submit(asked(docs, "a"), Deadline.after(20))
        assert store.asked.wait(5)
        threading.Timer(0.2, store.open.set).start()
    with pytest.raises(Unavailable):
        waiting.result(1)


def test_shard_results_cross_processes(tmp_path: Path) -> None:
    s = shard()
    s.apply(one("a", 1), 0)
    query = pickle.loads(
        pickle.dumps(ShardQuery(SHARD, unit(1)[None], 5, mode="hybrid", texts=("a",)))
    )
    found = pickle.loads(pickle.dumps(s.search(query)))
    assert (found.hits[0][0].document_id, found.lexical[0][0].document_id) == ("a", "a")
    assert found.watermark == 1
