"""Index backends: one protocol over FAISS on each device.

Nothing outside this folder touches FAISS.

Scores everywhere: greater is nearer (cosine and dot product as they are, Euclidean as minus the
squared distance).
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
"""Lists of an IVF of n passages where the spec names none: so many times √n."""
TRAIN_PER_LIST: Final = 39
"""FAISS warns that a centroid was trained on fewer passages than that."""
LISTS_PER_ROOT_MAX: Final = 8
"""Lists that a spec may name, at most: so many times √n. Finding centroids takes n × lists."""
CENTROIDS: Final = 16
"""Of a code of four bits: there is none of fewer passages."""

EFFORTS: Final[dict[Kind, tuple[int, ...]]] = {
    "flat": (),
    "hnsw": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "ivf": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024),
    "ivfpq": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024),
    "rabitq": (10, 20, 30, 50, 75, 100, 150, 200, 400, 800, 1_600),
}
"""Efforts at which a segment's recall is measured when it is sealed: the beam of a graph (efSearch), the lists looked at (nprobe;
of ivfpq the candidates, too), or the candidates that are scored again from their vectors; each for k = 10."""

K_MEASURED: Final = 10
"""At which curves are measured.

Of fewer hits each counts for more, and the best is no easier to find: they cost what ten do.
"""

AUTO: Final = IndexSpec("hnsw", m=24, ef_construction=80, codes="sq8")
"""What `auto` means above `flat_max`; docs/decisions/012 has the measurements."""


AUTO_SMALL: Final = IndexSpec("ivfpq")
"""What it means where the bytes of that are more than may be spent: an eighth of them."""


def lists_for(spec: IndexSpec, n: int) -> int:
    """Lists of an IVF over n passages: as the spec says, as far as there is enough to train them, and time."""
    wanted = min(
        spec.lists or int(LISTS_PER_ROOT * math.sqrt(n)), int(LISTS_PER_ROOT_MAX * math.sqrt(n))
    )
    return max(1, min(wanted, n // TRAIN_PER_LIST))


def choose(
    spec: str, n: int, *, flat_max: int, fits: Callable[[IndexSpec], bool] = lambda _spec: True
) -> IndexSpec:
    """The index that `spec` means for `n` passages; `fits` says whether the bytes of one are within what may be spent. Raises Refused."""
    named = parse(spec) or (
        IndexSpec("flat") if n <= flat_max else AUTO if fits(AUTO) else AUTO_SMALL
    )
    return IndexSpec("flat") if n < (CENTROIDS if named.kind == "ivfpq" else 1) else named


class Backend(Protocol):
    """FAISS on one device.

    Indexes are opaque to everybody else. Searches are safe from many threads.
    """

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric, *, threads: int = 0) -> Any:
        """An index over `vectors` [n, d]; None for flat, whose index is the vectors themselves.

        `threads` 0: half of the cores.

        Raises Refused for what cannot be built.
        """
        ...

    def save(self, index: Any, path: Path) -> None:
        """Write the index to a new file."""
        ...

    def load(self, path: Path) -> Any:
        """Read it back, memory-mapped where FAISS can.

        The caller has verified the file. Raises Corrupt.
        """
        ...

    def place(self, index: Any, vectors: Floats, metric: Metric) -> Any:
        """The index (None: flat) over these very vectors, to be searched from now on: where there is a GPU with room, held there, too.

        Frees what the GPU holds when it is let go of.
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
        """Scores and rows [n, k] of the nearest allowed rows; row −1 where there are fewer than k.

        `allowed` [n rows] None means all. Never fewer than k while k are allowed. `effort` is
        within the kind's EFFORTS, meant for k = 10 and no filter: the backend raises it by itself
        for a greater k, or where fewer rows are allowed. Scores are those of the vectors, never of
        codes.
        """
        ...

    def exact(
        self, vectors: Floats, queries: Floats, k: int, *, metric: Metric, allowed: Mask | None
    ) -> tuple[Floats, Rows]:
        """The same by looking at every allowed row."""
        ...

    def bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """Host bytes that an index of this kind takes beside the vectors."""
        ...

    def device_bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """Bytes that a GPU takes to serve a segment of this kind, its vectors included; 0 where the CPU serves it."""
        ...


def open_backend(device: str = "cpu") -> Backend:
    """The backend of a device: cpu, cuda (every GPU of this machine), or cuda:N.

    Raises Refused for one that is not there.
    """
    if device == "cpu":
        from indexer.backends.cpu import CpuBackend

        return CpuBackend()
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise Refused(f"device {device!r} is not known: cpu, cuda or cuda:N", field="device")
    from indexer.backends.cuda import open_gpus

    return open_gpus(None if found[1] is None else int(found[1]))
