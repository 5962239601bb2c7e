"""A confidence sequence of the mean of measured recalls: an interval valid at all times. Pure.

Source: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting",
Journal of the Royal Statistical Society B 86(1), 2024 (arXiv 2010.09686): the hedged capital
process with predictable plug-in bets. For each candidate mean m, one gambler bets that samples lie
above m and another that they lie below. While m is the mean, the capital of either reaches 2/alpha
at some time with probability at most alpha/2 (Ville's inequality), however often it is checked. A
candidate at which a capital has reached 2/alpha is excluded permanently.

`high < objective` disproves more than one fixed mean. The gambler that bets below gains nothing
while the expected recall of every sample is at least the objective, even if it varies. The same
holds for `low`.
"""

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SAMPLES_MIN: Final = 30
"""Minimum number of samples for a verdict."""
ALPHA: Final = 0.05
"""Maximum probability that an interval misses the mean at any time."""
GRID: Final = 1_000
"""Candidate means are thousandths; bounds are rounded outward to one."""
BET_MAX: Final = 0.75
"""Maximum part of its capital that a gambler stakes."""
METHOD: Final = "betting confidence sequence, valid at every time"


class ConfidenceSequence:
    """The interval of the mean of samples in [0, 1]; (0, 1) before the first."""

    def __init__(self, alpha: float = ALPHA) -> None:
        self.alpha = alpha
        self.n = 0
        self._sum = 0.0
        self._spread = 0.25
        self._first, self._last = 0, GRID
        """Candidates that are not excluded, in thousandths; `_first` > `_last` if none is left."""
        self._above: NDArray[np.float64] = np.zeros(GRID + 1)
        """Log capital of the gambler that bets above each candidate from `_first` to `_last`."""
        self._below: NDArray[np.float64] = np.zeros(GRID + 1)

    @property
    def mean(self) -> float:
        """The mean of the samples; 1 before the first."""
        return self._sum / self.n if self.n else 1.0

    @property
    def low(self) -> float:
        """The greatest candidate that is excluded from below, or 0."""
        return max(0, self._first - 1) / GRID

    @property
    def high(self) -> float:
        """The least candidate that is excluded from above, or 1."""
        return min(GRID, self._last + 1) / GRID

    @property
    def empty(self) -> bool:
        """Whether every mean is excluded: the samples do not have one mean, it has changed."""
        return self._first > self._last

    def add(self, sample: float) -> None:
        """Adds the next sample. Samples come in the order in which they were taken."""
        candidates = np.arange(self._first, self._last + 1) / GRID
        self._above += np.log1p(self._stakes(candidates) * (sample - candidates))
        self._below += np.log1p(self._stakes(1 - candidates) * (candidates - sample))
        self.n += 1
        self._sum += sample
        self._spread += (sample - (0.5 + self._sum) / (self.n + 1)) ** 2
        self._exclude(math.log(2 / self.alpha))

    def _stakes(self, room: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the bet at each candidate, decided before the sample is seen.

        `room` is the most that a bet of 1 may lose.
        """
        variance = self._spread / (self.n + 1)
        times = (self.n + 1) * math.log(self.n + 2)
        bet = math.sqrt(2 * math.log(2 / self.alpha) / (variance * times))
        return np.minimum(bet, BET_MAX / np.maximum(room, 1e-9))

    def _exclude(self, limit: float) -> None:
        # Capital above falls with the candidate and capital below rises: what is excluded lies at
        # the ends.
        left = int(np.count_nonzero(self._above >= limit))
        right = int(np.count_nonzero(self._below >= limit))
        end = max(left, len(self._below) - right)
        self._above, self._below = self._above[left:end], self._below[left:end]
        self._first, self._last = self._first + left, self._last - right

    def state(self) -> dict[str, Any]:
        """Returns the complete state as JSON values.

        It takes at most about 40 kB, and 4 kB from some hundred samples on.
        """
        return {
            "alpha": self.alpha,
            "n": self.n,
            "sum": float(self._sum),
            "spread": float(self._spread),
            "first": self._first,
            "last": self._last,
            "above": [round(v, 6) for v in self._above.tolist()],
            "below": [round(v, 6) for v in self._below.tolist()],
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "ConfidenceSequence":
        """Returns the sequence of a `state`. Raises KeyError, TypeError, ValueError if invalid."""
        made = cls(float(state["alpha"]))
        made.n, made._sum, made._spread = (
            int(state["n"]),
            float(state["sum"]),
            float(state["spread"]),
        )
        made._first, made._last = int(state["first"]), int(state["last"])
        made._above, made._below = (
            np.array(state["above"], np.float64),
            np.array(state["below"], np.float64),
        )
        if not len(made._above) == len(made._below) == max(0, made._last - made._first + 1):
            raise ValueError("the capitals are not those of the candidates")
        return made


def interval(samples: Iterable[float], alpha: float = ALPHA) -> tuple[float, float]:
    """Returns the interval after the last of `samples`, in the order in which they were taken."""
    sequence = ConfidenceSequence(alpha)
    for sample in samples:
        sequence.add(sample)
    return sequence.low, sequence.high


def spent(number: int, alpha: float = ALPHA) -> float:
    """Returns the error allowed to the window `number` (from 1); all windows sum to `alpha`."""
    return alpha / (number * (number + 1))
