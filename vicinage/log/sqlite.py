"""The log in one SQLite file: WAL, full sync, many appenders sharing one fsync.

Guarantee 2: `append` and `commit` return after the transaction that holds them is synced.
"""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from vicinage.errors import NotFound, Unavailable
from vicinage.log import LogRecord, Record, TopicPartition, check_start, sqlite_records
from vicinage.log.sqlite_connections import Connections
from vicinage.log.sqlite_reader import SqliteReader, find, read_run, reading
from vicinage.log.sqlite_tidy import prepare
from vicinage.log.sqlite_writer import Writer
from vicinage.log.wake import Notifier

OPEN_S: Final = 30.0
"""Longest wait of a statement for the file's lock."""


class SqliteLog:
    """A Log in the file at `path` (created if absent). Safe for many threads and processes."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._connections = Connections(self._open)
        self._closed = False
        connection = self._open()
        connection.executescript(sqlite_records.SCHEMA)
        connection.close()
        self._notifier = Notifier(self._path)
        self._writer = Writer(self._open, self._notifier.notify)

    # reading

    def topics(self, prefix: str = "", *, max_age_s: float = 0.0) -> dict[str, int]:
        """See Log. The result is always current."""
        del max_age_s
        rows = self._read(
            "SELECT name, partitions FROM topics WHERE substr(name, 1, ?) = ?",
            (len(prefix), prefix),
        )
        return dict(rows)

    def begin(self, topic: str, partition: int) -> int:
        """Returns the lowest offset that is still kept."""
        return self._partition(topic, partition)[1]

    def end(self, topic: str, partition: int) -> int:
        """Returns the offset that the next record will get."""
        return self._partition(topic, partition)[2]

    def extents(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int]]:
        """See Log."""
        found: dict[TopicPartition, tuple[int, int]] = {}
        for tp in partitions:
            with suppress(NotFound):
                _, log_start, log_end = self._partition(*tp)
                found[tp] = log_start, log_end
        return found

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Returns the group's next offsets."""
        sql = "SELECT next FROM positions WHERE grp = ? AND topic = ? AND partition = ?"
        found = {tp: self._read(sql, (group, *tp)) for tp in partitions}
        return {tp: rows[0][0] for tp, rows in found.items() if rows}

    def wait_committed(
        self, group: str, topic: str, partition: int, offset: int, *, wait_s: float
    ) -> bool:
        """Returns True as soon as `group` has committed beyond `offset`."""
        end = time.monotonic() + wait_s
        while True:
            seen = self._notifier.count()
            if self.committed(group, [(topic, partition)]).get((topic, partition), 0) > offset:
                return True
            left = end - time.monotonic()
            if left <= 0 or self._closed:
                return False
            self._notifier.wait(seen, left)

    def read(
        self, topic: str, partition: int, start: int, *, bytes_max: int = 4 << 20
    ) -> list[LogRecord]:
        """Returns records from `start` without waiting."""
        number, log_start, log_end = self._partition(topic, partition)
        check_start(topic, partition, start, log_start, log_end)
        with reading(), self._connections.borrowed() as connection:
            return read_run(connection, number, (topic, partition), start, bytes_max)

    def partitions(self, topic: str) -> int:
        """See Log."""
        if not (rows := self._read("SELECT partitions FROM topics WHERE name = ?", (topic,))):
            raise NotFound(f"the log has no topic {topic!r}")
        return int(rows[0][0])

    def add_partitions(self, topic: str, partitions: int) -> int:
        """See Log."""
        self.partitions(topic)  # raises NotFound without a write
        grow = partial(sqlite_records.grow_topic, topic=topic, partitions=partitions)
        return int(self._writer.submit(grow))

    def topic_ids(self, prefix: str = "") -> dict[str, str]:
        """See Log. The identity is the row id of partition 0, which SQLite never reuses."""
        sql = (
            "SELECT topic, CAST(id AS TEXT) FROM partitions WHERE number = 0 AND substr(topic, 1, "
            "?) = ?"
        )
        return dict(self._read(sql, (len(prefix), prefix)))

    def reader(self, starts: Mapping[TopicPartition, int]) -> SqliteReader:
        """Returns a Reader over these partitions."""
        return SqliteReader(self._open(), self._notifier, starts)

    # writing

    def ensure_topic(
        self, topic: str, partitions: int = 1, *, retention_ms: int | None = None
    ) -> int:
        """Creates the topic if it does not exist; returns its number of partitions."""
        found = self._read("SELECT partitions FROM topics WHERE name = ?", (topic,))
        if found:
            return int(found[0][0])
        create = sqlite_records.create_topic
        return int(self._writer.submit(lambda c: create(c, topic, partitions, retention_ms)))

    def delete_topic(self, topic: str) -> None:
        """Deletes the topic, its records and the groups' positions in it."""
        self._writer.submit(partial(sqlite_records.delete_topic, topic=topic))

    def append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        """Appends the records; returns their offsets. Durable on return."""
        if not records:
            return []
        rows = sqlite_records.rows_of(records)
        return list(self._writer.submit(lambda c: sqlite_records.append(c, topic, partition, rows)))

    def topic_problems(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See Log. Returns {}: topics have no settings here."""
        del topics
        return {}

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Stores the group's next offsets, all or none."""
        self._writer.submit(partial(sqlite_records.commit, group=group, positions=dict(positions)))

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Deletes records below `before`, TRIM_BYTES per transaction; appends run in between."""
        trim = partial(sqlite_records.trim_some, topic=topic, partition=partition, before=before)
        while self._writer.submit(trim):
            pass

    def disk_bytes(self) -> int | None:
        """Returns the bytes of the file and its write-ahead log."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def keeping(self, topic: str, partition: int, bytes_max: int) -> int:
        """Returns the lowest offset from which the records to the end take at most `bytes_max`."""
        with reading(), self._connections.borrowed() as connection:
            return sqlite_records.start_within(connection, topic, partition, bytes_max)

    def close(self) -> None:
        """Stops the writer and releases all resources. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        self._notifier.close()
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # connections

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path, timeout=OPEN_S, isolation_level=None, check_same_thread=False
            )
            prepare(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error as error:
            raise Unavailable(
                f"the log at {self._path} cannot be opened: {error}", dependency="log"
            ) from error
        return connection

    def _read(self, sql: str, values: tuple[object, ...]) -> list[Any]:
        with reading(), self._connections.borrowed() as connection:
            return connection.execute(sql, values).fetchall()

    def _partition(self, topic: str, partition: int) -> tuple[int, int, int]:
        with reading(), self._connections.borrowed() as connection:
            return find(connection, topic, partition)
