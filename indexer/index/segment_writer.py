"""Builds a segment and stores its objects; no manifest names it yet."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from indexer.backends import Backend, choose
from indexer.index import lexical
from indexer.index.effort import CALIBRATION_QUERIES_MIN, effort_curve
from indexer.index.objects import Keys
from indexer.index.rows import document_runs, has_text
from tenants.entities import COPIES, Metric, SegmentRef
from tenants.index_spec import IndexSpec
from vicinage.errors import Refused
from vicinage.faults import crash_point
from vicinage.records import Floats, ObjectRef, ShardId
from vicinage.scratch import scratch
from vicinage.store import Store
from vicinage.telemetry import events
from vicinage.wire import VECTOR_COLUMNS, vectors_of

_event = events("segment")


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
    recent_queries: Floats | None = None,
    copies: bool = False,
    claim: Callable[[str], None] = lambda _folder: None,
) -> SegmentRef:
    """Builds and stores a segment of `live` rows (each document's together) and `deletes`.

    Durable on return, in no manifest.

    `logged`: the offsets [start, end) in the vectors log of the records that the rows come from;
    None if some are in no log. `copies`: whether passages and documents are stored twice. `claim`
    is called with the folder before the first write.
    """
    assert tuple(live.schema.names) == VECTOR_COLUMNS, "rows have the columns of a vectors message"
    assert live.schema.field("vector").type.list_size == dimension, (
        "vectors have the generation's dimension"
    )
    n = live.num_rows
    chosen = choose(
        spec,
        n,
        flat_max=flat_max,
        fits=lambda s: not index_bytes_max or backend.bytes(s, n, dimension) <= index_bytes_max,
    )
    vectors = np.ascontiguousarray(vectors_of(live))
    chosen, index = _built_index(vectors, chosen, shard, metric, backend, threads)
    documents, n_documents = _documents(live, deletes)
    identity = uuid.uuid4().hex
    base = f"segments/{shard}/{identity}"
    claim(base)
    crash_point("seal.before_put")
    objects = _store_objects(live, documents, index, backend, store, base, copies=copies)
    curve, n_calibration_queries = _measured(
        vectors, chosen, index, metric, backend, recent_queries
    )
    log_start, log_end = logged or (None, None)
    return SegmentRef(
        identity,
        objects,
        str(chosen),
        n,
        n_documents,
        deletes.num_rows,
        time.time_ns() // 1_000_000,
        curve,
        log_start,
        log_end,
        n_calibration_queries,
    )


def _built_index(
    vectors: Floats,
    spec: IndexSpec,
    shard: ShardId,
    metric: Metric,
    backend: Backend,
    threads: int,
) -> tuple[IndexSpec, Any]:
    """Returns the index and its spec; flat if it cannot be built: the passages are then scanned."""
    try:
        return spec, backend.build(vectors, spec, metric, threads=threads)
    except Refused as error:
        _event.error("index.build_failed", shard=str(shard), kind=str(spec), reason=error.detail)
        return IndexSpec("flat"), None


def _store_objects(
    live: pa.RecordBatch,
    documents: pa.RecordBatch,
    index: Any,
    backend: Backend,
    store: Store,
    base: str,
    *,
    copies: bool,
) -> dict[str, ObjectRef]:
    """Writes the objects of a segment under `base` in the store; returns them by role."""
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
    return objects


def _measured(
    vectors: Floats,
    spec: IndexSpec,
    index: Any,
    metric: Metric,
    backend: Backend,
    recent_queries: Floats | None,
) -> tuple[tuple[tuple[int, float], ...], int]:
    """Returns the effort curve of an index, and the number of recent queries it was measured on."""
    if index is None:
        return (), 0
    if recent_queries is not None:
        recent_queries = np.unique(recent_queries, axis=0)  # a probe repeats one query all day
    curve = effort_curve(backend, index, spec.kind, vectors, metric, recent_queries)
    if recent_queries is None or len(recent_queries) < CALIBRATION_QUERIES_MIN:
        return curve, 0
    return curve, len(recent_queries)


def _documents(live: pa.RecordBatch, deletes: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """Returns the documents object and the number of live documents.

    It has one row per document, live or deleted, sorted by key.
    """
    ids, versions = live.column("document_id").to_pylist(), live.column("version").to_numpy()
    runs = document_runs(ids, versions)
    names = [ids[start] for start, _ in runs] + deletes.column("document_id").to_pylist()
    assert len(set(names)) == len(names), "a segment holds a document once"
    keys = Keys.of(names)
    n_gone = deletes.num_rows
    first = np.array([s for s, _ in runs] + [0] * n_gone, np.int32)
    count = np.array([e - s for s, e in runs] + [0] * n_gone, np.int32)
    version = np.concatenate(
        [
            versions[[s for s, _ in runs]] if runs else np.zeros(0, np.int64),
            deletes.column("version").to_numpy(),
        ]
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
    arrays["deleted_id"] = pa.array([None] * len(runs) + names[len(runs) :], pa.utf8()).take(
        pa.array(order)
    )
    return pa.record_batch(arrays), len(runs)


def _arrow_file(batch: pa.RecordBatch, path: Path) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return path
