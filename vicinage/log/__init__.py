"""The durable, partitioned log: everything downstream of it can be rebuilt from it.

Law 2: `append` returns only when the records survive a kill -9 and a power cut.
Law 3: a consumer group's position is a hint where to start; readers make replay harmless.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self

from vicinage.errors import Refused
from vicinage.settings import KafkaSettings

TopicPartition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Record:
    """What is appended. `value` None is a deletion of `key`. `event_time_ms` is the writer's own time of the event.

    `unreadable` says why a record of another producer cannot be read; its other fields are empty then.
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
        """Bytes of key, value and headers."""
        r = self.record
        return len(r.value or b"") + len(r.key or b"") + sum(len(k) + len(v) for k, v in r.headers)


HaltKind = Literal["offset_gone", "beyond_end", "topic_missing", "topic_replaced", "unauthorized", "unreadable"]
"""Why a reader does not read a partition.

offset_gone: retention has removed the next offset. beyond_end: the log ends before the next offset.
topic_missing: no such topic or partition is visible. topic_replaced: another topic has the name now.
unauthorized: the broker refuses this client. unreadable: the bytes at the next offset cannot be read.
"""

STICKY: Final[frozenset[HaltKind]] = frozenset({"offset_gone", "beyond_end", "topic_replaced"})
"""Halts that only a new `Reader.add` ends: reading on from the same offset would skip records."""


@dataclass(frozen=True, slots=True)
class Halt:
    """One partition that a reader does not read: why, since when, and the offset that is next.

    `reason` names topic and partition: it is for operators and for the tenant that owns the topic.
    """

    kind: HaltKind
    reason: str
    since_ms: int
    position: int


class Reader(Protocol):
    """Reads many partitions forward, each from its own offset; keeps its place in memory only. One thread at a time.

    Trouble with one partition halts that partition alone; `halted` names it. Halts that can pass by
    themselves (all but STICKY) are looked at again every few seconds, and reading goes on without help.
    """

    def add(
        self, topic: str, partition: int, start: int, *, topic_id: str | None = None, halt: Halt | None = None
    ) -> None:
        """Read this partition too, from offset `start`; ends its halt. With `halt`, it begins halted so.

        With `topic_id`, a topic of another identity is halted as topic_replaced. None: the topic that
        has the name at the first poll.
        """
        ...

    def remove(self, topic: str, partition: int) -> None:
        """Stop reading this partition."""
        ...

    def poll(self, *, bytes_max: int = 4 << 20, wait_s: float = 0.0) -> list[LogRecord]:
        """The next records, in order within each partition; [] when none came within `wait_s`.

        Wakes as soon as a record is durable (no poll interval). Every partition with records waiting gets a fair
        share of `bytes_max`, and at least one record is returned whatever its size. Raises Unavailable when the log is
        away. A partition whose next offset is gone or beyond the end is halted, never skipped.
        """
        ...

    def halted(self) -> Mapping[TopicPartition, Halt]:
        """Returns the partitions that are halted now, as of the last poll."""
        ...

    def position(self, topic: str, partition: int) -> int:
        """The offset that it reads next: beyond everything polled, and beyond what is no record of anybody's.

        (Kafka's transactions leave markers in the log, which take offsets and are never read.)
        """
        ...

    def close(self) -> None:
        """Free what it holds. Idempotent."""
        ...


class Log(Protocol):
    """Topics of ordered partitions. Safe for many threads and many processes."""

    def ensure_topic(self, topic: str, partitions: int = 1, *, retention_ms: int | None = None) -> int:
        """Make the topic exist; the number of partitions it really has. Idempotent. None: keeps records for ever."""
        ...

    def topics(self, prefix: str = "", *, max_age_s: float = 0.0) -> dict[str, int]:
        """Returns topic name → number of partitions, for names that start with `prefix`, seen within `max_age_s`."""
        ...

    def partitions(self, topic: str) -> int:
        """Returns the topic's number of partitions now. Raises NotFound."""
        ...

    def add_partitions(self, topic: str, partitions: int) -> int:
        """Makes the topic have at least `partitions` partitions; returns how many it has then. Raises NotFound."""
        ...

    def topic_ids(self, prefix: str = "") -> dict[str, str]:
        """Returns the identity of each topic whose name starts with `prefix`: another one after it was created again."""
        ...

    def delete_topic(self, topic: str) -> None:
        """Remove the topic, its records and the groups' positions in it. Idempotent."""
        ...

    def topic_problems(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns what in the settings of each topic cannot work, each with what to set; {} when all is well.

        A topic that does not exist has no problem. Raises Unavailable.
        """
        ...

    def append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        """Appends the records in order; returns their offsets, rising. Durable on return.

        Raises NotFound for an unknown topic or partition, TooLarge for a record over the topic's limit (nothing is
        written), and Unavailable when the log is away or the topic takes no records. After an Unavailable, records may
        be in the log: append them again. A failure of one topic leaves appends to others alone.
        """
        ...

    def read(self, topic: str, partition: int, start: int, *, bytes_max: int = 4 << 20) -> list[LogRecord]:
        """Records from offset `start`, at once; [] at the end.

        Raises Unavailable when the log is away, NotFound without the partition, and Refused when `start` is gone,
        beyond the end, or cannot be read.
        """
        ...

    def begin(self, topic: str, partition: int) -> int:
        """The lowest offset still kept."""
        ...

    def end(self, topic: str, partition: int) -> int:
        """The offset that the next record will get."""
        ...

    def extents(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """Returns `begin` and `end` of each partition, looked up together; one that does not exist is absent."""
        ...

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Stores the next offset that `group` will read of each partition; durable on return.

        A partition that is gone may have no position. Raises Unavailable when the log is away.
        """
        ...

    def committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """What `commit` stored; a partition without a position is absent."""
        ...

    def wait_committed(self, group: str, topic: str, partition: int, offset: int, *, wait_s: float) -> bool:
        """True as soon as `group` has committed beyond `offset` in this partition, False after `wait_s`."""
        ...

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Let go of records below offset `before` (they may stay longer)."""
        ...

    def keeping(self, topic: str, partition: int, bytes_max: int) -> int:
        """Returns the lowest offset from which on the records take at most `bytes_max`.

        `begin` where the log does not know sizes: on Kafka the topic's own `retention.bytes` bounds them.
        """
        ...

    def disk_bytes(self) -> int | None:
        """Returns the bytes that the log takes on this machine's disk; None where servers of its own keep it."""
        ...

    def reader(self, starts: Mapping[TopicPartition, int]) -> Reader:
        """A Reader over these partitions, each from its offset."""
        ...

    def close(self) -> None:
        """Free what it holds. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def check_start(topic: str, partition: int, start: int, first: int, end: int) -> None:
    """Raises Refused for an offset below `first` (retention) or beyond `end`."""
    if kind := start_trouble(start, first, end):
        raise Refused(start_reason(kind, (topic, partition), start, first, end), field="offset")


def start_trouble(start: int, first: int, end: int) -> HaltKind | None:
    """Returns why reading cannot begin at `start` of a log that keeps [first, end). Pure."""
    if start < first:
        return "offset_gone"
    return "beyond_end" if start > end else None


def start_reason(kind: HaltKind, tp: TopicPartition, start: int, first: int, end: int) -> str:
    """Returns the sentence for an operator. Pure."""
    if kind == "offset_gone":
        return f"{tp[0]}/{tp[1]}: offset {start} is gone, the log begins at {first} (retention)"
    return f"{tp[0]}/{tp[1]}: offset {start} lies beyond the end {end}: was the topic made anew?"


def read_between(
    log: Log, topic: str, partition: int, start: int, end: int, *, bytes_max: int = 4 << 20
) -> Iterator[LogRecord]:
    """The records from `start` up to `end` (exclusive), read `bytes_max` at a time. Raises as Log.read does."""
    while start < end and (run := log.read(topic, partition, start, bytes_max=bytes_max)):
        yield from (record for record in run if record.offset < end)
        start = run[-1].offset + 1


def open_log(url: str, kafka: KafkaSettings | None = None) -> Log:
    """The log at `url`: `sqlite:///relative/log.db`, `sqlite:////absolute/log.db` or `kafka://host:port[,host:port]`."""
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
                f"log_url {url!r} has an unknown scheme: use sqlite:///PATH or kafka://HOST:PORT", field="log_url"
            )
