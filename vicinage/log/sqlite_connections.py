"""The read connections of a log in SQLite.

Many threads share a few, because each connection takes three file descriptors and its own cache.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from vicinage.errors import Unavailable

READERS_MAX: Final = 8
WAIT_S: Final = 30.0
"""Longest wait of a read for a connection; a read takes milliseconds."""


class Connections:
    """A pool of at most READERS_MAX connections, opened when needed. Safe for many threads."""

    def __init__(self, make: Callable[[], sqlite3.Connection]) -> None:
        self._make = make
        self._free = threading.BoundedSemaphore(READERS_MAX)
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    @contextmanager
    def borrowed(self) -> Iterator[sqlite3.Connection]:
        """Lends a connection to this thread until the block ends.

        Raises Unavailable if the pool is closed, or if no connection is free within WAIT_S.
        """
        if not self._free.acquire(timeout=WAIT_S):
            raise Unavailable(f"the log has not answered for {WAIT_S:.0f} s", dependency="log")
        try:
            connection = self._taken()
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._free.release()

    def close(self) -> None:
        """Closes idle connections at once, and borrowed ones when they are returned. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _taken(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise Unavailable("the log is closed", dependency="log")
            if self._idle:
                return self._idle.pop()
        return self._make()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()
