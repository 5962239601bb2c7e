"""Decides when a segment's passages are scanned in place of its index.

This happens only if live searches prove that the index misses the objective (`ShardQuery.scan`). At
most `rows_max` passages per shard are scanned, within a share of the search threads' time.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from indexer.index.segment import Segment
from vicinage.metrics import counter
from vicinage.records import Bound, ShardId
from vicinage.telemetry import events

ROWS_MAX: Final = 50_000
CPU_SHARE: Final = 0.1
SAVED_S: Final = 10.0
"""Unused time accumulates up to this many seconds' worth."""
_event = events("searcher")
_scans = counter("vicinage_searcher_index_scans_total")


def to_scan(segments: Sequence[Segment], rows_max: int) -> frozenset[int]:
    """Returns the segments that are scanned instead of searched by index. Pure.

    Chooses those with the least recall first, with at most `rows_max` rows in all.
    """
    indexed = [i for i, s in enumerate(segments) if s.index is not None]
    found: set[int] = set()
    left = rows_max
    for i in sorted(
        indexed, key=lambda i: segments[i].ref.curve[-1][1] if segments[i].ref.curve else 1.0
    ):
        if len(segments[i]) <= left:
            found.add(i)
            left -= len(segments[i])
    return frozenset(found)


class ScanBudget:
    """Bounds the share of search threads' time that scans take, over all shards of a searcher.

    Safe for many threads.
    """

    def __init__(
        self,
        rows_max: int = ROWS_MAX,
        cpu_share: float = CPU_SHARE,
        *,
        threads: int = 1,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rows_max = rows_max
        self._rate = cpu_share * threads
        self._now_s = now_s
        self._left_s = self._rate * SAVED_S
        self._seen_s = now_s()
        self._lock = threading.Lock()

    def has_time(self) -> bool:
        """Returns whether another scan may start: earlier scans have been paid for."""
        with self._lock:
            self._refill()
            return self._left_s > 0

    @contextmanager
    def scanning(self) -> Iterator[None]:
        """Charges the time of the block, which scans."""
        began_s = self._now_s()
        try:
            yield
        finally:
            with self._lock:
                self._refill()
                self._left_s -= self._now_s() - began_s

    def _refill(self) -> None:
        now_s = self._now_s()
        self._left_s = min(self._rate * SAVED_S, self._left_s + self._rate * (now_s - self._seen_s))
        self._seen_s = now_s


class ScanLog:
    """Counts searches of one shard that were scanned instead of its index, or not, and why.

    Safe for many threads.
    """

    def __init__(self, shard: ShardId) -> None:
        self._shard = shard
        self._seen: Counter[str] = Counter()

    def note(self, scanned: int, bound: Bound | None, searches: int) -> None:
        """Counts searches; the first of each outcome is logged as an event."""
        for outcome in (("scanned",) if scanned else ()) + ((bound,) if bound else ()):
            if not self._seen[outcome]:
                _event.warning(
                    "index.scanned" if outcome == "scanned" else "index.scan_refused",
                    shard=str(self._shard),
                    passages=scanned,
                    bound=bound,
                )
            self._seen[outcome] += searches
            _scans.labels(outcome).inc(searches)

    def seen(self) -> Mapping[str, int]:
        """Returns the searches by outcome since the shard was loaded."""
        return dict(self._seen)
