"""Reads partitions of Kafka forward. An error in one partition halts only that partition.

kafka-python raises one partition's error from `poll` for all of them, often without naming it.
`_locate_errors` adds the partition; the reader then stops fetching it, and the others continue.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from vicinage.clock import longer
from vicinage.errors import Unavailable, VicinageError
from vicinage.log import (
    STICKY,
    Halt,
    HaltKind,
    LogRecord,
    Record,
    TopicPartition,
    start_reason,
    start_trouble,
)
from vicinage.log.kafka_codecs import bound
from vicinage.log.kafka_facts import MESSAGE_BYTES_MAX
from vicinage.log.kafka_topics import Topics

DEADLINE_S: Final = 30.0
CALL_MS: Final = 10_000
POLL_RECORDS: Final = 4_000
RETRY_S: Final = (1.0, 60.0)
"""Shortest and longest wait before a halted partition is retried."""
PROBE_S: Final = 2.0
"""The halt of a partition ends after a retry without an error for this long."""
UNDECODABLE: Final = (
    "this record, or an earlier one of its batch, can't be decoded: header names must be UTF-8."
    " Send it again"
)


class Misread(Exception):
    """An error from fetching or decoding one partition, with the offset where it occurred."""

    def __init__(self, tp: TopicPartition, position: int, cause: Exception) -> None:
        super().__init__(f"{tp[0]}/{tp[1]}: {cause}")
        self.tp = tp
        self.position = position
        self.cause = cause


class KafkaReader:
    """Reads assigned partitions; Kafka's long poll returns as soon as there is a record.

    `connect` makes a consumer; `extent` returns a partition's first and next offset; `check` marks
    records as unreadable.
    """

    def __init__(
        self,
        connect: Callable[..., Any],
        topics: Topics,
        extent: Callable[[str, int], tuple[int, int]],
        starts: Mapping[TopicPartition, int],
        check: Callable[[LogRecord], LogRecord] = lambda record: record,
    ) -> None:
        self._connect = connect
        self._topics = topics
        self._extent = extent
        self._check_record = check
        self._consumer: Any = None
        self._positions: dict[TopicPartition, int] = dict(starts)
        self._ids: dict[TopicPartition, str] = {}
        """The identity of the topic that each position belongs to, once it is known."""
        self._halted: dict[TopicPartition, Halt] = {}
        self._retries: dict[TopicPartition, tuple[float, float]] = {}
        """Halted partitions that may recover: time of the next retry, and the wait before it."""
        self._probed: dict[TopicPartition, float] = {}
        """Halted partitions that are being retried, and since when."""
        self._new: set[TopicPartition] = set(starts)
        self._changed = True
        self._listed = -1.0

    def add(
        self,
        topic: str,
        partition: int,
        start: int,
        *,
        topic_id: str | None = None,
        halt: Halt | None = None,
    ) -> None:
        """See Reader."""
        tp = (topic, partition)
        known = self._ids.get(tp)
        self.remove(topic, partition)
        self._positions[tp] = start
        if topic_id is not None:
            self._ids[tp] = topic_id
        if known not in (None, topic_id):
            # the consumer's state of the topic (leader epochs) is the old topic's
            self._reconnect()
        self._new.add(tp)
        self._listed = -1.0
        if halt is not None:
            self._halted[tp] = halt

    def remove(self, topic: str, partition: int) -> None:
        """See Reader."""
        tp = (topic, partition)
        for by_partition in (self._positions, self._ids, self._halted, self._retries, self._probed):
            by_partition.pop(tp, None)
        self._new.discard(tp)
        self._changed = True

    def poll(self, *, bytes_max: int = 4 << 20, wait_s: float = 0.0) -> list[LogRecord]:
        """See Reader. Kafka's fetch limits replace `bytes_max`."""
        del bytes_max
        from kafka.errors import KafkaError, LogTruncationError, TopicAuthorizationFailedError

        self._look()
        if not self._read_now():
            time.sleep(min(wait_s, 0.05))
            return []
        try:
            self._assign()
            found = self._consumer.poll(timeout_ms=int(wait_s * 1000), max_records=POLL_RECORDS)
        except Misread as misread:
            return self._misread(misread)
        except LogTruncationError as error:
            for tp in error.divergent_offsets:
                self._out_of_range((tp.topic, tp.partition))
            return []
        except TopicAuthorizationFailedError as error:
            for tp in [tp for tp in self._read_now() if tp[0] in error.args[0]]:
                self._halt(tp, "unauthorized", _unauthorized(tp))
            return []
        except KafkaError as error:
            raise Unavailable(
                f"the log is unavailable (reading): {type(error).__name__} {error}",
                dependency="log",
            ) from error
        taken = [self._check_record(_record(r)) for records in found.values() for r in records]
        for record in taken:
            self._positions[record.topic, record.partition] = record.offset + 1
        for tp in found:
            self._recover((tp.topic, tp.partition))
        return taken

    def halted(self) -> Mapping[TopicPartition, Halt]:
        """See Reader."""
        return dict(self._halted)

    def position(self, topic: str, partition: int) -> int:
        """See Reader."""
        from kafka import TopicPartition as Tp
        from kafka.errors import KafkaError

        tp = (topic, partition)
        position = self._positions[tp]
        if self._consumer is None or tp in self._new or tp in self._halted:
            return position
        try:
            return max(position, self._consumer.position(Tp(topic, partition), timeout_ms=0) or 0)
        except (KafkaError, Misread):
            return position

    def readable(self, topic: str, partition: int) -> int:
        """Returns the offset up to which records can be read now (the last stable offset).

        That is the end, or the start of the first transaction that is still open.
        """
        from kafka import TopicPartition as Tp
        from kafka.errors import KafkaError

        try:
            return int(
                self._consumer.end_offsets([Tp(topic, partition)], timeout_ms=CALL_MS)[
                    Tp(topic, partition)
                ]
            )
        except KafkaError as error:
            raise Unavailable(
                f"the log is unavailable (reading): {type(error).__name__} {error}",
                dependency="log",
            ) from error

    def close(self) -> None:
        """See Reader."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False)
            self._consumer = None

    # the assigned partitions

    def _read_now(self) -> list[TopicPartition]:
        return [tp for tp in self._positions if tp not in self._halted or tp in self._probed]

    def _assign(self) -> None:
        from kafka import TopicPartition as Tp

        if self._consumer is None:
            self._consumer = self._connect(
                isolation_level="read_committed",
                fetch_min_bytes=1,
                fetch_max_wait_ms=500,
                fetch_max_bytes=32 << 20,
                max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
            )
            _locate_errors(self._consumer)
            bound()
        if not self._changed:
            return
        reading = self._read_now()
        self._consumer.assign([Tp(*tp) for tp in reading])
        for tp in self._new.intersection(reading):
            self._consumer.seek(Tp(*tp), self._positions[tp])
        self._new.difference_update(reading)
        self._changed = False

    def _reconnect(self) -> None:
        self.close()
        self._new = set(self._positions)
        self._changed = True

    # halts

    def _look(self) -> None:
        """Halts partitions whose topic is gone or replaced; retries those that are due."""
        now = time.monotonic()
        listed, topics = self._topics.every()
        if listed != self._listed or self._listed < 0:
            self._check(topics, fresh=now - listed < PROBE_S)
            self._listed = self._topics.every()[0]
        for tp, since in list(self._probed.items()):
            if now - since > PROBE_S:
                self._recover(tp)
        for tp, (due, _) in list(self._retries.items()):
            if due <= now and tp not in self._probed:
                self._retry(tp, now)

    def _check(self, topics: Mapping[str, Any], *, fresh: bool) -> None:
        unsure = (
            self._positions if not fresh else [tp for tp in self._new if tp not in self._halted]
        )
        if any(tp[0] not in topics or tp[1] >= topics[tp[0]].partitions for tp in unsure):
            topics = self._list()
        for tp in self._positions:
            topic = topics.get(tp[0])
            if topic is None or tp[1] >= topic.partitions:
                self._halt(
                    tp,
                    "topic_missing",
                    f"{tp[0]}/{tp[1]}: the log shows no such topic or partition",
                )
            elif self._ids.setdefault(tp, topic.id) != topic.id:
                self._halt(
                    tp,
                    "topic_replaced",
                    f"{tp[0]}/{tp[1]}: the topic was deleted and created again",
                )
            elif self._kind(tp) == "topic_missing":
                self._recover(tp)

    def _list(self) -> Mapping[str, Any]:
        from kafka.errors import KafkaError

        try:
            return self._topics.look()
        except KafkaError as error:
            raise Unavailable(
                f"the log is unavailable (listing topics): {type(error).__name__}", dependency="log"
            ) from error

    def _kind(self, tp: TopicPartition) -> HaltKind | None:
        halt = self._halted.get(tp)
        return halt.kind if halt else None

    def _halt(self, tp: TopicPartition, kind: HaltKind, reason: str) -> None:
        self._probed.pop(tp, None)
        self._new.add(tp)
        self._changed = True
        known = self._halted.get(tp)
        if kind in STICKY or kind == "topic_missing":
            self._retries.pop(tp, None)
        else:
            _, waited = self._retries.get(tp, (0.0, None))
            wait = longer(waited, RETRY_S)
            self._retries[tp] = time.monotonic() + wait, wait
        if known is None or (known.kind != kind and known.kind not in STICKY):
            since_ms = known.since_ms if known else time.time_ns() // 1_000_000
            self._halted[tp] = Halt(kind, reason, since_ms, self._positions[tp])

    def _retry(self, tp: TopicPartition, now: float) -> None:
        self._probed[tp] = now
        self._new.add(tp)
        self._changed = True

    def _recover(self, tp: TopicPartition) -> None:
        """Ends a halt after the partition returned records, or raised no more errors."""
        if tp in self._halted and self._kind(tp) not in STICKY:
            self._changed = self._changed or tp not in self._probed
            for by_partition in (self._halted, self._retries, self._probed):
                by_partition.pop(tp, None)

    # errors of a fetch

    def _misread(self, misread: Misread) -> list[LogRecord]:
        tp, cause = misread.tp, misread.cause
        if tp not in self._positions:
            return []
        match type(cause).__name__:
            case "OffsetOutOfRangeError":
                self._out_of_range(tp)
            case "TopicAuthorizationFailedError":
                self._halt(tp, "unauthorized", _unauthorized(tp))
            case "CorruptRecordError" if "crc" not in str(cause):
                return [self._skip(tp, max(misread.position, self._positions[tp]))]
            case name:
                self._halt(
                    tp,
                    "unreadable",
                    f"{tp[0]}/{tp[1]}: offset {misread.position} cannot be read: {name} {cause}",
                )
        return []

    def _skip(self, tp: TopicPartition, position: int) -> LogRecord:
        """Returns an unreadable record in place of one that cannot be decoded; continues after it.

        kafka-python decodes header names as UTF-8, which no broker requires of a producer. The rest
        of the batch after such a record cannot be read.
        """
        self._positions[tp] = position + 1
        self._new.add(tp)
        self._changed = True
        return LogRecord(
            *tp,
            position,
            Record(b"", event_time_ms=int(time.time() * 1000), unreadable=UNDECODABLE),
        )

    def _out_of_range(self, tp: TopicPartition) -> None:
        position = self._positions[tp]
        try:
            found = self._list().get(tp[0])
            if found is not None and self._ids.get(tp, found.id) != found.id:
                self._halt(
                    tp,
                    "topic_replaced",
                    f"{tp[0]}/{tp[1]}: the topic was deleted and created again",
                )
                return
            log_start, log_end = self._extent(*tp)
        except VicinageError as error:
            self._halt(
                tp,
                "unreadable",
                f"{tp[0]}/{tp[1]}: offset {position} is out of range ({error.detail})",
            )
            return
        kind = start_trouble(position, log_start, log_end)
        if kind is not None:
            self._halt(tp, kind, start_reason(kind, tp, position, log_start, log_end))
        else:  # in range again: the leader has changed since
            self._halt(
                tp, "unreadable", f"{tp[0]}/{tp[1]}: offset {position} was refused as out of range"
            )


def _unauthorized(tp: TopicPartition) -> str:
    return f"{tp[0]}/{tp[1]}: the broker does not let this client read the topic"


def _locate_errors(consumer: Any) -> None:
    """Makes the consumer's fetcher raise Misread, with partition and offset, for every error.

    In these two methods kafka-python parses a fetch (`_parse_fetched_data`) and takes its records
    (`_append`). tests/contract/test_log.py fails if another version has other methods.
    """
    fetcher = consumer._fetcher  # noqa: SLF001  (no public call says which partition failed)
    parse, append = fetcher._parse_fetched_data, fetcher._append  # noqa: SLF001

    def parsed(completed: Any) -> Any:
        try:
            return parse(completed)
        except Exception as error:
            raise Misread(
                tuple(completed.topic_partition), completed.fetched_offset, error
            ) from error

    def appended(drained: Any, part: Any, *rest: Any) -> Any:
        try:
            return append(drained, part, *rest)
        except Exception as error:
            position = part.next_fetch_offset
            part.drain()  # its generator has ended: another call would return nothing, forever
            raise Misread(tuple(part.topic_partition), position, error) from error

    fetcher._parse_fetched_data, fetcher._append = parsed, appended  # noqa: SLF001


def _record(r: Any) -> LogRecord:
    headers = tuple((k, v) for k, v in r.headers or ())
    return LogRecord(r.topic, r.partition, r.offset, Record(r.value, r.key, headers, r.timestamp))
