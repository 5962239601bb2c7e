"""The log on Apache Kafka, through kafka-python.

Guarantee 2: with acks=all and an idempotent producer, `append` returns when the broker has
acknowledged every record. Where a data team writes in transactions, only committed records are
read. Group positions are stored in Kafka as a hint; correctness depends neither on them nor on
transactions.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Self

from vicinage.errors import Refused, Unavailable
from vicinage.log import LogRecord, Record, TopicPartition, check_start
from vicinage.log.kafka_appender import KafkaAppender
from vicinage.log.kafka_brokers import Brokers, SharedClient
from vicinage.log.kafka_facts import MESSAGE_BYTES_MAX
from vicinage.log.kafka_lookup import Lookup
from vicinage.log.kafka_positions import GroupPositions
from vicinage.log.kafka_reader import CALL_MS, DEADLINE_S, KafkaReader
from vicinage.log.kafka_security import macs
from vicinage.log.kafka_topics import Topic, Topics
from vicinage.log.mac import Macs
from vicinage.settings import KafkaSettings

VISIBLE_EVERY_S: Final = 0.05
"""Interval of checking whether a new topic or partition is visible, or a deleted one is gone."""
GONE_S: Final = 5.0
"""Longest wait for the broker to apply the deletion of a topic."""

logging.getLogger("kafka").setLevel(logging.CRITICAL)


class KafkaLog:
    """A Log on the brokers `host:port[,host:port]`.

    Safe for many threads; each reader belongs to one.
    """

    def __init__(self, servers: str, security: KafkaSettings | None = None) -> None:
        self._brokers = Brokers(servers, security)
        self._macs = macs(security) if security is not None else Macs()
        self._appender = KafkaAppender(self._brokers.servers, self._brokers.options)
        self._changes = SharedClient(self._brokers.administrator)
        """Creates, grows, trims and deletes topics; slow (seconds) if a partition has no leader."""
        self._topics = Topics(self._brokers.administrator)
        self._lookup = Lookup(self._brokers, self._topics)
        self._positions = GroupPositions(self._brokers, self._lookup)

    # topics

    def ensure_topic(
        self, topic: str, partitions: int = 1, *, retention_ms: int | None = None
    ) -> int:
        """See Log."""
        from kafka.errors import TopicAlreadyExistsError

        if found := self._lookup.known(topic):
            return found
        configs = {
            "retention.ms": str(-1 if retention_ms is None else retention_ms),
            "max.message.bytes": str(MESSAGE_BYTES_MAX),
        }
        with (
            self._brokers.errors("creating a topic"),
            suppress(TopicAlreadyExistsError),
            self._changes.using() as admin,
        ):
            wanted = {topic: {"num_partitions": partitions, "configs": configs}}
            admin.create_topics(wanted, timeout_ms=CALL_MS, wait_for_metadata=True)
        end = time.monotonic() + DEADLINE_S
        while not (found := self._lookup.known(topic, fresh=True)):
            if time.monotonic() > end:
                raise Unavailable(
                    f"topic {topic} was created but is not visible yet", dependency="log"
                )
            time.sleep(VISIBLE_EVERY_S)
        return found

    def topics(self, prefix: str = "", *, max_age_s: float = 0.0) -> dict[str, int]:
        """See Log. The number of an existing topic may be kafka_topics.LOOK_S old."""
        return self._lookup.topics(prefix, max_age_s=max_age_s)

    def partitions(self, topic: str) -> int:
        """See Log."""
        return self._lookup.partitions(topic)

    def add_partitions(self, topic: str, partitions: int) -> int:
        """See Log."""
        if (found := self.partitions(topic)) >= partitions:
            return found
        with self._brokers.errors("adding partitions"), self._changes.using() as admin:
            admin.create_partitions({topic: partitions}, timeout_ms=CALL_MS)
        end = time.monotonic() + DEADLINE_S
        while (found := self.partitions(topic)) < partitions:
            if time.monotonic() > end:
                raise Unavailable(
                    f"partitions of {topic} were added but are not visible yet", dependency="log"
                )
            time.sleep(VISIBLE_EVERY_S)
        return found

    def topic_ids(self, prefix: str = "") -> dict[str, str]:
        """See Log. Returns Kafka's topic ids, from the broker."""
        return self._lookup.topic_ids(prefix)

    def delete_topic(self, topic: str) -> None:
        """See Log."""
        from kafka.errors import UnknownTopicOrPartitionError

        with (
            self._brokers.errors("deleting a topic"),
            suppress(UnknownTopicOrPartitionError),
        ):
            was = self._topics.describe(topic)
            with self._changes.using() as admin:
                admin.delete_topics([topic], timeout_ms=CALL_MS)
            self._wait_until_gone(topic, was)
        self._topics.forget()

    def _wait_until_gone(self, topic: str, was: Topic | None) -> None:
        """Waits until the broker no longer lists the deleted topic, at most GONE_S.

        The controller answers before the brokers have applied the deletion.
        """
        end = time.monotonic() + GONE_S
        while was is not None and self._topics.describe(topic) == was and time.monotonic() < end:
            time.sleep(VISIBLE_EVERY_S)

    def begin(self, topic: str, partition: int) -> int:
        """See Log."""
        return self._lookup.begin(topic, partition)

    def end(self, topic: str, partition: int) -> int:
        """See Log."""
        return self._lookup.end(topic, partition)

    def extents(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int]]:
        """See Log. Makes two requests per broker, however many partitions there are."""
        return self._lookup.extents(partitions)

    def disk_bytes(self) -> int | None:
        """See Log. Returns None: brokers store the log."""
        return None

    def keeping(self, topic: str, partition: int, bytes_max: int) -> int:
        """See Log. Returns `begin`: the sizes of records are not known here."""
        del bytes_max
        return self.begin(topic, partition)

    def trim(self, topic: str, partition: int, before: int) -> None:
        """See Log."""
        from kafka import TopicPartition as Tp

        with self._brokers.errors("trimming"), self._changes.using() as admin:
            admin.delete_records({Tp(topic, partition): before}, timeout_ms=CALL_MS)

    # writing

    def append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        """See Log."""
        return self._appender.append(topic, partition, self._macs.sign(topic, partition, records))

    def topic_problems(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See Log."""
        return self._appender.problems(topics)

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """See Log."""
        self._positions.commit(group, positions)

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """See Log."""
        return self._positions.committed(group, partitions)

    def wait_committed(
        self, group: str, topic: str, partition: int, offset: int, *, wait_s: float
    ) -> bool:
        """See Log."""
        return self._positions.wait_committed(group, topic, partition, offset, wait_s=wait_s)

    # reading

    def read(
        self, topic: str, partition: int, start: int, *, bytes_max: int = 4 << 20
    ) -> list[LogRecord]:
        """See Log."""
        log_start, log_end = self.begin(topic, partition), self.end(topic, partition)
        check_start(topic, partition, start, log_start, log_end)
        if start == log_end:
            return []
        reader = self.reader({(topic, partition): start})
        try:
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                if found := reader.poll(bytes_max=bytes_max, wait_s=0.5):
                    return _within(found, bytes_max)
                if halt := reader.halted().get((topic, partition)):
                    raise Refused(halt.reason, field="offset")
                if reader.position(topic, partition) >= reader.readable(topic, partition):
                    return []  # only transaction markers, or a transaction that is still open
        finally:
            reader.close()
        raise Unavailable(
            f"{topic}/{partition}: no record from offset {start} within {DEADLINE_S:.0f} s",
            dependency="log",
        )

    def reader(self, starts: Mapping[TopicPartition, int]) -> KafkaReader:
        """See Log."""
        return KafkaReader(
            self._brokers.consumer, self._topics, self._extent, starts, self._macs.check
        )

    def _extent(self, topic: str, partition: int) -> tuple[int, int]:
        return self.begin(topic, partition), self.end(topic, partition)

    def close(self) -> None:
        """See Log."""
        self._brokers.close()
        self._appender.close()
        self._topics.close()
        for part in (self._changes, self._positions, self._lookup):
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _within(found: list[LogRecord], bytes_max: int) -> list[LogRecord]:
    """Returns the first records, until their size reaches `bytes_max`; at least one."""
    taken, size = [], 0
    for record in found:
        taken.append(record)
        size += record.size()
        if size >= bytes_max:
            break
    return taken
