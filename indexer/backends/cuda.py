"""The only module that uses FAISS's GPU classes, with cuVS if the wheel has it.

`gpu.py` decides what a GPU does.

In many places of FAISS, a CUDA call that fails for another reason than memory ends the process (an
assertion, not an exception). So each GPU first passes a trial in a process of its own. A GPU whose
answers are wrong there is not used.
"""

import contextlib
import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import faiss
import numpy as np

from indexer.backends import Rows, gpu_limits, lists_for
from indexer.backends.cagra import as_cagra, as_graph
from indexer.backends.gpu import GpuBackend
from indexer.backends.gpu_limits import CLASSIC, CUVS, DeviceSearch, Limits
from indexer.backends.gpu_worker import Failed, GpuWorker, NoRoom
from indexer.backends.indexes import Index, faiss_metric
from tenants.entities import Metric
from tenants.index_spec import IndexSpec
from vicinage.errors import Refused
from vicinage.records import Floats
from vicinage.telemetry import events

TEMPORARY_BYTES: Final = 256 << 20
"""FAISS's scratch memory on each GPU, allocated at the start (its default is 1.5 GiB).

A call that needs more allocates it for itself.
"""
PINNED_BYTES: Final = 64 << 20
"""Pinned host memory for copies (FAISS's default is 256 MiB)."""
SHARE_OF_DEVICE: Final = 0.8
"""Share of the memory that is free at opening: builds and large calls need the rest."""
TRIAL_S: Final = 120.0
TRIAL_ROWS: Final = 20_000
CANDIDATES: Final = 100
TRIAL_RECALL: Final = 0.8
"""Recall of a trial: far below what each kind reaches, and far above that of wrong answers.

Codes of four numbers a byte reach 0.94.
"""
FULL: Final = (
    "memory allocation",
    "out of memory",
    "out_of_memory",
    "alloc fail",
    "bad_alloc",
    "bad alloc",
)
"""Texts by which FAISS and RMM report that a GPU's memory is full."""

_event = events("searcher")
_opening = threading.Lock()


def limits() -> Limits:
    """Returns the limits of the installed wheel's GPU code. Raises Refused if it has none."""
    if not hasattr(faiss, "StandardGpuResources"):
        raise Refused(
            "this FAISS is built for CPUs only; install the extra gpu in place of cpu",
            field="device",
        )
    return CUVS if "NVIDIA_CUVS" in faiss.get_compile_options() else CLASSIC


def open_gpus(number: int | None) -> GpuBackend:
    """Returns the backend of one GPU of this machine, or of all.

    Raises Refused if there is none, or if none passes its trial.
    """
    limits()
    n = faiss.get_num_gpus()
    wanted = range(n) if number is None else [number]
    if not wanted or max(wanted) >= n:
        raise Refused(
            f"this machine has {n} GPUs that FAISS can use, and none with that number; use cpu or "
            "another number",
            field="device",
        )
    with _opening:
        workers = [worker for i in wanted if (worker := _worker(i)) is not None]
    if not workers:
        raise Refused(
            "no GPU passed its trial; see the events gpu.trial_failed, and use cpu until then",
            field="device",
        )
    return GpuBackend(workers)


@cache
def _worker(number: int) -> GpuWorker | None:
    """Returns the process's one worker of a GPU: one thread, one resources object.

    Returns None if the GPU failed its trial.
    """
    reason = trial_error(number)
    if reason is None:
        return GpuWorker(CudaDevice(number))
    _event.error("gpu.trial_failed", device=f"cuda:{number}", error=reason)
    return None


def trial_error(number: int) -> str | None:
    """Runs the trial of a GPU in a process of its own.

    Returns None if it passed, else the end of its error output.
    """
    command = [sys.executable, "-P", "-m", "indexer.backends.cuda", str(number)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=TRIAL_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TRIAL_S} s"
    return (
        None
        if ended.returncode == 0
        else f"ended with {ended.returncode}: {ended.stderr.strip()[-400:]}"
    )


class CudaDevice:
    """See gpu_worker.Device."""

    def __init__(self, number: int) -> None:
        self.name = f"cuda:{number}"
        self.limits = limits()
        self._number = number
        self._resources = faiss.StandardGpuResources()
        self._resources.setTempMemory(TEMPORARY_BYTES)
        self._resources.setPinnedMemory(PINNED_BYTES)
        self.bytes_max = max(0, int(SHARE_OF_DEVICE * free_bytes(number)) - TEMPORARY_BYTES)

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric) -> Any:
        """See gpu_worker.Device. A graph is CAGRA's; its upper levels are built on the host."""
        assert vectors.flags.c_contiguous, (
            "CAGRA keeps their address, so FAISS's Python must not copy them"
        )
        with _sorted_errors():
            index = self._empty(spec, len(vectors), vectors.shape[1], faiss_metric(metric))
            index.train(vectors)
            if spec.kind != "hnsw":  # CAGRA is complete once trained, and accepts no additions
                index.add(vectors)
            made = faiss.index_gpu_to_cpu(index)
        return as_graph(made, vectors, spec) if spec.kind == "hnsw" else made

    def place(self, index: Index | None, vectors: Floats, metric: Metric) -> Any:
        """See gpu_worker.Device."""
        with _sorted_errors():
            if index is None:
                flat = faiss.GpuIndexFlat(
                    self._resources,
                    vectors.shape[1],
                    faiss_metric(metric),
                    self._config(faiss.GpuIndexFlatConfig()),
                )
                flat.add(np.ascontiguousarray(vectors))
                return flat
            if index.kind == "hnsw":
                return self._graph(index, vectors, metric)
            return faiss.index_cpu_to_gpu(
                self._resources, self._number, index.faiss, self._cloner()
            )

    def search(self, placed: Any, queries: Floats, ask: DeviceSearch) -> Rows:
        """See gpu_worker.Device."""
        if isinstance(placed, tuple):
            placed, parameters = placed[0], faiss.SearchParametersCagra(itopk_size=ask.width)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=ask.width) if ask.width else None
        with _sorted_errors():
            _, rows = placed.search(np.ascontiguousarray(queries), ask.take, params=parameters)
        return rows  # type: ignore[no-any-return]

    def _empty(self, spec: IndexSpec, n: int, d: int, metric: int) -> Any:
        resources, lists = self._resources, lists_for(spec, n)
        if spec.kind == "ivf":
            config = self._config(faiss.GpuIndexIVFFlatConfig())
            return faiss.GpuIndexIVFFlat(resources, d, lists, metric, config)
        if spec.kind == "ivfpq":
            parts = gpu_limits.parts_for(d)
            return faiss.GpuIndexIVFPQ(resources, d, lists, parts, 8, metric, self._codes(parts))
        config = self._config(faiss.GpuIndexCagraConfig())
        config.graph_degree, config.intermediate_graph_degree = 2 * spec.m, 4 * spec.m
        return faiss.GpuIndexCagra(resources, d, metric, config)

    def _graph(self, index: Index, vectors: Floats, metric: Metric) -> tuple[Any, Any]:
        """Returns CAGRA's copy of a graph, and the graph on the host.

        FAISS requires the host's vectors to live as long as the copy.
        """
        source = as_cagra(index.faiss, vectors)
        config = self._config(faiss.GpuIndexCagraConfig())
        copy = faiss.GpuIndexCagra(self._resources, vectors.shape[1], faiss_metric(metric), config)
        copy.copyFrom(source)
        return copy, source

    def _config(self, config: Any) -> Any:
        config.device, config.use_cuvs = self._number, self.limits.graphs
        return config

    def _codes(self, parts: int) -> Any:
        config = self._config(faiss.GpuIndexIVFPQConfig())
        config.useFloat16LookupTables = parts > gpu_limits.FLOAT32_PARTS_MAX
        config.interleavedLayout = self.limits.graphs  # cuVS's only layout
        return config

    def _cloner(self) -> Any:
        options = faiss.GpuClonerOptions()
        options.use_cuvs = self.limits.graphs
        # tables of more than 48 parts fit only as float16; candidates are rescored in any case
        options.useFloat16 = True
        return options


def free_bytes(number: int) -> int:
    """Returns the free memory of a GPU from the CUDA library that FAISS has loaded.

    FAISS's Python has no call for it.
    """
    runtime = ctypes.CDLL(_runtime())
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if runtime.cudaSetDevice(number) or runtime.cudaMemGetInfo(
        ctypes.byref(free), ctypes.byref(total)
    ):
        raise Refused(
            f"CUDA does not report the memory of cuda:{number}; use another device", field="device"
        )
    return free.value


def _runtime() -> str:
    """Returns the path of the CUDA runtime library that FAISS has loaded."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123  (a pseudo-file)
        return next(line.split()[-1] for line in maps if "libcudart" in line)


def is_full(error: BaseException) -> bool:
    """Returns whether FAISS's error says that a GPU's memory is full."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in FULL)


@contextlib.contextmanager
def _sorted_errors() -> Iterator[None]:
    """Raises FAISS's errors as NoRoom or Failed: by what the caller does next."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise (NoRoom if is_full(error) else Failed)(str(error)[:400]) from error


def trial(made: Any) -> None:
    """Compares a GPU's results with exact ones, for every kind that it serves.

    Raises AssertionError if they differ too much. Tries no selector: the host filters the results
    of a GPU.
    """
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((TRIAL_ROWS, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-(vectors[:50] @ vectors.T), axis=1)[:, :10]
    for kind, width in (("flat", 0), ("ivf", 8), ("ivfpq", 8), ("hnsw", 256)):
        spec = IndexSpec(kind, m=16, lists=8)  # type: ignore[arg-type]  # of the tuple above
        if kind == "hnsw" and not made.limits.graphs:
            continue
        index = (
            None
            if kind == "flat"
            else Index(made.build(vectors, spec, "cosine"), spec.kind, coded=False)
        )
        found = made.search(
            made.place(index, vectors, "cosine"), vectors[:50], DeviceSearch(CANDIDATES, width)
        )
        share = np.mean(
            [len(np.intersect1d(f, t)) / 10 for f, t in zip(found, nearest, strict=True)]
        )
        assert share >= TRIAL_RECALL, (
            f"{kind}: {CANDIDATES} candidates hold {share:.2f} of the nearest 10"
        )


if __name__ == "__main__":
    trial(CudaDevice(int(sys.argv[1])))
