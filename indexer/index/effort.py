"""Chooses the effort of an index search, and measures a segment's effort curve.

An index is searched at the least effort whose measured recall exceeds the objective, else at the
greatest measured effort. A curve alone never disqualifies an index: it was measured on other
searches (`scans.py` states what does). An objective of 1 asks for exact search: no index is used,
and no bound on scans applies.
"""

import math
from typing import Any, Final

import numpy as np

from indexer.backends import EFFORTS, K_MEASURED, Backend, Rows
from indexer.index.segment import Segment
from tenants.entities import Metric
from tenants.index_spec import Kind
from vicinage.records import Floats

EFFORT_DEFAULT: Final = 64
EFFORT_MARGIN: Final = 0.01
"""Margin of the curve above the objective: two standard errors of recall on 256 queries."""
EXACT: Final = 1.0
"""The objective that asks for exact search."""


def effort_for(segment: Segment, aim: float, objective: float) -> int | None:
    """Returns the least effort whose measured recall exceeds the aim by EFFORT_MARGIN.

    If none does, returns the greatest measured effort. Interpolates linearly between measured
    efforts: recall rises ever more slowly, so the line underestimates it. Returns None if the
    objective is EXACT: the search is exact by request.
    """
    if objective >= EXACT:
        return None
    wanted, curve = min(aim + EFFORT_MARGIN, 0.999), segment.ref.curve
    if not curve:
        return EFFORT_DEFAULT
    # Each hundredth of the correction by live recall also skips a measured effort: an easy curve
    # may be 1 from the start.
    first = min(math.ceil(round(max(0.0, aim - objective) * 100, 6)), len(curve) - 1)
    for i, (effort, measured) in enumerate(curve):
        if measured >= wanted and i >= first:
            at_once = i == 0 or curve[i - 1][1] >= wanted
            return effort if at_once else _between(curve[i - 1], curve[i], wanted)
    return curve[-1][0]


def greatest_of(segment: Segment) -> int:
    """Returns the greatest effort at which the segment's recall was measured."""
    return segment.ref.curve[-1][0] if segment.ref.curve else EFFORT_DEFAULT


def _between(low: tuple[int, float], high: tuple[int, float], wanted: float) -> int:
    share = (wanted - low[1]) / (high[1] - low[1])
    return math.ceil(low[0] + share * (high[0] - low[0]))


CURVE_QUERIES: Final = 200
RUNGS_MIN: Final = 6
"""One effort for each hundredth that the correction may add, and the first."""
CALIBRATION_QUERIES_MIN: Final = 30
"""The least number of recent queries that replaces generated ones."""


def effort_curve(
    backend: Backend,
    index: Any,
    kind: Kind,
    vectors: Floats,
    metric: Metric,
    recent_queries: Floats | None = None,
) -> tuple[tuple[int, float], ...]:
    """Returns (effort, recall@10), ascending.

    Ends at a recall of 0.999, but not before RUNGS_MIN efforts: if live recall proves the queries
    too easy, the greater efforts are needed. Measured on the collection's `recent_queries` float32
    [n, d] if there are CALIBRATION_QUERIES_MIN, else on generated queries.
    """
    k = min(K_MEASURED, len(vectors) - 1)
    if k < 1:
        return ()
    known = recent_queries is not None and len(recent_queries) >= CALIBRATION_QUERIES_MIN
    queries = (
        recent_queries if recent_queries is not None and known else _generated(vectors, metric)
    )
    _, truth = backend.exact(vectors, queries, k, metric=metric, allowed=None)
    curve: list[tuple[int, float]] = []
    for effort in EFFORTS[kind]:
        _, rows = backend.search(
            index, vectors, queries, k, metric=metric, effort=effort, allowed=None
        )
        curve.append((effort, round(recall(rows, truth), 4)))
        if curve[-1][1] >= 0.999 and len(curve) >= RUNGS_MIN:
            break
    return tuple(curve)


def _generated(vectors: Floats, metric: Metric) -> Floats:
    """Returns queries float32 [n, d], each the mean of two vectors of the segment.

    Like real queries, they lie between the passages. A passage itself is too easy a query: its
    neighbors in the graph are its answer (docs/decisions/010 has the figures).
    """
    rng = np.random.default_rng(0)
    own = rng.choice(len(vectors), min(CURVE_QUERIES, len(vectors)), replace=False)
    queries = np.ascontiguousarray((vectors[own] + vectors[rng.permutation(own)]) / 2, np.float32)
    if metric == "cosine":
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.float32(1e-12))
    return queries


def recall(found: Rows, truth: Rows) -> float:
    """Returns the share of `truth` [n, k] that is in `found` [n, k], averaged over rows."""
    return float(
        np.mean(
            [len(np.intersect1d(f, t)) / max(1, len(t)) for f, t in zip(found, truth, strict=True)]
        )
    )
