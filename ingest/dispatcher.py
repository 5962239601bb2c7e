"""Runs what the scheduler chooses: workers that embed parts, and writes with their retries.

A worker runs `process` for one part at a time until the scheduler has no other part for it. A
failed write delays the tasks of its own source alone. It is retried on a separate thread.
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from ingest.lane_scheduler import CHECK_S
from ingest.scheduler import RETRY_S, Part, Scheduler, Task
from ingest.workers import Workers
from vicinage.clock import Clock
from vicinage.errors import Overloaded, Unavailable
from vicinage.log import TopicPartition
from vicinage.telemetry import events

RETRIES_AT_ONCE_MAX: Final = 8
"""Sources whose failed writes are retried at the same time."""
IDLE_S: Final = 60.0
"""Longest wait for records while there is no work."""
BUSY_S: Final = 0.02
"""Longest wait for records while a thread may end or fail."""

_event = events("ingest")


class Dispatcher:
    """Runs parts and writes on workers. Safe for many threads.

    `process` embeds a part and writes its source. `write` writes the ready tasks of a source, in
    order.
    `scheduler` is used under `lock`. Once `stopping` is set, no part and no write begins: a thread
    may be left behind, beside another ingest.
    """

    def __init__(
        self,
        workers: Workers,
        clock: Clock,
        stopping: threading.Event,
        *,
        process: Callable[[Part], None],
        write: Callable[[Hashable], None],
    ) -> None:
        self.scheduler = Scheduler()
        self.lock = threading.Lock()
        self._workers = workers
        self._clock = clock
        self._stopping = stopping
        self._process = process
        self._write = write
        self._retrying: set[Hashable] = set()

    def add(self, task: Task) -> None:
        """Queues the task."""
        with self.lock:
            self.scheduler.add(task)

    def partitions(self) -> list[TopicPartition]:
        """Returns the partitions with a task that is not written yet."""
        with self.lock:
            return self.scheduler.partitions()

    def idle_s(self, is_busy: bool) -> float:
        """Returns the longest wait for records, in seconds.

        It is short while a thread may end, else it lasts until a failed attempt is retried.
        """
        with self.lock:
            if self.scheduler.working or is_busy:
                return BUSY_S
            return (
                min(CHECK_S, self.scheduler.sleep_s(self._clock.monotonic()))
                if len(self.scheduler)
                else IDLE_S
            )

    def dispatch(self) -> None:
        """Starts a worker for each part that is to be embedded now."""
        while (part := self._next()) is not None:
            self._workers.start(partial(self._work, part))

    def _work(self, part: Part | None) -> None:
        while part is not None:
            self._process(part)
            part = self._next(freed=part)

    def _next(self, freed: Part | None = None) -> Part | None:
        """Returns the part to embed now, if any, for a worker that is done with `freed`."""
        with self.lock:
            if freed is not None:
                self.scheduler.free(freed)
            return None if self._stopping.is_set() else self.scheduler.take(self._clock.monotonic())

    @contextmanager
    def embedding(self, part: Part) -> Iterator[None]:
        """Marks the part embedded when the block ends.

        If its model is unavailable or busy, the part is retried later.
        """
        try:
            yield
        except (Unavailable, Overloaded) as error:
            reason = error.operator_detail if isinstance(error, Unavailable) else error.detail
            with self.lock:
                tries = self.scheduler.failed(part, self._clock.monotonic(), reason)
            if tries in (1, len(RETRY_S)) and not part.over:
                _event.warning(
                    "embedding.put_off",
                    tenant=part.share[0],
                    model=part.model,
                    reason=reason,
                )
        else:
            with self.lock:
                self.scheduler.done(part)

    def in_turn(self, source: Hashable) -> Iterator[Task]:
        """Yields the tasks of the source that are ready, in order. Write each within `writing`.

        Yields nothing while another thread writes the source: that thread writes all of it.
        """
        while (task := self._turn(source)) is not None:
            yield task

    def _turn(self, source: Hashable) -> Task | None:
        with self.lock:
            return (
                None
                if self._stopping.is_set()
                else self.scheduler.turn(source, self._clock.monotonic())
            )

    @contextmanager
    def writing(self, task: Task) -> Iterator[None]:
        """Marks the task written when the block ends.

        After an Unavailable, which may concern one tenant, its source waits.
        """
        try:
            yield
        except Unavailable as error:
            with self.lock:
                retry_s = self.scheduler.put_off(task, self._clock.monotonic())
            _event.warning(
                "write.put_off",
                source=str(task.source),
                reason=error.operator_detail,
                retry_in_s=retry_s,
            )
        else:
            with self.lock:
                self.scheduler.written(task)

    def retry_writes(self) -> None:
        """Retries the writes that are due, each source on a separate thread: one may take long."""
        with self.lock:
            due = self.scheduler.due(self._clock.monotonic()) if not self._stopping.is_set() else []
            due = [source for source in due if source not in self._retrying][
                : RETRIES_AT_ONCE_MAX - len(self._retrying)
            ]
            self._retrying |= set(due)
        for source in due:
            self._workers.start(partial(self._retry, source))

    def _retry(self, source: Hashable) -> None:
        try:
            self._write(source)
        finally:
            with self.lock:
                self._retrying.discard(source)
