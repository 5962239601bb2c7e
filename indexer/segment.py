"""A segment: an immutable set of passages with its index, written once, verified when it is loaded.

Its objects: `passages` (Arrow file, memory-mapped: rows of whole documents, vectors among them), `documents` (Arrow file: who is in
it, who is deleted by it, at which version), `index` (FAISS) where the kind is not flat, and `lexical` (words to rows) where there is text.
"""

import hashlib
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexer import lexical
from indexer.backends import EFFORTS, Backend, Mask, Rows, choose
from indexer.filters import Columns
from indexer.passages import Passages, metadata_of
from tenants.entities import Metric, SegmentRef
from tenants.index_spec import Kind
from vicinage.errors import Corrupt, NotFound, TooLarge
from vicinage.faults import crash_point
from vicinage.records import Floats, ShardId
from vicinage.store import Store
from vicinage.telemetry import counter, events
from vicinage.wire import DELETED, VECTOR_COLUMNS, vectors_of

CURVE_QUERIES: Final = 100
OPEN_MAX: Final = 256
"""Lexical indexes of segments that a process holds."""
_event = events("segment")
_rebuilt = counter(
    "vicinage_searcher_lexical_rebuilt_total",
    "lexical indexes that were corrupt or lost, and were made anew of their texts",
)


@dataclass(frozen=True, slots=True)
class Keys:
    """Document ids as 128-bit hashes, in two halves: uint64 [n] each."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Keys":
        """Hash every id."""
        digests = b"".join(hashlib.blake2b(i.encode(), digest_size=16).digest() for i in ids)
        halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
        return cls(halves[:, 0].copy(), halves[:, 1].copy())


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Segment:
    """A loaded segment. Documents are sorted by key; `count` 0 means: deleted at `version`."""

    ref: SegmentRef
    metric: Metric
    rows: pa.RecordBatch
    passages: Passages
    vectors: Floats
    index: Any
    keys: Keys
    first: NDArray[np.int32]
    count: NDArray[np.int32]
    version: NDArray[np.int64]
    deleted: Mapping[int, str]
    """Id of each deleted document, by its place."""
    columns: "LazyColumns"
    lexical: "LazyLexical"

    def __len__(self) -> int:
        return len(self.vectors)

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Place of each key among this segment's documents; −1 where it has none."""
        found = np.full(len(keys.high), -1, np.int64)
        if len(self.keys.high) == 0:
            return found
        places = np.searchsorted(self.keys.high, keys.high)
        open_ = np.arange(len(places))
        while len(open_):  # again only where two documents share the high half
            open_ = open_[places[open_] < len(self.keys.high)]
            at = places[open_]
            same = self.keys.high[at] == keys.high[open_]
            hit = same & (self.keys.low[at] == keys.low[open_])
            found[open_[hit]] = at[hit]
            open_ = open_[same & ~hit]
            places[open_] += 1
        return found

    def rows_mask(self, documents: Mask) -> Mask:
        """Bool [n documents] in key order → bool [n rows]."""
        live = np.flatnonzero(self.count)
        order = live[np.argsort(self.first[live], kind="stable")]  # rows lie document after document
        mask: Mask = np.repeat(documents[order], self.count[order])
        return mask

    def resident_bytes(self) -> int:
        """Bytes it takes when every page is touched, and words have been asked for."""
        return self.ref.bytes()


class LazyColumns:
    """The segment's metadata as filter columns, by row; parsed at the first filtered search."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows
        self._columns: Columns | None = None

    def columns(self) -> Columns:
        """One entry per row."""
        if self._columns is None:
            self._columns = Columns(metadata_of(self._rows))
        return self._columns


class LazyLexical:
    """The segment's lexical index: fetched, verified and mapped when somebody first asks for words. Safe for many threads.

    A segment that was written without one, or whose file is not what was written, has its own made in memory, of the texts.
    Only the OPEN_MAX that were asked last are held: tantivy gives each a thread, which sleeps.
    """

    _open: ClassVar["WeakKeyDictionary[LazyLexical, None]"] = WeakKeyDictionary()
    """Those of this process that hold an index, the one asked last at the end."""
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, ref: SegmentRef, store: Store, rows: pa.RecordBatch) -> None:
        self._ref, self._store, self._rows = ref, store, rows
        self._lock = threading.Lock()
        self._index: lexical.Lexical | None = None

    def here(self) -> bool:
        """Whether `index` answers at once."""
        return self._index is not None

    def index(self) -> lexical.Lexical:
        """The index. The first time it may take as long as the store takes. Raises Unavailable."""
        with self._lock:
            index = self._index = self._index or self._fetched() or self._made()
        with self._opening:
            self._open.pop(self, None)
            self._open[self] = None
            if len(self._open) > OPEN_MAX:
                oldest = next(iter(self._open.keys()))
                oldest.let_go()
                del self._open[oldest]
        return index

    def let_go(self) -> None:
        """Hold it no more; who searches in it now goes on."""
        self._index = None

    def _fetched(self) -> lexical.Lexical | None:
        stored = self._ref.objects.get("lexical")
        if stored is None or not stored.path.endswith(f"/{lexical.FILE}"):
            return None
        try:
            return lexical.unpack(self._store.fetch(stored))
        except (Corrupt, NotFound) as error:
            _rebuilt.inc()
            _event.error("lexical index made anew", path=stored.path, error=error.detail)
            return None

    def _made(self) -> lexical.Lexical:
        made = lexical.Growing()
        if has_text(self._rows):
            made.add(self._rows.column("text").to_pylist())
        return made.now


def has_text(rows: pa.RecordBatch) -> bool:
    """Whether any row has text: a tenant's own vectors need none."""
    return bool(rows.column("text").null_count < rows.num_rows)


def newest(batches: Sequence[pa.RecordBatch]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Of each document only its highest version: (its rows, passages together; deletions as document_id and version).

    Where one version stands twice (a record was delivered again), the later batch's rows count. Raises TooLarge.
    """
    rows = _joined(batches)
    ids, versions = rows.column("document_id").to_pylist(), rows.column("version").to_numpy()
    best: dict[str, tuple[int, int, int]] = {}
    for start, end in _runs_by_batch(batches, ids, versions):
        held = best.get(ids[start])
        if held is None or versions[start] >= held[0]:
            best[ids[start]] = (int(versions[start]), start, end)
    passages = rows.column("passage").to_numpy()
    gone = sorted(i for i, (_, start, _) in best.items() if passages[start] == DELETED)
    live = sorted(i for i, (_, start, _) in best.items() if passages[start] != DELETED)
    order = np.concatenate([np.arange(best[i][1], best[i][2]) for i in live]) if live else np.zeros(0, np.int64)
    deletes = pa.record_batch(
        {"document_id": pa.array(gone, pa.utf8()), "version": pa.array([best[i][0] for i in gone], pa.int64())}
    )
    return rows.take(pa.array(order)), deletes


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    try:
        return pa.concat_batches([b.replace_schema_metadata(None) for b in batches])
    except pa.ArrowInvalid as error:  # 32-bit text offsets: beyond 2 GiB, never cut short
        raise TooLarge(f"the rows do not fit into one segment: {error}", limit=2**31 - 1) from error


def _runs_by_batch(
    batches: Sequence[pa.RecordBatch], ids: Sequence[str], versions: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Runs that end where their batch ends: a record that comes twice in a row is two runs, not one of twice the length."""
    ends = np.cumsum([b.num_rows for b in batches]).tolist()
    return [
        (first + start, first + end)
        for first, last in zip([0, *ends], ends, strict=False)
        for start, end in document_runs(ids[first:last], versions[first:last])
    ]


def document_runs(ids: Sequence[str], versions: NDArray[np.int64]) -> list[tuple[int, int]]:
    """[start, end) of each run of rows of one version of one document."""
    n = len(ids)
    if n == 0:
        return []
    starts = [0] + [i for i in range(1, n) if ids[i] != ids[i - 1] or versions[i] != versions[i - 1]]
    return list(zip(starts, [*starts[1:], n], strict=True))


def write(
    live: pa.RecordBatch,
    deletes: pa.RecordBatch,
    *,
    shard: ShardId,
    spec: str,
    metric: Metric,
    dimension: int,
    backend: Backend,
    store: Store,
    flat_max: int,
    threads: int = 0,
) -> SegmentRef:
    """Build and store a segment of `live` rows (documents together) and `deletes`; durable on return, visible to nobody yet."""
    assert tuple(live.schema.names) == VECTOR_COLUMNS, "rows come in the columns of a vectors message"
    assert live.schema.field("vector").type.list_size == dimension, "and of the generation's dimension"
    chosen = choose(spec, live.num_rows, flat_max=flat_max)
    vectors = np.ascontiguousarray(vectors_of(live))
    index = backend.build(vectors, chosen, metric, threads=threads)
    documents, n_documents = _documents(live, deletes)
    identity = uuid.uuid4().hex
    base = f"segments/{shard}/{identity}"
    crash_point("seal.before_put")
    with tempfile.TemporaryDirectory(prefix="vicinage-segment-") as folder:
        files = {
            "passages": _arrow_file(live, Path(folder) / "passages.arrow"),
            "documents": _arrow_file(documents, Path(folder) / "documents.arrow"),
        }
        if index is not None:
            files["index"] = Path(folder) / "index.faiss"
            backend.save(index, files["index"])
        if has_text(live):
            files["lexical"] = lexical.pack(live.column("text").to_pylist(), Path(folder) / lexical.FILE)
        objects = {role: store.put(f"{base}/{file.name}", file) for role, file in files.items()}
    curve = effort_curve(backend, index, chosen.kind, vectors, metric) if index is not None else ()
    return SegmentRef(
        identity, objects, str(chosen), live.num_rows, n_documents, deletes.num_rows, time.time_ns() // 1_000_000, curve
    )


def load(ref: SegmentRef, store: Store, backend: Backend, metric: Metric) -> Segment:
    """The segment, every object verified, memory-mapped. Raises Corrupt, NotFound, Unavailable."""
    rows = _read(store.fetch(ref.objects["passages"]))
    documents = _read(store.fetch(ref.objects["documents"]))
    if rows.num_rows != ref.n_passages:
        raise Corrupt(
            f"segment {ref.id} has {rows.num_rows} rows, its manifest says {ref.n_passages}",
            path=ref.objects["passages"].path,
        )
    index = backend.load(store.fetch(ref.objects["index"])) if "index" in ref.objects else None
    column = {
        name: documents.column(name).to_numpy(zero_copy_only=False)
        for name in ("high", "low", "first", "count", "version")
    }
    gone = np.flatnonzero(column["count"] == 0)
    names = documents.column("deleted_id").take(pa.array(gone)).to_pylist()
    return Segment(
        ref,
        metric,
        rows,
        Passages(rows),
        vectors_of(rows),
        index,
        Keys(column["high"], column["low"]),
        column["first"],
        column["count"],
        column["version"],
        dict(zip(gone.tolist(), names, strict=True)),
        LazyColumns(rows),
        LazyLexical(ref, store, rows),
    )


def placed(segment: Segment, backend: Backend) -> Segment:
    """The same, to be searched from now on: on a GPU where the backend has one with room."""
    return replace(segment, index=backend.place(segment.index, segment.vectors, segment.metric))


def effort_curve(
    backend: Backend, index: Any, kind: Kind, vectors: Floats, metric: Metric
) -> tuple[tuple[int, float], ...]:
    """Recall@10 at each effort, on questions made of the segment's own vectors; ends once it is as good as perfect.

    Half of them are vectors of the segment (themselves left out of what is found), which is easier than a real question, half
    are means of two, which is harder. On 50,000 sentences their mean was 0.01 to 0.02 below the recall of held-out real
    questions at efforts from 24 to 128 (docs/benchmarks.md).
    """
    rng = np.random.default_rng(0)
    k = min(10, len(vectors) - 1)
    if k < 1:
        return ()
    own = rng.choice(len(vectors), min(CURVE_QUERIES, len(vectors)), replace=False)
    between = (vectors[own] + vectors[rng.permutation(own)]) / 2
    queries = np.ascontiguousarray(np.concatenate([vectors[own], between]), np.float32)
    if metric == "cosine":
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.float32(1e-12))
    itself = np.concatenate([own, np.full(len(own), -1)])
    _, truth = backend.exact(vectors, queries, k + 1, metric=metric, allowed=None)
    curve: list[tuple[int, float]] = []
    for effort in EFFORTS[kind]:
        _, rows = backend.search(index, vectors, queries, k + 1, metric=metric, effort=effort, allowed=None)
        curve.append((effort, round(recall(_without(rows, itself, k), _without(truth, itself, k)), 4)))
        if curve[-1][1] >= 0.999:
            break
    return tuple(curve)


def _without(rows: Rows, itself: NDArray[np.int64], k: int) -> Rows:
    """The first k of each question's rows that are not the question itself."""
    return np.array([[r for r in row if r != own][:k] for row, own in zip(rows.tolist(), itself.tolist(), strict=True)])


def recall(found: Rows, truth: Rows) -> float:
    """Share of `truth` [n, k] that is in `found` [n, k], mean over rows."""
    return float(np.mean([len(np.intersect1d(f, t)) / max(1, len(t)) for f, t in zip(found, truth, strict=True)]))


def _documents(live: pa.RecordBatch, deletes: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """The documents object: one row per document, live or deleted, sorted by key."""
    ids, versions = live.column("document_id").to_pylist(), live.column("version").to_numpy()
    runs = document_runs(ids, versions)
    names = [ids[start] for start, _ in runs] + deletes.column("document_id").to_pylist()
    assert len(set(names)) == len(names), "a document stands once in a segment"
    keys = Keys.of(names)
    n_gone = deletes.num_rows
    first = np.array([s for s, _ in runs] + [0] * n_gone, np.int32)
    count = np.array([e - s for s, e in runs] + [0] * n_gone, np.int32)
    version = np.concatenate(
        [versions[[s for s, _ in runs]] if runs else np.zeros(0, np.int64), deletes.column("version").to_numpy()]
    )
    order = np.argsort(keys.high, kind="stable")
    columns: dict[str, Any] = {
        "high": keys.high,
        "low": keys.low,
        "first": first,
        "count": count,
        "version": version.astype(np.int64),
    }
    arrays = {name: pa.array(values[order]) for name, values in columns.items()}
    arrays["deleted_id"] = pa.array([None] * len(runs) + names[len(runs) :], pa.utf8()).take(pa.array(order))
    return pa.record_batch(arrays), len(runs)


def _arrow_file(batch: pa.RecordBatch, path: Path) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return path


def _read(path: Path) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.num_record_batches != 1:
            raise Corrupt(f"{path.name} has {reader.num_record_batches} batches, not one", path=str(path))
        return reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise Corrupt(f"{path.name} cannot be read: {error}", path=str(path)) from error
