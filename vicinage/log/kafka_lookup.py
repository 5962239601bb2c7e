"""Looks up topics, partitions and offsets in Kafka."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from vicinage.errors import NotFound
from vicinage.log import TopicPartition
from vicinage.log.kafka_brokers import Brokers, SharedClient
from vicinage.log.kafka_reader import CALL_MS
from vicinage.log.kafka_topics import Topic, Topics

T = TypeVar("T")
SLICE_MS: Final = 500
"""Longest delay that a call about one partition causes to other calls of the same client."""
LEADER_WAIT_S: Final = 0.05
"""Pause before the offsets of a partition without a known leader are looked up again."""


class Lookup:
    """Topics, partitions and offsets. Safe for many threads."""

    def __init__(self, brokers: Brokers, topics: Topics) -> None:
        self._brokers = brokers
        self._topics = topics
        self._client = SharedClient(brokers.consumer)

    def topics(self, prefix: str = "", *, max_age_s: float = 0.0) -> dict[str, int]:
        """See Log. The number of an existing topic may be kafka_topics.LOOK_S old."""
        if prefix and (found := self.known(prefix)):
            return {prefix: found}
        at, every = self._topics.every()
        if time.monotonic() - at > max_age_s:
            every = self.every_topic()
        return {name: t.partitions for name, t in every.items() if name.startswith(prefix)}

    def every_topic(self) -> Mapping[str, Topic]:
        """Lists all topics now. Raises Unavailable, at once if no broker can be reached."""
        self._brokers.connect()
        with self._brokers.errors("listing topics"):
            return self._topics.look()

    def known(self, topic: str, *, fresh: bool = False) -> int:
        """Returns the topic's number of partitions, from a recent listing or (`fresh`) a new one.

        Returns 0 if there is no such topic.
        """
        found = self.every_topic().get(topic) if fresh else self._topics.lately(topic)
        return found.partitions if found else 0

    def partitions(self, topic: str) -> int:
        """See Log."""
        with self._brokers.errors("listing partitions"):
            found = self._topics.describe(topic)
        if found is None:
            raise NotFound(f"the log has no topic {topic!r}")
        return found.partitions

    def topic_ids(self, prefix: str = "") -> dict[str, str]:
        """See Log. Returns Kafka's topic ids, from the broker.

        Describes one topic only, if `prefix` is the whole name of a topic.
        """
        with self._brokers.errors("looking up a topic"):
            if prefix and (found := self._topics.describe(prefix)) is not None:
                return {prefix: found.id}
        return {name: t.id for name, t in self.every_topic().items() if name.startswith(prefix)}

    def begin(self, topic: str, partition: int) -> int:
        """See Log."""
        return self._offset("beginning_offsets", topic, partition)

    def end(self, topic: str, partition: int) -> int:
        """See Log."""
        return self._offset("end_offsets", topic, partition)

    def extents(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int]]:
        """See Log. Makes two requests per broker, however many partitions there are."""
        from kafka import TopicPartition as Tp

        counts = {topic: self._count(topic) for topic in {topic for topic, _ in partitions}}
        wanted = [Tp(*tp) for tp in partitions if 0 <= tp[1] < counts[tp[0]]]

        def look(topics: Mapping[str, Topic] | None) -> dict[TopicPartition, tuple[int, int]]:
            tps = [tp for tp in wanted if topics is None or exists(topics, tp)]
            if not tps:
                return {}
            timeout_ms = SLICE_MS + len(tps)  # time to encode and decode them
            with self._client.using() as client:
                starts = _offsets(client.beginning_offsets, tps, timeout_ms)
                ends = _offsets(client.end_offsets, tps, timeout_ms)
            return {(tp.topic, tp.partition): (int(starts[tp]), int(ends[tp])) for tp in tps}

        with self._brokers.errors("looking up offsets"):
            return self.in_slices(look)

    def in_slices(self, call: Callable[[Mapping[str, Topic] | None], T]) -> T:
        """Returns the result of `call` within CALL_MS, in short attempts. Raises KafkaTimeoutError.

        kafka-python retries a request about a deleted partition until its timeout, while other
        callers wait for the client. So each attempt is short; from the second on, `call` receives
        the topics that exist.
        """
        from kafka.errors import KafkaTimeoutError

        end, topics = time.monotonic() + CALL_MS / 1000, None
        while True:
            try:
                return call(topics)
            except KafkaTimeoutError:
                if time.monotonic() > end:
                    raise
            topics = self.every_topic()

    def close(self) -> None:
        """Closes the client."""
        self._client.close()

    def _offset(self, which: str, topic: str, partition: int) -> int:
        from kafka import TopicPartition as Tp

        if partition < 0 or (
            partition >= self.known(topic) and partition >= self.partitions(topic)
        ):
            raise NotFound(f"the log has no partition {partition} of a topic {topic!r}")
        tp = Tp(topic, partition)

        def look(topics: Mapping[str, Topic] | None) -> int:
            if topics is not None and not exists(topics, tp):
                raise NotFound(f"the log has no partition {partition} of a topic {topic!r}")
            with self._client.using() as client:
                return int(_offsets(getattr(client, which), [tp], SLICE_MS)[tp])

        with self._brokers.errors("looking up an offset"):
            return self.in_slices(look)

    def _count(self, topic: str) -> int:
        """Returns the number of partitions, from the broker if unknown; 0 without a topic."""
        try:
            return self.known(topic) or self.partitions(topic)
        except NotFound:
            return 0


def exists(topics: Mapping[str, Topic], tp: TopicPartition) -> bool:
    """Returns whether the partition is among the topics'. Pure."""
    found = topics.get(tp[0])
    return found is not None and tp[1] < found.partitions


def _offsets(
    look: Callable[..., Mapping[Any, int]], tps: Sequence[Any], timeout_ms: int
) -> Mapping[Any, int]:
    """Returns an offset for each partition. Raises KafkaTimeoutError.

    kafka-python looks up only partitions whose leader it knows. It raises KeyError for the others:
    the topic is new to it, or has no leader now. Meanwhile it looks up their leaders, so the next
    attempt succeeds.
    """
    from kafka.errors import KafkaTimeoutError

    try:
        return look(tps, timeout_ms=timeout_ms)
    except KeyError as unknown:
        time.sleep(LEADER_WAIT_S)
        raise KafkaTimeoutError(f"the leader of {unknown} is not known") from unknown
