"""The order of equal scores: by document id, then passage, whatever k is. Pure."""

from collections.abc import Callable
from typing import Final

import numpy as np

from indexer.backends import Rows
from vicinage.records import Floats

WIDTH_MAX: Final = 2_048
"""Most candidates that are fetched to find the end of a run of equal scores.

If a run is longer, which of its rows are found is undefined.
"""
_WIDEN: Final = 4
Address = tuple[int, int]
"""(part, row)"""


def settled(find: Callable[[int], tuple[Floats, Rows]], k: int, n: int) -> tuple[Floats, Rows]:
    """Returns scores and rows [q, at least k] with every row whose score equals a query's k-th.

    `find(width)` returns the best of `n` rows, best first, −1 beyond the last. It is called once
    unless a run of equal scores goes beyond k; then with a greater width until the run ends, or
    WIDTH_MAX is reached.
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
    scores: Floats, addresses: list[Address], k: int, name: Callable[[Address], tuple[str, int]]
) -> list[int]:
    """Returns the indexes of the k best candidates, best first.

    Breaks ties by `name` (document id, passage), which is called for equal scores only.
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
    names = {int(i): name(addresses[i]) for i in order[equal]}
    return sorted(
        (int(i) for i in order), key=lambda i: (-float(scores[i]), names.get(i, ("", 0)))
    )[:k]
