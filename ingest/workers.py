"""Daemon threads for calls that may hang, one thread a call.

A thread that waits for a server cannot be interrupted. A role that stops waits for its threads for
a bounded time and abandons the rest: their work was never committed.
"""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue


class Workers:
    """Runs pieces of work, each in a daemon thread of its own. Safe for many threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._errors: SimpleQueue[BaseException] = SimpleQueue()

    def start(self, work: Callable[[], None]) -> None:
        """Runs `work` in a new thread; `check` raises what it raised."""
        thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def check(self) -> None:
        """Raises the next error that a thread raised, if any."""
        try:
            raise self._errors.get_nowait()
        except Empty:
            return

    def join(self, wait_s: float) -> None:
        """Waits at most `wait_s` for the threads that are running."""
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
