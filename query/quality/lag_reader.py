"""Reads the freshness lag: the age of the oldest accepted record that is not searchable. Blocks."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from tenants.entities import Generation, IngestLane, Tenant
from tenants.ingested import ingested
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import NotFound
from vicinage.log import Log, LogRecord, TopicPartition

READ_BYTES: Final = 1 << 20
"""Bytes of a slot's log that are read to find a collection's first unapplied message."""


class LagReader:
    """Reads lags from the log and the catalog. Thread-safe. The methods raise Unavailable."""

    def __init__(self, log: Log, registry: Registry, clock: Clock) -> None:
        self._log = log
        self._registry = registry
        self._clock = clock

    def lag_ms(self, tenant: Tenant, generation: Generation, watermarks: Mapping[int, int]) -> int:
        """Returns the lag of a generation in milliseconds; 0 if no record waits.

        `watermarks` are those of the generation's slots.
        """
        committed, times = self._not_ingested(tenant)
        lanes = self._registry.lanes.of(tenant.name, generation.collection, [generation.number])
        times.extend(self._waiting_in_lanes(tenant, lanes, committed))
        for slot, watermark in watermarks.items():
            unapplied = self._unapplied(slot, watermark, tenant.name)
            own = (time for name, time in unapplied if name == generation.collection)
            times.extend(islice(own, 1))
        return self._age_ms(times)

    def lags_ms(
        self, tenant: Tenant, generations: Sequence[Generation], watermarks: Mapping[int, int]
    ) -> list[int]:
        """Returns the lag of each generation. Reads each partition and slot once."""
        committed, not_ingested = self._not_ingested(tenant)
        lanes: dict[tuple[str, int], list[IngestLane]] = {}
        for lane in self._registry.lanes.every():
            if lane.tenant == tenant.name:
                lanes.setdefault((lane.collection, lane.generation), []).append(lane)
        slots = {slot for g in generations for slot in g.slots} & watermarks.keys()
        first_unapplied: dict[tuple[int, str], int] = {}
        for slot in slots:
            for name, time in self._unapplied(slot, watermarks[slot], tenant.name):
                first_unapplied.setdefault((slot, name), time)
        lags: list[int] = []
        for g in generations:
            own_lanes = lanes.get((g.collection, g.number), ())
            times = [*not_ingested, *self._waiting_in_lanes(tenant, own_lanes, committed)]
            firsts = (first_unapplied.get((slot, g.collection)) for slot in g.slots)
            times.extend(first for first in firsts if first is not None)
            lags.append(self._age_ms(times))
        return lags

    def _age_ms(self, times: Sequence[int]) -> int:
        return max(0, self._clock.now_ms() - min(times)) if times else 0

    def _not_ingested(self, tenant: Tenant) -> tuple[Mapping[TopicPartition, int], list[int]]:
        """Returns ingest's position in each partition, and the first event time beyond each."""
        topic = tenant.documents_topic
        times: list[int] = []
        partitions = self._log.topics(topic).get(topic, 0)
        every = [(topic, p) for p in range(partitions)]
        committed = ingested(self._log, self._registry, every)
        for tp, (log_start, log_end) in self._log.extents(every).items():
            position = max(committed.get(tp, 0), log_start)
            if position < log_end:
                times.extend(self._first_time(tp, position))
        return {tp: committed.get(tp, 0) for tp in every}, times

    def _waiting_in_lanes(
        self, tenant: Tenant, lanes: Sequence[IngestLane], committed: Mapping[TopicPartition, int]
    ) -> Iterator[int]:
        """Yields the event time of the first record that waits in each lane of a generation."""
        for lane in lanes:
            tp = (tenant.documents_topic, lane.partition)
            position = max(lane.position, self._log.begin(*tp)) if tp in committed else 0
            if position < committed.get(tp, 0):
                yield from self._first_time(tp, position)

    def _first_time(self, tp: TopicPartition, position: int) -> list[int]:
        records = self._log.read(*tp, position, bytes_max=1)
        return [record.record.event_time_ms for record in records]

    def _unapplied(self, slot: int, watermark: int, tenant: str) -> Iterator[tuple[str, int]]:
        """Yields collection and event time of the tenant's messages from the watermark on.

        Messages beyond the next READ_BYTES are not found.
        """
        try:
            if watermark >= self._log.end(VECTORS_TOPIC, slot):
                return
        except NotFound:
            return
        for record in self._log.read(VECTORS_TOPIC, slot, watermark, bytes_max=READ_BYTES):
            owner, collection = _owner(record)
            if owner == tenant:
                yield collection, record.record.event_time_ms


def _owner(record: LogRecord) -> tuple[str, str]:
    """Returns the tenant and the collection that a message's key names."""
    key = (record.record.key or b"").decode(errors="replace")
    tenant, _, rest = key.partition("/")
    return tenant, rest.partition("/")[0]
