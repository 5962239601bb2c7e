"""Measures the freshness lag of all tenants in the background.

A sweep reads at most one record of each partition of a documents log that ingest has not read to
its end, and one of each slot whose watermark is behind. Sweeps take at most a tenth of the time:
each is followed by a rest of nine times what it took, at least REST_S.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from query.scatter import Searchers
from tenants.entities import IngestLane
from tenants.ingested import ingested
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Clock, Deadline
from vicinage.errors import NotFound, Refused, VicinageError
from vicinage.log import Log, TopicPartition
from vicinage.metrics import gauge
from vicinage.telemetry import events

REST_S: Final = 5.0
REST_TIMES: Final = 9
WATERMARKS_S: Final = 2.0
"""Deadline for reading the searchers' watermarks."""
_event = events("query")
_lag = gauge("vicinage_query_freshness_lag_seconds")
_measured = gauge("vicinage_query_freshness_measured_timestamp_seconds")


class LagSweep:
    """Belongs to one event loop; reads the log on a thread of its own."""

    def __init__(self, log: Log, registry: Registry, searchers: Searchers, clock: Clock) -> None:
        self._log = log
        self._registry = registry
        self._searchers = searchers
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lag-sweep")

    async def run(self) -> None:
        """Measures repeatedly, until canceled."""
        try:
            while True:
                started_s = time.monotonic()
                try:
                    await self.sweep()
                except VicinageError as error:
                    _event.warning("freshness.measurement_failed", reason=str(error))
                await asyncio.sleep(max(REST_S, REST_TIMES * (time.monotonic() - started_s)))
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def sweep(self) -> int:
        """Measures once and sets the gauges; returns the greatest lag in milliseconds.

        The lag is 0 if no record waits. Raises Unavailable.
        """
        watermarks: dict[int, int] = {}
        for searcher in self._searchers.all:
            watermarks |= await searcher.reach({}, Deadline.after(WATERMARKS_S))
        lag_ms = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._measure, watermarks
        )
        _lag.set(lag_ms / 1000)
        _measured.set(self._clock.now_ms() / 1_000)
        return lag_ms

    def _measure(self, watermarks: Mapping[int, int]) -> int:
        waiting = [*self._not_ingested(), *self._not_applied(watermarks)]
        return max(0, self._clock.now_ms() - min(waiting)) if waiting else 0

    def _not_ingested(self) -> Iterator[int]:
        """Yields the event time of the first record of each partition that is not ingested."""
        topics = [t.documents_topic for t in self._registry.tenants()]
        partitions = self._log.topics()
        every = [(topic, p) for topic in topics for p in range(partitions.get(topic, 0))]
        committed = ingested(self._log, self._registry, every)
        extents = self._log.extents(every)
        for tp, extent in extents.items():
            yield from self._first(tp, committed.get(tp, 0), extent)
        for lane in self._registry.lanes.every():
            tp = (f"vicinage.docs.{lane.tenant}", lane.partition)
            if tp in extents and lane.position < committed.get(tp, 0) and self._is_live(lane):
                yield from self._first(tp, lane.position, extents[tp])

    def _is_live(self, lane: IngestLane) -> bool:
        """Returns whether the lane's generation is live, so that searches miss its records."""
        try:
            return self._registry.collection(lane.tenant, lane.collection).live == lane.generation
        except NotFound:
            return False

    def _not_applied(self, watermarks: Mapping[int, int]) -> Iterator[int]:
        """Yields the event time of the first record that is not searchable, of each slot."""
        extents = self._log.extents([(VECTORS_TOPIC, slot) for slot in watermarks])
        for (topic, slot), extent in extents.items():
            yield from self._first((topic, slot), watermarks[slot], extent)

    def _first(self, tp: TopicPartition, start: int, extent: tuple[int, int]) -> list[int]:
        log_start, log_end = extent
        start = max(start, log_start)
        if start >= log_end:
            return []
        try:
            return [s.record.event_time_ms for s in self._log.read(*tp, start, bytes_max=1)][:1]
        except (NotFound, Refused):
            return []  # deleted, or trimmed, meanwhile
