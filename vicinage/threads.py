"""Threads that a process needs, and the handling of their unexpected end.

A process that loses such a thread stays alive but useless: writes time out while health checks
pass. So a role registers a handler (`on_thread_death`) before it starts, and every long-lived
thread is an `EssentialThread`.
"""

import threading
from collections.abc import Callable

from vicinage.telemetry import events

OnDeath = Callable[[BaseException], None]

_event = events("vicinage")
_on_death: OnDeath | None = None


class ThreadEnded(Exception):
    """A thread returned without a request to stop."""


def on_thread_death(on_death: OnDeath | None) -> None:
    """Sets the process's handler for essential threads that end without a handler of their own."""
    global _on_death  # noqa: PLW0603  (as threading.excepthook is: of the process, set once by the role)
    _on_death = on_death


class EssentialThread(threading.Thread):
    """A daemon thread whose end, before `stopping()` is true, is a failure of its process.

    `on_death` (or else the process's handler) is called once, in the thread, with the exception
    that the thread raised, or with ThreadEnded. Without a handler, the exception goes to
    `threading.excepthook`, as for any thread.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], None],
        *,
        stopping: Callable[[], bool] = lambda: False,
        on_death: OnDeath | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._stopping = stopping
        self._handler = on_death

    def run(self) -> None:
        """Runs the work, and reports an end that was not requested."""
        try:
            self._work()
        except BaseException as error:
            _event.exception("thread.failed", thread=self.name)
            handler = self._handler or _on_death
            if handler is None:
                raise
            if not self._stopping():
                handler(error)
            return
        handler = self._handler or _on_death
        if not self._stopping() and handler is not None:
            ended = ThreadEnded(f"thread {self.name} ended by itself")
            _event.error("thread.ended", thread=self.name)
            handler(ended)
