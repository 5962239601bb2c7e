"""Housekeeping of the SQLite log: deleted records leave the disk.

Records are overwritten when they are deleted (`secure_delete`). Copies of their pages stay in the write-ahead log until
it is emptied, which is done every CHECKPOINT_S; pages that are free go back to the file system a few at a time.
"""

import sqlite3
import time
from contextlib import suppress
from typing import Final

from vicinage.telemetry import events

TIDY_S: Final = 1.0
"""Seconds between two looks."""
CHECKPOINT_S: Final = 60.0
WAIT_MS: Final = 100
"""How long emptying the write-ahead log waits for readers; appends wait as long. It is tried again after TIDY_S."""
PAGES_AT_ONCE: Final = 1_024
WAL_BYTES: Final = 8 << 20
"""Of the write-ahead log's file: where a large transaction made it larger, it is cut when it begins anew."""
FREE_PAGES_MIN: Final = 256
FREE_SHARE: Final = 8
"""One page in so many may be free: the next records take them."""
INCREMENTAL: Final = 2
_event = events("log")


def prepare(connection: sqlite3.Connection) -> None:
    """Sets what each connection needs. `auto_vacuum` has an effect on a file without tables alone."""
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")


class Tidy:
    """The housekeeping of one writer. Call `run` between transactions."""

    def __init__(self) -> None:
        self._looked_s = self._emptied_s = time.monotonic()

    def run(self, connection: sqlite3.Connection) -> None:
        """Does what is due; a few milliseconds. Raises sqlite3.OperationalError for an I/O error alone."""
        now = time.monotonic()
        if now - self._looked_s < TIDY_S:
            return
        self._looked_s = now
        vacuum(connection)
        if now - self._emptied_s >= CHECKPOINT_S and empty_wal(connection):
            self._emptied_s = now


def vacuum(connection: sqlite3.Connection) -> None:
    """Gives free pages back to the file system, at most PAGES_AT_ONCE, where they are more than their share."""
    free, pages, mode = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count", "auto_vacuum")
    )
    if mode == INCREMENTAL and free > max(FREE_PAGES_MIN, pages // FREE_SHARE):
        # NOTE: a step of this statement frees one page, and `execute` takes one step where there are no columns.
        connection.executescript(f"PRAGMA incremental_vacuum({min(free, PAGES_AT_ONCE)})")


def empty_wal(connection: sqlite3.Connection) -> bool:
    """Moves the write-ahead log into the file and truncates it. False where a reader stands in the way."""
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
