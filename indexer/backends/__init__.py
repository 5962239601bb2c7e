"""Index backends: one protocol over FAISS on each device. Nothing outside this folder uses FAISS.

A greater score is always nearer: cosine and dot product as they are, Euclidean as minus the squared
distance.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tenants.entities import Metric
from tenants.index_spec import IndexSpec, Kind, parse
from vicinage.errors import Refused
from vicinage.records import Floats

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
LISTS_PER_ROOT: Final = 1.5
"""Lists of an IVF over n passages if the spec gives no number, as a multiple of √n."""
TRAIN_PER_LIST: Final = 39
"""Training passages per centroid below which FAISS warns."""
LISTS_PER_ROOT_MAX: Final = 8
"""Most lists that a spec may ask for, as a multiple of √n. Training costs n × lists."""
CENTROIDS: Final = 16
"""Centroids of a four-bit code, which cannot be trained on fewer passages."""

EFFORTS: Final[dict[Kind, tuple[int, ...]]] = {
    "flat": (),
    "hnsw": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "ivf": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024),
    "ivfpq": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024),
    "rabitq": (10, 20, 30, 50, 75, 100, 150, 200, 400, 800, 1_600),
}
"""Efforts at which a segment's recall is measured when it is sealed, each for k = 10.

An effort is the beam of a graph (efSearch), the lists probed (nprobe; for ivfpq it also sets the
number of candidates), or the candidates that are scored again by their vectors (rabitq).
"""

K_MEASURED: Final = 10
"""The k of the curves.

With fewer hits each one counts for more, and the best is no easier to find, so they cost as much.
"""

AUTO: Final = IndexSpec("hnsw", m=24, ef_construction=80, codes="sq8")
"""The index that `auto` chooses above `flat_max`; docs/decisions/012 has the measurements."""


AUTO_SMALL: Final = IndexSpec("ivfpq")
"""The index that `auto` chooses if AUTO would exceed the bound on bytes: it takes an eighth."""


def lists_for(spec: IndexSpec, n: int) -> int:
    """Returns the lists of an IVF over n passages: the spec's number within the training bounds."""
    wanted = min(
        spec.lists or int(LISTS_PER_ROOT * math.sqrt(n)), int(LISTS_PER_ROOT_MAX * math.sqrt(n))
    )
    return max(1, min(wanted, n // TRAIN_PER_LIST))


def choose(
    spec: str, n: int, *, flat_max: int, fits: Callable[[IndexSpec], bool] = lambda _spec: True
) -> IndexSpec:
    """Returns the index that `spec` means for `n` passages. Raises Refused.

    `fits`: whether the bytes of an index are within the bound.
    """
    named = parse(spec) or (
        IndexSpec("flat") if n <= flat_max else AUTO if fits(AUTO) else AUTO_SMALL
    )
    return IndexSpec("flat") if n < (CENTROIDS if named.kind == "ivfpq" else 1) else named


class Backend(Protocol):
    """FAISS on one device. Its indexes are opaque to callers. Searches are thread-safe."""

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric, *, threads: int = 0) -> Any:
        """Returns an index over `vectors` [n, d]; None for flat, which searches the vectors.

        `threads` 0: half of the cores. Raises Refused if the index cannot be built.
        """
        ...

    def save(self, index: Any, path: Path) -> None:
        """Writes the index to a new file."""
        ...

    def load(self, path: Path) -> Any:
        """Returns the index in a file that the caller has verified. Raises Corrupt.

        It is memory-mapped if FAISS supports that for the kind.
        """
        ...

    def place(self, index: Any, vectors: Floats, metric: Metric) -> Any:
        """Returns the index (None: flat) over these vectors, ready to be searched.

        Copies it to a GPU if one has room. The copy is freed when the result is garbage-collected.
        """
        ...

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
        """Returns scores and rows [n, k] of the nearest allowed rows, and row −1 beyond the last.

        `allowed` is bool [n rows]; None means all. Returns k rows whenever k are allowed. `effort`
        is one of the kind's EFFORTS, for k = 10 and no filter. The backend raises it for a greater
        k, or if fewer rows are allowed. Scores are those of the vectors, never of codes.
        """
        ...

    def exact(
        self, vectors: Floats, queries: Floats, k: int, *, metric: Metric, allowed: Mask | None
    ) -> tuple[Floats, Rows]:
        """Returns the same as `search`, from a scan of every allowed row."""
        ...

    def bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """Returns the host bytes of an index of this kind, without the vectors."""
        ...

    def device_bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """Returns the GPU bytes that serve a segment of this kind, vectors included.

        Returns 0 if the CPU serves it.
        """
        ...


def open_backend(device: str = "cpu") -> Backend:
    """Returns the backend of a device: cpu, cuda (every GPU of this machine), or cuda:N.

    Raises Refused if the machine has no such device.
    """
    if device == "cpu":
        from indexer.backends.cpu import CpuBackend

        return CpuBackend()
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise Refused(f"device {device!r} is unknown; use cpu, cuda or cuda:N", field="device")
    from indexer.backends.cuda import open_gpus

    return open_gpus(None if found[1] is None else int(found[1]))
