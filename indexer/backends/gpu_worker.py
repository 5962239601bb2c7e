"""A GPU with its one thread and what it holds.

NOTE: FAISS's GPU indexes are not safe for concurrent calls, reads included, and neither are their
    resources: everything that
touches a device runs in its one thread (`Turns`). Others wait for it there, for a bounded time.
"""

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

from indexer.backends import Rows
from indexer.backends.cpu import Index
from indexer.backends.gpu_limits import Ask, Limits
from tenants.entities import Metric
from tenants.index_spec import IndexSpec
from vicinage.metrics import gauge
from vicinage.records import Floats
from vicinage.telemetry import events
from vicinage.threads import EssentialThread

QUEUE_MAX: Final = 64
"""Calls that may wait for one device."""
TURN_S: Final = 0.25
"""How long a question waits for the device's thread, as behind a build, before the CPU answers it;"""
ANSWER_S: Final = 10.0
"""and how long for the answer, once its turn has come: a device that takes longer hangs, and is given up."""
PLACE_S: Final = 60.0
BUILD_S: Final = 3_600.0
FAILURES_MAX: Final = 3
"""After so many failures in a row a device is given up until the process starts again: it does not mend itself."""

T = TypeVar("T")
_event = events("searcher")
_bytes = gauge("vicinage_searcher_device_bytes")


class NoRoom(Exception):
    """The device's memory is full. The CPU does what was asked."""

    reason = "memory"


class Busy(Exception):
    """The device's thread did not come to it in time. The CPU does what was asked."""

    reason = "busy"


class Failed(Exception):
    """The device failed, hangs, or is given up. The CPU does what was asked."""

    reason = "failed"


class Hangs(Failed):
    """It does not come back from what it does. It is not asked again."""


class Device(Protocol):
    """One GPU, called from one thread alone. Every call raises NoRoom or Failed."""

    name: str
    limits: Limits
    bytes_max: int
    """Bytes that indexes may take; its temporary memory is already left out."""

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric) -> Any:
        """A FAISS index of the CPU over `vectors`, trained and filled on the device: of the classes that the CPU backend loads."""
        ...

    def place(self, index: Index | None, vectors: Floats, metric: Metric) -> Any:
        """A copy on the device of the index (None: flat); freed when it is let go of."""
        ...

    def search(self, placed: Any, queries: Floats, ask: Ask) -> Rows:
        """Rows [n, ask.take] of the nearest, −1 where there are fewer; best first."""
        ...


class Turns:
    """The one thread of a device, and who waits for it."""

    def __init__(self, name: str) -> None:
        self._waiting: queue.Queue[tuple[Future[Any], Callable[[], Any]]] = queue.Queue(QUEUE_MAX)
        EssentialThread(name, self._run).start()

    def take(self, work: Callable[[], T], *, turn_s: float, answer_s: float) -> T:
        """What `work` returns or raises there.

        Raises Busy when its turn has not come in time, Hangs when it does not end.
        """
        done: Future[T] = Future()
        with _waits(Busy("the device's queue is full"), queue.Full):
            self._waiting.put((done, work), timeout=turn_s)
        with contextlib.suppress(TimeoutError):
            return done.result(turn_s)
        if done.cancel():
            raise Busy("the device is at work for others")
        with _waits(Hangs(f"the device has not answered for {answer_s} s"), TimeoutError):
            return done.result(answer_s)

    def _run(self) -> None:
        while True:
            done, work = self._waiting.get()
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work())
                except BaseException as error:  # noqa: BLE001  (whoever waits must hear of it)
                    done.set_exception(error)
            del done, work  # nothing is held while it waits


@contextlib.contextmanager
def _waits(refusal: Exception, late: type[Exception]) -> Iterator[None]:
    try:
        yield
    except late:
        raise refusal from None


class Card:
    """A device with its thread and what it holds.

    Any thread; what a device does is done in its own.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lost = False
        self._turns = Turns(f"device-{device.name}")
        self._held: dict[int, tuple[Any, int]] = {}
        """Copies on the device and their bytes. Its thread's alone."""
        self._gone: deque[int] = deque()
        """Let go of; to be freed by its thread: a finalizer may run anywhere, and so takes no lock."""
        self._bytes = 0
        self._made = 0
        self._failures = 0

    def free(self) -> int:
        """Bytes for which there is room.

        What was let go of is freed first, where its thread comes to it soon.
        """
        if self._gone:
            with contextlib.suppress(Busy, Failed):
                self._take(self._forget, turn_s=TURN_S, answer_s=ANSWER_S)
        return self.device.bytes_max - self._bytes

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric) -> Any:
        """See Device."""
        return self._take(
            lambda: self.device.build(vectors, spec, metric), turn_s=BUILD_S, answer_s=BUILD_S
        )

    def place(self, index: Index | None, vectors: Floats, metric: Metric, need: int) -> int:
        """Hold a copy; the number by which it is asked. Raises NoRoom, Busy, Failed."""
        return self._take(
            lambda: self._place(index, vectors, metric, need), turn_s=PLACE_S, answer_s=PLACE_S
        )

    def search(self, number: int, queries: Floats, ask: Ask) -> Rows:
        """See Device. Raises NoRoom, Busy, Failed."""
        return self._take(
            lambda: self._search(number, queries, ask), turn_s=TURN_S, answer_s=ANSWER_S
        )

    def let_go(self, number: int) -> None:
        """Free that copy, as soon as its thread runs again."""
        self._gone.append(number)

    def _take(self, work: Callable[[], T], *, turn_s: float, answer_s: float) -> T:
        if self.lost:
            raise Failed(f"device {self.device.name} is given up")
        try:
            found = self._turns.take(work, turn_s=turn_s, answer_s=answer_s)
        except Failed as error:
            self._failed(error)
            raise
        self._failures = 0
        return found

    def _failed(self, error: Failed) -> None:
        self._failures += 1
        if isinstance(error, Hangs) or self._failures >= FAILURES_MAX:
            self.lost = True
            _event.error("gpu.abandoned", device=self.device.name, error=str(error))

    # in the device's thread

    def _place(self, index: Index | None, vectors: Floats, metric: Metric, need: int) -> int:
        self._forget()
        if need > self.device.bytes_max - self._bytes:
            raise NoRoom(
                f"{need} bytes are asked for, {self.device.bytes_max - self._bytes} are free"
            )
        placed = self.device.place(index, vectors, metric)
        self._made += 1
        self._held[self._made] = (placed, need)
        self._account(need)
        return self._made

    def _search(self, number: int, queries: Floats, ask: Ask) -> Rows:
        self._forget()
        if number not in self._held:
            raise Busy("the copy has just been let go of")
        return self.device.search(self._held[number][0], queries, ask)

    def _forget(self) -> None:
        while self._gone:
            _, n = self._held.pop(self._gone.popleft(), (None, 0))
            self._account(-n)

    def _account(self, more: int) -> None:
        self._bytes += more
        _bytes.labels(self.device.name).set(self._bytes)
