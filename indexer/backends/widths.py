"""Decides how wide an index is searched, given the share of rows that a filter allows. Pure."""

import math
from typing import Final

from indexer.backends import K_MEASURED
from indexer.backends.indexes import Index

ROWS_PER_STEP: Final = 30
"""Scattered rows (384 numbers) that cost as much as one step of a beam: 0.058 against 1.7 µs."""
DEPTH_STEPS: Final = 1.25
"""Beam steps added per rank beyond the tenth, so that recall stays as it is at the tenth."""
BEAM_MAX: Final = 4_096
UNFILTERED_SHARE: Final = 0.9
"""From this allowed share on, allowed rows are spread over an IVF's lists as all rows are.

Below it, every list is probed.
"""


def beam_for(effort: int, rank: float) -> int:
    """Returns the beam that finds the row of this rank as surely as `effort` finds the tenth."""
    return math.ceil(beam_needed(effort, rank))


def beam_needed(effort: int, rank: float) -> float:
    """Returns the beam of `beam_for`, not rounded."""
    return max(effort + DEPTH_STEPS * max(0.0, rank - K_MEASURED), rank)


def width_for(index: Index, n: int, n_allowed: int, k: int, effort: int) -> int | None:
    """Returns the beam width, the lists probed, or the candidates, by the index's kind.

    Returns None if comparing with every allowed row is cheaper, or reaches more of them.
    """
    if n_allowed == 0:
        return None
    share = n_allowed / n
    if index.kind == "hnsw":
        beam = beam_for(effort, k / share)
        return beam if is_beam_worth_it(beam, n_allowed) else None
    if n_allowed <= ROWS_PER_STEP * max(effort, k):
        return None
    if index.kind == "rabitq":
        return math.ceil(effort * max(k, K_MEASURED) / K_MEASURED)
    return (
        max(effort, int(index.faiss.nlist))
        if share < UNFILTERED_SHARE
        else math.ceil(effort / share * math.sqrt(max(1, k / K_MEASURED)))
    )


def is_beam_worth_it(beam: int, n_allowed: int) -> bool:
    """Returns whether a walk with this beam is possible and cheaper than scanning allowed rows."""
    return beam <= BEAM_MAX and n_allowed > ROWS_PER_STEP * beam
