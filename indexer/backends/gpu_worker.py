"""A GPU with its one thread and the indexes that it holds.

NOTE: FAISS's GPU indexes are not safe for concurrent calls, reads included, and neither are their
resources. Every call to a GPU runs in its one thread (`DeviceThread`), and callers wait for it a
bounded time.
"""

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

from indexer.backends import Rows
from indexer.backends.gpu_limits import DeviceSearch, Limits
from indexer.backends.indexes import Index
from tenants.entities import Metric
from tenants.index_spec import IndexSpec
from vicinage.metrics import gauge
from vicinage.records import Floats
from vicinage.telemetry import events
from vicinage.threads import EssentialThread

QUEUE_MAX: Final = 64
"""Calls that may wait for one GPU."""
QUEUE_WAIT_S: Final = 0.25
"""Time that a search waits for the GPU's thread, as behind a build, before the CPU answers it."""
RESULT_WAIT_S: Final = 10.0
"""Time that a search waits for the result once it runs. A slower GPU hangs, and is abandoned."""
PLACE_S: Final = 60.0
BUILD_S: Final = 3_600.0
FAILURES_MAX: Final = 3
"""Consecutive failures after which a GPU is abandoned until the process restarts.

A failed GPU does not recover within a process.
"""

T = TypeVar("T")
_event = events("searcher")
_bytes = gauge("vicinage_searcher_device_bytes")


class NoRoom(Exception):
    """The GPU's memory is full. The CPU does the work."""

    reason = "memory"


class Busy(Exception):
    """The GPU's thread did not start the call in time. The CPU does the work."""

    reason = "busy"


class Failed(Exception):
    """The GPU failed, hangs or is abandoned. The CPU does the work."""

    reason = "failed"


class Unresponsive(Failed):
    """The GPU does not return from a call. It is not used again."""


class Device(Protocol):
    """One GPU, called from one thread only. Every call may raise NoRoom or Failed."""

    name: str
    limits: Limits
    bytes_max: int
    """Bytes that indexes may take, without FAISS's temporary memory."""

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric) -> Any:
        """Returns a CPU index over `vectors`, trained and filled on the GPU.

        It is of a class that the CPU backend loads.
        """
        ...

    def place(self, index: Index | None, vectors: Floats, metric: Metric) -> Any:
        """Returns a copy of the index (None: flat) on the GPU; freed when garbage-collected."""
        ...

    def search(self, placed: Any, queries: Floats, ask: DeviceSearch) -> Rows:
        """Returns the nearest rows [n, ask.take], best first, −1 beyond the last."""
        ...


class DeviceThread:
    """The one thread of a GPU and its bounded queue of calls."""

    def __init__(self, name: str) -> None:
        self._waiting: queue.Queue[tuple[Future[Any], Callable[[], Any]]] = queue.Queue(QUEUE_MAX)
        EssentialThread(name, self._run).start()

    def call(self, work: Callable[[], T], *, queue_s: float, result_s: float) -> T:
        """Runs `work` in the thread and returns its result or raises its error.

        Raises Busy if it has not started within `queue_s`, and Unresponsive if it has not ended
        within `result_s`.
        """
        done: Future[T] = Future()
        with _raising(Busy("the GPU's queue is full"), queue.Full):
            self._waiting.put((done, work), timeout=queue_s)
        with contextlib.suppress(TimeoutError):
            return done.result(queue_s)
        if done.cancel():
            raise Busy("the GPU is busy with other calls")
        with _raising(Unresponsive(f"the GPU has not answered for {result_s} s"), TimeoutError):
            return done.result(result_s)

    def _run(self) -> None:
        while True:
            done, work = self._waiting.get()
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work())
                except BaseException as error:  # noqa: BLE001  (the waiting caller must get it)
                    done.set_exception(error)
            del done, work  # holds no reference while it waits for the next call


@contextlib.contextmanager
def _raising(refusal: Exception, late: type[Exception]) -> Iterator[None]:
    try:
        yield
    except late:
        raise refusal from None


class GpuWorker:
    """A GPU with its thread and the indexes that it holds.

    Any thread may call it; calls to the GPU run in the GPU's own thread.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lost = False
        self._thread = DeviceThread(f"device-{device.name}")
        self._held: dict[int, tuple[Any, int]] = {}
        """Copies on the GPU and their bytes. Used by the GPU's thread only."""
        self._released: deque[int] = deque()
        """Copies that the GPU's thread must free.

        A finalizer appends to it: it may run in any thread, so it takes no lock.
        """
        self._bytes = 0
        self._made = 0
        self._failures = 0

    def free(self) -> int:
        """Returns the free bytes.

        First frees released copies, if the GPU's thread starts that soon.
        """
        if self._released:
            with contextlib.suppress(Busy, Failed):
                self._call(self._free_released, queue_s=QUEUE_WAIT_S, result_s=RESULT_WAIT_S)
        return self.device.bytes_max - self._bytes

    def build(self, vectors: Floats, spec: IndexSpec, metric: Metric) -> Any:
        """See Device."""
        return self._call(
            lambda: self.device.build(vectors, spec, metric), queue_s=BUILD_S, result_s=BUILD_S
        )

    def place(self, index: Index | None, vectors: Floats, metric: Metric, need: int) -> int:
        """Copies an index to the GPU; returns the copy's number. Raises NoRoom, Busy, Failed."""
        return self._call(
            lambda: self._place(index, vectors, metric, need), queue_s=PLACE_S, result_s=PLACE_S
        )

    def search(self, number: int, queries: Floats, ask: DeviceSearch) -> Rows:
        """See Device. Raises NoRoom, Busy, Failed."""
        return self._call(
            lambda: self._search(number, queries, ask),
            queue_s=QUEUE_WAIT_S,
            result_s=RESULT_WAIT_S,
        )

    def release(self, number: int) -> None:
        """Frees a copy as soon as the GPU's thread runs again."""
        self._released.append(number)

    def _call(self, work: Callable[[], T], *, queue_s: float, result_s: float) -> T:
        if self.lost:
            raise Failed(f"device {self.device.name} is abandoned until this process restarts")
        try:
            found = self._thread.call(work, queue_s=queue_s, result_s=result_s)
        except Failed as error:
            self._count_failure(error)
            raise
        self._failures = 0
        return found

    def _count_failure(self, error: Failed) -> None:
        self._failures += 1
        if isinstance(error, Unresponsive) or self._failures >= FAILURES_MAX:
            self.lost = True
            _event.error("gpu.abandoned", device=self.device.name, error=str(error))

    # in the GPU's thread

    def _place(self, index: Index | None, vectors: Floats, metric: Metric, need: int) -> int:
        self._free_released()
        if need > self.device.bytes_max - self._bytes:
            raise NoRoom(f"{need} bytes are needed, {self.device.bytes_max - self._bytes} are free")
        placed = self.device.place(index, vectors, metric)
        self._made += 1
        self._held[self._made] = (placed, need)
        self._account(need)
        return self._made

    def _search(self, number: int, queries: Floats, ask: DeviceSearch) -> Rows:
        self._free_released()
        if number not in self._held:
            raise Busy("the copy was released meanwhile")
        return self.device.search(self._held[number][0], queries, ask)

    def _free_released(self) -> None:
        while self._released:
            _, n = self._held.pop(self._released.popleft(), (None, 0))
            self._account(-n)

    def _account(self, more: int) -> None:
        self._bytes += more
        _bytes.labels(self.device.name).set(self._bytes)
