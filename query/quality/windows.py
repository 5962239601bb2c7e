"""Judges the recall of one collection at one k in consecutive windows. Pure.

A confidence sequence describes samples that have one mean. Recall changes when the effort changes,
or the documents, or the searches. So a window ends after WINDOW samples, when the effort was
corrected, when the curves were measured again, or when its interval proves that recall has changed,
and the next one begins. All windows of a collection together exceed the stated error with
probability at most ALPHA (`spent`).
"""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from query.quality.interval import ALPHA, METHOD, SAMPLES_MIN, ConfidenceSequence, spent

WINDOW: Final = 2_000
"""Maximum number of samples of a window."""

Why = Literal["first", "full", "effort_corrected", "curves_measured", "recall_changed"]
"""Why a window began."""
Verdict = Literal["ok", "breach", "not_enough_samples"]


@dataclass(frozen=True, slots=True)
class Judged:
    """The result of one window. `ended_ms` None: the window is open."""

    number: int
    began_ms: int
    ended_ms: int | None
    why: Why
    n: int
    mean: float
    low: float
    high: float

    def verdict(self, objective: float) -> Verdict:
        """Returns `breach` if the interval lies below the objective, else `ok`."""
        if self.n < SAMPLES_MIN:
            return "not_enough_samples"
        return "breach" if self.high < objective else "ok"

    def window(self) -> dict[str, Any]:
        """Returns the window's facts for the recall report."""
        return {
            "number": self.number,
            "began_ms": self.began_ms,
            "ended_ms": self.ended_ms,
            "began_because": self.why,
            "samples_max": WINDOW,
            "method": METHOD,
            "alpha": ALPHA,
        }


class Windows:
    """The open window, and the result of the last one with enough samples."""

    def __init__(self, now_ms: int) -> None:
        self.total = 0
        """Samples of all windows."""
        self._number, self._began_ms = 1, now_ms
        self._why: Why = "first"
        self._sequence = ConfidenceSequence(spent(1))
        self._last: Judged | None = None

    def add(self, sample: float, now_ms: int) -> None:
        """Adds the next sample."""
        if self._sequence.n >= WINDOW:
            self.restart("full", now_ms)
        self._sequence.add(sample)
        self.total += 1
        if self._sequence.empty:
            self.restart("recall_changed", now_ms)

    def restart(self, why: Why, now_ms: int) -> None:
        """Begins a new window; a no-op if the present one has no samples."""
        if not self._sequence.n:
            return
        ended = self._judged(now_ms)
        if ended.n >= SAMPLES_MIN and ended.low <= ended.high:
            self._last = ended
        self._number, self._why, self._began_ms = self._number + 1, why, now_ms
        self._sequence = ConfidenceSequence(spent(self._number))

    def judged(self) -> Judged:
        """Returns the open window, or the last one while the open one has too few samples."""
        if self._last is None or self._sequence.n >= SAMPLES_MIN:
            return self._judged(None)
        return self._last

    def _judged(self, ended_ms: int | None) -> Judged:
        s = self._sequence
        return Judged(self._number, self._began_ms, ended_ms, self._why, s.n, s.mean, s.low, s.high)

    def state(self) -> dict[str, Any]:
        """Returns the complete state as JSON values."""
        return {
            "total": self.total,
            "number": self._number,
            "why": self._why,
            "began_ms": self._began_ms,
            "sequence": self._sequence.state(),
            "last": asdict(self._last) if self._last else None,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Windows":
        """Returns the windows of a `state`. Raises KeyError, TypeError, ValueError if invalid."""
        made = cls(int(state["began_ms"]))
        made.total, made._number, made._why = (
            int(state["total"]),
            int(state["number"]),
            state["why"],
        )
        made._sequence = ConfidenceSequence.of_state(state["sequence"])
        made._last = Judged(**state["last"]) if state["last"] else None
        return made
