"""Housekeeping of the SQLite log: removes deleted records from the disk.

SQLite overwrites records when it deletes them (`secure_delete`). Copies of their pages remain in
the write-ahead log until a checkpoint truncates it, every CHECKPOINT_S. Free pages are returned to
the file system a few at a time.
"""

import sqlite3
import time
from contextlib import suppress
from typing import Final

from vicinage.telemetry import events

TIDY_S: Final = 1.0
"""Interval of the housekeeping."""
CHECKPOINT_S: Final = 60.0
WAIT_MS: Final = 100
"""Longest wait of a checkpoint for readers; appends wait as long. TIDY_S later it is retried."""
PAGES_AT_ONCE: Final = 1_024
WAL_BYTES: Final = 8 << 20
"""Size to which SQLite truncates the write-ahead log's file when it restarts it."""
FREE_PAGES_MIN: Final = 256
FREE_SHARE: Final = 8
"""One page in this many may be free: the next records use it."""
INCREMENTAL: Final = 2
_event = events("log")


def prepare(connection: sqlite3.Connection) -> None:
    """Sets the pragmas of a connection.

    `auto_vacuum` takes effect only on a file without tables.
    """
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")


class Tidy:
    """The housekeeping of one writer. Call `run` between transactions."""

    def __init__(self) -> None:
        self._looked_s = self._emptied_s = time.monotonic()

    def run(self, connection: sqlite3.Connection) -> None:
        """Runs what is due, in a few milliseconds.

        Raises sqlite3.OperationalError only for I/O errors.
        """
        now = time.monotonic()
        if now - self._looked_s < TIDY_S:
            return
        self._looked_s = now
        vacuum(connection)
        if now - self._emptied_s >= CHECKPOINT_S and empty_wal(connection):
            self._emptied_s = now


def vacuum(connection: sqlite3.Connection) -> None:
    """Returns at most PAGES_AT_ONCE free pages to the file system, if too many pages are free."""
    free, pages, mode = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("freelist_count", "page_count", "auto_vacuum")
    )
    if mode == INCREMENTAL and free > max(FREE_PAGES_MIN, pages // FREE_SHARE):
        # NOTE: one step of this statement frees one page, and `execute` runs only one step of a
        # statement without columns.
        connection.executescript(f"PRAGMA incremental_vacuum({min(free, PAGES_AT_ONCE)})")


def empty_wal(connection: sqlite3.Connection) -> bool:
    """Checkpoints and truncates the write-ahead log. Returns False if a reader blocks it."""
    [before] = connection.execute("PRAGMA busy_timeout").fetchone()
    try:
        connection.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
        [busy, _, _] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        emptied = not busy
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
            raise
        _event.warning("wal.not_emptied", reason=str(error))
        return False
    finally:
        with suppress(sqlite3.Error):
            connection.execute(f"PRAGMA busy_timeout = {before}")
    return emptied
