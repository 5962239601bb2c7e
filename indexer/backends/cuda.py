"""The door to NVIDIA GPUs: FAISS's GPU classes, by cuVS where the wheel has it.

`gpu.py` decides what they are asked.

A CUDA call that fails for another reason than memory ends the process in many places of FAISS (an
assertion, not an exception). So a GPU is tried in a process of its own before it is used here; one
that does not answer rightly there is left out.
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
from indexer.backends.cpu import Index, faiss_metric
from indexer.backends.gpu import GpuBackend
from indexer.backends.gpu_limits import CLASSIC, CUVS, Ask, Limits
from indexer.backends.gpu_worker import Card, Failed, NoRoom
from tenants.entities import Metric
from tenants.index_spec import IndexSpec
from vicinage.errors import Refused
from vicinage.records import Floats
from vicinage.telemetry import events

TEMPORARY_BYTES: Final = 256 << 20
"""FAISS's scratch memory on each device, held from the start (its default is 1.5 GiB); what does not fit is allocated for the call."""
PINNED_BYTES: Final = 64 << 20
"""Of host memory, for copies (FAISS's default is 256 MiB)."""
SHARE_OF_DEVICE: Final = 0.8
"""Of the memory that is free when it is opened: builds and large calls allocate beside the indexes."""
TRIAL_S: Final = 120.0
TRIAL_ROWS: Final = 20_000
CANDIDATES: Final = 100
TRIAL_RECALL: Final = 0.8
"""Far below what each kind finds among so many (codes of four numbers a byte: 0.94); far above what a wrong answer holds."""
FULL: Final = (
    "memory allocation",
    "out of memory",
    "out_of_memory",
    "alloc fail",
    "bad_alloc",
    "bad alloc",
)
"""How a GPU's full memory is told, in FAISS's and in RMM's words."""

_event = events("searcher")
_opening = threading.Lock()


def limits() -> Limits:
    """What the installed wheel's GPU code takes. Raises Refused where it has none."""
    if not hasattr(faiss, "StandardGpuResources"):
        raise Refused(
            "this FAISS is built for CPUs alone: install the extra gpu in place of cpu",
            field="device",
        )
    return CUVS if "NVIDIA_CUVS" in faiss.get_compile_options() else CLASSIC


def open_gpus(number: int | None) -> GpuBackend:
    """The backend of one GPU of this machine, or of all.

    Raises Refused where there is none, or none that answers rightly.
    """
    limits()
    n = faiss.get_num_gpus()
    wanted = range(n) if number is None else [number]
    if not wanted or max(wanted) >= n:
        raise Refused(
            f"this machine has {n} GPUs that FAISS can use; there is none of that number",
            field="device",
        )
    with _opening:
        cards = [card for i in wanted if (card := _card(i)) is not None]
    if not cards:
        raise Refused(
            "no GPU passed its trial: see the events above; use cpu until it is mended",
            field="device",
        )
    return GpuBackend(cards)


@cache
def _card(number: int) -> Card | None:
    """One for each GPU in a process, whoever opens it: one thread, one resources object.

    None: it failed its trial.
    """
    reason = tried(number)
    if reason is None:
        return Card(CudaDevice(number))
    _event.error("gpu.trial_failed", device=f"cuda:{number}", error=reason)
    return None


def tried(number: int) -> str | None:
    """Run the trial of a GPU in a process of its own: None when it answered rightly, else what it said last."""
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
        """See gpu_worker.Device. A graph is CAGRA's, with its upper levels made on the host."""
        assert vectors.flags.c_contiguous, (
            "CAGRA keeps their address: FAISS's Python must make no copy of its own"
        )
        with _told():
            index = self._empty(spec, len(vectors), vectors.shape[1], faiss_metric(metric))
            index.train(vectors)
            if spec.kind != "hnsw":  # CAGRA is complete once it is trained, and takes nothing after
                index.add(vectors)
            made = faiss.index_gpu_to_cpu(index)
        return as_graph(made, vectors, spec) if spec.kind == "hnsw" else made

    def place(self, index: Index | None, vectors: Floats, metric: Metric) -> Any:
        """See gpu_worker.Device."""
        with _told():
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

    def search(self, placed: Any, queries: Floats, ask: Ask) -> Rows:
        """See gpu_worker.Device."""
        if isinstance(placed, tuple):
            placed, parameters = placed[0], faiss.SearchParametersCagra(itopk_size=ask.width)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=ask.width) if ask.width else None
        with _told():
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
        """CAGRA's copy of a graph, and the graph on the host, whose vectors FAISS wants kept as long as the copy."""
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
        # tables of more than 48 parts fit only so; candidates are scored again in any case
        options.useFloat16 = True
        return options


def free_bytes(number: int) -> int:
    """Free memory of a GPU, as CUDA says: FAISS's Python has no call for it, and holds CUDA's library already."""
    runtime = ctypes.CDLL(_runtime())
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if runtime.cudaSetDevice(number) or runtime.cudaMemGetInfo(
        ctypes.byref(free), ctypes.byref(total)
    ):
        raise Refused(f"CUDA does not say how much memory cuda:{number} has", field="device")
    return free.value


def _runtime() -> str:
    """The path of CUDA's runtime library that FAISS has loaded."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123  (a pseudo-file)
        return next(line.split()[-1] for line in maps if "libcudart" in line)


def is_full(error: BaseException) -> bool:
    """Whether FAISS's error says that the memory of a device is used up."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in FULL)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """FAISS's errors by what is to be done."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise (NoRoom if is_full(error) else Failed)(str(error)[:400]) from error


def trial(made: Any) -> None:
    """Ask a device what the CPU knows, of every kind that it serves.

    Raises AssertionError where it answers wrongly.

    No selector is ever handed to it: which rows are allowed is looked at here, on the host.
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
            made.place(index, vectors, "cosine"), vectors[:50], Ask(CANDIDATES, width)
        )
        share = np.mean(
            [len(np.intersect1d(f, t)) / 10 for f, t in zip(found, nearest, strict=True)]
        )
        assert share >= TRIAL_RECALL, (
            f"{kind}: of the nearest 10, {share:.2f} were among {CANDIDATES} candidates"
        )


if __name__ == "__main__":
    trial(CudaDevice(int(sys.argv[1])))
