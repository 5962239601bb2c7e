"""Arithmetic on float32 vectors that several roles share. Pure."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vicinage.records import Floats

Squares = NDArray[np.float64]
NORMALIZED: Final = float(2 * np.finfo(np.float32).eps)
"""Tolerance of the squared length of a normalized float32 vector."""
BLOCK_NUMBERS: Final = 1 << 20
"""Numbers divided at once, to bound the memory of float64 quotients."""


def squared_lengths(vectors: Floats) -> Squares:
    """Returns float64 [n], the square of each vector's length."""
    with np.errstate(all="ignore"):
        found: Squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return found


def unit_length(vectors: Floats, metric: str, squares: Squares | None = None) -> Floats:
    """Returns float32 [n, d], L2-normalized under cosine, unchanged under another metric.

    `squares`: the squared lengths, if known. Vectors that are all normalized to float32 precision
    are returned without a copy. A zero vector stays zero, and one with NaN or infinity stays
    invalid: the caller has checked for both.
    """
    if metric != "cosine" or not len(vectors):
        return vectors
    squares = squared_lengths(vectors) if squares is None else squares
    if bool((np.abs(squares - 1) <= NORMALIZED).all()):
        return vectors
    unit = np.empty_like(vectors)
    rows = max(1, BLOCK_NUMBERS // vectors.shape[1])
    for at in range(0, len(vectors), rows):
        block = vectors[at : at + rows]
        with np.errstate(all="ignore"):
            lengths = np.sqrt(squares[at : at + rows])
            unit[at : at + rows] = block / np.where(lengths > 0, lengths, 1.0)[:, None]
    return unit
