"""The durable, partitioned log, from which everything downstream can be rebuilt.

Guarantee 2: `append` returns only when the records survive a kill -9 and a power cut. Guarantee 3:
a consumer group's position is a hint where to start; readers are idempotent under replay.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self

from vicinage.errors import Refused
from vicinage.settings import KafkaSettings

TopicPartition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Record:
    """A record to append. `value` None deletes `key`.

    `event_time_ms` is the time of the event by the producer's clock. `unreadable` is the reason why
    a record of another producer cannot be read; its other fields are then empty.
    """

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    event_time_ms: int = 0
    unreadable: str | None = None


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record of the log with its topic, partition and offset."""

    topic: str
    partition: int
    offset: int
    record: Record

    def size(self) -> int:
        """Returns the bytes of key, value and headers."""
        r = self.record
        return len(r.value or b"") + len(r.key or b"") + sum(len(k) + len(v) for k, v in r.headers)


HaltKind = Literal[
    "offset_gone", "beyond_end", "topic_missing", "topic_replaced", "unauthorized", "unreadable"
]
"""The reason why a reader does not read a partition.

offset_gone: retention has removed the next offset. beyond_end: the log ends before the next offset.
topic_missing: no such topic or partition is visible. topic_replaced: another topic has the name
now. unauthorized: the broker refuses this client. unreadable: the next offset's bytes cannot be
read.
"""

STICKY: Final[frozenset[HaltKind]] = frozenset({"offset_gone", "beyond_end", "topic_replaced"})
"""Halts that only a new `Reader.add` ends: to continue from the same offset would skip records."""


@dataclass(frozen=True, slots=True)
class Halt:
    """The halt of one partition: its kind, its reason, its start, and the next offset to read.

    `reason` names the topic and the partition. It is for operators and for the tenant that owns the
    topic.
    """

    kind: HaltKind
    reason: str
    since_ms: int
    position: int


class Reader(Protocol):
    """Reads many partitions forward, each from its own offset. For one thread at a time.

    Keeps its positions in memory only. An error in one partition halts only that partition;
    `halted` names it. Halts outside STICKY can resolve themselves: the reader retries them every
    few seconds and resumes without an operator.
    """

    def add(
        self,
        topic: str,
        partition: int,
        start: int,
        *,
        topic_id: str | None = None,
        halt: Halt | None = None,
    ) -> None:
        """Adds the partition, read from offset `start`, and ends its halt.

        With `halt`, the partition starts in that halt. With `topic_id`, a topic of another identity
        is halted as topic_replaced; None accepts the topic that has the name at the first poll.
        """
        ...

    def remove(self, topic: str, partition: int) -> None:
        """Stops reading this partition."""
        ...

    def poll(self, *, bytes_max: int = 4 << 20, wait_s: float = 0.0) -> list[LogRecord]:
        """Returns the next records; [] if none came within `wait_s`.

        Records are in order within each partition. Wakes as soon as a record is durable (no poll
        interval). Each partition with records waiting gets a fair share of `bytes_max`; at least
        one record is returned, whatever its size. A partition whose next offset is gone or beyond
        the end is halted, never skipped. Raises Unavailable if the log cannot be reached.
        """
        ...

    def halted(self) -> Mapping[TopicPartition, Halt]:
        """Returns the partitions that are halted now, as of the last poll."""
        ...

    def position(self, topic: str, partition: int) -> int:
        """Returns the next offset to read: after every record polled and every transaction marker.

        Kafka's transaction markers take offsets in the log, but are never returned as records.
        """
        ...

    def close(self) -> None:
        """Releases its resources. Idempotent."""
        ...


class Log(Protocol):
    """Topics of ordered partitions. Safe for many threads and many processes."""

    def ensure_topic(
        self, topic: str, partitions: int = 1, *, retention_ms: int | None = None
    ) -> int:
        """Creates the topic if it does not exist; returns its actual number of partitions.

        Idempotent. `retention_ms` None keeps records forever.
        """
        ...

    def topics(self, prefix: str = "", *, max_age_s: float = 0.0) -> dict[str, int]:
        """Returns topic name → number of partitions, for names that start with `prefix`.

        The listing is at most `max_age_s` old.
        """
        ...

    def partitions(self, topic: str) -> int:
        """Returns the topic's number of partitions now. Raises NotFound."""
        ...

    def add_partitions(self, topic: str, partitions: int) -> int:
        """Grows the topic to at least `partitions` partitions; returns their number.

        Raises NotFound.
        """
        ...

    def topic_ids(self, prefix: str = "") -> dict[str, str]:
        """Returns the identity of each topic whose name starts with `prefix`.

        A topic that is deleted and created again has another identity.
        """
        ...

    def delete_topic(self, topic: str) -> None:
        """Deletes the topic, its records and the groups' positions in it. Idempotent."""
        ...

    def topic_problems(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns the invalid settings of each topic, each with the value to set.

        Returns {} if there are none. A topic that does not exist has no problem. Raises
        Unavailable.
        """
        ...

    def append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        """Appends the records in order; returns their offsets, ascending. Durable on return.

        Raises NotFound for an unknown topic or partition, TooLarge for a record over the topic's
        limit (nothing is written), and Unavailable if the log cannot be reached or the topic takes
        no records. After an Unavailable, the records may be in the log: append them again. A
        failure of one topic does not affect appends to others.
        """
        ...

    def read(
        self, topic: str, partition: int, start: int, *, bytes_max: int = 4 << 20
    ) -> list[LogRecord]:
        """Returns records from offset `start` without waiting; [] at the end of the partition.

        Raises Unavailable if the log cannot be reached, NotFound if the partition does not exist,
        and Refused if `start` is gone, beyond the end, or cannot be read.
        """
        ...

    def begin(self, topic: str, partition: int) -> int:
        """Returns the lowest offset that is still kept."""
        ...

    def end(self, topic: str, partition: int) -> int:
        """Returns the offset that the next record will get."""
        ...

    def extents(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int]]:
        """Returns `begin` and `end` of each partition, looked up in one batch.

        A partition that does not exist is absent.
        """
        ...

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Stores the next offset that `group` will read in each partition. Durable on return.

        A partition that is gone may have no position. Raises Unavailable if the log cannot be
        reached.
        """
        ...

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Returns the offsets that `commit` stored; a partition without one is absent."""
        ...

    def wait_committed(
        self, group: str, topic: str, partition: int, offset: int, *, wait_s: float
    ) -> bool:
        """Returns True as soon as `group` has committed beyond `offset`, False after `wait_s`."""
        ...

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Allows the log to delete records below offset `before`; they may remain longer."""
        ...

    def keeping(self, topic: str, partition: int, bytes_max: int) -> int:
        """Returns the lowest offset from which the records to the end take at most `bytes_max`.

        Returns `begin` if the log does not know sizes: on Kafka, the topic's `retention.bytes` is
        the bound.
        """
        ...

    def disk_bytes(self) -> int | None:
        """Returns the bytes that the log takes on this machine's disk; None if brokers store it."""
        ...

    def reader(self, starts: Mapping[TopicPartition, int]) -> Reader:
        """Returns a Reader over these partitions, each from its offset."""
        ...

    def close(self) -> None:
        """Releases its resources. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def check_start(topic: str, partition: int, start: int, log_start: int, log_end: int) -> None:
    """Raises Refused for an offset below `log_start` (retention) or beyond `log_end`."""
    if kind := start_trouble(start, log_start, log_end):
        raise Refused(
            start_reason(kind, (topic, partition), start, log_start, log_end), field="offset"
        )


def start_trouble(start: int, log_start: int, log_end: int) -> HaltKind | None:
    """Returns why a read of [log_start, log_end) cannot begin at `start`; None if it can. Pure."""
    if start < log_start:
        return "offset_gone"
    return "beyond_end" if start > log_end else None


def start_reason(
    kind: HaltKind, tp: TopicPartition, start: int, log_start: int, log_end: int
) -> str:
    """Returns the reason of a halt as a sentence for an operator. Pure."""
    if kind == "offset_gone":
        return f"{tp[0]}/{tp[1]}: offset {start} is gone, the log begins at {log_start} (retention)"
    return (
        f"{tp[0]}/{tp[1]}: offset {start} is beyond the end {log_end}: was the topic created again?"
    )


def read_between(
    log: Log, topic: str, partition: int, start: int, end: int, *, bytes_max: int = 4 << 20
) -> Iterator[LogRecord]:
    """Yields the records from `start` up to `end` (exclusive), read `bytes_max` at a time.

    Raises as Log.read does.
    """
    while start < end and (run := log.read(topic, partition, start, bytes_max=bytes_max)):
        yield from (record for record in run if record.offset < end)
        start = run[-1].offset + 1


def open_log(url: str, kafka: KafkaSettings | None = None) -> Log:
    """Opens the log at `url`.

    `url` is `sqlite:///relative/log.db`, `sqlite:////absolute/log.db` or
    `kafka://host:port[,host:port]`.
    """
    scheme, _, rest = url.partition("://")
    match scheme:
        case "sqlite":
            from vicinage.log.sqlite import SqliteLog

            return SqliteLog(rest[1:])
        case "kafka":
            from vicinage.log.kafka import KafkaLog

            return KafkaLog(rest.rstrip("/"), kafka)
        case _:
            raise Refused(
                f"log_url {url!r} has an unknown scheme: use sqlite:///PATH or kafka://HOST:PORT",
                field="log_url",
            )
