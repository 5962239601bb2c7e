"""How far the effort curves of a collection are off, as its live recall shows. Pure.

A curve is measured when a segment is sealed, on the questions of before or on made-up ones; those of now may be harder or easier. What is
added to the objective before the curves are asked moves up as soon as the interval of the live recall lies below the objective, and
down, more slowly, while it lies well above. Once every curve has been measured on twice as many of the collection's own
questions as before, they know themselves what was learned of the older ones: it begins anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from query.interval import ENOUGH, interval

UP: Final = 0.01
DOWN: Final = 0.005
MOST: Final = 0.05
LEAST: Final = -0.1
ROOM: Final = 0.01
"""How far above the objective the whole interval must lie before effort is taken back."""
PATIENCE: Final = 180
"""Samples before effort is taken back, and those looked at: what is older was served at another effort."""


@dataclass(slots=True)
class Correction:
    """Of one collection at one generation: what is added to its objective, and the recall of each sample since it last moved."""

    added: float = 0.0
    since: list[float] = field(default_factory=list)
    asked: int = 0
    """Questions that the curves which it corrects were measured on, at least; 0: made-up ones."""

    def note(self, recall: float, objective: float, asked: int = 0) -> None:
        """Take in one more sample, which was served by curves measured on so many questions."""
        if asked >= 2 * max(1, self.asked):
            self.added, self.since, self.asked = 0.0, [], asked
        self.since.append(recall)
        if len(self.since) % ENOUGH == 0:  # seldom: looking after every sample would find what is not there
            to = moved(self.added, self.since[-PATIENCE:], objective)
            if to != self.added:
                self.added, self.since = to, []
            del self.since[:-PATIENCE]


def moved(added: float, since: Sequence[float], objective: float) -> float:
    """What to add from now on."""
    low, high = interval(since)
    if high < objective:
        return min(MOST, round(added + UP, 4))
    if len(since) >= PATIENCE and low > objective + ROOM:
        return max(LEAST, round(added - DOWN, 4))
    return added
