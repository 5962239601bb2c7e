"""The worker of a model in this process: one thread that serves a bounded queue.

It settles the futures of its callers.
"""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Final, Generic, TypeVar

from vicinage.errors import Unavailable
from vicinage.threads import EssentialThread

R = TypeVar("R")
T = TypeVar("T")
FAILURES_MAX: Final = 3
"""Failed model calls in a row that end a worker, and its role.

A device that failed does not recover by itself.
"""
JOIN_S: Final = 30.0
"""Longest wait for the call that is in progress when a worker is closed."""


def settle(future: Future[R], outcome: R | Exception) -> None:
    """Completes the future with a result or an error, unless its caller cancels it meanwhile."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class ModelWorker(Generic[T]):
    """Passes queued items to `serve` on one thread, call by call. Safe for many threads.

    `take` returns the items of the next call, [] if none wait; it runs under `lock`. An error of
    `serve` ends the worker. Then `refuse` gets each remaining item with the error for its caller.
    `name` is the thread's name, and the dependency that errors state. `on_failure` gets the error
    of a worker that ended by itself.
    """

    def __init__(
        self,
        name: str,
        *,
        take: Callable[[], list[T]],
        serve: Callable[[list[T]], None],
        refuse: Callable[[T, Exception], None],
        on_failure: Callable[[BaseException], None] | None,
    ) -> None:
        self.lock = threading.Condition()
        self._name = name
        self._take = take
        self._serve = serve
        self._refuse = refuse
        self._closed = False
        self._stopping = threading.Event()
        self._thread = EssentialThread(
            name, self._run, stopping=self._stopping.is_set, on_death=on_failure
        )

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def alive(self) -> bool:
        """Returns whether the worker still serves."""
        return not self._closed and self._thread.is_alive()

    def put(self, add: Callable[[], None]) -> None:
        """Calls `add`, which queues items, under `lock`.

        Raises Unavailable once the worker ends, and the errors of `add`.
        """
        with self.lock:
            if not self.alive():
                raise self._ended()
            add()
            self.lock.notify()

    def close(self) -> None:
        """Finishes the call in progress and refuses the rest. Idempotent."""
        self._stopping.set()
        with self.lock:
            self._closed = True
            self.lock.notify_all()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            while items := self._next():
                self._serve(items)
        finally:
            self._refuse_all()

    def _next(self) -> list[T]:
        """Waits for the items of the next call and returns them; [] once the worker is closed."""
        with self.lock:
            while not self._closed:
                if items := self._take():
                    return items
                self.lock.wait()
        return []

    def _refuse_all(self) -> None:
        with self.lock:
            self._closed = True
            while items := self._take():
                for item in items:
                    self._refuse(item, self._ended())

    def _ended(self) -> Unavailable:
        return Unavailable(f"the {self._name} is stopping", dependency=self._name)
