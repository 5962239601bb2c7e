"""FAISS on GPUs: a GPU holds a copy of a segment's index. Only the CPU form is stored.

The CPU form answers whatever a GPU does not support or fails at: filters, a k beyond the GPU's
limit, other kinds, full memory. Segments are spread over the GPUs by their bytes. Scores are those
of the vectors, as on the CPU.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from indexer.backends import Mask, Rows, gpu_limits
from indexer.backends.cagra import is_placeable
from indexer.backends.cpu import CpuBackend
from indexer.backends.exact import fix_cancellation, rank_candidates
from indexer.backends.gpu_limits import by_free_bytes
from indexer.backends.gpu_worker import Busy, Failed, GpuWorker, NoRoom
from indexer.backends.indexes import Index, faiss_index
from indexer.backends.widths import width_for
from tenants.entities import Metric
from tenants.index_spec import IndexSpec, Kind
from vicinage.metrics import counter
from vicinage.records import Floats
from vicinage.telemetry import events

_event = events("searcher")
_fallbacks = counter("vicinage_searcher_device_fallbacks_total")


@dataclass(slots=True, eq=False, weakref_slot=True)
class Placed:
    """A segment's index and its copy on a GPU; `number` None: it has only its CPU form."""

    host: Index | None
    worker: GpuWorker
    number: int | None
    lists: int
    freed: Any = field(repr=False, default=None)

    @property
    def kind(self) -> Kind:
        """Returns the kind of the index."""
        return self.host.kind if self.host else "flat"

    def drop_copy(self) -> None:
        """Frees the copy; from now on the CPU answers."""
        self.number = None
        self.freed()


class GpuBackend:
    """See Backend. Uses one or more GPUs, with the CPU as fallback."""

    def __init__(self, devices: Sequence[GpuWorker]) -> None:
        assert devices, "without a GPU, use CpuBackend"
        self._workers = tuple(devices)
        self._cpu = CpuBackend()
        self._limits = devices[0].device.limits

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric, *, threads: int = 0) -> Any:
        """See Backend. Builds on the emptiest GPU and returns the CPU form."""
        for worker in (
            self._emptiest(0) if gpu_limits.builds(spec, len(vectors), self._limits) else ()
        ):
            try:
                return faiss_index(worker.build(np.ascontiguousarray(vectors), spec, metric))
            except (NoRoom, Busy, Failed) as error:
                _note_fallback("build", worker, error)
        return self._cpu.build(vectors, spec, metric, threads=threads)

    def save(self, index: Any, path: Path) -> None:
        """See Backend."""
        self._cpu.save(_host(index), path)

    def load(self, path: Path) -> Any:
        """See Backend. Returns the CPU form; `place` copies it to a GPU."""
        return self._cpu.load(path)

    def place(self, index: Any, vectors: Floats, metric: Metric) -> Any:
        """See Backend.

        Copies it to the emptiest GPU with room. If none has room, returns the CPU form.
        """
        kind: Kind = index.kind if index else "flat"
        n, d = vectors.shape
        if not gpu_limits.serves(kind, n, d, self._limits) or (index and not is_placeable(index)):
            return index
        spec = _spec(kind, index)
        need = gpu_limits.device_bytes(spec, n, d, self._limits)
        workers = self._emptiest(need)
        if not workers:
            _fallbacks.labels(NoRoom.reason).inc()
            _event.error("gpu.placement_refused", bytes=need)
        for worker in workers:
            try:
                return _placed(
                    index, worker, worker.place(index, vectors, metric, need), spec.lists
                )
            except (NoRoom, Busy, Failed) as error:
                _note_fallback("place", worker, error)
        return index

    def search(
        self,
        index: Any,
        vectors: Floats,
        queries: Floats,
        k: int,
        *,
        metric: Metric,
        effort: int,
        allowed: Mask | None,
    ) -> tuple[Floats, Rows]:
        """See Backend."""
        by_cpu = partial(
            self._cpu.search,
            _host(index),
            vectors,
            k=k,
            metric=metric,
            effort=effort,
            allowed=allowed,
        )
        rows = (
            self._rows(index, len(vectors), queries, k, effort, allowed)
            if isinstance(index, Placed)
            else None
        )
        if rows is None:
            return by_cpu(queries)
        scores, rows = rank_candidates(vectors, queries, rows, k, metric)
        if metric == "euclidean" and index.kind == "flat":
            fix_cancellation(vectors, queries, scores, rows, allowed)
        n_allowed = len(vectors) if allowed is None else int(np.count_nonzero(allowed))
        short = rows[:, min(k, n_allowed) - 1] < 0
        if short.any():
            scores[short], rows[short] = by_cpu(queries[short])
        return scores, rows

    def exact(
        self, vectors: Floats, queries: Floats, k: int, *, metric: Metric, allowed: Mask | None
    ) -> tuple[Floats, Rows]:
        """See Backend.

        Runs on the CPU: it searches deltas, which change, and serves checks, which must not depend
        on a GPU.
        """
        return self._cpu.exact(vectors, queries, k, metric=metric, allowed=allowed)

    def bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """See Backend. For ivfpq, a GPU builds other codes than the CPU: one byte per part."""
        if spec.kind == "ivfpq" and gpu_limits.builds(spec, n, self._limits):
            codes = self._cpu.bytes(IndexSpec("ivf", lists=spec.lists), n, d) - n * 4 * d
            return codes + n * gpu_limits.parts_for(d) + gpu_limits.CENTROIDS * d * 4
        return self._cpu.bytes(spec, n, d)

    def device_bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """See Backend."""
        return (
            gpu_limits.device_bytes(spec, n, d, self._limits)
            if gpu_limits.serves(spec.kind, n, d, self._limits)
            else 0
        )

    def _emptiest(self, need: int) -> tuple[GpuWorker, ...]:
        live = [worker for worker in self._workers if not worker.lost]
        return tuple(live[i] for i in by_free_bytes([worker.free() for worker in live], need))

    def _rows(
        self, index: Placed, n: int, queries: Floats, k: int, effort: int, allowed: Mask | None
    ) -> Rows | None:
        """Returns the allowed candidates of each query, −1 after them; None: the CPU answers."""
        number, n_allowed = index.number, n if allowed is None else int(np.count_nonzero(allowed))
        if number is None:
            return None
        width = width_for(index.host, n, n_allowed, k, effort) if index.host and n_allowed else None
        ask = gpu_limits.device_search(
            index.kind, self._limits, k=k, width=width, n=n, n_allowed=n_allowed, lists=index.lists
        )
        if ask is None:
            return None
        try:
            return _only(index.worker.search(number, queries, ask), allowed)
        except (NoRoom, Failed) as error:
            _note_fallback("search", index.worker, error)
            index.drop_copy()
        except Busy as error:
            _note_fallback("search", index.worker, error)
        return None


def _note_fallback(what: str, worker: GpuWorker, error: NoRoom | Busy | Failed) -> None:
    """Counts and logs that the CPU does the work instead of the GPU."""
    _fallbacks.labels(error.reason).inc()
    if not isinstance(error, Busy):
        _event.error("gpu.work_failed", work=what, device=worker.device.name, error=str(error))


def _placed(index: Index | None, worker: GpuWorker, number: int, lists: int) -> Placed:
    placed = Placed(index, worker, number, lists)
    placed.freed = weakref.finalize(placed, worker.release, number)
    placed.freed.atexit = False
    return placed


def _host(index: Any) -> Any:
    return index.host if isinstance(index, Placed) else index


def _spec(kind: Kind, index: Index | None) -> IndexSpec:
    """Returns the parameters of the index that decide its size: its lists, or its links."""
    if index is None:
        return IndexSpec(kind)
    if kind == "hnsw":
        return IndexSpec(kind, m=int(index.faiss.hnsw.nb_neighbors(0)) // 2)
    return IndexSpec(kind, lists=int(index.faiss.nlist))


def _only(rows: Rows, allowed: Mask | None) -> Rows:
    """Returns the allowed rows in their order, −1 after them."""
    right = rows >= 0 if allowed is None else (rows >= 0) & allowed[rows]
    order = np.argsort(~right, axis=1, kind="stable")
    return np.where(np.take_along_axis(right, order, 1), np.take_along_axis(rows, order, 1), -1)
