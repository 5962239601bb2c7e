"""Reads the log in one SQLite file, where each partition is one run of rows."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import orjson

from vicinage.errors import NotFound, Unavailable
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
from vicinage.log.wake import Notifier

OFFSET_BITS: Final = 40
"""A record's row id is partition id << 40 | offset: a partition is one contiguous run of rows."""
LOOK_S: Final = 1.0
"""Interval of the check for topics that were deleted or created again."""


class SqliteReader:
    """Reads many partitions forward. Examines only those that changed: idle ones cost nothing."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        notifier: Notifier,
        starts: Mapping[TopicPartition, int],
    ) -> None:
        self._connection = connection
        self._notifier = notifier
        self._positions: dict[TopicPartition, int] = {}
        self._ids: dict[TopicPartition, str] = {}
        """The identity of the topic that each position belongs to."""
        self._numbers: dict[TopicPartition, int] = {}
        self._waiting: dict[TopicPartition, None] = {}
        self._halted: dict[TopicPartition, Halt] = {}
        self._seq = -1
        self._new: set[TopicPartition] = set()
        self._rows: tuple[int, int] = (0, 0)
        """Number of partitions and greatest row id at the last check for deleted topics."""
        self._looked = time.monotonic()
        for (topic, partition), start in starts.items():
            self.add(topic, partition, start)

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
        self.remove(topic, partition)
        self._positions[topic, partition] = start
        if topic_id is not None:
            self._ids[topic, partition] = topic_id
        if halt is None:
            self._new.add((topic, partition))
        else:
            self._halted[topic, partition] = halt

    def remove(self, topic: str, partition: int) -> None:
        """Stops reading this partition."""
        for by_partition in (
            self._positions,
            self._ids,
            self._numbers,
            self._waiting,
            self._halted,
        ):
            by_partition.pop((topic, partition), None)
        self._new.discard((topic, partition))

    def poll(self, *, bytes_max: int = 4 << 20, wait_s: float = 0.0) -> list[LogRecord]:
        """Returns the next records; wakes as soon as there are any."""
        end = time.monotonic() + wait_s
        while True:
            seen = self._notifier.count()
            found = self._take(bytes_max)
            left = end - time.monotonic()
            if found or left <= 0:
                return found
            self._notifier.wait(seen, left)

    def halted(self) -> Mapping[TopicPartition, Halt]:
        """See Reader."""
        return dict(self._halted)

    def position(self, topic: str, partition: int) -> int:
        """Returns the next offset to read."""
        return self._positions[topic, partition]

    def close(self) -> None:
        """Closes the connection. Idempotent."""
        self._connection.close()

    def _take(self, bytes_max: int) -> list[LogRecord]:
        with reading():
            self._look()
            found: list[LogRecord] = []
            moved: dict[TopicPartition, int] = {}
            share = max(1, bytes_max // max(1, len(self._waiting)))
            for tp in list(self._waiting):
                run = self._run(tp, share)
                self._waiting.pop(tp, None)
                if run:
                    moved[tp] = run[-1].offset + 1
                    self._waiting[tp] = None  # requeued last; removed when it has no more records
                    found.extend(run)
                if sum(s.size() for s in found) >= bytes_max:
                    break
            self._positions.update(moved)  # last: if a later partition fails, nothing is returned
            return found

    def _run(self, tp: TopicPartition, bytes_max: int) -> list[LogRecord]:
        try:
            return read_run(self._connection, self._numbers[tp], tp, self._positions[tp], bytes_max)
        except (sqlite3.DatabaseError, ValueError) as error:
            if (
                isinstance(error, sqlite3.DatabaseError)
                and error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT
            ):
                raise
            self._halt(
                tp,
                "unreadable",
                f"{tp[0]}/{tp[1]}: offset {self._positions[tp]} cannot be read: {error}",
            )
            return []

    def _look(self) -> None:
        """Finds the partitions that have new records, and those deleted or created again."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            self._look_for_deleted()
            self._new |= {tp for tp, halt in self._halted.items() if halt.kind not in STICKY}
        for tp in list(self._new):
            self._begin(tp)
        rows = self._connection.execute(
            "SELECT id, topic, number, first, next, seq FROM partitions WHERE seq > ?", (self._seq,)
        ).fetchall()
        for number, topic, partition, log_start, log_end, seq in rows:
            self._seq = max(self._seq, seq)
            if (topic, partition) in self._numbers and (topic, partition) not in self._halted:
                self._note((topic, partition), number, log_start, log_end)

    def _begin(self, tp: TopicPartition) -> None:
        """Starts or resumes reading a partition at its position; halts it if that is impossible."""
        self._new.discard(tp)
        try:
            number, log_start, log_end = find(self._connection, *tp)
        except NotFound:
            self._halt(
                tp, "topic_missing", f"{tp[0]}/{tp[1]}: the log has no such topic or partition"
            )
            return
        found = _topic_id(self._connection, tp[0])
        if self._ids.setdefault(tp, found) != found:
            self._replaced(tp)
            return
        self._halted.pop(tp, None)
        self._note(tp, number, log_start, log_end)

    def _look_for_deleted(self) -> None:
        # SQLite never reuses a row id here: while count and maximum are the same, nothing was
        # deleted.
        [rows] = self._connection.execute(
            "SELECT count(*), coalesce(max(id), 0) FROM partitions"
        ).fetchall()
        if rows == self._rows:
            return
        self._rows = rows
        ids = self._connection.execute("SELECT id FROM partitions").fetchall()
        existing = {number for (number,) in ids}
        self._new |= {tp for tp, number in self._numbers.items() if number not in existing}

    def _note(self, tp: TopicPartition, number: int, log_start: int, log_end: int) -> None:
        if self._numbers.setdefault(tp, number) != number:
            self._replaced(tp)
            return
        position = self._positions[tp]
        if kind := start_trouble(position, log_start, log_end):
            self._halt(tp, kind, start_reason(kind, tp, position, log_start, log_end))
        elif log_end > position:
            self._waiting.setdefault(tp)

    def _replaced(self, tp: TopicPartition) -> None:
        self._halt(
            tp, "topic_replaced", f"{tp[0]}/{tp[1]}: the topic was deleted and created again"
        )

    def _halt(self, tp: TopicPartition, kind: HaltKind, reason: str) -> None:
        self._waiting.pop(tp, None)
        known = self._halted.get(tp)
        if known is None or known.kind != kind:
            since_ms = known.since_ms if known else time.time_ns() // 1_000_000
            self._halted[tp] = Halt(kind, reason, since_ms, self._positions[tp])


@contextmanager
def reading() -> Iterator[None]:
    """Turns errors of SQLite into Unavailable."""
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(f"the log cannot be read: {error}", dependency="log") from error


def read_run(
    connection: sqlite3.Connection, number: int, tp: TopicPartition, start: int, bytes_max: int
) -> list[LogRecord]:
    """Returns records of one partition from `start`, until their bytes reach `bytes_max`.

    Returns at least one if there is one.
    """
    rows = connection.execute(
        "SELECT id, key, value, headers, event_time_ms FROM records"
        " WHERE id >= ? AND id < ? ORDER BY id",
        ((number << OFFSET_BITS) + start, (number + 1) << OFFSET_BITS),
    )
    found: list[LogRecord] = []
    taken = 0
    for row_id, key, value, headers, event_time_ms in rows:
        record = Record(value, key, _unpack(headers), event_time_ms)
        found.append(LogRecord(*tp, row_id & ((1 << OFFSET_BITS) - 1), record))
        taken += found[-1].size()
        if taken >= bytes_max:
            break
    rows.close()
    return found


def find(c: sqlite3.Connection, topic: str, partition: int) -> tuple[int, int, int]:
    """Returns a partition's row id, the lowest offset kept, and the next offset.

    Raises NotFound.
    """
    row = c.execute(
        "SELECT id, first, next FROM partitions WHERE topic = ? AND number = ?", (topic, partition)
    ).fetchone()
    if row is None:
        raise NotFound(f"the log has no partition {partition} of a topic {topic!r}")
    return int(row[0]), int(row[1]), int(row[2])


def _topic_id(c: sqlite3.Connection, topic: str) -> str:
    return str(find(c, topic, 0)[0])


def _unpack(headers: Any) -> tuple[tuple[str, bytes], ...]:
    return tuple((k, v.encode("latin-1")) for k, v in orjson.loads(headers)) if headers else ()
