"""Checks what the platform relies on in the installed GPU wheel, as far as no device is needed.

These are classes, signatures, defaults, and what it clones.
"""

import faiss
import numpy as np
import pytest

from indexer.backends import cuda, gpu_limits
from indexer.backends.cpu import CpuBackend
from indexer.backends.cuda import CudaDevice
from indexer.backends.gpu_limits import CLASSIC, CUVS
from indexer.backends.indexes import untrained
from tenants.index_spec import IndexSpec

D = 32
HAS_CUVS = "NVIDIA_CUVS" in faiss.get_compile_options().split()
GRAPHS = ["hnsw"] if HAS_CUVS else []


@pytest.fixture
def unready() -> CudaDevice:
    """Returns an unused device, with a number that no machine has."""
    made = CudaDevice.__new__(CudaDevice)
    made.name, made.limits, made._number = "cuda:999", cuda.limits(), 999
    made._resources = faiss.StandardGpuResources()
    made._resources.setTempMemory(cuda.TEMPORARY_BYTES)
    made._resources.setPinnedMemory(cuda.PINNED_BYTES)
    return made


def test_the_wheels_limits_are_those_of_its_build() -> None:
    assert "GPU" in faiss.get_compile_options().split()
    assert cuda.limits() is (CUVS if HAS_CUVS else CLASSIC)
    assert hasattr(faiss, "GpuIndexCagra") is HAS_CUVS


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", *GRAPHS])
@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_each_class_takes_the_arguments_that_it_is_made_with(
    unready: CudaDevice, kind: str, metric: int
) -> None:
    """FAISS checks the device last: a wrong argument raises TypeError or AttributeError before."""
    with pytest.raises(RuntimeError, match="Invalid GPU device 999"):
        unready._empty(IndexSpec(kind), 20_000, D, metric)  # type: ignore[arg-type]


def test_placing_gets_as_far_as_the_device(unready: CudaDevice) -> None:
    vectors = np.random.default_rng(0).standard_normal((2_000, D)).astype(np.float32)
    backend = CpuBackend()
    for kind in ("flat", "ivf", *GRAPHS):
        spec = IndexSpec(kind, m=8, lists=8)  # type: ignore[arg-type]
        index = backend.build(vectors, spec, "cosine", threads=1)
        with pytest.raises(cuda.Failed, match="Invalid GPU device 999"):
            unready.place(index, vectors, "cosine")


def test_the_configurations_hold_what_is_set_in_them(unready: CudaDevice) -> None:
    codes = unready._codes(96)
    assert (
        codes.device,
        codes.use_cuvs,
        codes.useFloat16LookupTables,
        codes.interleavedLayout,
    ) == (
        999,
        HAS_CUVS,
        True,
        HAS_CUVS,
    )
    assert not unready._codes(48).useFloat16LookupTables
    assert codes.indicesOptions == faiss.INDICES_64_BIT, (
        "row numbers are kept on the device, and come back to the CPU"
    )
    cloner = unready._cloner()
    assert (
        cloner.use_cuvs is HAS_CUVS
        and cloner.useFloat16
        and cloner.indicesOptions == faiss.INDICES_64_BIT
    )
    assert not cloner.allowCpuCoarseQuantizer
    if HAS_CUVS:
        graph = unready._config(faiss.GpuIndexCagraConfig())
        assert graph.use_cuvs and graph.store_dataset and graph.graph_degree == 64


def test_the_wheel_never_uses_cuvs_unless_it_is_told_to() -> None:
    """The documentation states true as the default of a cuVS build, so it is set each time."""
    for made in (faiss.GpuClonerOptions(), faiss.GpuIndexFlatConfig(), faiss.GpuIndexIVFPQConfig()):
        assert not made.use_cuvs


def test_the_wheel_clones_the_classes_that_are_placed() -> None:
    for spec, cloned in (("ivf", True), ("hnsw", False), ("rabitq", False), ("ivfpq", False)):
        index = untrained(IndexSpec(spec, lists=8), 20_000, D, faiss.METRIC_L2)  # type: ignore[arg-type]
        assert faiss.isGpuIndexImplemented(index) is cloned, spec
    assert faiss.isGpuIndexImplemented(
        faiss.index_factory(D, f"IVF8,PQ{gpu_limits.parts_for(D)}x8np")
    )
    assert not faiss.isGpuIndexImplemented(faiss.index_factory(D, "IVF8,Flat,RFlat"))


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("GpuIndexFlat", "add search copyTo"),
        ("GpuIndexIVFFlat", "train add search copyTo copyFrom"),
        ("GpuIndexIVFPQ", "train add search copyTo copyFrom"),
        ("GpuIndexCagra", "train search copyTo copyFrom"),
        (
            "StandardGpuResources",
            "setTempMemory setPinnedMemory getMemoryInfo getTempMemoryAvailable",
        ),
    ],
)
def test_the_methods_exist(name: str, methods: str) -> None:
    assert (name == "GpuIndexCagra" and not HAS_CUVS) or all(
        callable(getattr(getattr(faiss, name), method)) for method in methods.split()
    )


def test_search_parameters_accept_the_arguments_of_a_search() -> None:
    assert not HAS_CUVS or faiss.SearchParametersCagra(itopk_size=96).itopk_size == 96
    assert faiss.SearchParametersIVF(nprobe=7).nprobe == 7


def test_cudas_library_is_the_one_that_faiss_loaded() -> None:
    assert "libcudart.so.1" in cuda._runtime()
