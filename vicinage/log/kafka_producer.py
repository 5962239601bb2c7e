"""The idempotent producer that all appends of a process share, and its replacement.

One producer means one connection per broker, and no stale retry is written after a newer record.
Three defects of kafka-python 3.0 would let one topic stop all appends. They are contained here and
in `kafka_appender.py`:

- A refused record puts the idempotent producer into a final state: all further sends fail with that
  record's error. `Transactions` starts a new producer epoch instead, as the Java client does.
- Records that expire after a first attempt reset the producer id, and no new id is ever requested:
  nothing is written from then on. `Transactions` starts a new epoch here, too. The new epoch also
  fences requests that may still be in flight.
- Records of a deleted topic are retried until they expire, and the topic's metadata is requested
  ten times a second forever. If an acknowledgment is late, `KafkaAppender` looks up the topic and
  replaces the producer.

`Producers` replaces a producer that fails in any other way.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.producer.transaction_manager import TransactionManager, TransactionState

from vicinage.errors import Unavailable
from vicinage.log.kafka_clients import open_client
from vicinage.log.kafka_facts import CALL_MS, MESSAGE_BYTES_MAX
from vicinage.log.kafka_security import unanswered
from vicinage.metrics import counter
from vicinage.telemetry import events

DEADLINE_S: Final = 10.0
"""Records that are not acknowledged within this expire."""
LEARN_S: Final = 0.02
"""Interval of checking whether the producer has refreshed a topic's partitions."""
UNAVAILABLE: Final = "unavailable"
"""The reason of a replacement after no broker answered."""
RETRY_S: Final = 0.5
"""After a failed attempt to connect, further attempts fail at once for this long."""
DRAIN_S: Final = 2.0
DRAINING_MAX: Final = 2

_event = events("log")
_replaced = counter("vicinage_log_producers_replaced_total")

# Every error of the client reaches a caller. The client's log lines name topics, ten times a
# second.
logging.getLogger("kafka").setLevel(logging.CRITICAL)


class Producers:
    """The producer in use, and its replacement."""

    def __init__(self, servers: Sequence[str], client: Mapping[str, Any]) -> None:
        self._servers = tuple(servers)
        self._client = dict(client)
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._down = False
        """The last attempt to connect failed: one caller at a time retries, others fail at once."""
        self._current: KafkaProducer | None = None
        self._draining = 0
        self._retry_at = 0.0
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
            self._down = reason == UNAVAILABLE
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
        if time.monotonic() < self._retry_at:
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
            self._retry_at, self._down = time.monotonic() + RETRY_S, True
            if isinstance(error, Unavailable):
                raise
            raise unanswered(self._client, error) from error
        manager = producer._transaction_manager  # noqa: SLF001  (there is no other way to it)
        if type(manager) is TransactionManager:
            manager.__class__ = Transactions
        return producer


class Transactions(TransactionManager):  # type: ignore[misc]
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


def learn_partition(producer: KafkaProducer, topic: str, partition: int, until: float) -> None:
    """Makes the producer refresh the topic's partitions if it does not know this (added) one.

    kafka-python refuses such a partition until its metadata expires (5 minutes), and has no public
    call for a refresh.
    """
    while partition not in (producer.partitions_for(topic) or ()):
        if time.monotonic() > until:
            raise kafka_errors.KafkaTimeoutError(f"partition {partition} is not known yet")
        producer._metadata.request_update()  # noqa: SLF001
        time.sleep(LEARN_S)


def is_broken(producer: KafkaProducer) -> bool:
    """Returns whether the producer is in a final state, in which all sends fail."""
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
