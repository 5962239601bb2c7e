"""Exact search: compares queries with the vectors themselves, by FAISS or by a matrix product."""

from typing import Final

import faiss
import numpy as np
from faiss import swig_ptr

from indexer.backends import Mask, Rows
from indexer.backends.indexes import faiss_metric
from tenants.entities import Metric
from vicinage.records import Floats

GATHER_SHARE: Final = 0.25
"""Allowed share below which many queries compare with a copy of the allowed rows, not all rows."""
FEW_QUERIES: Final = 2
"""Most queries that score scattered rows one by one; more use a matrix product over a copy."""
CELLS_MAX: Final = 16 << 20
"""Scores held at once (queries × rows) by one exact scan: 64 MiB."""
CANCELLATION_RATIO: Final = 0.01
"""Squared distance over squared query length below which float32 is too inaccurate.

About two of its seven digits are lost there.
"""
BLAS_FROM: Final = 3 * 384
"""FAISS's BLAS threshold: queries × d from which it uses a matrix product. Its default is 128,000.

Exact scans of copied rows are about 7 × cheaper by matrix product. One or two queries are not: for
1,536 numbers over 5,000 rows they take 5.8 ms by matrix product and 2.7 ms without, so they never
use it.
"""


def set_blas_threshold() -> None:
    """Sets FAISS's threshold for this process."""
    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM


def exact_search(
    vectors: Floats, queries: Floats, k: int, metric: Metric, allowed: Mask | None
) -> tuple[Floats, Rows]:
    """Returns scores and rows [n, k] of the nearest allowed rows; −∞ and −1 beyond the last."""
    if allowed is None:
        scores, rows = _knn(queries, vectors, k, metric)
    else:
        scores, rows = _knn_allowed(vectors, queries, k, metric, allowed)
    if metric == "euclidean":
        fix_cancellation(vectors, queries, scores, rows, allowed)
    return _padded(scores, rows, k)


def rank_candidates(
    vectors: Floats, queries: Floats, rows: Rows, k: int, metric: Metric
) -> tuple[Floats, Rows]:
    """Returns the k best of each query's candidate rows [n, c], scored by their vectors.

    `rows` has −1 after a query's last candidate. Rows [c] are the candidates of every query. The
    result has −1 where there are fewer than k.
    """
    rows = np.ascontiguousarray(rows)
    scores, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    score = faiss.knn_L2sqr_by_idx if metric == "euclidean" else faiss.knn_inner_products_by_idx
    # NOTE: the stride is given because FAISS 1.15 mishandles its own default (−1): it reads the
    # second query's rows out of bounds.
    n, c, d = len(queries), rows.shape[-1], vectors.shape[1]
    stride = c if rows.ndim > 1 else 0
    pointers = (swig_ptr(queries), swig_ptr(vectors), swig_ptr(rows))
    score(*pointers, d, n, len(vectors), c, k, swig_ptr(scores), swig_ptr(found), stride)
    return (-scores if metric == "euclidean" else scores), found


def fix_cancellation(
    vectors: Floats, queries: Floats, scores: Floats, rows: Rows, allowed: Mask | None
) -> None:
    """Corrects, in place, Euclidean distances that a matrix product computed inaccurately.

    |q|² + |v|² − 2·q·v cancels where distances are small beside the lengths of the vectors. Such
    queries are scored again by differences. If the mean of the vectors is far from zero, no digit
    of the distance may be right otherwise.
    """
    if rows.shape[1] == 0:
        return
    doubtful = -scores[:, -1] < CANCELLATION_RATIO * np.einsum("ij,ij->i", queries, queries)
    if doubtful.any():
        candidates = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
        for i in np.flatnonzero(doubtful):
            scores[i], rows[i] = rank_candidates(
                vectors, queries[i : i + 1], candidates, rows.shape[1], "euclidean"
            )


def _knn(queries: Floats, vectors: Floats, k: int, metric: Metric) -> tuple[Floats, Rows]:
    k = min(k, len(vectors))
    if k == 0:
        return _no_rows(len(queries))
    if len(queries) <= FEW_QUERIES and len(queries) * vectors.shape[1] >= BLAS_FROM:
        return rank_candidates(vectors, queries, np.arange(len(vectors)), k, metric)
    scores, rows = faiss.knn(queries, vectors, k, metric=faiss_metric(metric))
    return (-scores if metric == "euclidean" else scores), rows


def _knn_allowed(
    vectors: Floats, queries: Floats, k: int, metric: Metric, allowed: Mask
) -> tuple[Floats, Rows]:
    """Returns the nearest allowed rows by the cheapest scan.

    Few queries score the allowed rows in place. Many queries score a copy if few rows are allowed,
    else every row, with the others masked.
    """
    candidates = np.flatnonzero(allowed)
    k = min(k, len(candidates))
    if k == 0:
        return _no_rows(len(queries))
    if len(queries) <= FEW_QUERIES:
        return rank_candidates(vectors, queries, candidates, k, metric)
    if len(candidates) <= GATHER_SHARE * len(allowed):
        scores, rows = _knn(queries, np.ascontiguousarray(vectors[candidates]), k, metric)
        return scores, candidates[rows]
    step = max(1, CELLS_MAX // len(vectors))
    blocks = [
        _masked(vectors, queries[i : i + step], k, metric, allowed)
        for i in range(0, len(queries), step)
    ]
    return np.concatenate([s for s, _ in blocks]), np.concatenate([r for _, r in blocks])


def _masked(
    vectors: Floats, queries: Floats, k: int, metric: Metric, allowed: Mask
) -> tuple[Floats, Rows]:
    """Scores every row by one matrix product and keeps the k best allowed ones.

    k is at most the number of allowed rows.
    """
    scores = queries @ vectors.T
    if metric == "euclidean":
        scores = (
            2 * scores
            - np.einsum("ij,ij->i", vectors, vectors)
            - np.einsum("ij,ij->i", queries, queries)[:, None]
        )
    scores = np.where(allowed, scores, -np.inf).astype(np.float32)
    part = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(scores, part, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(part, order, axis=1)


def _no_rows(n: int) -> tuple[Floats, Rows]:
    return np.empty((n, 0), np.float32), np.empty((n, 0), np.int64)


def _padded(scores: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
    missing = k - rows.shape[1]
    if missing <= 0:
        return scores, rows
    n = len(rows)
    none = np.full((n, missing), -np.inf, np.float32)
    return np.hstack([scores, none]), np.hstack([rows, np.full((n, missing), -1, np.int64)])
