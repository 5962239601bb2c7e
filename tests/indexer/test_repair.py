"""A damaged object is reported by its reader, not loaded, kept in quarantine, and rebuilt."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from resources import make_indexer, resources_in
from sealed import DIMENSION, append, contents, gone, loaded, make_collection, up

from cluster.wiring import Resources
from indexer import reindex_jobs
from indexer.backends import open_backend
from indexer.index.loader import Loading
from indexer.index.objects import Damaged, Documents, Keys
from indexer.index.segment import load
from indexer.repair import Lost, Plan, plan
from indexer.run import Indexer
from indexer.scrub import pause_s
from tenants.audit import Audit
from tenants.entities import Damage, Generation, Manifest, SegmentRef
from tenants.provisioning import VECTORS_TOPIC
from vicinage.clock import ManualClock
from vicinage.errors import Conflict
from vicinage.filters import Filter
from vicinage.records import ObjectRef, ShardId, ShardQuery
from vicinage.settings import IndexerSettings
from vicinage.store import open_store

ROLES = ["passages", "documents", "index", "lexical"]
QUIET = {
    "seal_passages": 5,
    "segments_max": 10,
    "dead_share_max": 1.0,
    "scrub_per_minute": 0,
    "flat_max": 4,
    "seal_age_s": 1e9,
}


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Resources]:
    made = opened(tmp_path)
    yield made
    made.close()


def opened(folder: Path, **indexer: Any) -> Resources:
    """A platform with a manual clock."""
    made = resources_in(folder / "data", **{**QUIET, **indexer})
    return replace(made, clock=ManualClock(time.time_ns() // 1_000_000))


def step(base: Resources, indexer: Indexer, n: int = 1) -> None:
    """Steps the indexer n times and settles its workers; the clock advances two seconds each."""
    for _ in range(n):
        indexer.step()
        indexer._maintenance.settle()
        base.clock.advance(2)


def two_segments(base: Resources, indexer: Indexer) -> Generation:
    """One segment of several documents, and one that replaces one, deletes two and adds four."""
    generation = make_collection(base, index="hnsw:M=8")
    append(
        base, generation, *(up(name, i, 1 + i % 3) for i, name in enumerate("abcdefgh", start=1))
    )
    step(base, indexer)
    append(
        base,
        generation,
        up("a", 20, 2),
        gone("b", 21),
        gone("absent", 22),
        *(up(n, 30, 2) for n in "ijkl"),
    )
    step(base, indexer)
    append(base, generation, up("late", 40))
    assert [len(s.objects) for s in manifest_of(base, generation).segments] == [4, 4]
    return generation


def manifest_of(base: Resources, generation: Generation) -> Manifest:
    return base.manifests.of(generation.shards()[0], start=generation.starts[0])


def inside(base: Resources, generation: Generation) -> list[tuple[Any, ...]]:
    """Returns the content of the shard's segments, in their order, without names."""
    found = []
    for ref in manifest_of(base, generation).segments:
        segment = load(ref, base.store, open_backend(), generation.metric)
        deletes = sorted((name, int(segment.version[at])) for at, name in segment.deleted.items())
        numbers = (
            ref.kind,
            ref.n_passages,
            ref.n_documents,
            ref.n_deletes,
            ref.log_start,
            ref.log_end,
        )
        found.append((numbers, segment.rows.to_pylist(), deletes, segment.version.tolist()))
    return found


def search_results(base: Resources, generation: Generation) -> list[Any]:
    """Returns the results of a new searcher: exact, by index, by words, with a filter."""
    shard = loaded(base, generation.shards()[0], generation)
    query = np.ones((1, DIMENSION), np.float32)
    queries = [
        ShardQuery(shard.id, query, 50, exact=True),
        ShardQuery(shard.id, query, 5),
        ShardQuery(shard.id, query, 50, filter=Filter.parse({"name": {"$in": ["a", "b", "i"]}})),
        ShardQuery(shard.id, query[:, :0], 50, mode="lexical", texts=("text a b i late",)),
    ]
    found = [shard.search(q) for q in queries]
    return [
        [(p.hits, p.lexical) for p in found],
        shard.stats().documents,
        contents(base, generation),
    ]


def fresh(base: Resources) -> Loading:
    """Returns the loader of a new process: it has verified no object yet."""
    return Loading(
        open_store(base.settings.store_url), open_backend(), base.manifests.quarantine, "searcher"
    )


def meet(base: Resources, generation: Generation) -> list[Damaged]:
    """Loads the whole shard as a searcher does, lexical indexes included; returns its damage."""
    shard = generation.shards()[0]
    barred = base.manifests.quarantine.barred(shard)
    met = []
    for ref in manifest_of(base, generation).segments:
        try:
            fresh(base).segment(shard, ref, generation.metric, barred).lexical.index()
        except Damaged as damaged:
            met.append(damaged)
    return met


def file_of(base: Resources, ref: SegmentRef, role: str) -> Path:
    return Path(base.settings.store_url) / ref.objects[role].path


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


HARMS: dict[str, Callable[[Path], object]] = {
    "a bit flipped": flipped,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "lost": lambda file: file.unlink(),
}


@pytest.mark.parametrize("at", [0, 1], ids=["the older segment", "the one with deletions"])
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("role", ROLES)
def test_a_damaged_object_is_reported_and_its_segment_rebuilt_with_equal_content(
    base: Resources, role: str, harm: str, at: int
) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    whole, results, before = (
        inside(base, generation),
        search_results(base, generation),
        manifest_of(base, generation),
    )
    HARMS[harm](file_of(base, before.segments[at], role))
    met = meet(base, generation)
    assert [d.role for d in met] == ([] if role == "lexical" else [role]), (
        "a searcher continues without a lexical index"
    )
    [noted] = base.manifests.quarantine.open()
    path = before.segments[at].objects[role].path
    assert (noted.path, noted.role, noted.shard) == (path, role, generation.shards()[0])
    assert noted.fault == ("lost" if harm == "lost" else "corrupt")
    step(base, indexer, 2)
    after = manifest_of(base, generation)
    assert base.manifests.quarantine.open() == []
    assert after.version == before.version + 1, "one swap"
    assert after.sealed == before.sealed
    assert inside(base, generation) == whole
    assert search_results(base, generation) == results
    assert after.segments[1 - at] == before.segments[1 - at]
    old, new = before.segments[at].objects.values(), after.segments[at].objects.values()
    assert not {o.path for o in old} & {o.path for o in new}, "no object is overwritten"
    actions = [
        (r.action, r.actor) for r in Audit(base.engine).records() if r.action.startswith("segment.")
    ]
    assert actions == [("segment.quarantine", "searcher"), ("segment.replaced", "indexer")]
    assert Audit(base.engine).verify().seq > 0
    assert meet(base, generation) == []


def put_in(
    base: Resources,
    indexer: Indexer,
    generation: Generation,
    at: int,
    role: str,
    file: str,
    data: Any,
) -> None:
    """Swaps in an object of an older version, with a valid checksum, in the shard's manifest."""
    before = manifest_of(base, generation)
    ref = before.segments[at]
    stored: ObjectRef = base.store.put(f"segments/{before.shard}/{ref.id}/older/{file}", data)
    changed = replace(
        ref,
        objects={**ref.objects, role: stored},
        kind="ivf2:M=8" if file == "index.ivf2" else ref.kind,
    )
    segments = tuple(changed if s.id == ref.id else s for s in before.segments)
    base.manifests.swap(
        before, segments=segments, sealed=before.sealed, lease=indexer.lease(before.shard.slot)
    )


def columns(file: Path, names: Callable[[list[str]], list[str]], sink: Path) -> Path:
    """Writes the Arrow file with other columns."""
    batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
    chosen = pa.record_batch(
        {
            n: batch.column(o)
            for o, n in zip(batch.schema.names, names(batch.schema.names), strict=True)
            if n
        }
    )
    with pa.OSFile(str(sink), "wb") as out, pa.ipc.new_file(out, chosen.schema) as writer:
        writer.write_batch(chosen)
    return sink


def older(base: Resources, ref: SegmentRef, form: str, sink: Path) -> tuple[str, str, Any]:
    """Returns role, name and content of an object in a format that is not read."""
    match form:
        case "passages without their places in the text":
            without = [n if n not in ("start", "end") else "" for n in COLUMNS]
            return (
                "passages",
                "passages.arrow",
                columns(file_of(base, ref, "passages"), lambda _: without, sink),
            )
        case "passages of other columns":
            return (
                "passages",
                "passages.arrow",
                columns(file_of(base, ref, "passages"), lambda c: [n + "_0" for n in c], sink),
            )
        case "documents of other columns":
            return (
                "documents",
                "documents.arrow",
                columns(file_of(base, ref, "documents"), lambda c: [n + "_0" for n in c], sink),
            )
        case "a FAISS index of another class":
            faiss.write_index(faiss.IndexFlatIP(DIMENSION), str(sink))
            return "index", "index.faiss", sink
        case "a kind that is not known":
            return "index", "index.ivf2", b"whatever it was"
        case _:
            return (
                "lexical",
                "lexical-1.tar",
                Path(__file__).parent.parent / "formats" / "lexical-1.tar",
            )


COLUMNS = [
    "document_id",
    "version",
    "event_time_ms",
    "passage",
    "text",
    "start",
    "end",
    "metadata",
    "vector",
]
FORMS = [
    "passages without their places in the text",
    "passages of other columns",
    "documents of other columns",
    "a FAISS index of another class",
    "a kind that is not known",
    "words under another name",
]


@pytest.mark.parametrize("at", [0, 1], ids=["the older segment", "the one with deletions"])
@pytest.mark.parametrize("form", FORMS)
def test_an_older_format_is_reported_as_such_and_rewritten(
    base: Resources, tmp_path: Path, form: str, at: int
) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    whole, results, before = (
        inside(base, generation),
        search_results(base, generation),
        manifest_of(base, generation),
    )
    put_in(
        base, indexer, generation, at, *older(base, before.segments[at], form, tmp_path / "older")
    )
    meet(base, generation)
    [noted] = base.manifests.quarantine.open()
    assert noted.fault == "format"
    assert "older format" in noted.reason or "not a FAISS index of a known kind" in noted.reason
    step(base, indexer, 2)
    assert base.manifests.quarantine.open() == []
    rebuilt = inside(base, generation)
    if form == "passages without their places in the text":  # that format lacks them
        for row in (r for each in (*whole, *rebuilt) for r in each[1]):
            row.update(start=None, end=None)
        assert rebuilt == whole
        assert search_results(base, generation)[1:] == results[1:]
    else:
        assert rebuilt == whole
        assert search_results(base, generation) == results
    assert meet(base, generation) == []


def trim(base: Resources, generation: Generation) -> None:
    slot = generation.slots[0]
    base.log.trim(VECTORS_TOPIC, slot, manifest_of(base, generation).sealed)


def test_a_segment_that_cannot_be_rebuilt_says_what_to_do_and_recovers_once_restored(
    base: Resources,
) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    whole, results, before = (
        inside(base, generation),
        search_results(base, generation),
        manifest_of(base, generation),
    )
    trim(base, generation)
    file = file_of(base, before.segments[1], "documents")
    data = file.read_bytes()
    flipped(file)
    assert len(meet(base, generation)) == 1
    step(base, indexer, 3)
    [stuck] = base.manifests.quarantine.open()
    assert (stuck.state, manifest_of(base, generation)) == ("stuck", before)
    assert "which 2 documents it deletes" in stuck.reason
    assert "put the object back from a backup of the store" in stuck.reason
    assert [d.path for d in meet(base, generation)] == [stuck.path], "it is still not loaded"
    file.write_bytes(data)
    assert [d.path for d in meet(base, generation)] == [stuck.path], (
        "not before the holder of the slot has read it again"
    )
    base.clock.advance(3_600)
    step(base, indexer, 2)
    assert base.manifests.quarantine.every() == []
    assert meet(base, generation) == []
    assert (inside(base, generation), search_results(base, generation)) == (whole, results)


@pytest.mark.parametrize("role", ["index", "lexical", "documents"])
def test_without_the_log_a_segment_is_rebuilt_from_its_other_objects(
    base: Resources, role: str
) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    whole, results = inside(base, generation), search_results(base, generation)
    trim(base, generation)
    flipped(file_of(base, manifest_of(base, generation).segments[0], role))
    meet(base, generation)
    step(base, indexer, 2)
    assert (inside(base, generation), search_results(base, generation)) == (whole, results)


def test_without_known_offsets_the_log_is_not_used(
    base: Resources,
) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    before = manifest_of(base, generation)
    unknown = tuple(replace(s, log_start=None, log_end=None) for s in before.segments)
    base.manifests.swap(
        before, segments=unknown, sealed=before.sealed, lease=indexer.lease(before.shard.slot)
    )
    flipped(file_of(base, before.segments[0], "passages"))
    meet(base, generation)
    step(base, indexer, 2)
    assert [d.state for d in base.manifests.quarantine.open()] == ["stuck"]


@pytest.mark.parametrize("role", ["passages", "documents", "index", "passages_copy"])
@pytest.mark.parametrize("how", ["a bit flipped", "lost"])
def test_copies_of_a_reindex_are_rebuilt_without_the_log(
    base: Resources, role: str, how: str
) -> None:
    indexer = make_indexer(base)
    source = two_segments(base, indexer)
    reindex_jobs.start(
        base.registry,
        base.jobs,
        "acme",
        "docs",
        index="hnsw:M=8",
        model=None,
        shards=1,
        actor="test",
    )
    for _ in range(12):
        step(base, indexer)
    base.registry.refresh()
    generation = base.registry.collection("acme", "docs").generation()
    assert generation.number > source.number
    trim(base, generation)
    whole, results, before = (
        inside(base, generation),
        search_results(base, generation),
        manifest_of(base, generation),
    )
    [ref] = before.segments
    assert ref.logged() is None
    assert ref.loaded_bytes() < ref.bytes()
    HARMS[how](file_of(base, ref, role))
    if role == "passages_copy":
        found = Damage(
            ref.objects[role].path, before.shard, ref.id, role, "corrupt", "found by the scrub"
        )
        base.manifests.quarantine.note(found, actor="test")
    else:
        assert {d.role for d in meet(base, generation)} == {role}
    step(base, indexer, 3)
    assert manifest_of(base, generation).segments != before.segments
    assert (inside(base, generation), search_results(base, generation)) == (whole, results)
    assert meet(base, generation) == []


def segment(n_deletes: int = 0, first: int | None = 0) -> SegmentRef:
    objects = {role: ObjectRef(role, 1, "00") for role in ROLES}
    return SegmentRef("s", objects, "flat", 3, 2, n_deletes, log_start=first, log_end=9)


@pytest.mark.parametrize(
    ("broken", "n_deletes", "rows", "deletes"),
    [
        ({"index"}, 3, "segment", "segment"),
        ({"lexical", "index"}, 3, "segment", "segment"),
        ({"documents"}, 0, "segment", "none"),
        ({"documents"}, 3, "segment", "log"),
        ({"passages"}, 3, "log", "segment"),
        ({"passages", "documents"}, 0, "log", "none"),
    ],
)
def test_a_plan_prefers_the_remaining_objects_to_the_log(
    broken: set[str], n_deletes: int, rows: str, deletes: str
) -> None:
    assert plan(segment(n_deletes), broken, logged=True) == Plan(rows, deletes)  # type: ignore[arg-type]
    if "log" in (rows, deletes):
        with pytest.raises(Lost):
            plan(segment(n_deletes), broken, logged=False)


def age(base: Resources) -> None:
    """Makes every object of the store two hours old."""
    import os

    for stored in list(base.store.list("segments")):
        os.utime(Path(base.settings.store_url) / stored.path, (time.time() - 7_200,) * 2)


def test_damaged_bytes_are_kept_for_the_time_of_quarantine(base: Resources) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    bad = manifest_of(base, generation).segments[0]
    flipped(file := file_of(base, bad, "index"))
    meet(base, generation)
    step(base, indexer, 2)
    assert [d.state for d in base.manifests.quarantine.every()] == ["replaced"]
    age(base)
    base.clock.advance(120)
    step(base, indexer)
    assert file.is_file()
    assert not file_of(base, bad, "passages").is_file(), (
        "its intact objects are orphans like others"
    )
    base.clock.advance(7 * 86_400)
    step(base, indexer, 2)
    assert not file.is_file()
    assert base.manifests.quarantine.every() == []
    last = Audit(base.engine).records(limit=1_000)[-1]
    assert (last.action, "time in quarantine is over" in (last.after or "")) == (
        "segment.released",
        True,
    )


def test_a_damaged_object_is_not_swept_while_its_segment_waits_for_repair(base: Resources) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    trim(base, generation)
    flipped(file := file_of(base, manifest_of(base, generation).segments[0], "passages"))
    meet(base, generation)
    age(base)
    for _ in range(3):
        base.clock.advance(8 * 86_400)
        step(base, indexer)
    assert file.is_file()
    assert [d.state for d in base.manifests.quarantine.open()] == ["stuck"]


def test_an_empty_store_counts_as_not_mounted_and_nothing_is_rebuilt_into_it(
    base: Resources,
) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    before, results = manifest_of(base, generation), search_results(base, generation)
    store = Path(base.settings.store_url)
    (store / "segments").rename(store.parent / "elsewhere")
    assert {d.fault for d in meet(base, generation)} == {"lost"}
    step(base, indexer, 3)
    assert (manifest_of(base, generation), list(base.store.list("segments"))) == (before, [])
    (store.parent / "elsewhere").rename(store / "segments")
    assert meet(base, generation) == [], "lost objects are loaded once they are back"
    base.clock.advance(3_600)
    step(base, indexer, 4)
    assert base.manifests.quarantine.every() == []
    assert (manifest_of(base, generation), search_results(base, generation)) == (before, results)


# the scrub


def test_the_scrub_finds_damage_that_no_search_meets(tmp_path: Path) -> None:
    base = opened(tmp_path, scrub_per_minute=60)
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    whole, results, before = (
        inside(base, generation),
        search_results(base, generation),
        manifest_of(base, generation),
    )
    flipped(file_of(base, before.segments[1], "lexical"))
    step(base, indexer, 45)
    assert [d.state for d in base.manifests.quarantine.every()] == ["replaced"], (
        "although this process verified it before"
    )
    assert manifest_of(base, generation).version == before.version + 1
    assert (inside(base, generation), search_results(base, generation)) == (whole, results)
    base.close()


def test_the_scrub_keeps_to_its_rate() -> None:
    slow = IndexerSettings(scrub_per_minute=6, scrub_bytes_s=1 << 20)
    assert pause_s(0, slow) == 10
    assert pause_s(100 << 20, slow) == 100


# concurrent processes


def test_compaction_reads_no_object_that_another_process_found_corrupt(tmp_path: Path) -> None:
    """The indexer verified the object at writing; only the quarantine tells it of the damage."""
    base = opened(tmp_path, segments_max=1)
    indexer = make_indexer(base)
    generation = make_collection(base, index="hnsw:M=8")
    append(base, generation, *(up(name, i, 2) for i, name in enumerate("abcdef", start=1)))
    step(base, indexer)
    load(manifest_of(base, generation).segments[0], base.store, open_backend(), generation.metric)
    flipped(file_of(base, manifest_of(base, generation).segments[0], "passages"))
    assert len(meet(base, generation)) == 1
    append(base, generation, *(up(name, i, 2) for i, name in enumerate("uvwxyz", start=10)))
    step(base, indexer, 4)
    found = manifest_of(base, generation)
    assert [(s.n_passages, s.log_start, s.log_end) for s in found.segments] == [(24, 0, 2)]
    assert len(contents(base, generation)) == 12
    assert {d.state for d in base.manifests.quarantine.every()} == {"replaced"}
    base.close()


def test_of_two_indexers_only_the_holder_of_the_slot_rebuilds(base: Resources) -> None:
    stale, other = make_indexer(base, "stale"), make_indexer(base, "other")
    generation = two_segments(base, stale)
    before, results = manifest_of(base, generation), search_results(base, generation)
    flipped(file_of(base, before.segments[0], "index"))
    meet(base, generation)
    [noted] = base.manifests.quarantine.open()
    lease = stale.lease(generation.slots[0])
    base.clock.advance(base.settings.indexer.lease_s + 1)
    other._hold_leases()
    assert stale.lease(generation.slots[0]) == lease, (
        "it was suspended, and believes that it holds the slot"
    )
    stale._registry.refresh()
    stale._maintenance._repair.repair(noted)
    assert manifest_of(base, generation) == before, "it published nothing"
    step(base, other, 2)
    after = manifest_of(base, generation)
    assert (after.version, after.epoch) == (before.version + 1, lease.epoch + 1)
    stale._maintenance._repair.repair(noted)
    assert manifest_of(base, generation) == after, "a rebuilt segment is not rebuilt again"
    assert search_results(base, generation) == results
    with pytest.raises(Conflict):
        base.manifests.swap(after, segments=(), sealed=0, lease=lease)


@pytest.mark.parametrize("repairable", [True, False])
def test_a_reindex_waits_for_a_repair_and_fails_if_it_cannot_succeed(
    base: Resources, repairable: bool
) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    held = contents(base, generation)
    if not repairable:
        trim(base, generation)
    flipped(file_of(base, manifest_of(base, generation).segments[0], "passages"))
    meet(base, generation)
    reindex_jobs.start(
        base.registry, base.jobs, "acme", "docs", index="flat", model=None, shards=1, actor="test"
    )
    step(base, indexer, 12)
    [job] = base.jobs.list()
    assert job.state == ("done" if repairable else "failed")
    if repairable:
        base.registry.refresh()
        assert contents(base, base.registry.collection("acme", "docs").generation()) == held


# the quarantine itself


def test_damage_is_noted_once_and_only_of_objects_in_a_manifest(base: Resources) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    [first, _] = manifest_of(base, generation).segments
    shard, quarantine = generation.shards()[0], base.manifests.quarantine
    path = first.objects["index"].path
    damage = Damage(path, shard, first.id, "index", "corrupt", "why")
    assert [quarantine.note(damage, actor="test") for _ in range(3)] == [True, False, False]
    assert not quarantine.note(replace(damage, path="segments/of/none"), actor="test")
    assert not quarantine.note(
        replace(damage, shard=ShardId("other", "docs", 1, 0), path=first.objects["passages"].path),
        actor="test",
    )
    assert quarantine.barred(shard) == {path}
    assert quarantine.barred(replace(shard, tenant="other")) == frozenset()
    assert len([r for r in Audit(base.engine).records() if r.action == "segment.quarantine"]) == 1


def test_a_lost_object_that_returns_with_other_bytes_is_corrupt(base: Resources) -> None:
    indexer = make_indexer(base)
    generation = two_segments(base, indexer)
    file = file_of(base, manifest_of(base, generation).segments[0], "index")
    data = file.read_bytes()
    file.unlink()
    meet(base, generation)
    assert base.manifests.quarantine.barred(generation.shards()[0]) == frozenset()
    file.write_bytes(data[::-1])
    meet(base, generation)
    [damage] = base.manifests.quarantine.open()
    assert (damage.fault, base.manifests.quarantine.barred(damage.shard)) == (
        "corrupt",
        {damage.path},
    )


def test_deletions_are_returned_with_their_versions() -> None:
    keys = Keys.of(["a", "b", "c"])
    order = np.argsort(keys.high)
    documents = Documents(
        Keys(keys.high[order], keys.low[order]),
        np.zeros(3, np.int32),
        np.zeros(3, np.int32),
        np.array([7, 8, 9]),
        {i: "abc"[at] for i, at in enumerate(order.tolist())},
    )
    found = documents.deletes().to_pylist()
    assert [(r["document_id"], r["version"]) for r in found] == [
        ("abc"[at], 7 + i) for i, at in enumerate(order.tolist())
    ]


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=297)  # loses every object
def test_results_survive_any_sequence_of_writes_merges_and_damage(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """While the log has the records, no result shows that a segment was rebuilt."""
    rng = random.Random(seed)
    base = opened(
        tmp_path_factory.mktemp("any"),
        seal_passages=1,
        segments_max=rng.choice([1, 2, 4]),
        tombstone_age_s=100,
    )
    another = tmp_path_factory.mktemp("another") / "passages.arrow"
    another.write_bytes(b"of another tenant")
    # a store without segments counts as not mounted
    base.store.put("segments/other/docs/1/0/one/passages.arrow", another)
    indexer = make_indexer(base)
    generation = make_collection(base, index=rng.choice(["flat", "hnsw:M=8"]))
    expected: dict[str, int] = {}
    number = 0
    for _ in range(rng.randint(4, 8)):
        for name in rng.sample("abcdefghij", rng.randint(1, 5)):
            number += 1
            n = rng.choice([0, 1, 1, 2, 3])
            append(base, generation, up(name, number, n) if n else gone(name, number))
            expected.pop(name, None)
            expected |= {name: n} if n else {}
        step(base, indexer, rng.randint(1, 3))
        segments = manifest_of(base, generation).segments
        if segments and rng.random() < 0.7:
            ref = rng.choice(segments)
            for role in rng.sample(sorted(ref.objects), rng.randint(1, len(ref.objects))):
                rng.choice(list(HARMS.values()))(file_of(base, ref, role))
            meet(base, generation)
            step(base, indexer, 4)
            assert base.manifests.quarantine.open() == []
        assert {name: n for name, (_, n) in contents(base, generation).items()} == expected
    assert meet(base, generation) == []
    base.close()
