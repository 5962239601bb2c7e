"""Chooses the effort of an index search, and measures a segment's effort curve.

An index is used at the least effort that clears the objective by its measured curve, else at the greatest
measured effort. A curve alone never disqualifies an index: it was measured on other searches (`scans.py`
says what does). A collection whose objective is 1 asks for exact search: no index is used, and no bound holds.
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
"""What the effort curve must show above the objective: two standard errors of a recall measured on 256 questions."""
EXACT: Final = 1.0
"""The objective that asks for exact search."""


def effort_for(segment: Segment, aim: float, objective: float) -> int | None:
    """The least effort whose measured recall clears the aim with a margin; the greatest measured if none does.

    Between two measured efforts recall is taken to rise evenly: it rises ever more slowly, so it is no less.
    None if the objective is to miss nothing: the search is exact by request.
    """
    if objective >= EXACT:
        return None
    wanted, curve = min(aim + EFFORT_MARGIN, 0.999), segment.ref.curve
    if not curve:
        return EFFORT_DEFAULT
    # Each hundredth that live recall adds is a rung, too: the curve may say of the least effort that it misses nothing.
    first = min(math.ceil(round(max(0.0, aim - objective) * 100, 6)), len(curve) - 1)
    for i, (effort, measured) in enumerate(curve):
        if measured >= wanted and i >= first:
            at_once = i == 0 or curve[i - 1][1] >= wanted
            return effort if at_once else _between(curve[i - 1], curve[i], wanted)
    return curve[-1][0]


def greatest_of(segment: Segment) -> int:
    """The greatest effort at which the segment's recall was measured."""
    return segment.ref.curve[-1][0] if segment.ref.curve else EFFORT_DEFAULT


def _between(low: tuple[int, float], high: tuple[int, float], wanted: float) -> int:
    share = (wanted - low[1]) / (high[1] - low[1])
    return math.ceil(low[0] + share * (high[0] - low[0]))


CURVE_QUERIES: Final = 200
RUNGS_MIN: Final = 6
"""One for each hundredth that the correction may add, and the first."""
QUESTIONS_MIN: Final = 30
"""Real questions that say more of recall than made-up ones."""


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
