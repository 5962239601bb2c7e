"""What a GPU can take: its limits, the bytes of an index on it, and which questions it is asked.

Pure; FAISS is not touched here.

Sources: FAISS 1.15's gpu/impl/IndexUtils.cu (k and nprobe), gpu/impl/IVFPQ.cu (code sizes),
    gpu/GpuIndexIVFPQ.cu (bits, shared
memory); cuVS 26.06's neighbors/common.hpp (how lists are padded) and detail/cagra/search_plan.cuh
(beams).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from indexer.backends import K_MEASURED, TRAIN_PER_LIST, lists_for
from tenants.index_spec import IndexSpec, Kind

NUMBERS_MIN: Final = 1 << 20
"""Rows × dimension below which a segment stays on the CPU, where it costs no more than a question to a graph."""
BUILD_ROWS_MIN: Final = 20_000
"""Rows below which an index is built on the CPU: no more than a few seconds, and a GPU is not kept from its searches."""
CENTROIDS: Final = 256
"""Of a part of a code: eight bits, which is all that FAISS's own GPU code takes."""
PARTS: Final = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Bytes of a code that FAISS's own GPU code takes; over 48 with float16 tables alone."""
FLOAT32_PARTS_MAX: Final = 48
"""Parts whose float32 tables (256 × 4 bytes each) fit into the 48 KiB of a block's shared memory."""
LIST_GROUP: Final = 32
"""FAISS's own lists are padded to so many rows; cuVS's to powers of two from there, and from CUVS_LIST on to multiples of it."""
CUVS_LIST: Final = 1_024
BEAM_GROUP: Final = 32
BEAM_MAX: Final = 1_024
"""The widest internal list (itopk) that every algorithm of CAGRA takes, in steps of BEAM_GROUP."""
LIVING_SHARE: Final = 0.9
"""Rows that are not allowed are left out on the host where at least this share is allowed, as after some deletions; below, the
CPU answers: no selector is ever handed to a GPU, since FAISS's own GPU indexes ignore it in silence."""
MORE: Final = 1.25
"""So many times the expected number of rows that are not allowed are asked for in addition,"""
MORE_AT_LEAST: Final = 8
LIST_CANDIDATES: Final = 3
"""So many times k candidates of lists with codes are scored again from their vectors, at least."""
GRAPH_CANDIDATES: Final = 1
"""Of a graph: on the device it keeps whole vectors."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the installed FAISS's GPU code takes: most candidates and most lists of a question, and whether there are graphs."""

    candidates_max: int
    graphs: bool


CLASSIC: Final = Limits(2_048, graphs=False)
CUVS: Final = Limits(16_384, graphs=True)


@dataclass(frozen=True, slots=True)
class Ask:
    """A question as a device is asked it: `take` candidates each; `width` lists, or the beam of a graph (0: flat)."""

    take: int
    width: int


def builds(spec: IndexSpec, n: int, limits: Limits) -> bool:
    """Whether a device builds this index.

    The CPU builds the others: kinds that GPUs have not, and what is soon built.
    """
    if n < BUILD_ROWS_MIN or lists_for(spec, n) > limits.candidates_max:
        return False
    if spec.kind == "ivfpq":
        return n >= TRAIN_PER_LIST * CENTROIDS
    return spec.kind == "ivf" or (spec.kind == "hnsw" and limits.graphs)


def parts_for(d: int) -> int:
    """Bytes of a code: about four numbers a part, as far as that divides d and a GPU takes it.

    Fewer numbers rather than more.
    """
    fit = [p for p in PARTS if d % p == 0]
    return next((p for p in fit if p >= d / 4), fit[-1])


def serves(kind: Kind, n: int, d: int, limits: Limits) -> bool:
    """Whether a segment of that kind and size is worth a device's memory, and of a kind that it has."""
    return n * d >= NUMBERS_MIN and (
        kind in ("flat", "ivf", "ivfpq") or (kind == "hnsw" and limits.graphs)
    )


def asked(
    kind: Kind, limits: Limits, *, k: int, width: int | None, n: int, n_allowed: int, lists: int = 0
) -> Ask | None:
    """What a device is asked for `k` hits among `n_allowed` of n rows, at a width as the CPU would have it; None: the CPU answers."""
    if n_allowed < max(1, LIVING_SHARE * n) or (width is None and kind != "flat"):
        return None
    take = _candidates(kind, k, width or 0)
    gone = take * (n - n_allowed) / n_allowed
    take = min(n, take + (math.ceil(MORE * gone) + MORE_AT_LEAST if gone else 0))
    beam = -(-max(width or 0, take) // BEAM_GROUP) * BEAM_GROUP
    across = {"hnsw": beam, "flat": 0}.get(kind, min(width or 0, lists))
    most = BEAM_MAX if kind == "hnsw" else limits.candidates_max
    return Ask(take, across) if max(take, across) <= most else None


def _candidates(kind: Kind, k: int, lists: int) -> int:
    return (
        max(k, K_MEASURED) * max(LIST_CANDIDATES, lists // 5)
        if kind == "ivfpq"
        else k * GRAPH_CANDIDATES
    )


def device_bytes(spec: IndexSpec, n: int, d: int, limits: Limits) -> int:
    """Most bytes of an index of n rows of d numbers on a device: vectors too, since a question there finds nothing on the host."""
    if n == 0 or spec.kind == "rabitq":
        return 0
    lists = lists_for(spec, n)
    if spec.kind == "flat":
        return n * (4 * d + 4)  # and each row's length, for Euclidean distances
    if spec.kind == "hnsw":
        return n * (4 * (-(-d // 4) * 4) + 2 * spec.m * 4)
    row = 4 * d + 8 if spec.kind == "ivf" else parts_for(d) + 8
    centroids = 2 * lists * d * 4 + (0 if spec.kind == "ivf" else CENTROIDS * d * 4)
    return padded_rows(n, lists, limits) * row + centroids


def padded_rows(n: int, lists: int, limits: Limits) -> int:
    """Most rows for which lists of n rows in all hold room."""
    if not limits.graphs:
        return n + (LIST_GROUP - 1) * lists
    return min(2 * n + LIST_GROUP * lists, n + CUVS_LIST * lists)


def by_room(free: Sequence[int], need: int) -> tuple[int, ...]:
    """The devices that have room for `need` bytes, the emptiest first: segments spread by their bytes."""
    fit = [i for i, n in enumerate(free) if n >= need]
    return tuple(sorted(fit, key=lambda i: free[i], reverse=True))
