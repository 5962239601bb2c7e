"""A device without a GPU, whose memory can run out.

It has real FAISS indexes of the CPU, of the classes that FAISS makes of a GPU's.
"""

import threading
from typing import Any

import faiss
import numpy as np

from indexer.backends import Rows, gpu_limits, lists_for
from indexer.backends.cagra import as_cagra, as_graph
from indexer.backends.gpu import GpuBackend
from indexer.backends.gpu_limits import CUVS, DeviceSearch, Limits
from indexer.backends.gpu_worker import Failed, GpuWorker, NoRoom
from indexer.backends.indexes import Index, faiss_metric
from tenants.entities import Metric
from tenants.index_spec import IndexSpec
from vicinage.records import Floats


class EmulatedDevice:
    """See gpu_worker.Device.

    `full` and `broken` state what the next searches meet; `searches` records the calls.
    """

    def __init__(
        self, name: str = "emulated:0", *, bytes_max: int = 1 << 30, limits: Limits = CUVS
    ) -> None:
        self.name, self.bytes_max, self.limits = name, bytes_max, limits
        self.searches: list[DeviceSearch] = []
        self.n_placed = 0
        self.full = self.broken = False
        self.hold = threading.Event()
        self.hold.set()
        self.threads: set[int] = set()

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric) -> Any:
        self._work()
        lists, d = lists_for(spec, len(vectors)), vectors.shape[1]
        if spec.kind == "hnsw":
            return as_graph(cagra_of(vectors, spec.m, metric), vectors, spec)
        codes = "Flat" if spec.kind == "ivf" else f"PQ{gpu_limits.parts_for(d)}x8np"
        index = faiss.index_factory(d, f"IVF{lists},{codes}", faiss_metric(metric))
        index.train(vectors)
        index.add(vectors)
        return index

    def place(self, index: Index | None, vectors: Floats, metric: Metric) -> Any:
        self._work()
        self.n_placed += 1
        if index is None:
            flat = faiss.IndexFlat(vectors.shape[1], faiss_metric(metric))
            flat.add(np.ascontiguousarray(vectors))
            return flat
        return (
            as_cagra(index.faiss, vectors)
            if index.kind == "hnsw"
            else faiss.clone_index(index.faiss)
        )

    def search(self, placed: Any, queries: Floats, ask: DeviceSearch) -> Rows:
        self._work()
        self.searches.append(ask)
        most = (
            gpu_limits.BEAM_MAX
            if isinstance(placed, faiss.IndexHNSWCagra)
            else self.limits.candidates_max
        )
        assert max(ask.take, ask.width) <= most, "as FAISS and cuVS throw"
        parameters: Any = None
        if isinstance(placed, faiss.IndexHNSWCagra):
            assert ask.width >= ask.take and ask.width % 32 == 0
            parameters = faiss.SearchParametersHNSW(efSearch=ask.width)
        elif ask.width:
            parameters = faiss.SearchParametersIVF(nprobe=ask.width)
        return placed.search(queries, ask.take, params=parameters)[1]

    def _work(self) -> None:
        self.threads.add(threading.get_ident())
        faiss.omp_set_num_threads(1)
        self.hold.wait(20)
        if self.full:
            raise NoRoom("the memory is full")
        if self.broken:
            raise Failed("the device is broken")


def emulated_backend() -> GpuBackend:
    """Returns a backend of one such device."""
    return GpuBackend([GpuWorker(EmulatedDevice())])


def cagra_of(vectors: Floats, m: int, metric: Metric) -> Any:
    """Returns a graph as CAGRA's is copied to the CPU, with upper levels over it.

    Every node of the lowest level has 2·m links, here to its nearest nodes.
    """
    _, nearest = faiss.knn(vectors, vectors, 2 * m + 1, metric=faiss_metric(metric))
    graph = faiss.IndexHNSWCagra(vectors.shape[1], m, faiss_metric(metric))
    graph.init_level0 = False
    graph.add(vectors)
    starts = faiss.vector_to_array(graph.hnsw.offsets)[:-1].astype(np.int64)
    links = faiss.vector_to_array(graph.hnsw.neighbors)
    links[starts[:, None] + np.arange(2 * m)] = nearest[:, 1:]
    faiss.copy_array_to_vector(links, graph.hnsw.neighbors)
    return graph
