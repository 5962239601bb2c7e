"""FAISS on the CPU.

Recall under a filter: FAISS's own selector on a graph only post-checks what the beam meets, and
says nothing when the beam met the wrong part of it. So a graph is walked without the filter, wide
enough that the k-th allowed row is expected well inside the beam (`beam_for`). Where it lies then
says how selective the filter is around this very question: too near the beam's end, as under a
filter that runs against the question, and it is walked once more, wider; still too near, and the
question is answered exactly.
"""

import math
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from faiss import swig_ptr

from indexer.backends import K_MEASURED, Mask, Rows, lists_for
from tenants.entities import Metric
from tenants.index_spec import IndexSpec, Kind
from vicinage.errors import Corrupt, Refused
from vicinage.metrics import counter
from vicinage.records import Floats

ROWS_PER_STEP: Final = 30
"""Looking at so many scattered rows (384 numbers) costs what one step of a beam does: 0.058 µs a row, 1.7 µs a step."""
DEPTH_STEPS: Final = 1.25
"""Steps of the beam for each rank beyond the tenth, at which recall stays what it was at the tenth."""
SURE: Final = 0.8
"""Of the beam that the place of the k-th allowed row asks for, so much is enough: about one question in twenty is walked again."""
WALKS: Final = 2
BEAM_MAX: Final = 4_096
GRAPH_CANDIDATES: Final = 2
"""So many times k candidates of a graph with codes are scored again from their vectors: a byte a number loses a hundredth at one."""
LIST_CANDIDATES: Final = 5
"""The same for lists with codes of a bit a number, at least; more where more lists are looked at."""
WIDE_SHARE: Final = 0.9
"""Above it the allowed rows lie in an IVF's lists as all rows do; below it, no list is left out."""
QUERY_BITS: Final = 4
"""Of a question's numbers where codes are of one bit: by popcount, 150 × faster than without (FAISS's default); recall is the same."""
GATHER_SHARE: Final = 0.25
"""Below this share, copying the allowed rows together for many questions is cheaper than scoring all."""
FEW_QUESTIONS: Final = 2
"""So many are compared with scattered rows one by one; more, by a matrix product over a copy."""
CELLS_MAX: Final = 16 << 20
"""Scores held at once (questions × rows) by one exact scan: 64 MiB."""
CANCELS_BELOW: Final = 0.01
"""A squared distance below this share of the question's squared length has lost about two of float32's seven digits."""
_BLAS_FROM: Final = 3 * 384
"""FAISS compares n queries × d with its own 128,000; gathered exact scans are about 7 × cheaper by matrix product.

One or two questions are not: of 1,536 numbers, 5.8 ms by matrix product over 5,000 rows, 2.7 without; so those never go that way.
"""

_thread = threading.local()
_short = counter("vicinage_searcher_index_short_total")


@dataclass(frozen=True, slots=True)
class Index:
    """A FAISS index, and what it is; `coded`: its own scores are of codes, not of the vectors."""

    faiss: Any
    kind: Kind
    coded: bool


class CpuBackend:
    """See Backend. Immutable indexes only: nothing is ever added under a reader."""

    def __init__(self) -> None:
        faiss.cvar.distance_compute_blas_threshold = _BLAS_FROM
        _self_test()

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric, *, threads: int = 0) -> Any:
        """See Backend."""
        if spec.kind == "flat":
            return None
        _use_threads(threads or max(1, (os.cpu_count() or 1) // 2))
        vectors = np.ascontiguousarray(vectors)
        try:
            index = empty(spec, len(vectors), vectors.shape[1], faiss_metric(metric))
            index.train(vectors)
            index.add(vectors)
        except (
            RuntimeError
        ) as error:  # FAISS's own: one tenant's spec and vectors are no reason to end for all
            raise Refused(
                f"no index of {spec} over {vectors.shape}: {str(error)[:200]}", field="index"
            ) from error
        return faiss_index(index)

    def save(self, index: Any, path: Path) -> None:
        """See Backend."""
        faiss.write_index(index.faiss, str(path))

    def load(self, path: Path) -> Any:
        """See Backend."""
        try:
            return faiss_index(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
        except (RuntimeError, KeyError) as error:
            raise Corrupt(
                f"{path.name} is no FAISS index of ours: {str(error)[:200]}", path=str(path)
            ) from error

    def place(self, index: Any, vectors: Floats, metric: Metric) -> Any:  # noqa: ARG002  (of the protocol)
        """See Backend. It lies where it is searched."""
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
        queries = np.ascontiguousarray(queries, np.float32)
        n_allowed = len(vectors) if allowed is None else int(np.count_nonzero(allowed))
        width = None if index is None else width_for(index, len(vectors), n_allowed, k, effort)
        if width is None:
            return self.exact(vectors, queries, k, metric=metric, allowed=allowed)
        _use_threads(1)
        if index.kind == "hnsw" and allowed is not None:
            scores, rows = (
                np.empty(0, np.float32),
                _walk_allowed(index, queries, k, effort, width, allowed, n_allowed),
            )
        else:
            find = {"hnsw": _walk, "ivf": _probe, "ivfpq": _probe, "rabitq": _scan}[index.kind]
            scores, rows = find(index, queries, k, width, allowed)
        if index.coded or allowed is not None:
            scores, rows = scored(vectors, queries, rows, k, metric)
        elif metric == "euclidean":
            scores = -scores
        # An index loses what it does not reach: rows behind many equal ones, or ruled out along the
        # way.
        short = rows[:, min(k, n_allowed) - 1] < 0
        if short.any():
            _short.inc(int(short.sum()))
            scores[short], rows[short] = self.exact(
                vectors, queries[short], k, metric=metric, allowed=allowed
            )
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
            mend(vectors, queries, scores, rows, allowed)
        return _padded(scores, rows, k)

    def bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """See Backend.

        A graph holds codes and links (2·M at the bottom, 4 bytes each); lists hold codes, ids and
        centroids.
        """
        lists = lists_for(spec, n) if n else 0
        if spec.kind == "flat" or not n:
            return 0
        if spec.kind == "hnsw":
            upper = 4 * spec.m // (spec.m - 1)
            return n * (d * (1 if spec.codes == "sq8" else 4) + spec.m * 2 * 4 + 12 + upper)
        if spec.kind == "ivf":
            return n * (d * 4 + 8) + lists * d * 4
        if spec.kind == "ivfpq":  # lists of four-bit codes are padded to 32 rows
            return (n + 16 * lists) * ((_parts(d) + 1) // 2) + n * 8 + (lists + 16) * d * 4
        return n * ((d + 7) // 8 + 8) + d * 4

    def device_bytes(self, spec: IndexSpec, n: int, d: int) -> int:  # noqa: ARG002  (of the protocol)
        """See Backend."""
        return 0


def beam_for(effort: int, depth: float) -> int:
    """The beam in which the row of that rank is found as surely as the tenth is at `effort`.

    Pure.
    """
    return math.ceil(_needed(effort, depth))


def _needed(effort: int, depth: float) -> float:
    """The same, not rounded."""
    return max(effort + DEPTH_STEPS * max(0.0, depth - K_MEASURED), depth)


def width_for(index: Index, n: int, n_allowed: int, k: int, effort: int) -> int | None:
    """How wide to search: beam, lists or candidates; None where looking at each allowed row is cheaper, or surer. Pure."""
    if n_allowed == 0:
        return None
    share = n_allowed / n
    if index.kind == "hnsw":
        beam = beam_for(effort, k / share)
        return beam if _pays(beam, n_allowed) else None
    if n_allowed <= ROWS_PER_STEP * max(effort, k):
        return None
    if index.kind == "rabitq":
        return math.ceil(effort * max(k, K_MEASURED) / K_MEASURED)
    return (
        max(effort, int(index.faiss.nlist))
        if share < WIDE_SHARE
        else math.ceil(effort / share * math.sqrt(max(1, k / K_MEASURED)))
    )


def _pays(beam: int, n_allowed: int) -> bool:
    return beam <= BEAM_MAX and n_allowed > ROWS_PER_STEP * beam


def _walk(
    index: Index, queries: Floats, k: int, beam: int, _allowed: Mask | None
) -> tuple[Floats, Rows]:
    """A graph without a filter."""
    return _met(
        index, queries, min(max(k, K_MEASURED) * GRAPH_CANDIDATES, beam) if index.coded else k, beam
    )


def _met(index: Index, queries: Floats, take: int, beam: int) -> tuple[Floats, Rows]:
    """The best `take` of each question's beam.

    FAISS's own Python around the call costs as much as a tenth of it.
    """
    n = len(queries)
    scores, rows = np.empty((n, take), np.float32), np.empty((n, take), np.int64)
    index.faiss.search_c(n, swig_ptr(queries), take, swig_ptr(scores), swig_ptr(rows), _beam(beam))
    return scores, rows


@lru_cache(512)
def _beam(width: int) -> Any:
    """FAISS reads it only: one is enough for every thread."""
    return faiss.SearchParametersHNSW(efSearch=width)


def _walk_allowed(
    index: Index, queries: Floats, k: int, effort: int, beam: int, allowed: Mask, n_allowed: int
) -> Rows:
    """Of each question the allowed rows of its beam, −1 behind them; a question that no walk is sure of has none."""
    sure_of: dict[int, Rows] = {}
    unsure = list(range(len(queries)))
    for _ in range(WALKS):
        _, met = _met(index, queries[unsure], beam, beam)
        needed, still = 0.0, []
        for i, rows in zip(unsure, met, strict=True):
            reached = rows if rows[-1] >= 0 else rows[rows >= 0]
            places = np.flatnonzero(allowed[reached])
            held = len(places)
            # Where the k-th allowed row lies; where there are fewer, where it would at their share
            # of the beam.
            depth = int(places[k - 1]) + 1 if held >= k else beam * k / max(held, 0.5)
            wanted = _needed(effort, depth)
            if held >= k and beam >= SURE * wanted:
                sure_of[i] = reached[places]
            else:
                needed = max(needed, wanted)
                still.append(i)
        unsure, beam = still, math.ceil(needed)
        if not unsure or not _pays(beam, n_allowed):
            break
    found = np.full((len(queries), max(map(len, sure_of.values()), default=k)), -1, np.int64)
    for i, rows in sure_of.items():
        found[i, : len(rows)] = rows
    return found


def _probe(
    index: Index, queries: Floats, k: int, lists: int, allowed: Mask | None
) -> tuple[Floats, Rows]:
    """Lists: FAISS honours a selector inside each.

    Beyond the last list only the candidates become more.
    """
    candidates = max(k, K_MEASURED) * max(LIST_CANDIDATES, lists // 5)
    take = min(candidates, int(index.faiss.ntotal)) if index.coded else k
    parameters = faiss.SearchParametersIVF(
        nprobe=min(lists, int(index.faiss.nlist)), sel=_selector(allowed)
    )
    return index.faiss.search(queries, take, params=parameters)  # type: ignore[no-any-return]


def _scan(
    index: Index, queries: Floats, _k: int, candidates: int, allowed: Mask | None
) -> tuple[Floats, Rows]:
    """Codes of one bit a number: every allowed row is looked at."""
    parameters = faiss.RaBitQSearchParameters(qb=QUERY_BITS, sel=_selector(allowed))
    return index.faiss.search(queries, candidates, params=parameters)  # type: ignore[no-any-return]


def _selector(allowed: Mask | None) -> Any:
    return (
        None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    )


def scored(
    vectors: Floats, queries: Floats, rows: Rows, k: int, metric: Metric
) -> tuple[Floats, Rows]:
    """The k best of each question's candidate rows [n, c], −1 behind them, by their vectors; −1 where there are fewer."""
    rows = np.ascontiguousarray(rows)
    scores, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    score = faiss.knn_L2sqr_by_idx if metric == "euclidean" else faiss.knn_inner_products_by_idx
    # NOTE: the stride is given: FAISS 1.15's own default for it (−1) reads the second question's
    # rows from nowhere.
    n, c, d = len(queries), rows.shape[-1], vectors.shape[1]
    stride = c if rows.ndim > 1 else 0
    places = (swig_ptr(queries), swig_ptr(vectors), swig_ptr(rows))
    score(*places, d, n, len(vectors), c, k, swig_ptr(scores), swig_ptr(found), stride)
    return (-scores if metric == "euclidean" else scores), found


def empty(spec: IndexSpec, n: int, d: int, metric: int) -> Any:
    """An index of the kind, not trained yet."""
    if spec.kind == "hnsw":
        if spec.codes == "sq8":
            index = faiss.IndexHNSWSQ(d, faiss.ScalarQuantizer.QT_8bit, spec.m, metric)
        else:
            index = faiss.IndexHNSWFlat(d, spec.m, metric)
        index.hnsw.efConstruction = spec.ef_construction
        return index
    if spec.kind == "rabitq":
        return faiss.IndexRaBitQ(d, metric)
    codes = "Flat" if spec.kind == "ivf" else f"PQ{_parts(d)}x4fs"
    return faiss.index_factory(d, f"IVF{lists_for(spec, n)},{codes}", metric)


def _parts(d: int) -> int:
    """Parts into which a vector is cut for product quantisation: four numbers each, where that comes out even."""
    return d // next(size for size in (4, 3, 2, 1) if d % size == 0)


def faiss_index(index: Any) -> Index:
    """What a FAISS index is. Raises KeyError for one that we do not make."""
    kinds: dict[str, tuple[Kind, bool]] = {
        "IndexHNSWFlat": ("hnsw", False),
        "IndexHNSWSQ": ("hnsw", True),
        "IndexIVFFlat": ("ivf", False),
        "IndexIVFPQ": ("ivfpq", True),  # as a GPU makes them
        "IndexIVFPQFastScan": ("ivfpq", True),
        "IndexRaBitQ": ("rabitq", True),
    }
    return Index(index, *kinds[type(index).__name__])


def _knn(queries: Floats, vectors: Floats, k: int, metric: Metric) -> tuple[Floats, Rows]:
    k = min(k, len(vectors))
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    if len(queries) <= FEW_QUESTIONS and len(queries) * vectors.shape[1] >= _BLAS_FROM:
        return scored(vectors, queries, np.arange(len(vectors)), k, metric)
    scores, rows = faiss.knn(queries, vectors, k, metric=faiss_metric(metric))
    return (-scores if metric == "euclidean" else scores), rows


def _chosen(
    vectors: Floats, queries: Floats, k: int, metric: Metric, allowed: Mask
) -> tuple[Floats, Rows]:
    """Few questions look at the allowed rows where they lie; many, at a copy of few rows, or at every row with the others ruled out."""
    places = np.flatnonzero(allowed)
    if len(places) == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    if len(queries) <= FEW_QUESTIONS:
        return scored(vectors, queries, places, min(k, len(places)), metric)
    if len(places) <= GATHER_SHARE * len(allowed):
        scores, rows = _knn(queries, np.ascontiguousarray(vectors[places]), k, metric)
        return scores, places[rows]
    step = max(1, CELLS_MAX // len(vectors))
    k = min(k, len(places))
    blocks = [
        _masked(vectors, queries[i : i + step], k, metric, allowed)
        for i in range(0, len(queries), step)
    ]
    return np.concatenate([s for s, _ in blocks]), np.concatenate([r for _, r in blocks])


def _masked(
    vectors: Floats, queries: Floats, k: int, metric: Metric, allowed: Mask
) -> tuple[Floats, Rows]:
    """Score every row by one matrix product, rule out what is not allowed, keep the k best (k at most the allowed)."""
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


def mend(
    vectors: Floats, queries: Floats, scores: Floats, rows: Rows, allowed: Mask | None
) -> None:
    """Mend, in place, what a matrix product gets wrong of Euclidean distances.

    |q|² + |v|² − 2·q·v cancels where distances are small beside the vectors' lengths; such questions are scored again by
    differences. (Of vectors whose mean is far from zero, no digit of the distance may be right otherwise.)
    """
    if rows.shape[1] == 0:
        return
    doubtful = -scores[:, -1] < CANCELS_BELOW * np.einsum("ij,ij->i", queries, queries)
    if doubtful.any():
        candidates = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
        for i in np.flatnonzero(doubtful):
            scores[i], rows[i] = scored(
                vectors, queries[i : i + 1], candidates, rows.shape[1], "euclidean"
            )


def _padded(scores: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
    missing = k - rows.shape[1]
    if missing <= 0:
        return scores, rows
    n = len(rows)
    none = np.full((n, missing), -np.inf, np.float32)
    return np.hstack([scores, none]), np.hstack([rows, np.full((n, missing), -1, np.int64)])


def faiss_metric(metric: Metric) -> int:
    """FAISS's number of it: unit vectors' cosine is their inner product."""
    return int(faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT)


def _use_threads(n: int) -> None:
    """OpenMP's thread count belongs to the calling thread: each must set its own."""
    if getattr(_thread, "n", None) != n:
        faiss.omp_set_num_threads(n)
        _thread.n = n


def _self_test() -> None:
    """Fail closed where the installed wheel does not honour a selector: some FAISS indexes ignore it in silence."""
    vectors = np.eye(8, 16, dtype=np.float32)
    parameters = faiss.SearchParametersIVF(nprobe=1, sel=_selector(np.arange(8) >= 4))
    index = faiss.index_factory(16, "IVF1,Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    _, rows = index.search(vectors[:1], 4, params=parameters)
    if set(rows[0].tolist()) - {4, 5, 6, 7, -1}:
        raise RuntimeError(
            f"faiss {faiss.__version__} ignores selectors: filters cannot be trusted; install another wheel"
        )
