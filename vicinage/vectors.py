"""Arithmetic on float32 vectors that several roles share. Pure."""

from typing import Final

import numpy as np

from vicinage.records import Floats

BLOCK_NUMBERS: Final = 1 << 20
"""Numbers that are divided at once: the quotients are float64."""


def unit_length(vectors: Floats, metric: str) -> Floats:
    """Returns float32 [n, d], L2-normalized under cosine; under another metric, as it is.

    A vector of zeros stays one, and one with NaN or infinity stays unusable: the caller has looked for both.
    """
    if metric != "cosine" or not len(vectors):
        return vectors
    unit = np.empty_like(vectors)
    rows = max(1, BLOCK_NUMBERS // vectors.shape[1])
    for at in range(0, len(vectors), rows):
        block = vectors[at : at + rows]
        with np.errstate(all="ignore"):
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
            unit[at : at + rows] = block / np.where(lengths > 0, lengths, 1.0)[:, None]
    return unit
