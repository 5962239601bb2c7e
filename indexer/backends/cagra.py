"""Converts graphs between CPU and GPU, and decides which CPU indexes a GPU can hold.

Both sides use the same links: over whole vectors on the GPU, over the spec's codes on the CPU.
"""

from typing import Any

import faiss
import numpy as np

from indexer.backends.indexes import Index, untrained
from tenants.index_spec import IndexSpec
from vicinage.records import Floats


def as_graph(cagra: Any, vectors: Floats, spec: IndexSpec) -> Any:
    """Returns a CPU graph over the spec's codes, with the links of CAGRA's graph.

    FAISS returns CAGRA's graph as IndexHNSWCagra. The result is of a class that every CPU backend
    reads.
    """
    index = untrained(spec, len(vectors), vectors.shape[1], cagra.metric_type)
    index.storage.train(vectors)
    index.storage.add(vectors)
    index.hnsw = cagra.hnsw
    index.hnsw.efConstruction = spec.ef_construction
    index.ntotal, index.is_trained = len(vectors), True
    return index


def as_cagra(graph: Any, vectors: Floats) -> Any:
    """Returns CAGRA's form of a complete graph: its links over whole vectors, for a GPU."""
    source = faiss.IndexHNSWCagra(
        vectors.shape[1], graph.hnsw.nb_neighbors(0) // 2, graph.metric_type
    )
    source.storage.add(np.ascontiguousarray(vectors))
    source.hnsw = graph.hnsw
    source.ntotal = len(vectors)
    return source


def is_complete(hnsw: Any) -> bool:
    """Returns whether every node of the lowest level has all its links.

    CAGRA's graphs are complete, and CAGRA accepts no others.
    """
    links, starts = (
        faiss.vector_to_array(hnsw.neighbors),
        faiss.vector_to_array(hnsw.offsets)[:-1].astype(np.int64),
    )
    return all(bool((links[starts + i] >= 0).all()) for i in range(hnsw.nb_neighbors(0)))


def is_placeable(index: Index) -> bool:
    """Returns whether a GPU can hold this index.

    It cannot hold a graph with missing links, nor the four-bit codes of an ivfpq that a CPU built.
    """
    if index.kind == "hnsw":
        return is_complete(index.faiss.hnsw)
    return index.kind != "ivfpq" or type(index.faiss).__name__ == "IndexIVFPQ"
