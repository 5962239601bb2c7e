"""FAISS indexes of the CPU: what one is, how an empty one is made, FAISS's number of a metric."""

import threading
from dataclasses import dataclass
from typing import Any, Final

import faiss

from indexer.backends import lists_for
from tenants.entities import Metric
from tenants.index_spec import IndexSpec, Kind

KINDS: Final[dict[str, tuple[Kind, bool]]] = {
    "IndexHNSWFlat": ("hnsw", False),
    "IndexHNSWSQ": ("hnsw", True),
    "IndexIVFFlat": ("ivf", False),
    "IndexIVFPQ": ("ivfpq", True),  # built by a GPU
    "IndexIVFPQFastScan": ("ivfpq", True),
    "IndexRaBitQ": ("rabitq", True),
}
"""FAISS class → index kind, and whether it stores codes."""

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Index:
    """A FAISS index and its kind. `coded`: its own scores are of codes, not of the vectors."""

    faiss: Any
    kind: Kind
    coded: bool


def faiss_index(index: Any) -> Index:
    """Returns the FAISS index with its kind. Raises KeyError for a class outside KINDS."""
    return Index(index, *KINDS[type(index).__name__])


def untrained(spec: IndexSpec, n: int, d: int, metric: int) -> Any:
    """Returns an empty FAISS index of this kind for n vectors of d numbers, not trained yet."""
    if spec.kind == "hnsw":
        if spec.codes == "sq8":
            index = faiss.IndexHNSWSQ(d, faiss.ScalarQuantizer.QT_8bit, spec.m, metric)
        else:
            index = faiss.IndexHNSWFlat(d, spec.m, metric)
        index.hnsw.efConstruction = spec.ef_construction
        return index
    if spec.kind == "rabitq":
        return faiss.IndexRaBitQ(d, metric)
    codes = "Flat" if spec.kind == "ivf" else f"PQ{pq_parts(d)}x4fs"
    return faiss.index_factory(d, f"IVF{lists_for(spec, n)},{codes}", metric)


def pq_parts(d: int) -> int:
    """Returns the number of product-quantizer parts: four numbers each if that divides d."""
    return d // next(size for size in (4, 3, 2, 1) if d % size == 0)


def faiss_metric(metric: Metric) -> int:
    """Returns FAISS's number of the metric; the cosine of unit vectors is their inner product."""
    return int(faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT)


def use_threads(n: int) -> None:
    """Sets OpenMP's thread count, which belongs to the calling thread: each must set its own."""
    if getattr(_thread, "n", None) != n:
        faiss.omp_set_num_threads(n)
        _thread.n = n
