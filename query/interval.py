"""The interval of a mean of measured recalls. Pure."""

import math
from collections.abc import Sequence
from typing import Final

ENOUGH: Final = 30
"""Fewer samples judge nothing."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean, by the normal approximation over questions; (0, 1) below two samples."""
    n = len(values)
    if n < 2:
        return 0.0, 1.0
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    # With every sample perfect the deviation says nothing: the rule of three bounds the share of imperfect ones.
    half = 1.96 * deviation / math.sqrt(n) if deviation else 3 / n
    return max(0.0, mean - half), min(1.0, mean + half)
