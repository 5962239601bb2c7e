"""FAISS on the CPU."""

import os
import threading
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np

from indexer.backends import IndexSpec, Mask, Rows
from tenants.entities import Metric
from vicinage.errors import Corrupt
from vicinage.records import Floats

EXACT_ROWS: Final = 2_000
"""Up to this many allowed rows, looking at each is cheaper than walking the graph."""
EXACT_SHARE: Final = 0.1
"""Below this share of allowed rows HNSW's recall collapses (it only post-checks what its beam meets)."""
GATHER_SHARE: Final = 0.25
"""Below this share, copying the allowed rows together is cheaper than scoring all."""
EFFORT_MAX: Final = 4_096
CELLS_MAX: Final = 16 << 20
"""Scores held at once (questions × rows) by one exact scan: 64 MiB."""
CANCELS_BELOW: Final = 0.01
"""A squared distance below this share of the question's squared length has lost about two of float32's seven digits."""
BLOCK_ROWS: Final = 4_096
_BLAS_FROM: Final = 3 * 384
"""FAISS compares n queries × d with its own 128,000; gathered exact scans are about 7 × cheaper by matrix product."""

_thread = threading.local()


class CpuBackend:
    """See Backend. Immutable indexes only: nothing is ever added under a reader."""

    def __init__(self) -> None:
        faiss.cvar.distance_compute_blas_threshold = _BLAS_FROM
        _self_test(self)

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric, *, threads: int = 0) -> Any:
        """See Backend."""
        if spec.kind == "flat":
            return None
        _use_threads(threads or os.cpu_count() or 1)
        index = faiss.IndexHNSWFlat(vectors.shape[1], spec.m, _faiss_metric(metric))
        index.hnsw.efConstruction = spec.ef_construction
        index.add(np.ascontiguousarray(vectors))
        return index

    def save(self, index: Any, path: Path) -> None:
        """See Backend."""
        faiss.write_index(index, str(path))

    def load(self, path: Path) -> Any:
        """See Backend."""
        try:
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise Corrupt(f"{path.name} is no FAISS index: {str(error)[:200]}", path=str(path)) from error

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
        if index is None:
            return self.exact(vectors, queries, k, metric=metric, allowed=allowed)
        _use_threads(1)
        n_allowed = len(vectors) if allowed is None else int(np.count_nonzero(allowed))
        if allowed is None:
            parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k))
        elif n_allowed <= max(EXACT_ROWS, k) or n_allowed < EXACT_SHARE * len(allowed):
            return self.exact(vectors, queries, k, metric=metric, allowed=allowed)
        else:
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            raised = min(EFFORT_MAX, effort * len(allowed) // n_allowed)
            parameters = faiss.SearchParametersHNSW(efSearch=max(raised, k), sel=selector)
        scores, rows = index.search(queries, k, params=parameters)
        if metric == "euclidean":
            scores = -scores
        # The graph loses what its beam cannot reach: rows behind many equal ones, or ruled out along the way.
        short = rows[:, min(k, n_allowed) - 1] < 0
        if short.any():
            scores[short], rows[short] = self.exact(vectors, queries[short], k, metric=metric, allowed=allowed)
        return scores, rows

    def exact(
        self, vectors: Floats, queries: Floats, k: int, *, metric: Metric, allowed: Mask | None
    ) -> tuple[Floats, Rows]:
        """See Backend."""
        _use_threads(1)
        if allowed is None:
            scores, rows = _knn(queries, vectors, k, metric)
        else:
            scores, rows = _chosen(vectors, queries, k, metric, allowed)
        if metric == "euclidean":
            _rescore(vectors, queries, scores, rows, allowed)
        return _padded(scores, rows, k)

    def bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """Flat adds nothing to the vectors; HNSW holds a copy of them and its links (2·M at the bottom, 4 bytes each)."""
        return 0 if spec.kind == "flat" else n * (d * 4 + spec.m * 2 * 4 + 20)


def _knn(queries: Floats, vectors: Floats, k: int, metric: Metric) -> tuple[Floats, Rows]:
    k = min(k, len(vectors))
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    scores, rows = faiss.knn(queries, vectors, k, metric=_faiss_metric(metric))
    return (-scores if metric == "euclidean" else scores), rows


def _chosen(vectors: Floats, queries: Floats, k: int, metric: Metric, allowed: Mask) -> tuple[Floats, Rows]:
    """Few allowed rows are copied together; of many, every row is scored and the others ruled out, by blocks."""
    places = np.flatnonzero(allowed)
    if len(places) <= GATHER_SHARE * len(allowed):
        scores, rows = _knn(queries, np.ascontiguousarray(vectors[places]), k, metric)
        return scores, places[rows]
    step = max(1, CELLS_MAX // len(vectors))
    k = min(k, len(places))
    blocks = [_masked(vectors, queries[i : i + step], k, metric, allowed) for i in range(0, len(queries), step)]
    return np.concatenate([s for s, _ in blocks]), np.concatenate([r for _, r in blocks])


def _masked(vectors: Floats, queries: Floats, k: int, metric: Metric, allowed: Mask) -> tuple[Floats, Rows]:
    """Score every row by one matrix product, rule out what is not allowed, keep the k best (k at most the allowed)."""
    scores = queries @ vectors.T
    if metric == "euclidean":
        scores = 2 * scores - np.einsum("ij,ij->i", vectors, vectors) - np.einsum("ij,ij->i", queries, queries)[:, None]
    scores = np.where(allowed, scores, -np.inf).astype(np.float32)
    part = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(scores, part, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(part, order, axis=1)


def _rescore(vectors: Floats, queries: Floats, scores: Floats, rows: Rows, allowed: Mask | None) -> None:
    """Mend, in place, what a matrix product gets wrong of Euclidean distances.

    |q|² + |v|² − 2·q·v cancels where distances are small beside the vectors' lengths; such questions are scored again by
    differences. (Of vectors whose mean is far from zero, no digit of the distance may be right otherwise.)
    """
    if rows.shape[1] == 0:
        return
    doubtful = -scores[:, -1] < CANCELS_BELOW * np.einsum("ij,ij->i", queries, queries)
    candidates = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    for i in np.flatnonzero(doubtful):
        every = np.concatenate(
            [
                -np.square(vectors[candidates[at : at + BLOCK_ROWS]] - queries[i]).sum(axis=1)
                for at in range(0, len(candidates), BLOCK_ROWS)
            ]
        )
        best = np.argsort(-every, kind="stable")[: rows.shape[1]]
        scores[i], rows[i] = every[best], candidates[best]


def _padded(scores: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
    missing = k - rows.shape[1]
    if missing <= 0:
        return scores, rows
    n = len(rows)
    none = np.full((n, missing), -np.inf, np.float32)
    return np.hstack([scores, none]), np.hstack([rows, np.full((n, missing), -1, np.int64)])


def _faiss_metric(metric: Metric) -> int:
    return int(faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT)


def _use_threads(n: int) -> None:
    """OpenMP's thread count belongs to the calling thread: each must set its own."""
    if getattr(_thread, "n", None) != n:
        faiss.omp_set_num_threads(n)
        _thread.n = n


def _self_test(backend: CpuBackend) -> None:
    """Fail closed where the installed wheel does not honour a selector: some FAISS indexes ignore it in silence."""
    vectors = np.eye(8, 16, dtype=np.float32)
    index = backend.build(vectors, IndexSpec("hnsw", 8), "dot", threads=1)
    bitmap = np.packbits(np.arange(8) >= 4, bitorder="little")
    selector = faiss.IDSelectorBitmap(bitmap)
    _, rows = index.search(vectors[:1], 4, params=faiss.SearchParametersHNSW(efSearch=16, sel=selector))
    if set(rows[0].tolist()) - {4, 5, 6, 7, -1}:
        raise RuntimeError(
            f"faiss {faiss.__version__} ignores selectors on HNSW: filters cannot be trusted; install another wheel"
        )
