"""Index backends: one protocol over FAISS on each device. Nothing outside this folder touches FAISS.

Scores everywhere: greater is nearer (cosine and dot product as they are, Euclidean as minus the squared distance).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tenants.entities import Metric
from vicinage.errors import Refused
from vicinage.records import Floats

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Kind = Literal["flat", "hnsw", "ivf", "ivfpq", "rabitq"]
Codes = Literal["f32", "sq8"]

M_MIN: Final = 4
M_MAX: Final = 128
EFC_MIN: Final = 8
EFC_MAX: Final = 2_000
LISTS_MAX: Final = 65_536
LISTS_PER_ROOT: Final = 1.5
"""Lists of an IVF of n passages where the spec names none: so many times √n."""
TRAIN_PER_LIST: Final = 39
"""FAISS warns that a centroid was trained on fewer passages than that."""

EFFORTS: Final[dict[Kind, tuple[int, ...]]] = {
    "flat": (),
    "hnsw": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "ivf": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024),
    "ivfpq": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024),
    "rabitq": (10, 20, 30, 50, 75, 100, 150, 200, 400, 800, 1_600),
}
"""Efforts at which a segment's recall is measured when it is sealed: the beam of a graph (efSearch), the lists looked at (nprobe;
of ivfpq the candidates, too), or the candidates that are scored again from their vectors; each for k = 10."""

GRAMMAR: Final = "auto, flat, hnsw[:M=32,efc=80,codes=f32|sq8], ivf[:lists=N], ivfpq[:lists=N] or rabitq"


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """How a segment is indexed: a kind, and what that kind lets one choose.

    hnsw: `m`, `ef_construction`, and `codes`, in which the graph keeps the vectors (whole, or a byte a number). ivf, ivfpq: `lists`;
    0 means by the number of passages. What finds by codes scores its candidates again from the stored vectors.
    """

    kind: Kind
    m: int = 32
    ef_construction: int = 80
    codes: Codes = "f32"
    lists: int = 0

    def __str__(self) -> str:
        if self.kind == "hnsw":
            return f"hnsw:M={self.m},efc={self.ef_construction},codes={self.codes}"
        return f"{self.kind}:lists={self.lists}" if self.kind in ("ivf", "ivfpq") and self.lists else self.kind

    def lists_for(self, n: int) -> int:
        """Lists of an IVF over n passages: as the spec says, as far as there is enough to train them."""
        wanted = self.lists or int(LISTS_PER_ROOT * math.sqrt(n))
        return max(1, min(wanted, n // TRAIN_PER_LIST))


AUTO: Final = IndexSpec("hnsw", m=24, ef_construction=80, codes="sq8")
"""What `auto` means above `flat_max`; docs/decisions/012 has the measurements."""
_SPEC: Final = re.compile(
    r"(flat|hnsw|ivf|ivfpq|rabitq)(?::((?:M|efc|codes|lists)=[a-z0-9]{1,8}(?:,[A-Za-z]+=[a-z0-9]{1,8})*))?"
)
_NAMES: Final[dict[Kind, frozenset[str]]] = {
    "flat": frozenset(),
    "hnsw": frozenset({"M", "efc", "codes"}),
    "ivf": frozenset({"lists"}),
    "ivfpq": frozenset({"lists"}),
    "rabitq": frozenset(),
}


def choose(spec: str, n: int, *, flat_max: int) -> IndexSpec:
    """The index that `spec` (see GRAMMAR) means for `n` passages. Raises Refused."""
    if spec == "auto":
        return IndexSpec("flat") if n <= flat_max else AUTO
    form = _SPEC.fullmatch(spec)
    if form is None:
        raise Refused(f"index is {GRAMMAR}", field="index")
    kind: Kind = form[1]  # type: ignore[assignment]  # the pattern has no other
    given = dict(part.split("=") for part in form[2].split(",")) if form[2] else {}
    if not given.keys() <= _NAMES[kind]:
        raise Refused(f"index: {kind} takes {', '.join(sorted(_NAMES[kind])) or 'no parameters'}", field="index")
    named = IndexSpec(
        kind,
        m=_whole(given, "M", 32, M_MIN, M_MAX),
        ef_construction=_whole(given, "efc", 80, EFC_MIN, EFC_MAX),
        codes=_codes(given.get("codes", "f32")),
        lists=_whole(given, "lists", 0, 1, LISTS_MAX),
    )
    return named if n else IndexSpec("flat")


def _whole(given: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not text.isdigit() or not low <= int(text) <= high:
        raise Refused(f"index: {name} is a whole number from {low} to {high}", field="index")
    return int(text)


def _codes(text: str) -> Codes:
    if text not in ("f32", "sq8"):
        raise Refused("index: codes is f32 or sq8", field="index")
    return cast("Codes", text)


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

        `allowed` [n rows] None means all. Never fewer than k while k are allowed. `effort` is one of the kind's EFFORTS, meant for
        k = 10 and no filter: the backend raises it by itself for a greater k, or where fewer rows are allowed. Scores are those of
        the vectors, never of codes.
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


def open_backend(device: str = "cpu") -> Backend:
    """The backend of a device. Raises Refused for one that is not supported."""
    if device == "cpu":
        from indexer.backends.cpu import CpuBackend

        return CpuBackend()
    raise Refused(f"device {device!r} is not supported by this build; use cpu", field="device")
