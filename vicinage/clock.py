"""Time as a value that can be handed in: the system's, or one that moves only when told."""

import threading
import time
from dataclasses import dataclass
from typing import Protocol


def longer(wait_s: float | None, bounds_s: tuple[float, float]) -> float:
    """How long to wait after having waited `wait_s` (None: not yet): the least first, then twice as long each time, up to the most."""
    least, most = bounds_s
    return least if wait_s is None else min(2 * wait_s, most)


class Clock(Protocol):
    """What the platform asks of time."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards; only differences mean anything."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
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
        """Block the calling thread for `seconds`."""
        time.sleep(seconds)


class ManualClock:
    """A clock for tests: it stands still until `advance` or `sleep` moves it."""

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
        """Move the clock; nobody waits."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        assert seconds >= 0, "time does not run backwards"
        with self._lock:
            self._elapsed_s += seconds


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time that a request must not outlive; it travels with the request."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """The deadline `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at - time.monotonic())

    def passed(self) -> bool:
        """True once no time is left."""
        return time.monotonic() >= self.at
