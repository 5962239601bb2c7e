"""Segments: the stored rows are loaded, verified, in the newest version of each document only."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import message, unit

from indexer.backends import open_backend
from indexer.index.effort import CALIBRATION_QUERIES_MIN, effort_curve
from indexer.index.objects import Damaged, Keys
from indexer.index.rows import newest
from indexer.index.segment import Segment, load
from indexer.index.segment_writer import write
from tenants.entities import SegmentRef
from tenants.index_spec import IndexSpec
from vicinage.errors import Corrupt, Refused
from vicinage.records import Floats, ObjectRef, ShardId
from vicinage.store import LocalStore

BACKEND = open_backend()
SHARD = ShardId("acme", "docs", 1, 0)


def rows_of(batch: pa.RecordBatch) -> list[tuple[str, int, int]]:
    return [(r["document_id"], r["version"], r["passage"]) for r in batch.to_pylist()]


def sealed(
    store: LocalStore,
    batches: list[pa.RecordBatch],
    *,
    spec: str = "flat",
    dimension: int = 4,
    recent_queries: Floats | None = None,
) -> SegmentRef:
    return write(
        *newest(batches),
        shard=SHARD,
        spec=spec,
        metric="cosine",
        dimension=dimension,
        backend=BACKEND,
        store=store,
        flat_max=8,
        threads=1,
        recent_queries=recent_queries,
    )


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_only_the_highest_version_of_a_document_stays() -> None:
    first = message([("b", 1, [unit(1)] * 3, "{}"), ("a", 2, [unit(2)], "{}")])
    second = message([("b", 5, [unit(3)] * 2, "{}"), ("a", 4, None, "{}"), ("c", 6, None, "{}")])
    late = message([("b", 3, [unit(4)] * 4, "{}"), ("c", 5, [unit(5)], "{}")])
    live, deletes = newest([first, second, late])
    assert rows_of(live) == [("b", 5, 0), ("b", 5, 1)]
    assert deletes.to_pylist() == [
        {"document_id": "a", "version": 4},
        {"document_id": "c", "version": 6},
    ]


def test_a_record_delivered_twice_in_a_row_counts_once() -> None:
    batch = message([("a", 1, [unit(1), unit(2)], "{}")])
    live, _ = newest([batch, batch, batch])
    assert rows_of(live) == [("a", 1, 0), ("a", 1, 1)]


@pytest.mark.parametrize("batches", [[message([])], [message([]), message([])]])
def test_no_rows_stay_of_empty_batches(batches: list[pa.RecordBatch]) -> None:
    live, deletes = newest(batches)
    assert (live.num_rows, deletes.num_rows) == (0, 0)
    assert live.schema.equals(batches[0].schema)


writes = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.integers(0, 3)), max_size=12
)


@given(writes, st.lists(st.integers(0, 11), max_size=4))
def test_newest_is_what_a_dict_would_keep(
    writes: list[tuple[str, int, int]], again: list[int]
) -> None:
    """A document written twice at one version has the same content both times."""
    size = {(name, version): n for name, version, n in writes}
    batches = [
        message([(name, version, [unit(i) for i in range(size[name, version])] or None, "{}")])
        for name, version, _ in writes
    ]
    batches += [batches[i] for i in again if i < len(batches)]
    best: dict[str, int] = {}
    for name, version, _ in writes:
        best[name] = max(best.get(name, 0), version)
    live, deletes = newest([message([]), *batches])
    assert rows_of(live) == [(n, v, i) for n, v in sorted(best.items()) for i in range(size[n, v])]
    gone = [(r["document_id"], r["version"]) for r in deletes.to_pylist()]
    assert gone == [(n, v) for n, v in sorted(best.items()) if size[n, v] == 0]


@pytest.mark.parametrize(("spec", "roles"), [("flat", 3), ("hnsw:M=8", 4), ("auto", 4)])
def test_the_loaded_segment_is_the_written_one(store: LocalStore, spec: str, roles: int) -> None:
    batch = message(
        [(f"d{i}", i + 1, [unit(i), unit(100 + i)], f'{{"i": {i}}}') for i in range(20)]
    )
    ref = sealed(store, [batch, message([("gone", 50, None, "{}")])], spec=spec)
    segment = load(ref, store, BACKEND, "cosine")
    assert (ref.n_passages, ref.n_documents, ref.n_deletes, len(ref.objects)) == (40, 20, 1, roles)
    assert all(o.path.startswith(f"segments/{SHARD}/{ref.id}/") for o in ref.objects.values())
    [place] = segment.find(Keys.of(["d7"]))
    rows = range(segment.first[place], segment.first[place] + segment.count[place])
    assert [segment.rows.column("document_id")[r].as_py() for r in rows] == ["d7", "d7"]
    np.testing.assert_array_equal(segment.vectors[rows[1]], unit(107))
    [gone] = segment.find(Keys.of(["gone"]))
    assert (segment.count[gone], segment.version[gone], segment.deleted[int(gone)]) == (
        0,
        50,
        "gone",
    )
    assert segment.find(Keys.of(["absent", "d1"])).tolist()[0] == -1
    assert (len(ref.curve) > 0) == (roles == 4)


def test_two_segments_of_the_same_rows_never_share_an_object(store: LocalStore) -> None:
    batch = message([("a", 1, [unit(1)], "{}")])
    one, two = sealed(store, [batch]), sealed(store, [batch])
    assert {o.path for o in one.objects.values()}.isdisjoint(o.path for o in two.objects.values())


def test_a_mask_of_documents_becomes_one_of_rows(store: LocalStore) -> None:
    batch = message(
        [(f"d{i}", 1, [unit(i)] * (i + 1), "{}") for i in range(5)] + [("gone", 1, None, "{}")]
    )
    segment = load(sealed(store, [batch]), store, BACKEND, "cosine")
    documents = np.ones(6, np.bool_)
    documents[segment.find(Keys.of(["d1", "d3"]))] = False
    kept = [
        segment.rows.column("document_id")[int(r)].as_py()
        for r in np.flatnonzero(segment.rows_mask(documents))
    ]
    assert sorted(kept) == ["d0", *["d2"] * 3, *["d4"] * 5]


def test_documents_whose_hashes_share_a_half_are_distinct(store: LocalStore) -> None:
    segment = load(sealed(store, [message([("a", 1, [unit(1)], "{}")])]), store, BACKEND, "cosine")
    made = Keys(np.array([3, 7, 7, 7, 9], np.uint64), np.array([1, 30, 10, 20, 1], np.uint64))
    colliding: Segment = replace(segment, keys=made)
    wanted = Keys(
        np.array([7, 7, 7, 7, 9, 10, 0], np.uint64), np.array([20, 10, 30, 40, 2, 1, 1], np.uint64)
    )
    assert colliding.find(wanted).tolist() == [3, 2, 1, -1, -1, -1, -1]


@pytest.mark.parametrize("role", ["passages", "documents", "index"])
def test_one_flipped_bit_anywhere_is_corrupt(store: LocalStore, tmp_path: Path, role: str) -> None:
    batch = message([(f"d{i}", 1, [unit(i)], "{}") for i in range(20)])
    ref = sealed(store, [batch], spec="hnsw:M=8")
    file = tmp_path / ref.objects[role].path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(Corrupt) as corrupt:
        load(ref, LocalStore(tmp_path), BACKEND, "cosine")
    assert corrupt.value.path == ref.objects[role].path


def test_a_truncated_file_is_corrupt_and_a_missing_one_is_lost(
    store: LocalStore, tmp_path: Path
) -> None:
    ref = sealed(store, [message([("a", 1, [unit(1)], "{}")])])
    file = tmp_path / ref.objects["passages"].path
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Damaged) as cut:
        load(ref, LocalStore(tmp_path), BACKEND, "cosine")
    file.unlink()
    with pytest.raises(Damaged) as gone:
        load(ref, LocalStore(tmp_path), BACKEND, "cosine")
    assert [(e.value.fault, e.value.role) for e in (cut, gone)] == [
        ("corrupt", "passages"),
        ("lost", "passages"),
    ]


def test_a_whole_object_of_another_segment_is_corrupt(store: LocalStore) -> None:
    """Each file has the right checksum, but they do not belong together."""
    one = sealed(store, [message([("a", 1, [unit(1)], "{}")])])
    two = sealed(store, [message([("b", 1, [unit(2)] * 2, "{}")])])
    mixed = replace(one, objects={**one.objects, "passages": two.objects["passages"]})
    with pytest.raises(Corrupt):
        load(mixed, store, BACKEND, "cosine")


def test_an_object_other_than_an_arrow_file_is_corrupt(store: LocalStore) -> None:
    ref = sealed(store, [message([("a", 1, [unit(1)], "{}")])])
    other: ObjectRef = store.put("segments/other", b"not an arrow file")
    with pytest.raises(Corrupt):
        load(replace(ref, objects={**ref.objects, "documents": other}), store, BACKEND, "cosine")


def test_the_effort_curve_is_measured_on_enough_recent_queries_of_the_collection() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((3_000, 32)).astype(np.float32)
    backend = open_backend()
    index = backend.build(vectors, IndexSpec("hnsw", 8, 40), "euclidean", threads=1)
    far = rng.standard_normal((CALIBRATION_QUERIES_MIN, 32)).astype(np.float32) * 8
    generated = effort_curve(backend, index, "hnsw", vectors, "euclidean")
    on_recent = effort_curve(backend, index, "hnsw", vectors, "euclidean", far)
    assert on_recent[0][1] < generated[0][1], "distant queries are harder"
    assert effort_curve(backend, index, "hnsw", vectors, "euclidean", far[1:]) == generated, (
        "too few say nothing"
    )


def test_a_segment_has_the_number_of_recent_queries_its_curve_was_measured_on(
    store: LocalStore,
) -> None:
    batch = message([(f"d{i}", 1, [unit(i, 32)], "{}") for i in range(100)], 32)
    recent = np.eye(CALIBRATION_QUERIES_MIN + 1, 32, dtype=np.float32)
    for queries, known in ((None, 0), (recent[2:], 0), (recent, CALIBRATION_QUERIES_MIN + 1)):
        ref = sealed(store, [batch], spec="hnsw:M=8,efc=40", dimension=32, recent_queries=queries)
        assert ref.n_calibration_queries == known
    assert (
        sealed(
            store, [batch], spec="flat", dimension=32, recent_queries=recent
        ).n_calibration_queries
        == 0
    ), "without effort, no curve"


def test_passages_whose_index_cannot_be_built_are_kept_and_searched_exactly(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise Refused("no index of this", field="index")

    monkeypatch.setattr(BACKEND, "build", fails)
    ref = sealed(store, [message([("a", 1, [unit(1)], "{}")])], spec="hnsw")
    assert (ref.kind, ref.n_passages, ref.curve) == ("flat", 1, ())
    assert load(ref, store, BACKEND, "cosine").rows.num_rows == 1


def test_the_effort_curve_is_measured_and_rises(store: LocalStore) -> None:
    batch = message([(f"d{i}", 1, [unit(i, 32)], "{}") for i in range(3_000)], 32)
    curve = sealed(store, [batch], spec="hnsw:M=8,efc=40", dimension=32).curve
    efforts, recalls = zip(*curve, strict=True)
    assert list(efforts) == sorted(efforts)
    assert recalls[0] < recalls[-1] <= 1
    assert all(b >= a - 0.02 for a, b in itertools.pairwise(recalls))
