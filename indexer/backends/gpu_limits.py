"""Limits of a GPU: which indexes it builds and serves, their bytes, and how it is searched.

Pure: nothing here calls FAISS.

Sources: FAISS 1.15's gpu/impl/IndexUtils.cu (k and nprobe), gpu/impl/IVFPQ.cu (code sizes),
gpu/GpuIndexIVFPQ.cu (bits, shared memory); cuVS 26.06's neighbors/common.hpp (how lists are padded)
and detail/cagra/search_plan.cuh (beams).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from indexer.backends import K_MEASURED, TRAIN_PER_LIST, lists_for
from tenants.index_spec import IndexSpec, Kind

NUMBERS_MIN: Final = 1 << 20
"""Rows × dimension below which the CPU serves a segment.

It costs the CPU no more there than a query of a graph.
"""
BUILD_ROWS_MIN: Final = 20_000
"""Rows below which the CPU builds an index: it takes a few seconds, and the GPU keeps searching."""
CENTROIDS: Final = 256
"""Centroids per part of a code: eight bits, the only size that FAISS's own GPU code supports."""
PARTS: Final = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Bytes of a code that FAISS's own GPU code supports; above 48 only with float16 tables."""
FLOAT32_PARTS_MAX: Final = 48
"""Parts whose float32 tables (256 × 4 bytes each) fit into a block's 48 KiB of shared memory."""
LIST_GROUP: Final = 32
"""Rows to whose multiples FAISS pads its lists.

cuVS pads to powers of two from there, and to multiples of CUVS_LIST above that.
"""
CUVS_LIST: Final = 1_024
BEAM_GROUP: Final = 32
BEAM_MAX: Final = 1_024
"""The widest internal list (itopk) of every algorithm of CAGRA, in steps of BEAM_GROUP."""
ALLOWED_SHARE_MIN: Final = 0.9
"""Share of allowed rows, as after some deletions, from which the GPU searches.

The host then drops the other rows. Below it the CPU searches. No selector is ever passed to a GPU,
because FAISS's own GPU indexes ignore it silently.
"""
OVERFETCH: Final = 1.25
"""Rows fetched in addition, as a multiple of the expected number of rows that are not allowed."""
OVERFETCH_MIN: Final = 8
LIST_CANDIDATES: Final = 3
"""Least over-fetch of lists with codes: this many × k candidates are scored by their vectors."""
GRAPH_CANDIDATES: Final = 1
"""Over-fetch of a graph: none, because it holds whole vectors on the GPU."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the installed FAISS's GPU code.

    `candidates_max`: most candidates, and most lists, of a search. `graphs`: whether it has graphs.
    """

    candidates_max: int
    graphs: bool


CLASSIC: Final = Limits(2_048, graphs=False)
CUVS: Final = Limits(16_384, graphs=True)


@dataclass(frozen=True, slots=True)
class DeviceSearch:
    """A search on a GPU: `take` candidates per query.

    `width`: the lists probed, or the beam of a graph; 0 for flat.
    """

    take: int
    width: int


def builds(spec: IndexSpec, n: int, limits: Limits) -> bool:
    """Returns whether a GPU builds this index.

    The CPU builds the others: kinds that GPUs lack, and small indexes.
    """
    if n < BUILD_ROWS_MIN or lists_for(spec, n) > limits.candidates_max:
        return False
    if spec.kind == "ivfpq":
        return n >= TRAIN_PER_LIST * CENTROIDS
    return spec.kind == "ivf" or (spec.kind == "hnsw" and limits.graphs)


def parts_for(d: int) -> int:
    """Returns the bytes of a code: the fewest supported parts of at most four numbers each.

    The number of parts divides d. If none is large enough, returns the largest.
    """
    fit = [p for p in PARTS if d % p == 0]
    return next((p for p in fit if p >= d / 4), fit[-1])


def serves(kind: Kind, n: int, d: int, limits: Limits) -> bool:
    """Returns whether a GPU serves a segment: of a kind that it has, and large enough to gain."""
    return n * d >= NUMBERS_MIN and (
        kind in ("flat", "ivf", "ivfpq") or (kind == "hnsw" and limits.graphs)
    )


def device_search(
    kind: Kind, limits: Limits, *, k: int, width: int | None, n: int, n_allowed: int, lists: int = 0
) -> DeviceSearch | None:
    """Returns the GPU's search for `k` hits among `n_allowed` of n rows; None: the CPU searches.

    `width` is the CPU's width; None if the CPU would scan exactly.
    """
    if n_allowed < max(1, ALLOWED_SHARE_MIN * n) or (width is None and kind != "flat"):
        return None
    take = _candidates(kind, k, width or 0)
    gone = take * (n - n_allowed) / n_allowed
    take = min(n, take + (math.ceil(OVERFETCH * gone) + OVERFETCH_MIN if gone else 0))
    beam = -(-max(width or 0, take) // BEAM_GROUP) * BEAM_GROUP
    across = {"hnsw": beam, "flat": 0}.get(kind, min(width or 0, lists))
    most = BEAM_MAX if kind == "hnsw" else limits.candidates_max
    return DeviceSearch(take, across) if max(take, across) <= most else None


def _candidates(kind: Kind, k: int, lists: int) -> int:
    return (
        max(k, K_MEASURED) * max(LIST_CANDIDATES, lists // 5)
        if kind == "ivfpq"
        else k * GRAPH_CANDIDATES
    )


def device_bytes(spec: IndexSpec, n: int, d: int, limits: Limits) -> int:
    """Returns the most bytes of an index of n rows of d numbers on a GPU, vectors included.

    A search on a GPU cannot read vectors from the host.
    """
    if n == 0 or spec.kind == "rabitq":
        return 0
    lists = lists_for(spec, n)
    if spec.kind == "flat":
        return n * (4 * d + 4)  # with each row's squared length, for Euclidean distances
    if spec.kind == "hnsw":
        return n * (4 * (-(-d // 4) * 4) + 2 * spec.m * 4)
    row = 4 * d + 8 if spec.kind == "ivf" else parts_for(d) + 8
    centroids = 2 * lists * d * 4 + (0 if spec.kind == "ivf" else CENTROIDS * d * 4)
    return padded_rows(n, lists, limits) * row + centroids


def padded_rows(n: int, lists: int, limits: Limits) -> int:
    """Returns the most rows for which the lists of n rows together allocate room."""
    if not limits.graphs:
        return n + (LIST_GROUP - 1) * lists
    return min(2 * n + LIST_GROUP * lists, n + CUVS_LIST * lists)


def by_free_bytes(free: Sequence[int], need: int) -> tuple[int, ...]:
    """Returns the GPUs with room for `need` bytes, most free bytes first.

    Segments are thus spread by their bytes.
    """
    fit = [i for i, n in enumerate(free) if n >= need]
    return tuple(sorted(fit, key=lambda i: free[i], reverse=True))
