"""Tests on a real GPU.

`make test-gpu` also runs the contract suite of backends there (VICINAGE_TEST_DEVICE=cuda).
"""

from dataclasses import replace

import faiss
import numpy as np
import pytest

from indexer.backends import cuda, gpu_limits, open_backend
from indexer.backends.cuda import CudaDevice
from indexer.backends.gpu import Placed
from indexer.backends.gpu_limits import DeviceSearch
from indexer.backends.gpu_worker import NoRoom
from indexer.backends.indexes import Index, faiss_index
from tenants.index_spec import IndexSpec

N, D = 40_000, 96
GRAPHS = [IndexSpec("hnsw", m=16)] if cuda.limits().graphs else []
SPECS = [IndexSpec("flat"), IndexSpec("ivf", lists=200), IndexSpec("ivfpq", lists=200), *GRAPHS]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def card() -> CudaDevice:
    return CudaDevice(0)


def taken(made: CudaDevice) -> int:
    """Returns the bytes that indexes take by FAISS's count, without its own temporary memory."""
    return sum(
        n
        for kind, (_, n) in made._resources.getMemoryInfo()[0].items()
        if not kind.startswith("Temporary")
    )


def test_the_trial_passes() -> None:
    assert cuda.trial_error(0) is None


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_accounted_bytes_are_no_less_than_what_is_allocated(
    vectors, card: CudaDevice, spec: IndexSpec
) -> None:
    """Compares the memory that CUDA has left: FAISS does not count the allocations of cuVS."""
    index = None if spec.kind == "flat" else faiss_index(card.build(vectors, spec, "cosine"))
    before, counted = cuda.free_bytes(0), taken(card)
    held = card.place(index, vectors, "cosine")
    card.search(held, vectors[:1], DeviceSearch(10, 0 if index is None else 32))
    allocated = max(taken(card) - counted, before - cuda.free_bytes(0))
    assert allocated <= 1.1 * gpu_limits.device_bytes(spec, N, D, card.limits) + (64 << 20)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_out_of_memory_is_reported_as_such(vectors, card: CudaDevice, spec: IndexSpec) -> None:
    index = None if spec.kind == "flat" else faiss_index(card.build(vectors, spec, "cosine"))
    ballast = np.zeros((1 << 20, 1_024), np.float32)
    held = []
    with pytest.raises(NoRoom):
        while True:
            held.append(card.place(None, ballast, "cosine"))
    held.append(None)
    with pytest.raises(NoRoom):
        while True:
            held.append(card.place(index, vectors, "cosine"))


@pytest.mark.parametrize("spec", GRAPHS, ids=str)
def test_cagra_adds_nothing_after_training(vectors, card: CudaDevice, spec: IndexSpec) -> None:
    graph = card._empty(spec, N, D, faiss.METRIC_INNER_PRODUCT)
    graph.train(vectors)
    graph.add(vectors[:10])  # returns without adding
    assert graph.ntotal == N


def test_over_the_ceilings_faiss_throws(vectors, card: CudaDevice) -> None:
    flat = card.place(None, vectors, "cosine")
    card.search(flat, vectors[:1], DeviceSearch(card.limits.candidates_max, 0))
    with pytest.raises(cuda.Failed):
        card.search(flat, vectors[:1], DeviceSearch(card.limits.candidates_max + 1, 0))


@pytest.mark.parametrize("spec", [replace(spec, codes="sq8") for spec in GRAPHS], ids=str)
def test_a_graph_of_codes_is_served_from_its_links_and_the_vectors(
    vectors, spec: IndexSpec
) -> None:
    backend = open_backend("cuda:0")
    index = backend.build(vectors, spec, "cosine")
    assert isinstance(index, Index) and type(index.faiss).__name__ == "IndexHNSWSQ"
    placed = backend.place(index, vectors, "cosine")
    assert isinstance(placed, Placed) and placed.number is not None
    _, rows = backend.search(
        placed, vectors, vectors[:64], 10, metric="cosine", effort=64, allowed=None
    )
    assert (rows[:, 0] == np.arange(64)).mean() > 0.99
