"""Corrects the effort curves of a collection by its live recall. Pure.

A curve is measured when a segment is sealed, on earlier or synthetic queries; present queries may
be harder or easier. The correction is added to the objective before the curves are read. It rises
as soon as the interval of live recall lies below the objective. It falls, more slowly, while the
interval lies well above. Once every curve is measured on twice as many of the collection's own
queries as before, the curves include what the correction learned, and it restarts at 0.

If the interval lies below the objective although every sample was served at the greatest measured
effort, the index is proven to miss the objective (`proven`): no effort helps. Each window of
samples checks the proof again.

Each change begins a new window: samples served at another effort have another mean. All windows of
a collection together are wrong with probability at most ALPHA (`query/quality/interval.py`,
`spent`).
"""

from dataclasses import dataclass, field
from typing import Any, Final

from query.quality.interval import SAMPLES_MIN, ConfidenceSequence, spent
from query.quality.windows import WINDOW, Why

STEP_UP: Final = 0.01
"""Added to the correction when it rises; STEP_DOWN is taken from it when it falls."""
STEP_DOWN: Final = 0.005
ADDED_MAX: Final = 0.11
"""Maximum correction; it leads to the greatest effort.

A curve has at most eleven efforts, and each hundredth is one step.
"""
ADDED_MIN: Final = -0.1
MARGIN: Final = 0.01
"""Minimum distance of the whole interval above the objective before the correction falls."""
FALL_SAMPLES_MIN: Final = 180
"""Minimum number of samples before the correction falls."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Proof that the index misses the objective at its greatest effort.

    Has the interval of n samples, and the time of the first proof.
    """

    since_ms: int
    recall: float
    low: float
    high: float
    n: int


@dataclass(slots=True)
class Correction:
    """The correction of one collection at one generation.

    `added` is added to its objective; `since` has the recall of samples since the last change.
    """

    added: float = 0.0
    n_calibration_queries: int = 0
    """Minimum number of own queries that each curve was measured on; 0: synthetic queries."""
    proof: Proof | None = None
    number: int = 1
    since: ConfidenceSequence = field(default_factory=lambda: ConfidenceSequence(spent(1)))
    at_greatest: bool = True
    """Whether every sample since was served at the greatest measured effort."""

    @property
    def proven(self) -> bool:
        """Whether the index is proven to miss the objective at its greatest effort."""
        return self.proof is not None

    def note(
        self,
        recall: float,
        objective: float,
        n_calibration_queries: int = 0,
        *,
        greatest: bool = False,
        now_ms: int = 0,
    ) -> Why | None:
        """Adds a sample of what the index found; returns why a new window begins, or None.

        `n_calibration_queries` is the number of queries that the curves were measured on.
        `greatest` means that no segment has a greater measured effort.
        """
        why: Why | None = None
        if n_calibration_queries >= 2 * max(1, self.n_calibration_queries):
            self.added, self.n_calibration_queries, self.proof, why = (
                0.0,
                n_calibration_queries,
                None,
                "curves_measured",
            )
            self._begin()
        self.since.add(recall)
        self.at_greatest &= greatest
        if self.since.n < SAMPLES_MIN:
            return why
        full = self.since.n >= WINDOW
        if self.since.high < objective and (full or self.proof is None):
            return self._rise(now_ms) or why
        if self.since.n >= FALL_SAMPLES_MIN and self.since.low > objective + MARGIN:
            return self._fall() or why
        if full or self.since.empty:
            why = "effort_corrected" if self.proven else why
            self.proof = None  # a whole window did not confirm it
            self._begin()
        return why

    def _rise(self, now_ms: int) -> Why | None:
        before, s = self._served(), self.since
        if self.at_greatest:
            since_ms = self.proof.since_ms if self.proof else now_ms
            self.proof = Proof(since_ms, s.mean, s.low, s.high, s.n)
        else:
            self.added, self.proof = min(ADDED_MAX, round(self.added + STEP_UP, 4)), None
        self._begin()
        return "effort_corrected" if self._served() != before else None

    def _fall(self) -> Why | None:
        before = self._served()
        if self.proof is not None:
            self.proof = None
        else:
            self.added = max(ADDED_MIN, round(self.added - STEP_DOWN, 4))
        self._begin()
        return "effort_corrected" if self._served() != before else None

    def _served(self) -> tuple[float, bool]:
        """Returns the values that determine how searches are served."""
        return self.added, self.proven

    def _begin(self) -> None:
        self.number += 1
        self.since, self.at_greatest = ConfidenceSequence(spent(self.number)), True

    def state(self) -> dict[str, Any]:
        """Returns the complete state as JSON values."""
        p = self.proof
        return {
            "added": self.added,
            "n_calibration_queries": self.n_calibration_queries,
            "number": self.number,
            "at_greatest": self.at_greatest,
            "proof": [p.since_ms, p.recall, p.low, p.high, p.n] if p else None,
            "since": self.since.state(),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Correction":
        """Returns the correction of a `state`.

        Raises KeyError, TypeError, ValueError if invalid.
        """
        return cls(
            float(state["added"]),
            int(state["n_calibration_queries"]),
            Proof(*state["proof"]) if state["proof"] else None,
            int(state["number"]),
            ConfidenceSequence.of_state(state["since"]),
            bool(state["at_greatest"]),
        )
