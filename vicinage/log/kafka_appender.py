"""Appends to Kafka. A failure of one topic does not affect appends to others.

A record that the broker refuses, or a deleted topic, fails only its own request. All appends of a
process share one producer (`kafka_producer.py`).
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from vicinage.errors import NotFound, TooLarge, Unavailable, VicinageError
from vicinage.log import Record, TopicPartition
from vicinage.log.kafka_facts import MESSAGE_BYTES_MAX, FactsReader, TopicFacts, compacted
from vicinage.log.kafka_producer import (
    DEADLINE_S,
    UNAVAILABLE,
    Producers,
    is_broken,
    learn_partition,
)
from vicinage.metrics import counter
from vicinage.telemetry import events

LATE_S: Final = 1.0
"""If an acknowledgment takes longer, `append` checks the topic and the brokers."""
LATE_MAX: Final = 4
"""Appends to one partition that may wait beyond LATE_S; others fail at once and hold no threads."""
REFUSAL_FRESH_S: Final = 1.0
"""A topic that refuses records is checked again after this long: it may have been repaired."""
RETRY_AFTER_S: Final = 30.0
"""For conditions that an operator must change: a topic's settings, existence or permissions."""
RECORD_OVERHEAD: Final = 128
"""Bytes that a record of one batch takes beside key, value and headers."""

_event = events("log")
_refused = counter("vicinage_log_appends_refused_total")

_SIZE_ERRORS: Final = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
_TOPIC_ERRORS: Final = (
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.CorruptRecordError,
    kafka_errors.InvalidTopicError,
    kafka_errors.PolicyViolationError,
    kafka_errors.UnsupportedForMessageFormatError,
    kafka_errors.UnsupportedCompressionTypeError,
    kafka_errors.TopicAuthorizationFailedError,
)
_STALE_EPOCH_ERRORS: Final = (
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.UnknownProducerIdError,
    kafka_errors.InvalidProducerEpochError,
)
"""The broker wrote nothing, and the producer has started a new epoch: resend the records."""


class KafkaAppender:
    """Appends to any topic. Safe for many threads; a caller waits at most DEADLINE_S."""

    def __init__(self, servers: Sequence[str], client: Mapping[str, Any]) -> None:
        self._topics = FactsReader(servers, client)
        self._producers = Producers(servers, client)
        self._waiting = _Waiting()
        self._acknowledged_at = 0.0
        """Time of the last acknowledgment of any append."""

    def append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        """Appends the records in order; returns their offsets once every in-sync replica has them.

        Raises NotFound for a topic or partition that does not exist, TooLarge for a record over the
        topic's limit, and Unavailable if the topic takes no records or no broker answers. Records
        may be in the log after an Unavailable, or if the topic was deleted or its limit lowered
        within the last minute: append them again.
        """
        try:
            return self._append(topic, partition, records) if records else []
        except VicinageError as error:
            _refused.labels(error.kind).inc()
            raise

    def problems(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See `Log.topic_problems`."""
        return self._topics.problems(topics)

    def close(self) -> None:
        """Closes the producer; appends in progress fail. Idempotent."""
        self._producers.close()
        self._topics.close()

    def _append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        known = self._topics.facts(topic)
        if _refusal(known, topic, partition, records) is not None:
            # a new partition map may already name an unknown partition
            fresh_s = REFUSAL_FRESH_S if partition < known.partitions else 0.0
            current = self._topics.facts(topic, fresh_s=fresh_s)
            if (refusal := _refusal(current, topic, partition, records)) is not None:
                raise refusal
        try:
            return self._send(topic, partition, records)
        except _STALE_EPOCH_ERRORS:
            pass
        try:
            return self._send(topic, partition, records)
        except _STALE_EPOCH_ERRORS as error:
            raise Unavailable(
                f"the log did not take the records ({type(error).__name__})", dependency="log"
            ) from error

    def _send(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        producer, began = self._producers.current(), time.monotonic()
        with (
            self._waiting.of((topic, partition)) as waiter,
            self._translated(producer, topic, began),
        ):
            learn_partition(producer, topic, partition, began + LATE_S)
            sent = [_send(producer, topic, partition, record) for record in records]
            if not _acknowledged(sent, began + LATE_S):
                self._look(producer, topic)
                if waiter.rank() >= LATE_MAX:
                    raise _late(topic, partition, LATE_S)
                if not _acknowledged(sent, began + DEADLINE_S):
                    raise kafka_errors.KafkaTimeoutError(f"waited {DEADLINE_S:.0f} s")
            self._acknowledged_at = time.monotonic()
            return [int(future.value.offset) for future in sent]

    def _look(self, producer: KafkaProducer, topic: str) -> None:
        """Checks why an acknowledgment is late.

        Raises NotFound or Unavailable if waiting is futile.
        """
        try:
            self._topics.look(topic)
        except NotFound:
            self._producers.replace(producer, "topic-gone", drain=True)
            raise
        except Unavailable as error:
            if error.retry_after_s < RETRY_AFTER_S:
                self._producers.replace(producer, UNAVAILABLE)
            raise

    @contextmanager
    def _translated(self, producer: KafkaProducer, topic: str, began: float) -> Iterator[None]:
        """Turns the client's errors into VicinageErrors; replaces a producer that is unusable."""
        try:
            yield
        except _STALE_EPOCH_ERRORS:
            raise
        except _SIZE_ERRORS as error:
            self._topics.forget(topic)
            raise _too_large(topic, None) from error
        except _TOPIC_ERRORS as error:
            self._topics.forget(topic)
            _event.error("topic.records_refused", topic=topic, reason=type(error).__name__)
            raise _unusable(topic, type(error).__name__) from error
        except kafka_errors.UnknownTopicOrPartitionError as error:
            self._topics.forget(topic)
            raise NotFound(f"the log has no topic {topic!r}") from error
        except kafka_errors.KafkaError as error:
            self._topics.forget(topic)
            name = type(error).__name__
            _event.warning("append.failed", topic=topic, error=name, reason=str(error)[:500])
            is_timeout = isinstance(error, kafka_errors.KafkaTimeoutError)
            # a timeout while other topics are acknowledged concerns this topic alone
            if not is_timeout or self._acknowledged_at < began:
                self._producers.replace(producer, name)
            raise Unavailable(
                f"the log did not take the records ({name})", dependency="log"
            ) from error
        finally:
            if is_broken(producer):
                self._producers.replace(producer, "broken")


class _Waiting:
    """The appends that wait for an acknowledgment, by partition, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[TopicPartition, deque[_Waiter]] = {}

    @contextmanager
    def of(self, tp: TopicPartition) -> Iterator["_Waiter"]:
        """Queues an append after those that wait.

        Raises Unavailable if LATE_MAX appends wait, the oldest for longer than LATE_S.
        """
        with self._lock:
            waiting = self._waiters.setdefault(tp, deque())
            if len(waiting) >= LATE_MAX and time.monotonic() - waiting[0].since > LATE_S:
                raise _late(*tp, LATE_S)
            waiter = _Waiter(waiting)
            waiting.append(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                waiting.remove(waiter)
                if not waiting and self._waiters.get(tp) is waiting:
                    del self._waiters[tp]


class _Waiter:
    def __init__(self, waiting: "deque[_Waiter]") -> None:
        self.since = time.monotonic()
        self._waiting = waiting

    def rank(self) -> int:
        """Returns the number of appends that have waited longer."""
        return self._waiting.index(self)


def _refusal(
    facts: TopicFacts, topic: str, partition: int, records: Sequence[Record]
) -> NotFound | TooLarge | Unavailable | None:
    """Returns the error for records that the broker would refuse; None if there is none. Pure."""
    if not 0 <= partition < facts.partitions:
        return NotFound(f"the log has no partition {partition} of a topic {topic!r}")
    if compacted(facts) and any(record.key is None for record in records):
        return _unusable(topic, f"cleanup.policy={facts.cleanup_policy}")
    limit = min(facts.message_bytes_max or MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX)
    largest = max(_size(record) for record in records)
    return _too_large(topic, limit) if largest > limit else None


def _size(record: Record) -> int:
    headers = sum(len(name) + len(value) + 8 for name, value in record.headers)
    return len(record.value or b"") + len(record.key or b"") + headers + RECORD_OVERHEAD


def _send(producer: KafkaProducer, topic: str, partition: int, record: Record) -> Any:
    now_ms = time.time_ns() // 1_000_000
    return producer.send(
        topic,
        value=record.value,
        key=record.key,
        headers=list(record.headers),
        partition=partition,
        # Brokers refuse negative times and times far in the future: clamp a wrong clock's.
        timestamp_ms=min(record.event_time_ms, now_ms) if record.event_time_ms > 0 else now_ms,
    )


def _acknowledged(sent: Sequence[Any], until: float) -> bool:
    """Waits for the futures; returns False at `until`. Raises the error of a future that failed."""
    for future in sent:
        try:
            future.get(timeout=max(0.001, until - time.monotonic()))
        except kafka_errors.KafkaTimeoutError:
            if future.is_done:
                raise
            return False
    return True


def _too_large(topic: str, limit: int | None) -> TooLarge:
    return TooLarge(
        f"a record is larger than topic {topic!r} accepts: send fewer or smaller documents at "
        "once, or ask an operator"
        " to raise its max.message.bytes",
        field="documents",
        limit=limit,
    )


def _unusable(topic: str, why: str) -> Unavailable:
    return Unavailable(
        f"topic {topic!r} does not accept records ({why}): an operator has to change its settings "
        "or permissions",
        dependency="log",
        retry_after_s=RETRY_AFTER_S,
    )


def _late(topic: str, partition: int, waited_s: float) -> Unavailable:
    return Unavailable(
        f"{topic}/{partition} acknowledged nothing within {waited_s:.0f} s", dependency="log"
    )
