"""A shard: versions, snapshots, adoption, and searches during writes."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rows import message, unit
from shards import BACKEND, SHARD, D, adopt, one, segment, shard

from indexer.index.effort import effort_for
from indexer.index.scans import ScanBudget
from indexer.index.segment import Segment
from indexer.index.shard import Shard
from tenants.entities import Manifest, SegmentRef
from vicinage.errors import Corrupt, Refused
from vicinage.filters import Filter
from vicinage.records import ShardQuery
from vicinage.store import LocalStore


def ids(of: Shard, **query) -> list[tuple[str, int]]:
    found = of.search(ShardQuery(SHARD, unit(0)[None], 100, **query)).hits[0]
    return sorted((h.document_id, h.version) for h in found)


@pytest.mark.parametrize("place", ["delta", "segment"])
def test_a_higher_version_replaces_and_nothing_else_does(tmp_path: Path, place: str) -> None:
    s = shard()
    s.apply(one("a", 5), 0)
    if place == "segment":
        adopt(s, [segment(LocalStore(tmp_path), [one("a", 5)])], 1)
    for offset, version in enumerate((4, 5, 3), start=1):
        s.apply(one("a", version), offset)
        assert ids(s) == [("a", 5)]
    s.apply(one("a", 6), 4)
    assert ids(s) == [("a", 6)]
    assert s.stats().documents == 1


@pytest.mark.parametrize("place", ["delta", "segment"])
def test_a_deleted_document_does_not_return_by_an_older_version(tmp_path: Path, place: str) -> None:
    s = shard()
    gone = message([("a", 7, None, "{}")])
    s.apply(one("a", 5), 0)
    s.apply(gone, 1)
    if place == "segment":
        adopt(s, [segment(LocalStore(tmp_path), [one("a", 5), gone])], 2)
    s.apply(one("a", 6), 2)
    assert ids(s) == []
    assert s.document("a") is None
    s.apply(one("a", 8), 3)
    assert ids(s) == [("a", 8)]


def test_a_document_is_replaced_as_a_whole() -> None:
    s = shard()
    s.apply(message([("a", 1, [unit(i) for i in range(5)], "{}")]), 0)
    s.apply(message([("a", 2, [unit(9)], "{}")]), 1)
    assert ids(s) == [("a", 2)]
    assert s.stats().passages == 1


def test_of_a_document_twice_in_one_message_the_highest_version_counts() -> None:
    s = shard()
    s.apply(
        message([("a", 1, [unit(1)], "{}"), ("b", 2, [unit(2)], "{}"), ("a", 3, [unit(3)], "{}")]),
        0,
    )
    assert ids(s) == [("a", 3), ("b", 2)]
    assert s.stats().documents == 2


def test_messages_below_sealed_are_dropped() -> None:
    s = shard(sealed=10)
    s.apply(one("a", 1), 9)
    assert ids(s) == []
    assert s.apply(one("b", 2), 10) == 11
    assert ids(s) == [("b", 2)]


def test_a_duplicate_message_takes_no_memory() -> None:
    s = shard()
    s.apply(one("a", 1), 0)
    held = s.stats().host_bytes
    for offset in range(1, 50):
        s.apply(one("a", 1), offset)
    assert s.stats().host_bytes == held
    assert s.snapshot.watermark == 50


def test_adopting_segments_changes_no_search_result(tmp_path: Path) -> None:
    store, s = LocalStore(tmp_path), shard()
    batches = [one(f"d{i}", i + 1, metadata=f'{{"i": {i}}}') for i in range(20)]
    for offset, batch in enumerate(batches):
        s.apply(batch, offset)
    before = ids(s)
    adopt(s, [segment(store, batches[:12])], 12)
    assert ids(s) == before
    assert (s.stats().delta_passages, s.stats().segments, s.snapshot.watermark) == (8, 1, 20)
    adopt(s, [segment(store, batches[:12]), segment(store, batches[12:], "hnsw:M=8")], 20)
    assert ids(s) == before
    assert ids(s, filter=Filter.parse({"i": {"$gte": 10, "$lt": 14}})) == [
        (f"d{i}", i + 1) for i in range(10, 14)
    ]
    assert s.stats().delta_passages == 0


def test_an_older_search_keeps_its_snapshot(tmp_path: Path) -> None:
    from indexer.index.search import search

    s = shard()
    s.apply(one("a", 1), 0)
    s.apply(one("b", 2), 1)
    old = s.snapshot
    adopt(s, [segment(LocalStore(tmp_path), [one("a", 1), one("b", 2)])], 2)
    s.apply(one("a", 3), 2)
    s.apply(message([("b", 4, None, "{}")]), 3)
    query = ShardQuery(SHARD, unit(0)[None], 10)
    then = search(old, query, BACKEND, "cosine", 0.95, ScanBudget())
    assert sorted((h.document_id, h.version) for h in then.hits[0]) == [("a", 1), ("b", 2)]
    assert then.watermark == 2
    assert ids(s) == [("a", 3)]


def test_a_hit_has_the_included_fields_only(tmp_path: Path) -> None:
    s = shard()
    batch = message([("a", 1, [unit(1), unit(2)], '{"lang": "en"}')])
    s.apply(batch, 0)
    for _ in range(2):  # first in the delta, then in a segment
        everything = frozenset({"text", "metadata", "vector"})
        hit = s.search(ShardQuery(SHARD, unit(2)[None], 1, include=everything)).hits[0][0]
        assert (hit.document_id, hit.passage, hit.version, hit.text, hit.start, hit.end) == (
            "a",
            1,
            1,
            "text a 1",
            0,
            1,
        )
        assert hit.metadata == {"lang": "en"}
        assert hit.score == pytest.approx(1)
        np.testing.assert_array_equal(hit.vector, unit(2))
        bare = s.search(ShardQuery(SHARD, unit(2)[None], 1, include=frozenset())).hits[0][0]
        assert (bare.text, bare.metadata, bare.vector, bare.start, bare.end) == (
            None,
            None,
            None,
            None,
            None,
        )
        stored = s.document("a")
        assert stored is not None
        assert (stored.version, stored.metadata, [p.text for p in stored.passages]) == (
            1,
            {"lang": "en"},
            ["text a 1"] * 2,
        )
        np.testing.assert_array_equal(stored.passages[1].vector, unit(2))
        adopt(s, [segment(LocalStore(tmp_path), [batch])], 1)


def test_many_queries_have_the_hits_of_each_alone(tmp_path: Path) -> None:
    s = shard()
    batches = [one(f"d{i}", i + 1) for i in range(40)]
    adopt(s, [segment(LocalStore(tmp_path), batches[:25])], 25)
    for offset, batch in enumerate(batches[25:], start=25):
        s.apply(batch, offset)
    queries = np.stack([unit(1_000 + i) for i in range(7)])
    together = s.search(ShardQuery(SHARD, queries, 5)).hits
    for query, hits in zip(queries, together, strict=True):
        alone = s.search(ShardQuery(SHARD, query[None], 5)).hits[0]
        assert [h.document_id for h in hits] == [h.document_id for h in alone]
        np.testing.assert_allclose([h.score for h in hits], [h.score for h in alone], atol=1e-6)


def test_matching_returns_each_document_once_within_the_limit(tmp_path: Path) -> None:
    s = shard()
    sealed = [
        message([(f"s{i}", i + 1, [unit(i)] * 3, f'{{"even": {str(i % 2 == 0).lower()}}}')])
        for i in range(6)
    ]
    adopt(s, [segment(LocalStore(tmp_path), sealed)], 6)
    s.apply(message([("d", 50, [unit(50)] * 3, '{"even": true}'), ("s0", 51, None, "{}")]), 6)
    assert sorted(s.matching({"even": True}, limit=10)) == [("d", 50), ("s2", 3), ("s4", 5)]
    assert len(s.matching({"even": True}, limit=2)) == 2


def test_a_query_or_a_message_of_another_dimension_is_refused_without_effect() -> None:
    s = shard()
    s.apply(one("a", 1), 0)
    with pytest.raises(Refused) as refused:
        s.search(ShardQuery(SHARD, unit(1, D + 1)[None], 1))
    assert (refused.value.field, refused.value.limit) == ("vector", D)
    with pytest.raises(Corrupt):
        s.apply(message([("b", 2, [unit(2, D + 1)], "{}")], D + 1), 1)
    assert ids(s) == [("a", 1)]
    assert s.snapshot.watermark == 1


def test_the_least_effort_above_the_objective_is_chosen(tmp_path: Path) -> None:
    made = segment(LocalStore(tmp_path), [one("a", 1)])

    def with_curve(*curve: tuple[int, float]) -> Segment:
        ref: SegmentRef = replace(made.ref, curve=curve)
        return replace(made, ref=ref)

    measured = with_curve((16, 0.90), (32, 0.954), (64, 0.98), (128, 0.999))
    assert effort_for(measured, 0.88, 0.88) == 16, "no effort below the measured ones"
    assert effort_for(measured, 0.944, 0.944) == 32
    # 0.96 is needed, with the margin: between 0.954 at 32 and 0.98 at 64
    assert effort_for(measured, 0.95, 0.95) == 40
    assert effort_for(measured, 0.90, 0.95) == 19, (
        "if live recall exceeds the objective, the aim is lower"
    )
    assert effort_for(measured, 1.0, 0.95) == 128
    easy = with_curve((16, 1.0), (24, 1.0), (32, 1.0), (48, 1.0), (64, 1.0), (96, 1.0))
    assert [effort_for(easy, 0.95 + added, 0.95) for added in (0, 0.01, 0.03, 0.05)] == [
        16,
        24,
        48,
        96,
    ], "the correction by live recall counts even if the curve is 1 throughout"
    dips = with_curve((16, 0.90), (32, 0.89), (64, 0.95))
    assert effort_for(dips, 0.90, 0.90) == 43
    falls_short = with_curve((16, 0.5), (512, 0.96))
    assert effort_for(falls_short, 1.0, 0.95) == 512, (
        "the aim may exceed the curve; the objective does not"
    )
    assert effort_for(falls_short, 0.97, 0.97) == 512, "a curve alone disqualifies no index"
    assert effort_for(measured, 1.0, 1.0) is None, "exact by request"


def test_a_result_has_the_least_number_of_calibration_queries_of_the_curves_used(
    tmp_path: Path,
) -> None:
    store = LocalStore(tmp_path)
    parts = [[(f"{name}{i}", i + 1, [unit(i)], "{}") for i in range(100)] for name in "abc"]
    few, many = (segment(store, [message(rows)], "hnsw:M=4,efc=10") for rows in parts[:2])
    flat = segment(store, [message(parts[2])])
    s = shard()
    adopt(
        s,
        [
            replace(g, ref=replace(g.ref, n_calibration_queries=n))
            for g, n in ((few, 30), (many, 256), (flat, 0))
        ],
        300,
    )
    query = ShardQuery(SHARD, unit(1_000)[None], 10)
    assert s.search(query).n_calibration_queries == 30
    exact = s.search(replace(query, exact=True))
    assert (exact.effort, exact.n_calibration_queries) == (0, 0), "an exact search has no effort"


def test_a_raised_watermark_alone_changes_no_passages(tmp_path: Path) -> None:
    s = shard()
    s.apply(message([("a", 1, [unit(1)], "{}")]), 0)
    query = ShardQuery(SHARD, unit(1)[None], 10)
    before = s.search(query)
    s.advance(50)
    after = s.search(query)
    assert after.watermark == 50 > before.watermark
    assert after.changes == before.changes
    s.apply(message([("b", 51, [unit(2)], "{}")]), 51)
    assert s.search(query).changes != before.changes


def indexed(
    tmp_path: Path, curve: tuple[tuple[int, float], ...] = ((16, 0.4), (512, 0.5))
) -> Segment:
    """Returns a segment of 300 rows with a graph and this effort curve."""
    rows = [(f"d{i}", i + 1, [unit(i)], "{}") for i in range(300)]
    made = segment(LocalStore(tmp_path), [message(rows)], "hnsw:M=4,efc=10")
    return replace(made, ref=replace(made.ref, curve=curve))


def shard_of(
    segments: list[Segment], scans: ScanBudget | None = None, recall: float = 0.95
) -> Shard:
    """Returns a shard of these segments."""
    manifest = Manifest(SHARD, 0, 0, 0, ())
    s = Shard(
        SHARD,
        dimension=D,
        metric="cosine",
        recall=recall,
        backend=BACKEND,
        manifest=manifest,
        scans=scans,
    )
    adopt(s, segments, 300)
    return s


def test_an_index_whose_curve_misses_the_objective_is_used_at_its_greatest_effort(
    tmp_path: Path,
) -> None:
    s = shard_of([indexed(tmp_path)])
    found = s.search(ShardQuery(SHARD, unit(1_000)[None], 10))
    assert (found.effort, found.greatest, found.scanned) == (512, True, 0)
    assert s.vector_cost(exact=False) == 0
    curve = s.stats().curve
    assert curve is not None
    assert (curve.effort, curve.recall, curve.n_calibration_queries) == (512, 0.5, 0)
    exact = s.search(ShardQuery(SHARD, unit(1_000)[None], 10, exact=True))
    assert (exact.effort, exact.scanned) == (0, 0), (
        "exact search by request does not count as a scan instead of the index"
    )


def test_if_live_searches_prove_the_index_below_its_objective_it_is_scanned_within_bounds(
    tmp_path: Path,
) -> None:
    made = indexed(tmp_path)
    query = ShardQuery(SHARD, unit(1_000)[None], 10, scan=True)
    s = shard_of([made])
    found = s.search(query)
    assert (found.effort, found.scanned, found.unscanned) == (0, 300, None)
    assert found.hits == s.search(replace(query, exact=True)).hits
    assert s.vector_cost(exact=False, scan=True) == 300 * D, "the scan is charged to the tenant"
    assert s.stats().scans == {"scanned": 1}
    bounded = shard_of([made], ScanBudget(rows_max=299))
    found = bounded.search(query)
    assert (found.effort, found.greatest, found.scanned, found.unscanned) == (512, True, 0, "rows")
    assert bounded.vector_cost(exact=False, scan=True) == 299 * D
    assert bounded.stats().scans == {"rows": 1}


def test_of_several_segments_the_worst_are_scanned_within_the_bound(tmp_path: Path) -> None:
    worst, better = indexed(tmp_path), indexed(tmp_path, ((64, 0.9), (512, 0.94)))
    s = shard_of([better, worst], ScanBudget(rows_max=450))
    found = s.search(ShardQuery(SHARD, unit(1_000)[None], 10, scan=True))
    assert (found.effort, found.scanned, found.unscanned) == (512, 300, "rows")


def test_scans_instead_of_an_index_keep_to_their_share_of_time(tmp_path: Path) -> None:
    clock = iter(
        np.arange(0, 1_000, 0.5).tolist()
    )  # each reading of the clock is half a second later
    s = shard_of([indexed(tmp_path)], ScanBudget(cpu_share=0.05, now_s=lambda: next(clock)))
    query = ShardQuery(SHARD, unit(1_000)[None], 10, scan=True)
    outcomes = [s.search(query).unscanned for _ in range(200)]
    assert outcomes[0] is None
    assert outcomes.count("cpu") > 100
    assert outcomes[50:].count(None) > 3, "refilled time is used again"


def test_an_objective_of_one_is_exact_by_request_and_has_no_bound(tmp_path: Path) -> None:
    s = shard_of([indexed(tmp_path)], ScanBudget(rows_max=0), recall=1.0)
    for scan in (False, True):
        found = s.search(ShardQuery(SHARD, unit(1_000)[None], 10, recall=1.0, scan=scan))
        assert (found.effort, found.scanned, found.unscanned) == (0, 0, None)
    assert s.vector_cost(exact=False) == 300 * D
    assert s.stats().scanned_passages == 300


def test_a_scan_instead_of_an_index_applies_the_filter(tmp_path: Path) -> None:
    rows = [(f"d{i}", i + 1, [unit(i)], f'{{"n": {i % 3}}}') for i in range(300)]
    made = segment(LocalStore(tmp_path), [message(rows)], "hnsw:M=4,efc=10")
    s = shard_of([made])
    query = ShardQuery(SHARD, unit(1_000)[None], 10, filter=Filter.parse({"n": 1}), scan=True)
    found = s.search(query)
    assert found.scanned == 300
    assert found.hits == s.search(replace(query, exact=True)).hits


def watch(
    s: Shard,
    names: list[str],
    stop: threading.Event,
    wrong: list,
    exact: bool,
    condition: dict | None,
) -> None:
    """Searches until `stop`; records results that miss, repeat, mix or revert a document."""
    wanted, floor = sorted((n, p) for n in names for p in (0, 1)), dict.fromkeys(names, 0)
    last = False
    while not last:
        last = stop.is_set()
        hits = s.search(
            ShardQuery(
                SHARD,
                unit(7)[None],
                100,
                exact=exact,
                filter=None if condition is None else Filter.parse(condition),
            )
        ).hits[0]
        if sorted((h.document_id, h.passage) for h in hits) != wanted:
            wrong.append([(h.document_id, h.passage) for h in hits])
        versions = {name: {h.version for h in hits if h.document_id == name} for name in names}
        wrong.extend(
            (name, seen)
            for name, seen in versions.items()
            if len(seen) != 1 or min(seen) < floor[name]
        )
        floor = {name: max(seen, default=0) for name, seen in versions.items()}


def test_searches_during_writes_see_each_document_once_and_whole(tmp_path: Path) -> None:
    """Each document has two passages of one version; a writer replaces, seals and adopts."""
    names, store, s = [f"d{i}" for i in range(12)], LocalStore(tmp_path), shard()

    def batch(of: list[str], version: int) -> pa.RecordBatch:
        return message(
            [(n, version, [unit(version), unit(version + 1)], f'{{"v": {version}}}') for n in of]
        )

    log = [batch(names, 1)]
    s.apply(log[0], 0)
    stop, wrong = threading.Event(), []
    readers = [
        threading.Thread(target=watch, args=(s, names, stop, wrong, *args))
        for args in (
            (False, None),
            (True, None),
            (False, {"v": {"$gte": 0}}),
            (True, {"v": {"$gte": 0}}),
        )
    ]
    for thread in readers:
        thread.start()
    rng, segments, sealed = np.random.default_rng(0), [], 0
    for version in range(2, 250):
        log.append(batch(rng.choice(names, rng.integers(1, 6), replace=False).tolist(), version))
        s.apply(log[-1], len(log) - 1)
        if version % 20 == 0:
            segments.append(segment(store, log[sealed:], "flat" if version % 40 else "hnsw:M=8"))
            sealed = len(log)
            adopt(s, segments, sealed)
        if len(segments) > 3:  # one segment of all rows, as after a compaction
            segments = [segment(store, log[:sealed])]
            adopt(s, segments, sealed)
    stop.set()
    for thread in readers:
        thread.join(30)
    assert wrong == []
