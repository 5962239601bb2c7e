"""The log on Apache Kafka, through kafka-python: the only door to it.

Of data teams' own transactions, only what was committed is read. Law 2: acks=all and an idempotent producer; `append` returns when the broker has acknowledged every record. Group positions are
stored in Kafka as a hint; correctness never rests on them, nor on Kafka's transactions.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Self

from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.log import Record, Stored, TopicPartition

MESSAGE_BYTES_MAX: Final = 16 << 20
DEADLINE_S: Final = 30.0
CALL_MS: Final = 10_000
POLL_RECORDS: Final = 4_000
TOPICS_FRESH_S: Final = 5.0
COORDINATOR_MOVES: Final = ("CoordinatorNotAvailableError", "CoordinatorLoadInProgressError", "NotCoordinatorError")
COMMITTED_EVERY_S: Final = 0.005
COMMITTED_EVERY_MAX_S: Final = 0.05
"""The broker tells nobody that a group has committed: whoever waits asks again after this long, and less often the longer he waits."""
UNDECODABLE: Final = (
    "this record, or one before it in its batch, can't be decoded: names of headers are UTF-8. Send it again"
)

logging.getLogger("kafka").setLevel(logging.ERROR)


class KafkaLog:
    """A Log on the brokers `host:port[,host:port]`. Safe for many threads; each reader belongs to one."""

    def __init__(self, servers: str) -> None:
        self._servers = servers.split(",")
        self._lock = threading.RLock()
        self._producer: Any = None
        self._admin: Any = None
        self._looker: Any = None
        self._groups: dict[str, tuple[Any, threading.Lock]] = {}
        self._topics: tuple[float, dict[str, int]] = (-1e9, {})
        self._closed = False

    # topics

    def ensure_topic(self, topic: str, partitions: int = 1, *, retention_ms: int | None = None) -> int:
        """See Log."""
        from kafka.errors import TopicAlreadyExistsError

        if found := self._known(topic):
            return found
        configs = {
            "retention.ms": str(-1 if retention_ms is None else retention_ms),
            "max.message.bytes": str(MESSAGE_BYTES_MAX),
        }
        with self._asked("creating a topic"), suppress(TopicAlreadyExistsError), self._lock:
            wanted = {topic: {"num_partitions": partitions, "configs": configs}}
            self._administrator().create_topics(wanted, timeout_ms=CALL_MS, wait_for_metadata=True)
        end = time.monotonic() + DEADLINE_S
        while not (found := self._known(topic, fresh=True)):
            if time.monotonic() > end:
                raise Unavailable(f"topic {topic} was made but is not to be seen yet", dependency="log")
            time.sleep(0.05)
        return found

    def topics(self, prefix: str = "") -> dict[str, int]:
        """See Log. May be TOPICS_FRESH_S old for topics that exist."""
        if prefix and (found := self._known(prefix)):
            return {prefix: found}
        return {name: n for name, n in self._every_topic(fresh=True).items() if name.startswith(prefix)}

    def delete_topic(self, topic: str) -> None:
        """See Log."""
        from kafka.errors import UnknownTopicOrPartitionError

        with self._asked("deleting a topic"), suppress(UnknownTopicOrPartitionError), self._lock:
            self._administrator().delete_topics([topic], timeout_ms=CALL_MS)
        self._topics = (-1e9, {})

    def begin(self, topic: str, partition: int) -> int:
        """See Log."""
        return self._offset("beginning_offsets", topic, partition)

    def end(self, topic: str, partition: int) -> int:
        """See Log."""
        return self._offset("end_offsets", topic, partition)

    def trim(self, topic: str, partition: int, before: int) -> None:
        """See Log."""
        from kafka import TopicPartition as Tp

        with self._asked("trimming"), self._lock:
            self._administrator().delete_records({Tp(topic, partition): before}, timeout_ms=CALL_MS)

    # writing

    def append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        """See Log."""
        if not 0 <= partition < (self._known(topic) or self._known(topic, fresh=True)):
            raise NotFound(f"the log has no partition {partition} of a topic {topic!r}")
        now_ms = time.time_ns() // 1_000_000
        with self._asked("appending"):
            producer = self._writer()
            sent = [
                producer.send(
                    topic,
                    value=r.value,
                    key=r.key,
                    headers=list(r.headers),
                    partition=partition,
                    timestamp_ms=r.event_time_ms or now_ms,
                )
                for r in records
            ]
            end = time.monotonic() + DEADLINE_S
            return [int(f.get(timeout=max(0.001, end - time.monotonic())).offset) for f in sent]

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """See Log."""
        from kafka import OffsetAndMetadata
        from kafka import TopicPartition as Tp

        offsets = {Tp(*tp): OffsetAndMetadata(offset, "", -1) for tp, offset in positions.items()}
        consumer, lock = self._group(group)
        with self._asked("committing"), lock:
            _patiently(lambda: consumer.commit(offsets, timeout_ms=CALL_MS))

    def committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """See Log."""
        from kafka import TopicPartition as Tp

        if not partitions:
            return {}
        with self._asked("reading positions"), self._lock:
            asked = {group: [Tp(*tp) for tp in partitions]}
            found = _patiently(lambda: self._administrator().list_group_offsets(asked))[group]
        return {(tp.topic, tp.partition): at.offset for tp, at in found.items() if at.offset >= 0}

    def wait_committed(self, group: str, topic: str, partition: int, offset: int, *, wait_s: float) -> bool:
        """See Log."""
        began = time.monotonic()
        end = began + wait_s
        while True:
            if self.committed(group, [(topic, partition)]).get((topic, partition), 0) > offset:
                return True
            now = time.monotonic()
            if now >= end or self._closed:
                return False
            time.sleep(min(max(COMMITTED_EVERY_S, (now - began) / 10), COMMITTED_EVERY_MAX_S, end - now))

    # reading

    def read(self, topic: str, partition: int, start: int, *, bytes_max: int = 4 << 20) -> list[Stored]:
        """See Log."""
        first, end = self.begin(topic, partition), self.end(topic, partition)
        if start < first:
            raise Refused(
                f"{topic}/{partition}: offset {start} is gone, the log begins at {first} (retention)",
                field="offset",
                limit=first,
            )
        if start > end:
            raise Refused(
                f"{topic}/{partition}: offset {start} lies beyond the end {end}: was the topic made anew?",
                field="offset",
                limit=end,
            )
        if start == end:
            return []
        reader = KafkaReader(self, {(topic, partition): start})
        try:
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                if found := reader.poll(bytes_max=bytes_max, wait_s=0.5):
                    return _within(found, bytes_max)
                if reader.place(topic, partition) >= reader.readable(topic, partition):
                    return []  # nothing but markers of transactions, or a transaction that is still open
        finally:
            reader.close()
        raise Unavailable(
            f"{topic}/{partition}: nothing came from offset {start} within {DEADLINE_S:.0f} s", dependency="log"
        )

    def reader(self, starts: Mapping[TopicPartition, int]) -> "KafkaReader":
        """See Log."""
        return KafkaReader(self, starts)

    def close(self) -> None:
        """See Log."""
        self._closed = True
        with self._lock:
            clients = [self._looker, self._admin, *(c for c, _ in self._groups.values())]
            if self._producer is not None:
                self._producer.close(timeout=5)
            for client in clients:
                if client is not None:
                    client.close()
            self._producer = self._looker = self._admin = None
            self._groups.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # clients, made when first needed

    def consumer(self, **more: Any) -> Any:
        """A KafkaConsumer of one's own. Raises Unavailable."""
        from kafka import KafkaConsumer

        with self._asked("connecting"):
            return KafkaConsumer(
                bootstrap_servers=self._servers,
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                reconnect_backoff_max_ms=1_000,
                bootstrap_timeout_ms=CALL_MS,
                **more,
            )

    def _writer(self) -> Any:
        from kafka import KafkaProducer

        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(
                    bootstrap_servers=self._servers,
                    acks="all",
                    enable_idempotence=True,
                    compression_type="lz4",
                    batch_size=1 << 20,
                    max_request_size=MESSAGE_BYTES_MAX,
                    max_block_ms=CALL_MS,
                    delivery_timeout_ms=25_000,
                    request_timeout_ms=10_000,
                    allow_auto_create_topics=False,
                    reconnect_backoff_max_ms=1_000,
                    bootstrap_timeout_ms=CALL_MS,
                )
            return self._producer

    def _administrator(self) -> Any:
        from kafka import KafkaAdminClient

        if self._admin is None:
            self._admin = KafkaAdminClient(
                bootstrap_servers=self._servers, request_timeout_ms=CALL_MS, reconnect_backoff_max_ms=1_000
            )
        return self._admin

    def _group(self, group: str) -> tuple[Any, threading.Lock]:
        with self._lock:
            if group not in self._groups:
                self._groups[group] = (self.consumer(group_id=group), threading.Lock())
            return self._groups[group]

    def _look(self) -> Any:
        if self._looker is None:
            self._looker = self.consumer()
        return self._looker

    def _offset(self, which: str, topic: str, partition: int) -> int:
        from kafka import TopicPartition as Tp

        if not 0 <= partition < (self._known(topic) or self._known(topic, fresh=True)):
            # Asked of Kafka, a partition that there is not holds this client, and everybody's lock on it, for ten seconds.
            raise NotFound(f"the log has no partition {partition} of a topic {topic!r}")
        tp = Tp(topic, partition)
        with self._asked("looking up an offset"), self._lock:
            return int(getattr(self._look(), which)([tp], timeout_ms=CALL_MS)[tp])

    def _known(self, topic: str, *, fresh: bool = False) -> int:
        """Number of the topic's partitions; 0 when it is not known."""
        return self._topics[1].get(topic, 0) if not fresh else self._every_topic(fresh=True).get(topic, 0)

    def _every_topic(self, *, fresh: bool) -> dict[str, int]:
        from kafka.errors import UnknownTopicOrPartitionError

        with self._lock:
            if not fresh and time.monotonic() - self._topics[0] < TOPICS_FRESH_S:
                return self._topics[1]
            with self._asked("listing topics"):
                found = {}
                for described in self._administrator().describe_topics():
                    with suppress(UnknownTopicOrPartitionError):
                        found[described["name"]] = len(described["partitions"])
            self._topics = (time.monotonic(), found)
            return found

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        from kafka.errors import KafkaError

        if self._closed:
            raise Unavailable("the log is closed", dependency="log")
        try:
            yield
        except KafkaError as error:
            if type(error).__name__ in ("TopicAlreadyExistsError", "UnknownTopicOrPartitionError"):
                raise
            raise Unavailable(f"the log is away ({what}): {type(error).__name__} {error}", dependency="log") from error


class KafkaReader:
    """Reads assigned partitions; Kafka's own long poll wakes it as soon as a record is there."""

    def __init__(self, log: KafkaLog, starts: Mapping[TopicPartition, int]) -> None:
        self._log = log
        self._consumer: Any = None
        self._places: dict[TopicPartition, int] = dict(starts)
        self._new: set[TopicPartition] = set(starts)
        self._changed = True

    def add(self, topic: str, partition: int, start: int) -> None:
        """See Reader."""
        self._places[topic, partition] = start
        self._new.add((topic, partition))
        self._changed = True

    def remove(self, topic: str, partition: int) -> None:
        """See Reader."""
        self._places.pop((topic, partition), None)
        self._new.discard((topic, partition))
        self._changed = True

    def poll(self, *, bytes_max: int = 4 << 20, wait_s: float = 0.0) -> list[Stored]:
        """See Reader. Kafka's own fetch limits stand in for `bytes_max`."""
        del bytes_max
        from kafka.errors import KafkaError, OffsetOutOfRangeError

        if not self._places:
            time.sleep(min(wait_s, 0.05))
            return []
        try:
            self._assign()
            found = self._consumer.poll(timeout_ms=int(wait_s * 1000), max_records=POLL_RECORDS)
        except OffsetOutOfRangeError as error:
            raise self._refusal(error) from error
        except KafkaError as error:
            if _undecodable(error):
                return self._step_over()
            raise Unavailable(f"the log is away (reading): {type(error).__name__} {error}", dependency="log") from error
        taken = [_stored(r) for records in found.values() for r in records]
        for stored in taken:
            self._places[stored.topic, stored.partition] = stored.offset + 1
        return taken

    def _step_over(self) -> list[Stored]:
        """Find the partitions whose next record kafka-python can't decode, say so in that record's place, and go on behind it.

        It decodes the names of headers as UTF-8, which no broker asks of a producer; its error names no place, and behind such a
        record nothing of the same batch is to be had.
        """
        taken = []
        for tp in [tp for tp in self._places if self.place(*tp) < self.readable(*tp)]:
            place = self.place(*tp)
            if not self._decodes(tp, place):
                record = Record(b"", event_time_ms=int(time.time() * 1000), unreadable=UNDECODABLE)
                taken.append(Stored(*tp, place, record))
                self._seek(tp, place + 1)
        return taken

    def _decodes(self, tp: TopicPartition, place: int) -> bool:
        from kafka.errors import KafkaError

        alone = KafkaReader(self._log, {tp: place})
        try:
            alone._assign()
            alone._consumer.poll(timeout_ms=1_000, max_records=1)
        except KafkaError as error:
            return not _undecodable(error)
        finally:
            alone.close()
        return True

    def _seek(self, tp: TopicPartition, place: int) -> None:
        from kafka import TopicPartition as Tp

        self._places[tp] = place
        self._consumer.seek(Tp(*tp), place)

    def readable(self, topic: str, partition: int) -> int:
        """The offset up to which it can read now: the end, or where the first transaction that is still open begins."""
        from kafka import TopicPartition as Tp
        from kafka.errors import KafkaError

        try:
            return int(self._consumer.end_offsets([Tp(topic, partition)], timeout_ms=CALL_MS)[Tp(topic, partition)])
        except KafkaError as error:
            raise Unavailable(f"the log is away (reading): {type(error).__name__} {error}", dependency="log") from error

    def place(self, topic: str, partition: int) -> int:
        """See Reader."""
        from kafka import TopicPartition as Tp
        from kafka.errors import KafkaError

        place = self._places[topic, partition]
        if self._consumer is None or (topic, partition) in self._new:
            return place
        try:
            return max(place, self._consumer.position(Tp(topic, partition), timeout_ms=0) or 0)
        except KafkaError:
            return place

    def close(self) -> None:
        """See Reader."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False)
            self._consumer = None

    def _assign(self) -> None:
        from kafka import TopicPartition as Tp

        if self._consumer is None:
            self._consumer = self._log.consumer(
                isolation_level="read_committed",
                fetch_min_bytes=1,
                fetch_max_wait_ms=500,
                fetch_max_bytes=32 << 20,
                max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
            )
        if not self._changed:
            return
        for tp in self._new:
            self._check(tp)
        self._consumer.assign([Tp(*tp) for tp in self._places])
        for tp in self._new:
            self._consumer.seek(Tp(*tp), self._places[tp])
        self._new.clear()
        self._changed = False

    def _check(self, tp: TopicPartition) -> None:
        start, end = self._places[tp], self._log.end(*tp)
        if start > end:
            raise Refused(
                f"{tp[0]}/{tp[1]}: offset {start} lies beyond the end {end}: was the topic made anew?",
                field="offset",
                limit=end,
            )
        if start < (first := self._log.begin(*tp)):
            raise Refused(
                f"{tp[0]}/{tp[1]}: offset {start} is gone, the log begins at {first} (retention)",
                field="offset",
                limit=first,
            )

    def _refusal(self, error: Exception) -> Refused:
        places: Mapping[Any, int] = error.args[0] if error.args and isinstance(error.args[0], Mapping) else {}
        for tp, offset in places.items():
            return Refused(
                f"{tp.topic}/{tp.partition}: offset {offset} is not in the log any more (retention, or a topic made anew)",
                field="offset",
            )
        return Refused(f"an offset is not in the log any more: {error}", field="offset")


def _undecodable(error: Exception) -> bool:
    """Whether it says that what a producer wrote can't be decoded; bytes that changed on their way fail their checksum instead."""
    return type(error).__name__ == "CorruptRecordError" and "crc" not in str(error)


def _patiently(ask: Callable[[], Any]) -> Any:
    """What `ask` answers, waiting while the group's coordinator is being found: a broker that has just started says so first."""
    end = time.monotonic() + CALL_MS / 1000
    while True:
        try:
            return ask()
        except Exception as error:
            if type(error).__name__ not in COORDINATOR_MOVES or time.monotonic() > end:
                raise
            time.sleep(0.1)


def _stored(r: Any) -> Stored:
    headers = tuple((k, v) for k, v in r.headers or ())
    return Stored(r.topic, r.partition, r.offset, Record(r.value, r.key, headers, r.timestamp))


def _within(found: list[Stored], bytes_max: int) -> list[Stored]:
    """The first records, until `bytes_max` is passed; one at least."""
    taken, size = [], 0
    for stored in found:
        taken.append(stored)
        size += stored.size()
        if size >= bytes_max:
            break
    return taken
