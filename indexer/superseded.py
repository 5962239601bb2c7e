"""Deletes objects of superseded segments soon after no manifest names them.

That is sooner than the age of an orphan. Readers that load an older manifest meanwhile load the
newer one instead; mapped segments stay readable. Objects that a killed process leaves behind are
swept as orphans.
"""

from collections import deque
from collections.abc import Iterable

from tenants.entities import SegmentRef
from tenants.quarantine import Quarantine
from vicinage.clock import Clock
from vicinage.store import Store


class Superseded:
    """Segments that no manifest names any more, oldest first.

    `add` may be called from any thread.
    """

    def __init__(self, store: Store, quarantine: Quarantine, age_s: float, clock: Clock) -> None:
        self._store = store
        self._quarantine = quarantine
        self._age_s = age_s
        self._clock = clock
        self._waiting: deque[tuple[float, SegmentRef]] = deque()

    def add(self, refs: Iterable[SegmentRef]) -> None:
        """Schedules the deletion of their objects after `age_s`."""
        due = self._clock.monotonic() + self._age_s
        self._waiting.extend((due, ref) for ref in refs)

    def step(self) -> int:
        """Deletes the objects that are due, except those in quarantine; returns their number.

        Raises Unavailable; call it again later.
        """
        now, n = self._clock.monotonic(), 0
        if not self._waiting or self._waiting[0][0] > now:
            return 0
        kept = {damage.path for damage in self._quarantine.every()}
        while self._waiting and self._waiting[0][0] <= now:
            for stored in self._waiting[0][1].objects.values():
                if stored.path not in kept:
                    self._store.delete(stored.path)
                    n += 1
            self._waiting.popleft()
        return n
