"""Parses large bodies in worker processes, fairly among tenants, and small bodies in a thread.

Parsing holds the interpreter's lock, so a thread would stop the event loop. A worker process has a
bound on its memory, and on the time for one body. A worker that exceeds a bound is killed, and the
body is refused. The bytes of waiting bodies are charged to their requests (query/admission.py).
"""

import asyncio
import contextlib
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from query.parse_worker import LENGTH, too_much
from vicinage.arrow_stream import claimed_of
from vicinage.errors import Overloaded, TooLarge, Unavailable
from vicinage.fair import FairQueue
from vicinage.metrics import counter
from vicinage.telemetry import events
from vicinage.tenant_context import TenantContext
from vicinage.threads import EssentialThread
from vicinage.wire import ARROW

B = TypeVar("B")
T = TypeVar("T")
SMALL_BYTES: Final = 128 << 10
"""Maximum bytes of a body that is parsed in a thread, which takes a few milliseconds."""
SMALL_CLAIM: Final = 1 << 20
"""Maximum bytes, once decompressed, of an Arrow stream that is parsed in a thread."""
WAITING_MAX: Final = 1_024
WAIT_S: Final = 60.0
"""Seconds that a body may take to wait for its turn and to be parsed."""
WRITERS: Final = 8
"""Threads that append documents, separate from those for authentication and the catalog."""
_PIECE: Final = 1 << 20
_event = events("query")
_killed = counter("vicinage_query_parsers_killed_total")


class Writers:
    """Threads for appends to the log; each event loop has its own limit, as anyio requires."""

    def __init__(self) -> None:
        self._limiter: RunVar[CapacityLimiter] = RunVar("writers")

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` in a thread and returns its result."""
        try:
            limiter = self._limiter.get()
        except LookupError:
            limiter = CapacityLimiter(WRITERS)
            self._limiter.set(limiter)
        return await to_thread.run_sync(work, limiter=limiter)


@dataclass(frozen=True, slots=True, eq=False)
class _QueuedBody:
    """A queued body, the function that parses it, and the future of its result."""

    parse: Callable[[Any], object]
    body: object
    loop: asyncio.AbstractEventLoop
    outcome: "asyncio.Future[Any]"

    def settle(self, made: object) -> None:
        """Settles the request's future in its event loop; a no-op if the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._set_outcome, made)

    def _set_outcome(self, made: object) -> None:
        if self.outcome.done():
            return
        if isinstance(made, Exception):
            self.outcome.set_exception(made)
        else:
            self.outcome.set_result(made)


class Parsers:
    """Worker processes, each with a thread that drives it. They start with the first large body."""

    def __init__(
        self,
        *,
        processes: int,
        parse_s: float,
        memory_bytes: int,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._processes, self._parse_s, self._memory_bytes = processes, parse_s, memory_bytes
        self._on_failure = on_failure
        self._queue: FairQueue[_QueuedBody] = FairQueue(items_max=WAITING_MAX, quantum=SMALL_BYTES)
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    async def run(self, parse: Callable[[B], T], body: B, size: int, *, tenant: TenantContext) -> T:
        """Returns `parse(body)`, called in a worker. Both are pickled: `parse` is at module level.

        `size` is the body's bytes, which are charged to the tenant's turn. Raises what `parse`
        raises, TooLarge for a body over the bounds on time and memory, Overloaded after WAIT_S,
        Unavailable.
        """
        loop = asyncio.get_running_loop()
        queued = _QueuedBody(parse, body, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise Unavailable("this gateway is shutting down", dependency="gateway")
            self._queue.put(tenant.name, [(queued, size)], weight=tenant.weight)
            self._start()
            self._changed.notify()
        try:
            async with asyncio.timeout(WAIT_S):
                made: T = await queued.outcome
        except TimeoutError:
            raise Overloaded(
                f"the body was not parsed within {WAIT_S:g} s: too many large ones wait"
            ) from None
        return made

    def close(self) -> None:
        """Ends the workers and refuses the waiting bodies. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(5)

    def _start(self) -> None:
        while len(self._threads) < self._processes:
            thread = EssentialThread(
                f"parser-{len(self._threads)}",
                self._run,
                stopping=lambda: self._closed,
                on_death=self._on_failure,
            )
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        worker = _Worker(self._parse_s, self._memory_bytes)
        queued: _QueuedBody | None = None
        try:
            while (queued := self._next()) is not None:
                if not queued.outcome.done():  # else its request was canceled
                    queued.settle(worker.run(queued.parse, queued.body))
        except BaseException:
            if queued is not None:
                queued.settle(Unavailable("the body could not be parsed", dependency="gateway"))
            raise
        finally:
            worker.kill()

    def _next(self) -> _QueuedBody | None:
        """Returns the next body by the tenants' turns; None after `close`."""
        with self._changed:
            while not self._closed and not (taken := self._queue.take(1)):
                self._changed.wait()
            if self._closed:
                for left in [*self._queue.take(1 << 62)]:
                    left.settle(Unavailable("this gateway is shutting down", dependency="gateway"))
                return None
            return taken[0]


class _Worker:
    """One process, started on first use and again after a kill. Belongs to one thread."""

    def __init__(self, parse_s: float, memory_bytes: int) -> None:
        self._parse_s, self._memory_bytes = parse_s, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, parse: Callable[[Any], object], body: object) -> object:
        """Returns the result of `parse(body)` in the process, or the error to raise."""
        data = pickle.dumps((parse, body), pickle.HIGHEST_PROTOCOL)
        process = (
            self._process if self._process and self._process.poll() is None else self._started()
        )
        try:
            response = _exchange(process, data, time.monotonic() + self._parse_s)
        except TimeoutError:
            self.kill("time")
            return TooLarge(
                f"parsing the body takes more than {self._parse_s:g} s: send less at once",
                field="body",
                limit=self._parse_s,
            )
        except OSError:  # the process died, for example for lack of memory
            self.kill("memory")
            return too_much(self._memory_bytes)
        return pickle.loads(response)  # noqa: S301  (written by our own process)

    def kill(self, reason: str | None = None) -> None:
        """Kills the process. `reason` names the bound that a body exceeded."""
        if self._process is None:
            return
        if reason is not None:
            _killed.labels(reason).inc()
            _event.warning("parser.killed", reason=reason)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None

    def _started(self) -> "subprocess.Popen[bytes]":
        self.kill()
        environment = {
            **os.environ,
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "OPENBLAS_NUM_THREADS": "1",
        }
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-m", "query.parse_worker", str(self._memory_bytes)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
        return self._process


def is_small(content_type: str, data: bytes) -> bool:
    """Returns whether a thread may parse the body, which then takes a few milliseconds."""
    return len(data) <= SMALL_BYTES and (content_type != ARROW or claimed_of(data) <= SMALL_CLAIM)


def _exchange(process: "subprocess.Popen[bytes]", data: bytes, end_s: float) -> bytes:
    """Sends a frame and returns the content of the response frame.

    Raises TimeoutError at `end_s` (monotonic), OSError if the process has died.
    """
    assert process.stdin is not None, "it was started with pipes"
    assert process.stdout is not None, "it was started with pipes"
    to, back = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(to, False)
    sent = memoryview(LENGTH.pack(len(data)) + data)
    while sent:
        _wait(to, select.POLLOUT, end_s)
        sent = sent[os.write(to, sent[:_PIECE]) :]
    (n,) = LENGTH.unpack(_read(back, LENGTH.size, end_s))
    return _read(back, n, end_s)


def _read(back: int, n: int, end_s: float) -> bytes:
    found = bytearray()
    while len(found) < n:
        _wait(back, select.POLLIN, end_s)
        piece = os.read(back, min(_PIECE, n - len(found)))
        if not piece:
            raise BrokenPipeError("the process has ended")
        found += piece
    return bytes(found)


def _wait(descriptor: int, event: int, end_s: float) -> None:
    """Returns once the pipe is ready or closed. Raises TimeoutError at `end_s`."""
    poll = select.poll()  # select.select takes no descriptor beyond 1,023
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, end_s - time.monotonic()) * 1000):
        raise TimeoutError
