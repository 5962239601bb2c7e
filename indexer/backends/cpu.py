"""FAISS on the CPU: builds, stores and searches indexes.

`widths.py` decides how wide an index is searched, and `index_search.py` searches it. `exact.py`
compares queries with the vectors if no index is used, or if an index finds too few rows.
"""

import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from indexer.backends import Mask, Rows, lists_for
from indexer.backends.exact import exact_search, rank_candidates, set_blas_threshold
from indexer.backends.index_search import search_index, selector, walk_allowed
from indexer.backends.indexes import faiss_index, faiss_metric, pq_parts, untrained, use_threads
from indexer.backends.widths import width_for
from tenants.entities import Metric
from tenants.index_spec import IndexSpec
from vicinage.errors import Corrupt, Refused
from vicinage.metrics import counter
from vicinage.records import Floats

_short = counter("vicinage_searcher_index_short_total")


class CpuBackend:
    """See Backend. Its indexes are immutable: nothing is added to an index that a reader uses."""

    def __init__(self) -> None:
        set_blas_threshold()
        _check_selectors()

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric, *, threads: int = 0) -> Any:
        """See Backend."""
        if spec.kind == "flat":
            return None
        use_threads(threads or max(1, (os.cpu_count() or 1) // 2))
        vectors = np.ascontiguousarray(vectors)
        try:
            index = untrained(spec, len(vectors), vectors.shape[1], faiss_metric(metric))
            index.train(vectors)
            index.add(vectors)
        # FAISS raises it: one tenant's spec and vectors must not end the process for all tenants.
        except RuntimeError as error:
            raise Refused(
                f"FAISS cannot build an index {spec} over {vectors.shape} vectors; choose another "
                f"kind of index: {str(error)[:200]}",
                field="index",
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
                f"{path.name} is not a FAISS index of a known kind: {str(error)[:200]}",
                path=str(path),
            ) from error

    def place(self, index: Any, vectors: Floats, metric: Metric) -> Any:  # noqa: ARG002  (of the protocol)
        """See Backend. Returns the index as it is."""
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
        use_threads(1)
        if index.kind == "hnsw" and allowed is not None:
            scores = np.empty(0, np.float32)
            rows = walk_allowed(index, queries, k, effort, width, allowed, n_allowed)
        else:
            scores, rows = search_index(index, queries, k, width, allowed)
        if index.coded or allowed is not None:
            scores, rows = rank_candidates(vectors, queries, rows, k, metric)
        elif metric == "euclidean":
            scores = -scores
        # An index misses rows that it does not reach: those behind many equal rows, or behind rows
        # that the filter excludes.
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
        use_threads(1)
        return exact_search(vectors, queries, k, metric, allowed)

    def bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """See Backend.

        A graph holds codes and links (2·M at the lowest level, 4 bytes each). Lists hold codes, ids
        and centroids.
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
            return (n + 16 * lists) * ((pq_parts(d) + 1) // 2) + n * 8 + (lists + 16) * d * 4
        return n * ((d + 7) // 8 + 8) + d * 4

    def device_bytes(self, spec: IndexSpec, n: int, d: int) -> int:  # noqa: ARG002  (of the protocol)
        """See Backend."""
        return 0


def _check_selectors() -> None:
    """Raises RuntimeError if the installed FAISS ignores a selector: some indexes do so silently.

    Filters would return rows that they must exclude.
    """
    vectors = np.eye(8, 16, dtype=np.float32)
    parameters = faiss.SearchParametersIVF(nprobe=1, sel=selector(np.arange(8) >= 4))
    index = faiss.index_factory(16, "IVF1,Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    _, rows = index.search(vectors[:1], 4, params=parameters)
    if set(rows[0].tolist()) - {4, 5, 6, 7, -1}:
        raise RuntimeError(
            f"faiss {faiss.__version__} ignores selectors, so filters cannot be trusted: "
            "install another wheel"
        )
