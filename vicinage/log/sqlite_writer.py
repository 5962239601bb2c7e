"""The writer thread of the SQLite log: many changes share one transaction, and so one sync.

A change that fails is not acknowledged. After an I/O error the writer reopens the file
(docs/decisions/020-what-ends-a-process.md). It never retries a sync on pages that a failed sync may
have dropped: SQLite writes the frames of a transaction again before it syncs them.
"""

import queue
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.log.sqlite_records import expire
from vicinage.log.sqlite_tidy import TIDY_S, Tidy
from vicinage.threads import EssentialThread

QUEUE_MAX: Final = 4_096
GROUP_MAX: Final = 512
"""Largest number of changes that share one transaction."""
DEADLINE_S: Final = 30.0
EXPIRE_EVERY_S: Final = 60.0

Work = Callable[[sqlite3.Connection], Any]
"""One change of the log, run in the writer's transaction.

It never returns a cursor: a thread that releases the cursor would reset a statement that the writer
is using.
"""


@dataclass(slots=True)
class _Job:
    work: Work
    done: Future[Any] = field(default_factory=Future)


class Writer:
    """Runs changes in the order of their submission. Safe for many threads.

    `connect` opens a connection, and raises Unavailable. `on_commit` is called after each commit.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], on_commit: Callable[[], None]
    ) -> None:
        self._connect = connect
        self._on_commit = on_commit
        self._jobs: queue.Queue[_Job | None] = queue.Queue(QUEUE_MAX)
        self._closed = False
        self._expired_at = time.monotonic()
        self._thread = EssentialThread("log-writer", self._run, stopping=lambda: self._closed)
        self._thread.start()

    def submit(self, work: Work) -> Any:
        """Returns the result of `work` once its transaction is synced.

        Raises the NotFound or Refused that `work` raised, and Unavailable if the file cannot be
        written or the writer is closed.
        """
        if self._closed or not self._thread.is_alive():
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

    def close(self) -> None:
        """Ends the thread after the changes that are queued. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
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
            group = [j for j in self._group(job) if j.done.set_running_or_notify_cancel()]
            connection = self._write(connection, group)
        if connection is not None:
            connection.close()

    def _group(self, job: _Job) -> list[_Job]:
        """Returns the job and those that wait behind it, at most GROUP_MAX."""
        group = [job]
        while len(group) < GROUP_MAX and not self._jobs.empty():
            following = self._jobs.get()
            if following is None:
                self._jobs.put(None)
                break
            group.append(following)
        return group

    def _write(
        self, connection: sqlite3.Connection | None, jobs: list[_Job]
    ) -> sqlite3.Connection | None:
        """Runs all jobs in one transaction; a job that is refused does not fail the others.

        Returns the connection for the next transaction, or None if it must be reopened.
        """
        outcomes: list[tuple[_Job, Any, Exception | None]] = []
        try:
            connection = connection or self._connect()
            connection.execute("BEGIN IMMEDIATE")
            outcomes.extend((job, *_outcome(connection, job.work)) for job in jobs)
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
        self._on_commit()
        return connection

    def _tidied(
        self, connection: sqlite3.Connection | None, tidy: Tidy
    ) -> sqlite3.Connection | None:
        """Runs the housekeeping that is due; returns the connection, as `_write` does."""
        try:
            connection = connection or self._connect()
            tidy.run(connection)
        except (sqlite3.Error, Unavailable) as error:
            return _after(connection, error)
        return connection

    def _expire(self, connection: sqlite3.Connection) -> None:
        if time.monotonic() - self._expired_at >= EXPIRE_EVERY_S:
            self._expired_at = time.monotonic()
            expire(connection)


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


def _outcome(connection: sqlite3.Connection, work: Work) -> tuple[Any, Exception | None]:
    try:
        return work(connection), None
    except (NotFound, Refused) as refusal:
        return None, refusal
