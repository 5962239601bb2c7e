"""Clocks as injectable values: the system's clock, and a manual one for tests."""

import threading
import time
from dataclasses import dataclass
from typing import Protocol


def longer(wait_s: float | None, bounds_s: tuple[float, float]) -> float:
    """Returns the next wait of an exponential backoff, after a wait of `wait_s` (None: the first).

    The wait starts at the lower bound and doubles up to the upper bound.
    """
    least, most = bounds_s
    return least if wait_s is None else min(2 * wait_s, most)


class Clock(Protocol):
    """The interface of a clock."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards; only differences mean anything."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits for `seconds`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Blocks the calling thread for `seconds`."""
        time.sleep(seconds)


class ManualClock:
    """A clock for tests that moves only by `advance` or `sleep`."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._lock = threading.Lock()
        self._elapsed_s = 0.0
        self._start_ms = now_ms

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the Unix epoch."""
        return self._start_ms + int(self._elapsed_s * 1000)

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._elapsed_s

    def sleep(self, seconds: float) -> None:
        """Advances the clock without waiting."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Advances the clock by `seconds`."""
        assert seconds >= 0, "time does not run backwards"
        with self._lock:
            self._elapsed_s += seconds


@dataclass(frozen=True, slots=True)
class Deadline:
    """The monotonic time by which a request must end; passed along with the request."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Returns the deadline `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """Returns the seconds left, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def passed(self) -> bool:
        """Returns True if no time is left."""
        return time.monotonic() >= self.at
