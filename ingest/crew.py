"""Threads for calls that may hang: one each, none of which keeps the process alive.

A thread that waits for a server can not be interrupted. So a role that ends waits for its threads for a bounded time and
leaves the rest behind: what they held in hand was never committed.
"""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue


class Crew:
    """Runs pieces of work, each in a daemon thread of its own. Safe for many threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._errors: SimpleQueue[BaseException] = SimpleQueue()

    def start(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread of its own; what it raises, `check` raises."""
        thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def check(self) -> None:
        """Raise what a piece of work raised."""
        try:
            raise self._errors.get_nowait()
        except Empty:
            return

    def join(self, wait_s: float) -> None:
        """Wait at most `wait_s` for all that is under way."""
        end = time.monotonic() + wait_s
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (handed to the thread that calls `check`)
            self._errors.put(error)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
