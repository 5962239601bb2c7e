"""Schedules ingest: selects the part to embed next and the job to write next. Pure.

A `source` is a partition or one generation's lane. Its jobs form a queue and are written in order
(guarantee 3). A job has one part per model. Each part is scheduled separately, so that no
model's part waits for another model.

Guarantee 7: tenants take turns by weight, with `PER_SHARE_MAX` parts per tenant and model in
progress. Each model is a bulkhead of `PER_MODEL_MAX` workers, so that a slow server takes no worker
from another model. A tenant whose model is unavailable backs off between attempts and attempts one
part at a time. At most `PROBES_MAX` workers of a model run such attempts, over all tenants.

No threads, no clock, no I/O. Not thread-safe: the owner holds a lock.
"""

import heapq
import math
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final

from ingest.embed import Embedded
from ingest.jobs import Job, Need, Target
from tenants.entities import CLASS_WEIGHT
from vicinage.fair import FairQueue
from vicinage.log import TopicPartition

WORKERS: Final = 64
"""Parts in progress at once; most of them wait for a response of their model's server."""
PER_MODEL_MAX: Final = 16
"""Workers of one model."""
PER_SHARE_MAX: Final = 2
"""Parts of one tenant and model in progress at once.

While one is embedded, the next is chunked or the previous one is written.
"""
PROBES_MAX: Final = 4
"""Workers of one model for all tenants whose last attempt at the model failed."""
WRITE_RETRY_S: Final = (0.1, 5.0)
"""Minimum and maximum wait, in seconds, before a failed write is retried."""
RETRY_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Backoff, in seconds, of a tenant whose model fails: after the first attempt, the second, …"""
QUANTUM: Final = 64
ITEMS_MAX: Final = 1 << 31
"""Never reached: at most PER_SHARE_MAX parts per tenant and model are queued.

A partition or lane with enough jobs is not read further.
"""

ShareKey = tuple[str, str | None]
"""A tenant and a model."""


@dataclass(slots=True, eq=False)
class Task:
    """A job in progress, its needs by generation, and its parts by model.

    `source` is the partition or the lane that the job belongs to.
    """

    job: Job
    since: float = 0.0
    source: Hashable = None
    needs: dict[Target, Need] = field(default_factory=dict)
    parts: dict[str | None, "Part"] = field(default_factory=dict)
    writing: bool = False

    def __post_init__(self) -> None:
        self.source = self.job.tp if self.source is None else self.source
        self.needs = self.job.needs()
        for need in self.needs.values():
            self.part(need.generation.model).needs_model |= need.needs_model

    def part(self, model: str | None) -> "Part":
        """Returns the part of this model; creates it if there is none."""
        return self.parts.setdefault(model, Part(self, model))

    def needs_model(self) -> bool:
        """Returns whether a model still has vectors to embed."""
        return any(part.needs_model and not part.ready for part in self.parts.values())

    def ready(self) -> bool:
        """Returns whether every part is embedded."""
        return all(part.ready for part in self.parts.values())

    def embedded(self) -> dict[str | None, Embedded]:
        """Returns the embedded passages and vectors, by model."""
        return {model: part.embedded for model, part in self.parts.items()}


@dataclass(slots=True, eq=False)
class Part:
    """The part of a job that one model embeds. `over`: its result is no longer needed."""

    task: Task
    model: str | None
    needs_model: bool = False
    embedded: Embedded = field(default_factory=Embedded)
    ready: bool = False
    probe: bool = False
    over: bool = False

    @property
    def share(self) -> ShareKey:
        """Returns the tenant and model that the part is charged to."""
        return self.task.job.tenant.name, self.model


@dataclass(slots=True)
class _Share:
    """A tenant's parts for one model, and the failures of the model for this tenant.

    `n_active` counts parts that are queued or in progress. `tries` counts failed attempts in a row.
    """

    weight: int = 1
    waiting: deque[Part] = field(default_factory=deque)
    n_active: int = 0
    tries: int = 0
    failing_since: float = 0.0
    reason: str = ""
    asleep: bool = False


@dataclass(slots=True)
class _Bulkhead:
    """The workers of one model, and the parts that wait for them."""

    queue: FairQueue[Part] = field(
        default_factory=lambda: FairQueue(items_max=ITEMS_MAX, quantum=QUANTUM)
    )
    probes: FairQueue[Part] = field(
        default_factory=lambda: FairQueue(items_max=ITEMS_MAX, quantum=QUANTUM)
    )
    working: int = 0
    probing: int = 0

    def take(self) -> Part | None:
        if self.working >= PER_MODEL_MAX:
            return None
        found = (self.probes.take(1) if self.probing < PROBES_MAX else []) or self.queue.take(1)
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class ModelFailures:
    """Failures of a model for a tenant: number in a row, since when (monotonic), last reason."""

    tries: int
    since: float
    reason: str


class Scheduler:
    """The jobs of all partitions and lanes, from parsed to written."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Task]] = {}
        self._shares: dict[ShareKey, _Share] = {}
        self._models: dict[str | None, _Bulkhead] = {}
        self._sleepers: list[tuple[float, int, ShareKey]] = []
        self._held: set[Hashable] = set()
        self._put_off: dict[Hashable, tuple[float, float]] = {}
        """Queues whose first task could not be written: the time of the retry, and the wait."""
        self._naps = 0
        self.working = 0

    def __len__(self) -> int:
        return sum(len(source) for source in self._queues.values())

    def of(self, source: Hashable) -> int:
        """Returns the number of tasks of this partition or lane that are not written yet."""
        return len(self._queues.get(source, ()))

    def tasks(self, source: Hashable) -> list[Task]:
        """Returns the tasks of this partition or lane that are not written yet, in order."""
        return list(self._queues.get(source, ()))

    def partitions(self) -> list[TopicPartition]:
        """Returns the partitions with a task that is not written yet."""
        return [source for source in self._queues if isinstance(source, tuple)]

    def heads(self) -> Iterator[Task]:
        """Yields the first task of each partition and lane."""
        for source in self._queues.values():
            yield source[0]

    def failures(self, share: ShareKey) -> ModelFailures | None:
        """Returns the failures of a model whose last attempt for this tenant failed, else None."""
        found = self._shares.get(share)
        return (
            ModelFailures(found.tries, found.failing_since, found.reason)
            if found and found.tries
            else None
        )

    def add(self, task: Task) -> None:
        """Appends the task to its queue, and its parts that are not ready to their shares."""
        self._queues.setdefault(task.source, deque()).append(task)
        for part in task.parts.values():
            if not part.ready:
                self.offer(part)

    def offer(self, part: Part) -> None:
        """Queues the part to be embedded in its tenant's turn."""
        share = self._shares.setdefault(part.share, _Share())
        share.weight = CLASS_WEIGHT[part.task.job.tenant.priority]
        share.waiting.append(part)
        self._offer(part.share, share)

    # workers

    def take(self, now: float) -> Part | None:
        """Returns the part that a worker embeds now; the worker must `free` it later.

        Returns None if nothing is due or no worker is available.
        """
        self._wake(now)
        for model in list(self._models):
            if self.working >= WORKERS:
                return None
            bulkhead = self._models[model]
            while (part := bulkhead.take()) is not None:
                if part.over:
                    self._leave(part)
                    continue
                self._models[model] = self._models.pop(model)  # round robin over the models
                bulkhead.working += 1
                bulkhead.probing += part.probe
                self.working += 1
                return part
        return None

    def _wake(self, now: float) -> None:
        while self._sleepers and self._sleepers[0][0] <= now:
            key = heapq.heappop(self._sleepers)[2]
            share = self._shares.get(key)
            if share is not None:
                share.asleep = False
                self._offer(key, share)
                self._forget(key, share)

    def done(self, part: Part) -> None:
        """Marks the part as embedded, and resets the failed attempts of its tenant and model."""
        part.ready = True
        share = self._shares.get(part.share)
        if share is not None:
            share.tries = 0

    def failed(self, part: Part, now: float, reason: str) -> int:
        """Requeues a part whose model was unavailable, to be retried after a backoff.

        Returns the number of failed attempts in a row.
        """
        share = self._shares[part.share]
        if not part.over:
            share.waiting.append(part)
        if not share.asleep:
            share.failing_since = share.failing_since if share.tries else now
            share.tries += 1
            share.reason = reason
            share.asleep = True
            self._naps += 1
            wait_s = RETRY_S[min(share.tries, len(RETRY_S)) - 1]
            heapq.heappush(self._sleepers, (now + wait_s, self._naps, part.share))
        return share.tries

    def free(self, part: Part) -> None:
        """Releases the part's worker."""
        bulkhead = self._models[part.model]
        bulkhead.working -= 1
        bulkhead.probing -= part.probe
        self.working -= 1
        self._leave(part)

    def _leave(self, part: Part) -> None:
        share = self._shares[part.share]
        share.n_active -= 1
        self._offer(part.share, share)
        self._forget(part.share, share)

    def _forget(self, key: ShareKey, share: _Share) -> None:
        if not share.waiting and not share.n_active and not share.asleep:
            self._shares.pop(key, None)

    def sleep_s(self, now: float) -> float:
        """Returns the seconds until a backoff ends; infinity if no tenant backs off."""
        return max(0.0, self._sleepers[0][0] - now) if self._sleepers else float("inf")

    def _offer(self, key: ShareKey, share: _Share) -> None:
        """Queues as many of the share's parts as it may have in progress."""
        bulkhead = self._models.setdefault(key[1], _Bulkhead())
        queue, limit = (bulkhead.probes, 1) if share.tries else (bulkhead.queue, PER_SHARE_MAX)
        while share.waiting and share.n_active < limit and not share.asleep:
            part = share.waiting.popleft()
            if part.over:
                continue
            part.probe = share.tries > 0
            share.n_active += 1
            queue.put(key[0], [(part, part.task.job.cost())], weight=share.weight)

    # writing

    def turn(self, source: Hashable, now: float = math.inf) -> Task | None:
        """Returns the first task of a partition or lane if it is ready and not being written.

        The caller writes it, then calls `written`. Returns None also while writes are held, or
        put off beyond `now` (monotonic seconds).
        """
        tasks = self._queues.get(source)
        if source in self._held or not tasks or tasks[0].writing or not tasks[0].ready():
            return None
        if source in self._put_off and now < self._put_off[source][0]:
            return None
        tasks[0].writing = True
        return tasks[0]

    def written(self, task: Task) -> None:
        """Removes a task that is written; the next task of its queue becomes the first."""
        self._put_off.pop(task.source, None)
        tasks = self._queues.get(task.source)
        if tasks is None:
            return  # the queue was discarded meanwhile
        assert tasks[0] is task, "a source is written in order"
        tasks.popleft()
        if not tasks:
            del self._queues[task.source]

    def put_off(self, task: Task, now: float) -> float:
        """Puts off a task that could not be written, with exponential backoff.

        Only the task's own queue waits. Returns the wait in seconds.
        """
        task.writing = False
        _, waited = self._put_off.get(task.source, (now, 0.0))
        wait_s = min(max(WRITE_RETRY_S[0], 2 * waited), WRITE_RETRY_S[1])
        if task.source in self._queues:
            self._put_off[task.source] = now + wait_s, wait_s
        return wait_s

    def due(self, now: float) -> list[Hashable]:
        """Returns the partitions and lanes that were put off and whose wait is over at `now`.

        Leaves out those with a write in progress.
        """
        return [
            source
            for source, (at, _) in self._put_off.items()
            if at <= now and (tasks := self._queues.get(source)) and not tasks[0].writing
        ]

    def hold(self, source: Hashable) -> bool:
        """Pauses writes of a partition or lane until `release`.

        Returns False, without a pause, if a write is in progress.
        """
        tasks = self._queues.get(source)
        if tasks and tasks[0].writing:
            return False
        self._held.add(source)
        return True

    def release(self, source: Hashable) -> None:
        """Ends a `hold`."""
        self._held.discard(source)

    def skip(self, source: Hashable, targets: frozenset[Target]) -> list[Part]:
        """Removes these generations from the tasks of a partition or lane, which is held.

        Returns new parts that replace those with work for the generations. A new part is not
        embedded: the caller completes it or `offer`s it.
        """
        renewed = []
        for task in self._queues.get(source, ()):
            models = {need.generation.model for t, need in task.needs.items() if t in targets}
            task.job.detached |= targets
            task.needs = {t: need for t, need in task.needs.items() if t not in targets}
            for model in models:
                if (old := task.parts.pop(model, None)) is not None:
                    old.over = True
            for need in task.needs.values():
                if need.generation.model in models:
                    part = task.part(need.generation.model)
                    part.needs_model |= need.needs_model
                    renewed.append(part)
        return list(dict.fromkeys(renewed))

    def discard(self, source: Hashable) -> None:
        """Discards the tasks of a partition or lane, except one that is being written now."""
        self._put_off.pop(source, None)
        for task in self._queues.pop(source, ()):
            for part in task.parts.values():
                part.over = True
        self._held.discard(source)
