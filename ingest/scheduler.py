"""Schedules ingest: which part is embedded next and which job is written next. No threads, no clock, no I/O.

A line is a sequence of jobs that are written in order (law 3): those of a partition, or those of one generation's lane. The
part of a job that one model embeds is scheduled by itself, so that an answer of one model never waits for another's.

Law 7: tenants take turns by weight, `OF_ONE_MAX` parts of a tenant and a model at once, and a model has `OF_MODEL_MAX`
workers (a bulkhead): a server that keeps its callers waiting takes no worker from another model. A tenant whose model is
away sleeps between its tries and tries one part at a time, `PROBES_MAX` of all such tenants of a model at once.

Not thread-safe: its owner holds a lock.
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
"""Parts under way at once; most of them wait for an answer of their model's server."""
OF_MODEL_MAX: Final = 16
"""Workers of one model."""
OF_ONE_MAX: Final = 2
"""Parts of one tenant and model under way at once: while one is embedded, the next is chunked or the last one written."""
PROBES_MAX: Final = 4
"""Workers of one model for all tenants together whose last try found it away."""
WRITE_AGAIN_S: Final = (0.1, 5.0)
"""The least and the most wait before what could not be written is written again."""
RETRY_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Seconds that such a tenant sleeps, after its first try, its second, …"""
QUANTUM: Final = 64
ITEMS_MAX: Final = 1 << 31
"""Never reached: OF_ONE_MAX of each tenant and model are queued, and a line with enough jobs is not read on."""

ShareKey = tuple[str, str | None]
"""A tenant and a model."""


@dataclass(slots=True, eq=False)
class Task:
    """A job on its way, what it has for each generation, and the parts that its models embed.

    `line` is the partition, or the lane, whose jobs are written in order.
    """

    job: Job
    since: float = 0.0
    line: Hashable = None
    needs: dict[Target, Need] = field(default_factory=dict)
    parts: dict[str | None, "Part"] = field(default_factory=dict)
    writing: bool = False

    def __post_init__(self) -> None:
        self.line = self.job.tp if self.line is None else self.line
        self.needs = self.job.needs()
        for need in self.needs.values():
            self.part(need.generation.model).asks |= need.asks

    def part(self, model: str | None) -> "Part":
        """Returns the part of this model, a new one where there is none."""
        return self.parts.setdefault(model, Part(self, model))

    def asks(self) -> bool:
        """Whether any model is still to be asked for vectors."""
        return any(part.asks and not part.ready for part in self.parts.values())

    def ready(self) -> bool:
        """Whether everything is embedded."""
        return all(part.ready for part in self.parts.values())

    def made(self) -> dict[str | None, Embedded]:
        """Returns what is embedded, by model."""
        return {model: part.made for model, part in self.parts.items()}


@dataclass(slots=True, eq=False)
class Part:
    """What one model embeds of a job. `over`: its result is not needed any more."""

    task: Task
    model: str | None
    asks: bool = False
    made: Embedded = field(default_factory=Embedded)
    ready: bool = False
    probe: bool = False
    over: bool = False

    @property
    def share(self) -> ShareKey:
        """Returns the tenant and model that it is charged to."""
        return self.task.job.tenant.name, self.model


@dataclass(slots=True)
class _Share:
    """What a tenant has for one model: waiting, queued or under way (`taken`), and how often the model was away in a row."""

    weight: int = 1
    waiting: deque[Part] = field(default_factory=deque)
    taken: int = 0
    tries: int = 0
    failing_since: float = 0.0
    reason: str = ""
    asleep: bool = False


@dataclass(slots=True)
class _Bulkhead:
    """The workers of one model, and the parts that wait for them."""

    queue: FairQueue[Part] = field(default_factory=lambda: FairQueue(items_max=ITEMS_MAX, quantum=QUANTUM))
    probes: FairQueue[Part] = field(default_factory=lambda: FairQueue(items_max=ITEMS_MAX, quantum=QUANTUM))
    working: int = 0
    probing: int = 0

    def take(self) -> Part | None:
        if self.working >= OF_MODEL_MAX:
            return None
        found = (self.probes.take(1) if self.probing < PROBES_MAX else []) or self.queue.take(1)
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Away:
    """A model that did not answer a tenant: how often in a row, since when (monotonic), and what was last said."""

    tries: int
    since: float
    reason: str


class Scheduler:
    """The jobs of all lines, from parsed to written."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[Task]] = {}
        self._shares: dict[ShareKey, _Share] = {}
        self._models: dict[str | None, _Bulkhead] = {}
        self._sleepers: list[tuple[float, int, ShareKey]] = []
        self._held: set[Hashable] = set()
        self._put_off: dict[Hashable, tuple[float, float]] = {}
        """Lines whose first task could not be written: when to try again, and after what wait."""
        self._naps = 0
        self.working = 0

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def of(self, line: Hashable) -> int:
        """Returns how many tasks of this line are not written yet."""
        return len(self._lines.get(line, ()))

    def tasks(self, line: Hashable) -> list[Task]:
        """Returns the tasks of this line that are not written yet, in order."""
        return list(self._lines.get(line, ()))

    def partitions(self) -> list[TopicPartition]:
        """Returns the partitions with a task that is not written yet."""
        return [line for line in self._lines if isinstance(line, tuple)]

    def heads(self) -> Iterator[Task]:
        """Yields the first task of each line."""
        for line in self._lines.values():
            yield line[0]

    def away(self, share: ShareKey) -> Away | None:
        """Returns what is known of a model that did not answer this tenant at its last try."""
        found = self._shares.get(share)
        return Away(found.tries, found.failing_since, found.reason) if found and found.tries else None

    def add(self, task: Task) -> None:
        """Appends the task to its line, and its parts that are not ready to their shares."""
        self._lines.setdefault(task.line, deque()).append(task)
        for part in task.parts.values():
            if not part.ready:
                self.offer(part)

    def offer(self, part: Part) -> None:
        """Has the part embedded when its tenant's turn comes."""
        share = self._shares.setdefault(part.share, _Share())
        share.weight = CLASS_WEIGHT[part.task.job.tenant.priority]
        share.waiting.append(part)
        self._offer(part.share, share)

    # workers

    def take(self, now: float) -> Part | None:
        """Returns the part that a worker is to embed now, which it must `free` later.

        None: nothing is due, or the workers are taken.
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
                self._models[model] = self._models.pop(model)  # to the end of the round
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
        """The part is embedded: its model answers its tenant."""
        part.ready = True
        share = self._shares.get(part.share)
        if share is not None:
            share.tries = 0

    def failed(self, part: Part, now: float, reason: str) -> int:
        """The part's model was away: it is tried again after a while; returns how many tries in a row that makes."""
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
        """The part's worker is free again."""
        bulkhead = self._models[part.model]
        bulkhead.working -= 1
        bulkhead.probing -= part.probe
        self.working -= 1
        self._leave(part)

    def _leave(self, part: Part) -> None:
        share = self._shares[part.share]
        share.taken -= 1
        self._offer(part.share, share)
        self._forget(part.share, share)

    def _forget(self, key: ShareKey, share: _Share) -> None:
        if not share.waiting and not share.taken and not share.asleep:
            self._shares.pop(key, None)

    def sleep_s(self, now: float) -> float:
        """Returns seconds until a sleeping tenant is due; infinite when none sleeps."""
        return max(0.0, self._sleepers[0][0] - now) if self._sleepers else float("inf")

    def _offer(self, key: ShareKey, share: _Share) -> None:
        """Queues as many of the share's parts as it may have under way."""
        bulkhead = self._models.setdefault(key[1], _Bulkhead())
        queue, most = (bulkhead.probes, 1) if share.tries else (bulkhead.queue, OF_ONE_MAX)
        while share.waiting and share.taken < most and not share.asleep:
            part = share.waiting.popleft()
            if part.over:
                continue
            part.probe = share.tries > 0
            share.taken += 1
            queue.put(key[0], [(part, part.task.job.cost())], weight=share.weight)

    # writing

    def turn(self, line: Hashable, now: float = math.inf) -> Task | None:
        """Returns the line's first task if it is ready and not being written. The caller writes it, then calls `written`.

        Returns None, too, while the line is put off beyond `now` (monotonic seconds).
        """
        tasks = self._lines.get(line)
        if line in self._held or not tasks or tasks[0].writing or not tasks[0].ready():
            return None
        if line in self._put_off and now < self._put_off[line][0]:
            return None
        tasks[0].writing = True
        return tasks[0]

    def written(self, task: Task) -> None:
        """Removes a task that is written; the next one becomes first."""
        self._put_off.pop(task.line, None)
        tasks = self._lines.get(task.line)
        if tasks is None:
            return  # the line was discarded meanwhile
        assert tasks[0] is task, "a line is written in order"
        tasks.popleft()
        if not tasks:
            del self._lines[task.line]

    def put_off(self, task: Task, now: float) -> float:
        """The task could not be written: its line alone waits, longer each time. Returns for how long, in seconds."""
        task.writing = False
        _, waited = self._put_off.get(task.line, (now, 0.0))
        wait_s = min(max(WRITE_AGAIN_S[0], 2 * waited), WRITE_AGAIN_S[1])
        if task.line in self._lines:
            self._put_off[task.line] = now + wait_s, wait_s
        return wait_s

    def due(self, now: float) -> list[Hashable]:
        """Returns the lines that were put off, and whose wait is over at `now`; none that is being written."""
        return [
            line
            for line, (at, _) in self._put_off.items()
            if at <= now and (tasks := self._lines.get(line)) and not tasks[0].writing
        ]

    def hold(self, line: Hashable) -> bool:
        """Pauses writes of the line until `release`; returns False if a write is in progress."""
        tasks = self._lines.get(line)
        if tasks and tasks[0].writing:
            return False
        self._held.add(line)
        return True

    def release(self, line: Hashable) -> None:
        """End a `hold`."""
        self._held.discard(line)

    def skip(self, line: Hashable, targets: frozenset[Target]) -> list[Part]:
        """Takes these generations out of the line's tasks; returns new parts in place of those that had something for them.

        The line is held. A new part begins anew: the caller makes or `offer`s it.
        """
        renewed = []
        for task in self._lines.get(line, ()):
            models = {need.generation.model for t, need in task.needs.items() if t in targets}
            task.job.apart |= targets
            task.needs = {t: need for t, need in task.needs.items() if t not in targets}
            for model in models:
                if (old := task.parts.pop(model, None)) is not None:
                    old.over = True
            for need in task.needs.values():
                if need.generation.model in models:
                    part = task.part(need.generation.model)
                    part.asks |= need.asks
                    renewed.append(part)
        return list(dict.fromkeys(renewed))

    def discard(self, line: Hashable) -> None:
        """Discards the line: none of its tasks is written, except one that is being written now."""
        self._put_off.pop(line, None)
        for task in self._lines.pop(line, ()):
            for part in task.parts.values():
                part.over = True
        self._held.discard(line)
