"""Appends to Kafka.

A record that the broker refuses, or a deleted topic, fails only its own request.

All appends of a process share one idempotent producer: one connection per broker, and no stale
retry is written after a newer record. Three defects of kafka-python 3.0 would let one topic stop
all appends. They are contained here:

- A refused record puts the idempotent producer into a final state: all further sends fail with that
  record's error. `_Transactions` starts a new producer epoch instead, as the Java client does.
- Records that expire after a first attempt reset the producer id, and no new id is ever requested:
  nothing is written from then on. `_Transactions` starts a new epoch here, too. The new epoch also
  fences requests that may still be in flight.
- Records of a deleted topic are retried until they expire, and the topic's metadata is requested
  ten
  times a second forever. If an acknowledgment is late, `append` looks up the topic and replaces the
  producer.

`_Producers` replaces a producer that fails in any other way.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.producer.transaction_manager import TransactionManager, TransactionState

from vicinage.errors import NotFound, TooLarge, Unavailable, VicinageError
from vicinage.log import Record, TopicPartition
from vicinage.log.kafka_clients import open_client
from vicinage.log.kafka_facts import CALL_MS, MESSAGE_BYTES_MAX, FactsReader, TopicFacts, compacted
from vicinage.log.kafka_security import unanswered
from vicinage.metrics import counter
from vicinage.telemetry import events

LEARN_S: Final = 0.02
"""Interval of checking whether the producer has refreshed a topic's partitions."""
DEADLINE_S: Final = 10.0
"""An append that is not acknowledged within this fails.

Its records may still reach the log until their batch expires, after the same time.
"""
LATE_S: Final = 1.0
"""If an acknowledgment takes longer, `append` checks the topic and the brokers."""
LATE_MAX: Final = 4
"""Appends to one partition that may wait beyond LATE_S; others fail at once and hold no threads."""
AWAY: Final = "away"
AWAY_S: Final = 0.5
"""After a failed attempt to connect, further attempts fail at once for this long."""
REFUSAL_FRESH_S: Final = 1.0
"""A topic that refuses records is checked again after this long: an operator may have repaired it."""
RETRY_AFTER_S: Final = 30.0
"""For conditions that an operator must change: a topic's settings, existence or write permission."""
DRAIN_S: Final = 2.0
DRAINING_MAX: Final = 2
RECORD_OVERHEAD: Final = 128
"""Bytes that a record of one batch takes beside key, value and headers."""

_event = events("log")
_replaced = counter("vicinage_log_producers_replaced_total")
_refused = counter("vicinage_log_appends_refused_total")

# Every error of the client reaches a caller. The client's log lines name topics, ten times a
# second.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

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
"""The broker wrote nothing and the producer has started a new epoch: the same records may be resent."""


class KafkaAppender:
    """Appends to any topic. Safe for many threads; a caller waits at most DEADLINE_S."""

    def __init__(self, servers: Sequence[str], client: Mapping[str, Any]) -> None:
        self._topics = FactsReader(servers, client)
        self._producers = _Producers(servers, client)
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
        if _trouble(known, topic, partition, records) is not None:
            fresh_s = (
                REFUSAL_FRESH_S if partition < known.partitions else 0.0
            )  # a new partition map may already name it
            trouble = _trouble(
                self._topics.facts(topic, fresh_s=fresh_s), topic, partition, records
            )
            if trouble is not None:
                raise trouble
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
        with self._waiting.of((topic, partition)) as place, self._settled(producer, topic, began):
            _learn(producer, topic, partition, began + LATE_S)
            sent = [_send(producer, topic, partition, record) for record in records]
            if not _acknowledged(sent, began + LATE_S):
                self._look(producer, topic)
                if place.rank() >= LATE_MAX:
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
                self._producers.replace(producer, AWAY)
            raise

    @contextmanager
    def _settled(self, producer: KafkaProducer, topic: str, began: float) -> Iterator[None]:
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
            if (
                not is_timeout or self._acknowledged_at < began
            ):  # else other topics are acknowledged: only this one fails
                self._producers.replace(producer, name)
            raise Unavailable(
                f"the log did not take the records ({name})", dependency="log"
            ) from error
        finally:
            if _is_broken(producer):
                self._producers.replace(producer, "broken")


class _Producers:
    """The producer in use, and its replacement."""

    def __init__(self, servers: Sequence[str], client: Mapping[str, Any]) -> None:
        self._servers = tuple(servers)
        self._client = dict(client)
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._down = False
        """The last attempt to connect failed: one caller at a time tries again, and the others fail at once."""
        self._current: KafkaProducer | None = None
        self._draining = 0
        self._away_until = 0.0
        self._closed = False

    def current(self) -> KafkaProducer:
        """Returns the producer, connecting if there is none. Raises Unavailable."""
        current = self._current
        if current is not None:
            return current
        if self._closed:
            raise Unavailable("the log is closed", dependency="log")
        if not self._connecting.acquire(blocking=not self._down):
            raise Unavailable("no Kafka broker can be reached", dependency="log")
        try:
            if self._current is not None:
                return self._current
            return self._adopt(self._connect())
        finally:
            self._connecting.release()

    def _adopt(self, made: KafkaProducer) -> KafkaProducer:
        with self._lock:
            closed = self._closed
            if not closed:
                self._current, self._down = made, False
        if closed:
            _end(made)
        return made

    def replace(self, producer: KafkaProducer, reason: str, *, drain: bool = False) -> None:
        """Makes later appends use a new producer.

        Appends that wait on the old producer fail, with `drain` after DRAIN_S.
        """
        with self._lock:
            if self._current is not producer or (drain and self._draining >= DRAINING_MAX):
                return
            self._current = None
            self._down = reason == AWAY
            self._draining += drain
        _replaced.labels(reason).inc()
        _event.warning("producer.replaced", reason=reason)
        threading.Thread(
            target=self._end, args=(producer, drain), name="kafka-producer-end", daemon=True
        ).start()

    def close(self) -> None:
        """Closes the producer. Idempotent."""
        with self._lock:
            self._closed = True
            current, self._current = self._current, None
        if current is not None:
            _end(current)

    def _end(self, producer: KafkaProducer, drain: bool) -> None:
        if drain:
            time.sleep(DRAIN_S)
        try:
            _end(producer)
        finally:
            with self._lock:
                self._draining -= drain

    def _connect(self) -> KafkaProducer:
        if time.monotonic() < self._away_until:
            raise Unavailable("no Kafka broker can be reached", dependency="log")
        try:
            producer = open_client(
                KafkaProducer,
                self._servers,
                self._client,
                answer_ms=CALL_MS,
                acks="all",
                enable_idempotence=True,
                compression_type="lz4",
                batch_size=1 << 20,
                max_request_size=MESSAGE_BYTES_MAX,
                max_block_ms=2_000,
                delivery_timeout_ms=int(DEADLINE_S * 1000),
                request_timeout_ms=5_000,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        except (kafka_errors.KafkaError, Unavailable) as error:
            self._away_until, self._down = time.monotonic() + AWAY_S, True
            if isinstance(error, Unavailable):
                raise
            raise unanswered(self._client, error) from error
        manager = producer._transaction_manager  # noqa: SLF001  (there is no other way to it)
        if type(manager) is TransactionManager:
            manager.__class__ = _Transactions
        return producer


class _Transactions(TransactionManager):  # type: ignore[misc]
    """The idempotent producer's state; see this module's docstring.

    Needs Kafka 2.5 or later (KIP-360).
    """

    def classify_batch_error(self, error: Any, batch: Any, log_start_offset: int = -1) -> str:
        """Makes a refused record fail only its batch; kafka-python would end the producer."""
        found = str(super().classify_batch_error(error, batch, log_start_offset=log_start_offset))
        error_type = error if isinstance(error, type) else type(error)
        if (
            found == self.ERROR_CLASS_FATAL
            and error_type not in self._FATAL_ERRORS
            and self._supports_epoch_bump()
        ):
            return str(self.ERROR_CLASS_NEEDS_EPOCH_BUMP)
        return found

    def reset_producer_id(self) -> None:
        """Starts a new epoch; kafka-python would drop the id and never request another."""
        if self._supports_epoch_bump() and self._current_state == TransactionState.READY:
            self.bump_producer_id_and_epoch()
        elif not self.is_bumping_epoch():
            super().reset_producer_id()


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


def _trouble(
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


def _learn(producer: KafkaProducer, topic: str, partition: int, until: float) -> None:
    """Makes the producer refresh the topic's partitions if it does not know this (added) one.

    kafka-python refuses such a partition until its metadata expires (5 minutes), and has no public
    call for a refresh.
    """
    while partition not in (producer.partitions_for(topic) or ()):
        if time.monotonic() > until:
            raise kafka_errors.KafkaTimeoutError(f"partition {partition} is not known yet")
        producer._metadata.request_update()  # noqa: SLF001
        time.sleep(LEARN_S)


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


def _is_broken(producer: KafkaProducer) -> bool:
    manager = producer._transaction_manager  # noqa: SLF001  (there is no other way to it)
    return bool(manager is not None and manager.has_fatal_error())


def _end(producer: KafkaProducer) -> None:
    """Ends the producer's thread and fails the appends that wait on it.

    `close` on its own raises, and leaves the thread running.
    """
    producer._sender.force_close()  # noqa: SLF001  (there is no other way to it)
    producer._sender.join(5)  # noqa: SLF001
    try:
        producer.close(timeout=0)
    except kafka_errors.KafkaError as error:
        _event.warning("producer.not_closed", error=type(error).__name__)


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
