"""Index backends: one protocol over FAISS on each device. Nothing outside this folder touches FAISS.

Scores everywhere: greater is nearer (cosine and dot product as they are, Euclidean as minus the squared distance).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tenants.entities import Metric
from vicinage.errors import Refused
from vicinage.records import Floats

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Kind = Literal["flat", "hnsw"]
EFFORTS: Final = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Efforts (efSearch) at which a segment's recall is measured when it is sealed."""

M_MIN: Final = 4
M_MAX: Final = 128
EFC_MIN: Final = 8
EFC_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """How a segment is indexed. `m` and `ef_construction` are HNSW's."""

    kind: Kind
    m: int = 32
    ef_construction: int = 80

    def __str__(self) -> str:
        return self.kind if self.kind == "flat" else f"hnsw:M={self.m},efc={self.ef_construction}"


def choose(spec: str, n: int, *, flat_max: int) -> IndexSpec:
    """The index that `spec` ("auto", "flat", "hnsw[:M=32[,efc=80]]") means for `n` passages. Raises Refused."""
    if spec == "auto":
        return IndexSpec("flat") if n <= flat_max else IndexSpec("hnsw")
    if spec == "flat":
        return IndexSpec("flat")
    form = re.fullmatch(r"hnsw(?::M=(\d{1,3})(?:,efc=(\d{1,4}))?)?", spec)
    if form is None:
        raise Refused("index is auto, flat, or hnsw[:M=32[,efc=80]]", field="index")
    m, ef_construction = int(form[1] or 32), int(form[2] or 80)
    if not (M_MIN <= m <= M_MAX and EFC_MIN <= ef_construction <= EFC_MAX):
        raise Refused(f"index: M is {M_MIN} to {M_MAX}, efc is {EFC_MIN} to {EFC_MAX}", field="index")
    return IndexSpec("hnsw", m, ef_construction) if n else IndexSpec("flat")


class Backend(Protocol):
    """FAISS on one device. Indexes are opaque to everybody else. Searches are safe from many threads."""

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric, *, threads: int = 0) -> Any:
        """An index over `vectors` [n, d]; None for flat, whose index is the vectors themselves."""
        ...

    def save(self, index: Any, path: Path) -> None:
        """Write the index to a new file."""
        ...

    def load(self, path: Path) -> Any:
        """Read it back, memory-mapped where FAISS can. The caller has verified the file. Raises Corrupt."""
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

        `allowed` [n rows] None means all. Never fewer than k while k are allowed.
        """
        ...

    def exact(
        self, vectors: Floats, queries: Floats, k: int, *, metric: Metric, allowed: Mask | None
    ) -> tuple[Floats, Rows]:
        """The same by looking at every allowed row."""
        ...

    def bytes(self, spec: IndexSpec, n: int, d: int) -> int:
        """Host bytes that an index of this kind takes."""
        ...


def open_backend(device: str = "cpu") -> Backend:
    """The backend of a device. Raises Refused for one that is not supported."""
    if device == "cpu":
        from indexer.backends.cpu import CpuBackend

        return CpuBackend()
    raise Refused(f"device {device!r} is not supported by this build; use cpu", field="device")
