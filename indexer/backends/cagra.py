"""What of the CPU's indexes a GPU takes, and graphs between the two: the same links, over whole vectors there and over what a spec says here."""

from typing import Any

import faiss
import numpy as np

from indexer.backends.cpu import Index, empty
from tenants.index_spec import IndexSpec
from vicinage.records import Floats


def as_graph(cagra: Any, vectors: Floats, spec: IndexSpec) -> Any:
    """CAGRA's graph, as FAISS gives it to the CPU (IndexHNSWCagra), over codes as `spec` says: a class that every CPU backend reads."""
    index = empty(spec, len(vectors), vectors.shape[1], cagra.metric_type)
    index.storage.train(vectors)
    index.storage.add(vectors)
    index.hnsw = cagra.hnsw
    index.hnsw.efConstruction = spec.ef_construction
    index.ntotal, index.is_trained = len(vectors), True
    return index


def as_cagra(graph: Any, vectors: Floats) -> Any:
    """The same the other way: the links of `graph` over whole vectors, for a device; of a graph that is complete."""
    source = faiss.IndexHNSWCagra(
        vectors.shape[1], graph.hnsw.nb_neighbors(0) // 2, graph.metric_type
    )
    source.storage.add(np.ascontiguousarray(vectors))
    source.hnsw = graph.hnsw
    source.ntotal = len(vectors)
    return source


def complete(hnsw: Any) -> bool:
    """Whether every node of the lowest level has all its links: CAGRA's graphs are so, and it takes no others."""
    links, starts = (
        faiss.vector_to_array(hnsw.neighbors),
        faiss.vector_to_array(hnsw.offsets)[:-1].astype(np.int64),
    )
    return all(bool((links[starts + i] >= 0).all()) for i in range(hnsw.nb_neighbors(0)))


def takes(index: Index) -> bool:
    """Whether a GPU can hold this very index: no graph with links missing, no codes of four bits, in which a CPU builds ivfpq."""
    if index.kind == "hnsw":
        return complete(index.faiss.hnsw)
    return index.kind != "ivfpq" or type(index.faiss).__name__ == "IndexIVFPQ"
