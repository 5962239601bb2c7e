"""Changes of the SQLite log's tables, each within the caller's transaction."""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from vicinage.errors import NotFound
from vicinage.log import Record, TopicPartition
from vicinage.log.sqlite_reader import OFFSET_BITS, find

TRIM_BYTES: Final = 4 << 20
"""Bytes of records that one transaction deletes: it reads and overwrites each of their pages."""

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS topics (
  name TEXT PRIMARY KEY, partitions INTEGER NOT NULL, retention_ms INTEGER);
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
_OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1
_SIZES: Final = (
    "SELECT id, coalesce(length(key), 0) + coalesce(length(value), 0)"
    " + coalesce(length(headers), 0) FROM records WHERE id >= ? AND id < ?"
)
Row = tuple[bytes | None, bytes | None, bytes | None, int]
"""Key, value, packed headers and event time of a record."""


def create_topic(
    c: sqlite3.Connection, topic: str, partitions: int, retention_ms: int | None
) -> int:
    """Creates the topic if it does not exist; returns its number of partitions."""
    c.execute("INSERT OR IGNORE INTO topics VALUES (?, ?, ?)", (topic, partitions, retention_ms))
    return _create_partitions(c, topic)


def grow_topic(c: sqlite3.Connection, topic: str, partitions: int) -> int:
    """Grows the topic to at least `partitions`; returns their number. Raises NotFound."""
    c.execute(
        "UPDATE topics SET partitions = max(partitions, ?) WHERE name = ?", (partitions, topic)
    )
    return _create_partitions(c, topic)


def _create_partitions(c: sqlite3.Connection, topic: str) -> int:
    row = c.execute("SELECT partitions FROM topics WHERE name = ?", (topic,)).fetchone()
    if row is None:
        raise NotFound(f"the log has no topic {topic!r}")
    c.executemany(
        "INSERT OR IGNORE INTO partitions (topic, number) VALUES (?, ?)",
        [(topic, i) for i in range(row[0])],
    )
    return int(row[0])


def delete_topic(c: sqlite3.Connection, topic: str) -> None:
    """Deletes the topic, its records and the groups' positions in it. Idempotent."""
    numbers = c.execute("SELECT id FROM partitions WHERE topic = ?", (topic,)).fetchall()
    for (number,) in numbers:
        c.execute("DELETE FROM records WHERE id >= ? AND id < ?", _run_of(number, 0))
    c.execute("DELETE FROM partitions WHERE topic = ?", (topic,))
    c.execute("DELETE FROM positions WHERE topic = ?", (topic,))
    c.execute("DELETE FROM topics WHERE name = ?", (topic,))


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Returns the rows to append; a record without an event time gets the present time."""
    now_ms = time.time_ns() // 1_000_000
    return [(r.key, r.value, _pack(r.headers), r.event_time_ms or now_ms) for r in records]


def append(c: sqlite3.Connection, topic: str, partition: int, rows: Sequence[Row]) -> range:
    """Appends the rows; returns their offsets. Raises NotFound."""
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


def commit(c: sqlite3.Connection, group: str, positions: Mapping[TopicPartition, int]) -> None:
    """Stores the group's next offsets."""
    c.executemany(
        "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)",
        [(group, *tp, offset) for tp, offset in positions.items()],
    )


def trim_some(c: sqlite3.Connection, topic: str, partition: int, before: int) -> bool:
    """Trims at most TRIM_BYTES of the records below `before`; returns True if more are left."""
    number, log_start, log_end = find(c, topic, partition)
    left, upto = TRIM_BYTES, min(before, log_end)
    rows = c.execute(f"{_SIZES} ORDER BY id", _run_of(number, log_start))
    for row_id, size in rows:
        if left < 0:
            upto = min(upto, row_id & _OFFSET_MASK)
            break
        left -= size
    rows.close()
    _trim(c, number, log_start, upto)
    return upto < min(before, log_end)


def start_within(c: sqlite3.Connection, topic: str, partition: int, bytes_max: int) -> int:
    """Returns the lowest offset from which the records to the end take at most `bytes_max`."""
    number, log_start, log_end = find(c, topic, partition)
    rows = c.execute(f"{_SIZES} ORDER BY id DESC", _run_of(number, log_start))
    start = log_end
    for row_id, size in rows:
        bytes_max -= size
        if bytes_max < 0:
            break
        start = row_id & _OFFSET_MASK
    rows.close()
    return start


def expire(c: sqlite3.Connection) -> None:
    """Trims each partition to the records that are younger than its topic's retention."""
    partitions = c.execute(
        "SELECT p.id, p.first, p.next, t.retention_ms"
        " FROM partitions p JOIN topics t ON t.name = p.topic WHERE t.retention_ms IS NOT NULL"
    ).fetchall()
    for number, log_start, log_end, retention_ms in partitions:
        cutoff = time.time_ns() // 1_000_000 - retention_ms
        [oldest] = c.execute(
            "SELECT min(id) FROM records WHERE id >= ? AND id < ? AND event_time_ms >= ?",
            (*_run_of(number, 0), cutoff),
        ).fetchone()
        _trim(c, number, log_start, log_end if oldest is None else oldest & _OFFSET_MASK)


def _trim(c: sqlite3.Connection, number: int, log_start: int, before: int) -> None:
    """Deletes the records below `before`, which is at most the end of the log."""
    if before <= log_start:
        return
    c.execute(
        "DELETE FROM records WHERE id >= ? AND id < ?",
        (number << OFFSET_BITS, (number << OFFSET_BITS) + before),
    )
    c.execute("UPDATE partitions SET first = ? WHERE id = ?", (before, number))


def _run_of(number: int, log_start: int) -> tuple[int, int]:
    """Returns the range of row ids of a partition's records from offset `log_start`."""
    return (number << OFFSET_BITS) + log_start, (number + 1) << OFFSET_BITS


def _pack(headers: tuple[tuple[str, bytes], ...]) -> bytes | None:
    return orjson.dumps([[k, v.decode("latin-1")] for k, v in headers]) if headers else None
