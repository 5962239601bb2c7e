"""Decides which partitions are read: those of active tenants' topics.

Creates missing topics, and follows topics that grow.

If the log fails to create, describe or grow a topic, the topic is retried with exponential backoff.
The others are read meanwhile.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from ingest.dispatcher import Dispatcher
from ingest.job_parser import JobParser
from ingest.lane_registry import LaneRegistry
from ingest.lane_scheduler import LaneScheduler
from ingest.partitions import Partitions
from ingest.position_store import PositionStore
from ingest.topic_settings import report
from tenants.entities import Tenant
from tenants.growth import finish_growth, sync_partition_map
from tenants.positions import PREFIX
from tenants.provisioning import ensure_topics
from tenants.registry import Registry
from vicinage.clock import Clock, longer
from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.log import Log, TopicPartition
from vicinage.partition_maps import PartitionMap
from vicinage.settings import IngestSettings
from vicinage.telemetry import events

LISTED_S: Final = 5.0
"""Maximum age, in seconds, of a listing of the topics."""
BACKOFF_S: Final = (30.0, 600.0)
"""Minimum and maximum wait, in seconds, before a failed topic is retried."""
GROWN_S: Final = 30.0
"""Seconds between checks of a topic with more partitions than its map, which gets no new map.

Its growth is refused, or it is another topic of that name.
"""

_event = events("ingest")


class Topics:
    """The documents topics of active tenants. One thread."""

    def __init__(
        self,
        log: Log,
        registry: Registry,
        settings: IngestSettings,
        clock: Clock,
        partitions: Partitions,
        store: PositionStore,
        lane_registry: LaneRegistry,
        lanes: LaneScheduler,
        parser: JobParser,
        dispatcher: Dispatcher,
    ) -> None:
        self._log = log
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._partitions = partitions
        self._store = store
        self._lane_registry = lane_registry
        self._lanes = lanes
        self._parser = parser
        self._dispatcher = dispatcher
        self._put_off: dict[str, tuple[float, float | None]] = {}
        """Failed topics: the time (monotonic) of the retry, and the wait before it."""
        self._grown: dict[str, tuple[int, float]] = {}
        """Topics that outgrew their map: the last checked size, and when (monotonic)."""

    def discover(self) -> None:
        """Reads the topics of new tenants; stops reading those of suspended and deleted ones."""
        self._registry.refresh()
        active = {t.documents_topic: t for t in self._registry.tenants() if t.state == "active"}
        for tp in [tp for tp in self._partitions.positions if tp[0] not in active]:
            self._drop(tp)
            self._partitions.topic_ids.pop(tp[0], None)
        known = {topic for topic, _ in self._partitions.positions}
        # A tenant that was suspended and is active again starts at its committed position, once
        # none of its jobs is in progress.
        in_progress = {
            topic for topic, _ in (*self._dispatcher.partitions(), *self._parser.in_progress())
        }
        new = [t for topic, t in active.items() if topic not in known | in_progress]
        topics = self._log.topics(PREFIX, max_age_s=LISTED_S)
        if new:
            report(self._log, new)
        self._forget(in_progress)
        self._put_off = {topic: until for topic, until in self._put_off.items() if topic in active}
        skipped = in_progress - known
        missing = {t.documents_topic for t in new} - topics.keys()
        self._add(
            self._unread(
                [t for topic, t in active.items() if topic not in skipped], topics, missing
            )
        )

    def _unread(
        self, tenants: Iterable[Tenant], topics: Mapping[str, int], missing: Collection[str]
    ) -> list[TopicPartition]:
        """Returns the partitions that are not read yet.

        Creates missing topics, and records the growth of others. Stops at the first topic for which
        the log fails, so that a check waits for one such topic at most. This topic is put off; the
        next check continues with the following tenants.
        """
        found: list[TopicPartition] = []
        now = self._clock.monotonic()
        for tenant in tenants:
            topic = tenant.documents_topic
            if self._put_off.get(topic, (0.0, 0.0))[0] > now:
                continue
            try:
                if topic in missing:
                    ensure_topics(self._log, tenant, self._settings.partitions)
                found.extend(self._unread_of(tenant, topics))
            except (NotFound, Refused, Unavailable) as error:
                if isinstance(error, Unavailable) and error.dependency != "log":
                    raise
                self._put_off_topic(topic, error.detail)
                break
        return found

    def _put_off_topic(self, topic: str, reason: str) -> None:
        _, waited = self._put_off.get(topic, (0.0, None))
        wait_s = longer(waited, BACKOFF_S)
        self._put_off[topic] = self._clock.monotonic() + wait_s, wait_s
        _event.error("topic.put_off", topic=topic, reason=reason, retry_in_s=wait_s)

    def _forget(self, in_progress: Collection[str]) -> None:
        """Forgets the state of partitions that are gone."""

        def is_gone(tp: TopicPartition) -> bool:
            return tp not in self._partitions.positions and tp[0] not in in_progress

        self._partitions.forget_routed(is_gone)
        self._lanes.forget_gates(is_gone)

    def _unread_of(self, tenant: Tenant, topics: Mapping[str, int]) -> list[TopicPartition]:
        """Returns the partitions of the tenant's topic that are not read yet, by its newest map."""
        topic, maps = tenant.documents_topic, self._registry.partition_maps(tenant.name)
        known, n = self._partitions, topics.get(topic, 0)
        if not maps or (n > maps[-1].partitions and self._is_new_size(topic, n)):
            maps = self.grow(tenant)
            if not maps:
                raise NotFound(f"the partitions of {topic} are unknown")
        elif topics.get(topic, maps[-1].partitions) < maps[-1].partitions:
            finish_growth(self._log, tenant, maps[-1])
        if known.topic_ids.get(topic, maps[-1].topic_id) != maps[-1].topic_id:
            self._replace(topic, maps[-1].partitions)
        known.topic_ids[topic] = maps[-1].topic_id
        return [(topic, p) for p in range(maps[-1].partitions) if (topic, p) not in known.positions]

    def _replace(self, topic: str, partitions: int) -> None:
        """Stops reading the earlier topic of this name.

        The new topic is read once the earlier topic's records are written.
        """
        for tp in self._partitions.by_topic(topic):
            self._partitions.paused.discard(tp)
            self._lanes.forget(tp)
            if tp[1] >= partitions:
                self._drop(tp)

    def _is_new_size(self, topic: str, partitions: int) -> bool:
        """Returns whether this size was not checked recently.

        A check calls the brokers, and delays all reading.
        """
        now, (n, at) = self._clock.monotonic(), self._grown.get(topic, (0, -1e9))
        if n == partitions and now - at < GROWN_S:
            return False
        self._grown[topic] = partitions, now
        return True

    def grow(self, tenant: Tenant) -> tuple[PartitionMap, ...]:
        """Returns the topic's partition maps, oldest first; records a new one if it has grown."""
        try:
            return sync_partition_map(self._registry, self._log, tenant, actor="ingest")
        except (NotFound, Refused) as refused:
            _event.error("topic.refused", tenant=tenant.name, reason=refused.detail)
            return self._registry.partition_maps(tenant.name)

    def _add(self, tps: Sequence[TopicPartition]) -> None:
        starts = self._store.starts(tps, self._partitions.topic_ids)
        # Before the first record is read, so that a lane's records are not written twice.
        self._lane_registry.adopt(starts)
        for tp, (position, halt) in starts.items():
            self._partitions.move(tp, position)
            self._partitions.read(tp, halt)
            self._put_off.pop(tp[0], None)
        if failed := next((tp for tp in tps if tp not in starts), None):
            self._put_off_topic(failed[0], f"the log start of partition {failed[1]} is unknown")

    def _drop(self, tp: TopicPartition) -> None:
        self._partitions.drop(tp)
        self._store.forget(tp)
        self._lanes.forget(tp)
