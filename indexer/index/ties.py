"""The order of equal scores: by document id, then passage, whatever k is. Pure."""

from collections.abc import Callable
from typing import Final

import numpy as np

from indexer.backends import Rows
from vicinage.records import Floats

WIDTH_MAX: Final = 2_048
"""Candidates that are looked at for the end of a run of equal scores: among more equal ones, which are found is not defined."""
_WIDEN: Final = 4
Place = tuple[int, int]
"""(part, row)"""


def settled(find: Callable[[int], tuple[Floats, Rows]], k: int, n: int) -> tuple[Floats, Rows]:
    """Returns scores and rows [q, at least k] that hold every row whose score equals a query's k-th.

    `find(width)` returns the best of `n` rows, best first, −1 where there are fewer. It is called once unless a run of
    equal scores goes beyond k, and then with more until the run ends, or WIDTH_MAX.
    """
    width = k + 1
    scores, rows = find(width)
    while width < min(n, WIDTH_MAX) and _runs_on(scores, rows, k):
        width = min(_WIDEN * width, n, WIDTH_MAX)
        scores, rows = find(width)
    return scores, rows


def _runs_on(scores: Floats, rows: Rows, k: int) -> bool:
    """Returns whether the last score of some query equals its k-th."""
    return bool(((scores[:, -1] == scores[:, k - 1]) & (rows[:, -1] >= 0)).any())


def best(
    scores: Floats, places: list[Place], k: int, name: Callable[[Place], tuple[str, int]]
) -> list[int]:
    """Returns the numbers of the k best candidates, best first; equal scores by their `name` (document id, passage).

    Names are looked up for equal scores alone.
    """
    order = np.argsort(-scores, kind="stable")
    if len(order) > k:
        order = order[: int(np.searchsorted(-scores[order], -scores[order[k - 1]], side="right"))]
    kept = scores[order]
    if not (kept[1:] == kept[:-1]).any():
        return [int(i) for i in order[:k]]
    equal = np.zeros(len(kept), np.bool_)
    equal[1:] |= kept[1:] == kept[:-1]
    equal[:-1] |= kept[1:] == kept[:-1]
    names = {int(i): name(places[i]) for i in order[equal]}
    return sorted(
        (int(i) for i in order), key=lambda i: (-float(scores[i]), names.get(i, ("", 0)))
    )[:k]
