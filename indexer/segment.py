"""A segment: an immutable set of passages with its index, written once, verified when it is loaded.

Its objects: `passages` (Arrow file, memory-mapped: rows of whole documents, vectors among them), `documents` (Arrow file: who is in
it, who is deleted by it, at which version), `index` (FAISS) where the kind is not flat, and `lexical` (words to rows) where there is text.
"""

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexer import lexical
from indexer.backends import EFFORTS, K_MEASURED, Backend, Mask, Rows, choose
from indexer.filters import Columns
from indexer.order import supersedes
from indexer.passages import Passages, metadata_of
from tenants.entities import COPIES, Fault, Metric, SegmentRef
from tenants.index_spec import IndexSpec, Kind, parse
from vicinage.errors import Corrupt, NotFound, Refused, TooLarge
from vicinage.faults import crash_point
from vicinage.records import Floats, ShardId
from vicinage.scratch import scratch
from vicinage.store import Store
from vicinage.telemetry import counter, events
from vicinage.wire import DELETED, VECTOR_COLUMNS, is_deletions, vectors_of, vectors_schema

COLUMN_TIMES: Final = 8
VALUE_BYTES: Final = 64
"""Of metadata: about what takes as long to read as one value does. A list's numbers take some bytes each."""
CURVE_QUERIES: Final = 200
RUNGS_MIN: Final = 6
"""One for each hundredth that the correction may add, and the first."""
QUESTIONS_MIN: Final = 30
"""Real questions that say more of recall than made-up ones."""
OPEN_MAX: Final = 256
"""Lexical indexes of segments that a process holds."""
DOCUMENT_COLUMNS: Final = {
    "high": pa.uint64(),
    "low": pa.uint64(),
    "first": pa.int32(),
    "count": pa.int32(),
    "version": pa.int64(),
    "deleted_id": pa.utf8(),
}
"""Of the documents object."""
T = TypeVar("T")
_event = events("segment")
_rebuilt = counter(
    "vicinage_searcher_lexical_rebuilt_total",
    "lexical indexes that were corrupt or lost, and were made anew of their texts",
)


Role = str
"""What an object is to its segment: passages, documents, index or lexical."""


class Damaged(Corrupt):
    """An object of a segment that cannot be used, and is not."""

    def __init__(self, detail: str, *, path: str, role: Role, fault: Fault) -> None:
        super().__init__(detail, path=path)
        self.role = role
        self.fault: Fault = fault


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

    def find(self, keys: "Keys") -> NDArray[np.int64]:
        """Place of each key among these, which are sorted; −1 where it is not."""
        found = np.full(len(keys.high), -1, np.int64)
        if len(self.high) == 0:
            return found
        places = np.searchsorted(self.high, keys.high)
        open_ = np.arange(len(places))
        while len(open_):  # again only where two documents share the high half
            open_ = open_[places[open_] < len(self.high)]
            at = places[open_]
            same = self.high[at] == keys.high[open_]
            hit = same & (self.low[at] == keys.low[open_])
            found[open_[hit]] = at[hit]
            open_ = open_[same & ~hit]
            places[open_] += 1
        return found


@dataclass(frozen=True, slots=True)
class Documents:
    """Who is in a segment, sorted by key: rows [first, first + count) at `version`; `count` 0: deleted, and `deleted` has its id by place."""

    keys: Keys
    first: NDArray[np.int32]
    count: NDArray[np.int32]
    version: NDArray[np.int64]
    deleted: Mapping[int, str]

    def deletes(self) -> pa.RecordBatch:
        """Its deletions, as `write` takes them."""
        places = list(self.deleted)
        names = pa.array([self.deleted[p] for p in places], pa.utf8())
        return pa.record_batch({"document_id": names, "version": pa.array(self.version[places], pa.int64())})


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
        return self.keys.find(keys)

    def rows_mask(self, documents: Mask) -> Mask:
        """Bool [n documents] in key order → bool [n rows]."""
        live = np.flatnonzero(self.count)
        order = live[np.argsort(self.first[live], kind="stable")]  # rows lie document after document
        mask: Mask = np.repeat(documents[order], self.count[order])
        return mask

    def resident_bytes(self) -> int:
        """Returns the bytes it takes when every page is touched and its words are searched."""
        return self.ref.loaded_bytes()


def values_in(n_rows: int, metadata_bytes: int) -> int:
    """What reading one field of so many rows costs, in values: a row's may be a list of thousands."""
    return max(n_rows, metadata_bytes // VALUE_BYTES)


class LazyColumns:
    """The segment's metadata as filter columns, by row; parsed at the first filtered search."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows
        self._columns: Columns | None = None

    def bytes(self) -> int:
        """Bytes they take by now; 0 before the first filtered search. Parsed values are COLUMN_TIMES as large as their JSON (measured: 5 to 8)."""
        return 0 if self._columns is None else COLUMN_TIMES * int(self._rows.column("metadata").nbytes)

    def unread(self, names: Collection[str]) -> int:
        """Values that are still to be read before a filter on these fields: rows × fields, and more where lists are long."""
        fields = len(names) if self._columns is None else self._columns.unread(names)
        return fields and fields * values_in(len(self._rows), int(self._rows.column("metadata").nbytes))

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

    def __init__(
        self, ref: SegmentRef, store: Store, rows: pa.RecordBatch, barred: frozenset[str], on_damage: "OnDamage"
    ) -> None:
        self._ref, self._store, self._rows = ref, store, rows
        self._barred, self._on_damage = barred, on_damage
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
        if "lexical" not in self._ref.objects:
            return None
        try:
            return opened(self._ref, "lexical", self._store, lexical.unpack, self._barred)
        except Damaged as damaged:
            self._on_damage(damaged)
            if damaged.fault != "format":
                _rebuilt.inc()
                _event.error("lexical index made anew", path=damaged.path, error=damaged.detail)
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
    """Returns each document's newest write: (its rows, passages together; deletions as document_id and version).

    Of two deliveries of one write the later batch's rows count; a deletion beats a document of its own version
    (`order.supersedes`). One batch at least has a column of vectors, and may have no rows. Raises TooLarge.
    """
    rows = _joined(batches)
    ids, versions = rows.column("document_id").to_pylist(), rows.column("version").to_numpy()
    passages = rows.column("passage").to_numpy()
    best: dict[str, tuple[int, int, int]] = {}
    for start, end in _runs_by_batch(batches, ids, versions):
        held, version = best.get(ids[start]), int(versions[start])
        deleted = bool(passages[start] == DELETED)
        if held is None or not supersedes(held[0], bool(passages[held[1]] == DELETED), version, deleted):
            best[ids[start]] = (version, start, end)
    gone = sorted(i for i, (_, start, _) in best.items() if passages[start] == DELETED)
    live = sorted(i for i, (_, start, _) in best.items() if passages[start] != DELETED)
    order = np.concatenate([np.arange(best[i][1], best[i][2]) for i in live]) if live else np.zeros(0, np.int64)
    deletes = pa.record_batch(
        {"document_id": pa.array(gone, pa.utf8()), "version": pa.array([best[i][0] for i in gone], pa.int64())}
    )
    return rows.take(order), deletes


def no_deletes() -> pa.RecordBatch:
    """Deletions as `newest` gives them, of nobody."""
    return pa.record_batch({"document_id": pa.array([], pa.utf8()), "version": pa.array([], pa.int64())})


class _Joined:
    """Rows of many messages one after the other; those of deletions take no room for vectors."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        bare = [b.replace_schema_metadata(None) for b in batches]
        wide = [b for b in bare if not is_deletions(b)]
        assert wide, "the caller puts an empty batch with vectors before messages of deletions"
        self._schema = wide[0].schema
        self._vectors = pa.concat_arrays([b.column("vector") for b in wide])
        has_vector = np.concatenate([np.full(b.num_rows, not is_deletions(b)) for b in bare])
        self._place = np.cumsum(has_vector) - 1
        self._others = pa.concat_batches([b if is_deletions(b) else b.drop_columns(["vector"]) for b in bare])

    def column(self, name: str) -> pa.Array:
        """Returns a column of all rows; not that of vectors."""
        return self._others.column(name)

    def take(self, order: NDArray[np.int64]) -> pa.RecordBatch:
        """Returns these rows, none of them a deletion, in the columns of a vectors message."""
        vectors = self._vectors.take(pa.array(self._place[order]))
        others = self._others.take(pa.array(order))
        columns = {**dict(zip(others.schema.names, others.columns, strict=True)), "vector": vectors}
        return pa.RecordBatch.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)


def _joined(batches: Sequence[pa.RecordBatch]) -> _Joined:
    try:
        return _Joined(batches)
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
    index_bytes_max: int = 0,
    threads: int = 0,
    logged: tuple[int, int] | None = None,
    questions: Floats | None = None,
    copies: bool = False,
    claim: Callable[[str], None] = lambda _folder: None,
) -> SegmentRef:
    """Builds and stores a segment of `live` rows (documents together) and `deletes`; durable on return, in no manifest yet.

    `logged`: the offsets in the vectors log between which every record lies that these are of; None where some are in no
    log. `copies`: passages and documents are stored twice. `claim` is called with the folder before anything is put there.
    """
    assert tuple(live.schema.names) == VECTOR_COLUMNS, "rows come in the columns of a vectors message"
    assert live.schema.field("vector").type.list_size == dimension, "and of the generation's dimension"
    n = live.num_rows
    chosen = choose(
        spec,
        n,
        flat_max=flat_max,
        fits=lambda s: not index_bytes_max or backend.bytes(s, n, dimension) <= index_bytes_max,
    )
    vectors = np.ascontiguousarray(vectors_of(live))
    try:
        index = backend.build(vectors, chosen, metric, threads=threads)
    except Refused as error:  # its passages are searched all the same
        _event.error("no index could be built: exact instead", shard=str(shard), kind=str(chosen), reason=error.detail)
        chosen, index = IndexSpec("flat"), None
    documents, n_documents = _documents(live, deletes)
    identity = uuid.uuid4().hex
    base = f"segments/{shard}/{identity}"
    claim(base)
    crash_point("seal.before_put")
    with scratch("segment") as folder:
        files = {
            "passages": _arrow_file(live, folder / "passages.arrow"),
            "documents": _arrow_file(documents, folder / "documents.arrow"),
        }
        if index is not None:
            files["index"] = folder / "index.faiss"
            backend.save(index, files["index"])
        if has_text(live):
            files["lexical"] = lexical.pack(live.column("text").to_pylist(), folder / lexical.FILE)
        objects = {role: store.put(f"{base}/{file.name}", file) for role, file in files.items()}
        for role, copy in COPIES.items() if copies else ():
            objects[copy] = store.put(f"{base}/copy-of-{files[role].name}", files[role])
    if questions is not None:
        questions = np.unique(questions, axis=0)  # a probe that asks the same all day says it once
    asked = 0 if index is None or questions is None or len(questions) < QUESTIONS_MIN else len(questions)
    curve = effort_curve(backend, index, chosen.kind, vectors, metric, questions) if index is not None else ()
    first, end = logged or (None, None)
    return SegmentRef(
        identity,
        objects,
        str(chosen),
        live.num_rows,
        n_documents,
        deletes.num_rows,
        time.time_ns() // 1_000_000,
        curve,
        first,
        end,
        asked,
    )


OnDamage = Callable[[Damaged], None]


def load(
    ref: SegmentRef,
    store: Store,
    backend: Backend,
    metric: Metric,
    *,
    barred: frozenset[str] = frozenset(),
    on_damage: OnDamage = lambda _damaged: None,
) -> Segment:
    """The segment, every object verified, memory-mapped. Raises Damaged, Unavailable.

    What is `barred` counts as corrupt, and is not read. `on_damage` hears of a lexical index that cannot be used, once that is opened: the segment goes on without.
    """
    rows = opened(ref, "passages", store, partial(read_passages, n=ref.n_passages), barred)
    documents = opened(ref, "documents", store, read_documents, barred)
    index = opened(ref, "index", store, backend.load, barred) if "index" in ref.objects else None
    return Segment(
        ref,
        metric,
        rows,
        Passages(rows),
        vectors_of(rows),
        index,
        documents.keys,
        documents.first,
        documents.count,
        documents.version,
        documents.deleted,
        LazyColumns(rows),
        LazyLexical(ref, store, rows, barred, on_damage),
    )


def placed(segment: Segment, backend: Backend) -> Segment:
    """The same, to be searched from now on: on a GPU where the backend has one with room."""
    return replace(segment, index=backend.place(segment.index, segment.vectors, segment.metric))


def opened(
    ref: SegmentRef, role: Role, store: Store, read: Callable[[Path], T], barred: frozenset[str] = frozenset()
) -> T:
    """What `read` makes of the segment's object, which was verified. Raises Damaged, Unavailable."""
    stored = ref.objects[role]
    fault: Fault = "corrupt"
    try:
        if stored.path in barred:
            raise Corrupt(f"object {stored.path} is in quarantine", path=stored.path)
        if old := outdated(ref).get(role):
            fault = "format"
            raise Corrupt(f"older format: {old}", path=stored.path)
        file = store.fetch(stored)
        fault = "format"  # these are the bytes that were written
        return read(file)
    except NotFound as lost:
        raise Damaged(lost.detail, path=stored.path, role=role, fault="lost") from lost
    except Corrupt as corrupt:
        raise Damaged(corrupt.detail, path=stored.path, role=role, fault=fault) from corrupt


def outdated(ref: SegmentRef) -> dict[Role, str]:
    """Objects that this version does not read, as the manifest alone tells, and why. Pure."""
    found: dict[Role, str] = {}
    if "lexical" in ref.objects and not ref.objects["lexical"].path.endswith(f"/{lexical.FILE}"):
        found["lexical"] = f"its words are in {Path(ref.objects['lexical'].path).name}; {lexical.FILE} is read"
    try:
        parse(ref.kind)
    except Refused:
        if "index" in ref.objects:
            found["index"] = f"an index of kind {ref.kind[:80]!r} is not read"
    return found


def read_passages(path: Path, n: int) -> pa.RecordBatch:
    """The `n` rows of a segment. Raises Corrupt."""
    rows = _read(path)
    if rows.num_rows != n:
        raise Corrupt(f"{path.name} has {rows.num_rows} rows, its manifest says {n}", path=str(path))
    if _columns(rows.schema) != _columns(vectors_schema(_dimension(rows.schema))):
        raise Corrupt(f"older format: the columns of {path.name} are {', '.join(rows.schema.names)}", path=str(path))
    return rows


def read_documents(path: Path) -> Documents:
    """Who is in a segment. Raises Corrupt."""
    found = _read(path)
    if not DOCUMENT_COLUMNS.items() <= dict(_columns(found.schema)).items():
        raise Corrupt(f"older format: the columns of {path.name} are {', '.join(found.schema.names)}", path=str(path))
    column = {
        name: found.column(name).to_numpy(zero_copy_only=False) for name in ("high", "low", "first", "count", "version")
    }
    gone = np.flatnonzero(column["count"] == 0)
    names = found.column("deleted_id").take(pa.array(gone)).to_pylist()
    deleted = dict(zip(gone.tolist(), names, strict=True))
    return Documents(Keys(column["high"], column["low"]), column["first"], column["count"], column["version"], deleted)


def converted(path: Path) -> pa.RecordBatch:
    """The rows of a segment whose columns an older version wrote: what it did not have is null. Raises Corrupt."""
    rows = _read(path)
    schema = vectors_schema(_dimension(rows.schema))
    try:
        columns = [_column(rows, field) for field in schema]
    except (pa.ArrowException, KeyError) as error:
        raise Corrupt(f"the columns of {path.name} cannot be converted: {error}", path=str(path)) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(rows: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name in rows.schema.names:
        return rows.column(field.name).cast(field.type)
    if not field.nullable:
        raise KeyError(field.name)
    return pa.nulls(rows.num_rows, field.type)


def _columns(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in schema]


def _dimension(schema: pa.Schema) -> int:
    """Numbers of a vector; 1, which no segment of ours has for nothing, where there is no column of vectors."""
    found = schema.field("vector").type if "vector" in schema.names else None
    return int(found.list_size) if found is not None and pa.types.is_fixed_size_list(found) else 1


def effort_curve(
    backend: Backend, index: Any, kind: Kind, vectors: Floats, metric: Metric, questions: Floats | None = None
) -> tuple[tuple[int, float], ...]:
    """Recall@10 at each effort; ends once it is as good as perfect, but not before RUNGS_MIN: live recall may say that the questions were too easy.

    Measured on the collection's own recent `questions` [n, d], where QUESTIONS_MIN are known, else on `_made_up` ones.
    """
    k = min(K_MEASURED, len(vectors) - 1)
    if k < 1:
        return ()
    known = questions is not None and len(questions) >= QUESTIONS_MIN
    queries = questions if questions is not None and known else _made_up(vectors, metric)
    _, truth = backend.exact(vectors, queries, k, metric=metric, allowed=None)
    curve: list[tuple[int, float]] = []
    for effort in EFFORTS[kind]:
        _, rows = backend.search(index, vectors, queries, k, metric=metric, effort=effort, allowed=None)
        curve.append((effort, round(recall(rows, truth), 4)))
        if curve[-1][1] >= 0.999 and len(curve) >= RUNGS_MIN:
            break
    return tuple(curve)


def _made_up(vectors: Floats, metric: Metric) -> Floats:
    """Questions [n, d] made of a segment's own vectors: means of two.

    They lie between the passages, as questions do that were written by others. A passage itself is far too easy a question: its
    neighbours in a graph are its answer (docs/decisions/010 has the figures).
    """
    rng = np.random.default_rng(0)
    own = rng.choice(len(vectors), min(CURVE_QUERIES, len(vectors)), replace=False)
    queries = np.ascontiguousarray((vectors[own] + vectors[rng.permutation(own)]) / 2, np.float32)
    if metric == "cosine":
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.float32(1e-12))
    return queries


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
