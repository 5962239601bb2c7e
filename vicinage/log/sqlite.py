"""The log in one SQLite file: WAL, full sync, many appenders sharing one fsync.

Law 2: `append` and `commit` return after the transaction that holds them is synced. A write that
fails is not acknowledged. After an I/O error the writer reopens the file
(docs/decisions/020-process-supervision.md). It never retries a sync on pages that a failed sync may
have dropped: SQLite writes the frames of a transaction again before it syncs them.
"""

import queue
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import orjson

from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.log import LogRecord, Record, TopicPartition, check_start
from vicinage.log.sqlite_connections import Connections
from vicinage.log.sqlite_reader import OFFSET_BITS, SqliteReader, find, read_run, reading
from vicinage.log.sqlite_tidy import TIDY_S, Tidy, prepare
from vicinage.log.wake import Notifier
from vicinage.threads import EssentialThread

QUEUE_MAX: Final = 4_096
GROUP_MAX: Final = 512
"""Largest number of appends that share one transaction."""
DEADLINE_S: Final = 30.0
EXPIRE_EVERY_S: Final = 60.0
TRIM_BYTES: Final = 4 << 20
"""Bytes of records that one transaction deletes: it reads and overwrites each of their pages."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, partitions INTEGER NOT NULL, retention_ms INTEGER);
CREATE TABLE IF NOT EXISTS partitions (
  id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, number INTEGER NOT NULL,
  first INTEGER NOT NULL DEFAULT 0, next INTEGER NOT NULL DEFAULT 0, seq INTEGER NOT NULL DEFAULT 0,
  UNIQUE (topic, number));
CREATE INDEX IF NOT EXISTS partitions_seq ON partitions (seq);
CREATE TABLE IF NOT EXISTS moves (id INTEGER PRIMARY KEY CHECK (id = 0), n INTEGER NOT NULL);
INSERT OR IGNORE INTO moves SELECT 0, coalesce(max(seq), 0) FROM partitions;
CREATE TABLE IF NOT EXISTS records (
  id INTEGER PRIMARY KEY, key BLOB, value BLOB, headers BLOB, event_time_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
  grp TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY (grp, topic, partition)) WITHOUT ROWID;
"""

Work = Callable[[sqlite3.Connection], Any]
"""One job of the writer, run in its transaction.

It never returns a cursor: a thread that releases the
cursor would reset a statement that the writer is using."""


@dataclass(slots=True)
class _Job:
    work: Work
    done: Future[Any] = field(default_factory=Future)


class SqliteLog:
    """A Log in the file at `path` (created if absent). Safe for many threads and processes."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._connections = Connections(self._open)
        self._jobs: queue.Queue[_Job | None] = queue.Queue(QUEUE_MAX)
        self._closed = False
        self._expired_at = time.monotonic()
        connection = self._open()
        connection.executescript(_SCHEMA)
        connection.close()
        self._notifier = Notifier(self._path)
        self._writer = EssentialThread("log-writer", self._write_all, stopping=lambda: self._closed)
        self._writer.start()

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

        def work(c: sqlite3.Connection) -> int:
            c.execute(
                "UPDATE topics SET partitions = max(partitions, ?) WHERE name = ?",
                (partitions, topic),
            )
            if (
                row := c.execute(
                    "SELECT partitions FROM topics WHERE name = ?", (topic,)
                ).fetchone()
            ) is None:
                raise NotFound(f"the log has no topic {topic!r}")  # deleted since the check below
            rows = [(topic, i) for i in range(row[0])]
            c.executemany("INSERT OR IGNORE INTO partitions (topic, number) VALUES (?, ?)", rows)
            return int(row[0])

        self.partitions(topic)
        return int(self._submit(work))

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

        def work(c: sqlite3.Connection) -> int:
            c.execute(
                "INSERT OR IGNORE INTO topics VALUES (?, ?, ?)", (topic, partitions, retention_ms)
            )
            n = int(
                c.execute("SELECT partitions FROM topics WHERE name = ?", (topic,)).fetchone()[0]
            )
            c.executemany(
                "INSERT OR IGNORE INTO partitions (topic, number) VALUES (?, ?)",
                [(topic, i) for i in range(n)],
            )
            return n

        return int(self._submit(work))

    def delete_topic(self, topic: str) -> None:
        """Deletes the topic, its records and the groups' positions in it."""

        def work(c: sqlite3.Connection) -> None:
            for (number,) in c.execute(
                "SELECT id FROM partitions WHERE topic = ?", (topic,)
            ).fetchall():
                c.execute(
                    "DELETE FROM records WHERE id >= ? AND id < ?",
                    (number << OFFSET_BITS, (number + 1) << OFFSET_BITS),
                )
            c.execute("DELETE FROM partitions WHERE topic = ?", (topic,))
            c.execute("DELETE FROM positions WHERE topic = ?", (topic,))
            c.execute("DELETE FROM topics WHERE name = ?", (topic,))

        self._submit(work)

    def append(self, topic: str, partition: int, records: Sequence[Record]) -> list[int]:
        """Appends the records; returns their offsets. Durable on return."""
        if not records:
            return []
        now_ms = time.time_ns() // 1_000_000
        rows = [(r.key, r.value, _pack(r.headers), r.event_time_ms or now_ms) for r in records]
        return list(self._submit(lambda c: _append(c, topic, partition, rows)))

    def topic_problems(self, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See Log. Returns {}: topics have no settings here."""
        del topics
        return {}

    def commit(self, group: str, positions: Mapping[TopicPartition, int]) -> None:
        """Stores the group's next offsets, all or none."""
        rows = [
            (group, topic, partition, offset) for (topic, partition), offset in positions.items()
        ]

        def work(c: sqlite3.Connection) -> None:
            c.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", rows)

        self._submit(work)

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Deletes records below `before`, TRIM_BYTES per transaction; appends run in between."""
        while self._submit(lambda c: _trim_some(c, *find(c, topic, partition), before)):
            pass

    def disk_bytes(self) -> int | None:
        """Returns the bytes of the file and its write-ahead log."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def keeping(self, topic: str, partition: int, bytes_max: int) -> int:
        """Returns the lowest offset from which the records to the end take at most `bytes_max`."""
        with reading(), self._connections.borrowed() as connection:
            number, log_start, log_end = find(connection, topic, partition)
            rows = connection.execute(f"{_SIZES} ORDER BY id DESC", _run_of(number, log_start))
            kept = log_end
            for row_id, size in rows:
                bytes_max -= size
                if bytes_max < 0:
                    break
                kept = row_id & ((1 << OFFSET_BITS) - 1)
            rows.close()
            return kept

    def close(self) -> None:
        """Stops the writer and releases all resources. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._writer.join(DEADLINE_S)
        self._notifier.close()
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # the writer thread

    def _submit(self, work: Work) -> Any:
        if self._closed or not self._writer.is_alive():
            raise Unavailable("the log is closed and accepts no writes", dependency="log")
        job = _Job(work)
        try:
            self._jobs.put(job, timeout=DEADLINE_S)
            return job.done.result(DEADLINE_S)
        except (queue.Full, FutureTimeout):
            job.done.cancel()
            raise Unavailable(
                f"the log did not complete a write within {DEADLINE_S:.0f} s", dependency="log"
            ) from None

    def _write_all(self) -> None:
        connection: sqlite3.Connection | None = None
        tidy = Tidy()
        while True:
            connection = self._tidied(connection, tidy)
            try:
                job = self._jobs.get(timeout=TIDY_S)
            except queue.Empty:
                continue
            if job is None:
                break
            group = [job]
            while len(group) < GROUP_MAX and not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    self._jobs.put(None)
                    break
                group.append(following)
            connection = self._write(
                connection, [j for j in group if j.done.set_running_or_notify_cancel()]
            )
        if connection is not None:
            connection.close()

    def _write(
        self, connection: sqlite3.Connection | None, jobs: list[_Job]
    ) -> sqlite3.Connection | None:
        """Runs all jobs in one transaction; a job that is refused does not fail the others.

        Returns the connection for the next transaction, or None if it must be reopened.
        """
        outcomes: list[tuple[_Job, Any, Exception | None]] = []
        try:
            connection = connection or self._open()
            connection.execute("BEGIN IMMEDIATE")
            outcomes.extend((job, *_run(connection, job.work)) for job in jobs)
            self._expire(connection)
            connection.execute("COMMIT")
        except (sqlite3.Error, Unavailable) as error:
            for job in jobs:
                job.done.set_exception(
                    Unavailable(f"the log could not write: {error}", dependency="log")
                )
            return _after(connection, error)
        for job, result, refusal in outcomes:
            if refusal is None:
                job.done.set_result(result)
            else:
                job.done.set_exception(refusal)
        self._notifier.notify()
        return connection

    def _tidied(
        self, connection: sqlite3.Connection | None, tidy: Tidy
    ) -> sqlite3.Connection | None:
        """Runs the housekeeping that is due; returns the connection, as `_write` does."""
        try:
            connection = connection or self._open()
            tidy.run(connection)
        except (sqlite3.Error, Unavailable) as error:
            return _after(connection, error)
        return connection

    def _expire(self, connection: sqlite3.Connection) -> None:
        if time.monotonic() - self._expired_at < EXPIRE_EVERY_S:
            return
        self._expired_at = time.monotonic()
        rows = connection.execute(
            "SELECT p.id, p.first, p.next, t.retention_ms FROM partitions p JOIN topics t ON "
            "t.name = p.topic"
            " WHERE t.retention_ms IS NOT NULL"
        ).fetchall()
        for number, log_start, log_end, retention_ms in rows:
            cutoff = time.time_ns() // 1_000_000 - retention_ms
            run = (number << OFFSET_BITS, (number + 1) << OFFSET_BITS, cutoff)
            kept = connection.execute(
                "SELECT min(id) FROM records WHERE id >= ? AND id < ? AND event_time_ms >= ?", run
            ).fetchone()[0]
            _trim(
                connection,
                number,
                log_start,
                log_end,
                log_end if kept is None else kept & ((1 << OFFSET_BITS) - 1),
            )

    # connections

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path, timeout=DEADLINE_S, isolation_level=None, check_same_thread=False
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


def _after(connection: sqlite3.Connection | None, error: Exception) -> sqlite3.Connection | None:
    """Returns the connection, ready for a transaction after one that failed.

    Closes it and returns None after an I/O error.
    """
    if connection is None:
        return None
    try:
        if connection.in_transaction:
            connection.rollback()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_IOERR:
            return connection
    except sqlite3.Error:
        pass  # the rollback failed, too: the next reader of the file rolls back
    with suppress(sqlite3.Error):
        connection.close()
    return None


def _run(connection: sqlite3.Connection, work: Work) -> tuple[Any, Exception | None]:
    try:
        return work(connection), None
    except (NotFound, Refused) as refusal:
        return None, refusal


def _append(
    c: sqlite3.Connection, topic: str, partition: int, rows: Sequence[tuple[object, ...]]
) -> range:
    number, _, start = find(c, topic, partition)
    base = (number << OFFSET_BITS) + start
    c.executemany(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?)",
        ((base + i, *row) for i, row in enumerate(rows)),
    )
    # NOTE: the number of changes never falls, even after deletions: readers select only the
    # partitions whose number is above the last that they saw.
    [(seq,)] = c.execute("UPDATE moves SET n = n + 1 RETURNING n").fetchall()
    c.execute(
        "UPDATE partitions SET next = ?, seq = ? WHERE id = ?", (start + len(rows), seq, number)
    )
    return range(start, start + len(rows))


_SIZES: Final = (
    "SELECT id, coalesce(length(key), 0) + coalesce(length(value), 0) + coalesce(length(headers), "
    "0)"
    " FROM records WHERE id >= ? AND id < ?"
)


def _run_of(number: int, log_start: int) -> tuple[int, int]:
    """Returns the range of row ids of a partition's records from offset `log_start`."""
    return (number << OFFSET_BITS) + log_start, (number + 1) << OFFSET_BITS


def _trim_some(
    c: sqlite3.Connection, number: int, log_start: int, log_end: int, before: int
) -> bool:
    """Trims at most TRIM_BYTES; returns True if there is more to trim."""
    left, upto = TRIM_BYTES, min(before, log_end)
    rows = c.execute(f"{_SIZES} ORDER BY id", _run_of(number, log_start))
    for row_id, size in rows:
        if left < 0:
            upto = min(upto, row_id & ((1 << OFFSET_BITS) - 1))
            break
        left -= size
    rows.close()
    _trim(c, number, log_start, log_end, upto)
    return upto < min(before, log_end)


def _trim(c: sqlite3.Connection, number: int, log_start: int, log_end: int, before: int) -> None:
    before = min(before, log_end)
    if before <= log_start:
        return
    c.execute(
        "DELETE FROM records WHERE id >= ? AND id < ?",
        (number << OFFSET_BITS, (number << OFFSET_BITS) + before),
    )
    c.execute("UPDATE partitions SET first = ? WHERE id = ?", (before, number))


def _pack(headers: tuple[tuple[str, bytes], ...]) -> bytes | None:
    return orjson.dumps([[k, v.decode("latin-1")] for k, v in headers]) if headers else None
