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
from indexer.index.effort import QUESTIONS_MIN, effort_curve
from indexer.index.objects import Keys
from indexer.index.rows import document_runs, has_text
from tenants.entities import COPIES, Metric, SegmentRef
from tenants.index_spec import IndexSpec
from vicinage.errors import Refused
from vicinage.faults import crash_point
from vicinage.records import Floats, ShardId
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
        _event.error("index.build_failed", shard=str(shard), kind=str(chosen), reason=error.detail)
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
    n_calibration_queries = (
        0 if index is None or questions is None or len(questions) < QUESTIONS_MIN else len(questions)
    )
    curve = effort_curve(backend, index, chosen.kind, vectors, metric, questions) if index is not None else ()
    log_start, log_end = logged or (None, None)
    return SegmentRef(
        identity,
        objects,
        str(chosen),
        live.num_rows,
        n_documents,
        deletes.num_rows,
        time.time_ns() // 1_000_000,
        curve,
        log_start,
        log_end,
        n_calibration_queries,
    )


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
