"""Which job is worked on next, and whose rows may be written. What decides in ingest: no threads, no clock, no I/O.

Law 7: jobs wait by tenant, and tenants take turns by weight, OF_ONE_MAX jobs of a tenant at once. A tenant whose embedder is
away sleeps between its tries, tries one job at a time, and shares PROBES_MAX workers with all others in its state: servers
that keep their callers waiting take no more than these from everybody else.

NOTE: jobs of one partition are embedded in any order and written in the order in which they came (law 3). None waits for
another: what is ready lies in its partition's line until whoever writes the one before it takes it along.

Not thread-safe: whoever owns it holds a lock.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from ingest.jobs import Job
from ingest.vectors import Embedded
from tenants.entities import CLASS_WEIGHT
from vicinage.fair import FairQueue
from vicinage.log import TopicPartition

WORKERS: Final = 16
"""Jobs under way at once; most of them wait for an answer of their model's server."""
OF_ONE_MAX: Final = 2
"""Jobs of one tenant under way at once: while one is embedded, the next is cut or the last one written."""
PROBES_MAX: Final = 4
"""Workers for all tenants together whose last try found their embedder away."""
RETRY_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""How long such a tenant sleeps, after its first try, its second, …"""
QUANTUM: Final = 64
ITEMS_MAX: Final = 1 << 31
"""Never reached: OF_ONE_MAX of each tenant are queued, and a partition with enough jobs is not read on."""


@dataclass(slots=True, eq=False)
class Task:
    """A job on its way, and what is embedded of it so far."""

    job: Job
    since: float = 0.0
    made: Embedded = field(default_factory=Embedded)
    ready: bool = False
    writing: bool = False
    probe: bool = False


@dataclass(slots=True)
class _Share:
    """What one tenant has waiting, has in the queue or under way (`taken`), and how often its embedder was away in a row."""

    weight: int
    waiting: deque[Task] = field(default_factory=deque)
    taken: int = 0
    tries: int = 0
    asleep: bool = False


class Lines:
    """The jobs of all partitions, from parsed to written."""

    def __init__(self) -> None:
        self._partitions: dict[TopicPartition, deque[Task]] = {}
        self._shares: dict[str, _Share] = {}
        self._queue: FairQueue[Task] = FairQueue(items_max=ITEMS_MAX, quantum=QUANTUM)
        self._probes: FairQueue[Task] = FairQueue(items_max=ITEMS_MAX, quantum=QUANTUM)
        self._sleepers: list[tuple[float, str]] = []
        self._probing = 0
        self.working = 0

    def __len__(self) -> int:
        return sum(len(line) for line in self._partitions.values())

    def of(self, tp: TopicPartition) -> int:
        """How many tasks of this partition are not written yet."""
        return len(self._partitions.get(tp, ()))

    def partitions(self) -> list[TopicPartition]:
        """Those with a task that is not written yet."""
        return list(self._partitions)

    def add(self, task: Task) -> None:
        """Put it behind its partition's others and its tenant's others."""
        tenant = task.job.tenant
        self._partitions.setdefault(task.job.tp, deque()).append(task)
        share = self._shares.setdefault(tenant.name, _Share(0))
        share.weight = CLASS_WEIGHT[tenant.priority]
        share.waiting.append(task)
        self._offer(tenant.name, share)

    # workers

    def take(self, now: float) -> Task | None:
        """The task that a worker is to embed now, which it must `free` later. None: nothing is due, or all workers are taken."""
        while self._sleepers and self._sleepers[0][0] <= now:
            name = heapq.heappop(self._sleepers)[1]
            self._shares[name].asleep = False
            self._offer(name, self._shares[name])
        if self.working >= WORKERS:
            return None
        found = (self._probes.take(1) if self._probing < PROBES_MAX else []) or self._queue.take(1)
        if not found:
            return None
        self.working += 1
        self._probing += found[0].probe
        return found[0]

    def done(self, task: Task) -> None:
        """It is embedded: its tenant's embedder is well, and it may be written when its turn comes."""
        task.ready = True
        self._shares[task.job.tenant.name].tries = 0

    def away(self, task: Task, now: float) -> int:
        """Its embedder was away: it is tried again, after its tenant's others; how many tries in a row that makes."""
        name = task.job.tenant.name
        share = self._shares[name]
        share.waiting.append(task)
        if not share.asleep:
            share.asleep = True
            share.tries += 1
            heapq.heappush(self._sleepers, (now + RETRY_S[min(share.tries, len(RETRY_S)) - 1], name))
        return share.tries

    def free(self, task: Task) -> None:
        """Its worker is free again."""
        name = task.job.tenant.name
        share = self._shares[name]
        self.working -= 1
        self._probing -= task.probe
        share.taken -= 1
        self._offer(name, share)
        if not share.waiting and not share.taken:
            del self._shares[name]

    def sleep_s(self, now: float) -> float:
        """Seconds until a sleeping tenant is due; infinite when none sleeps."""
        return max(0.0, self._sleepers[0][0] - now) if self._sleepers else float("inf")

    def _offer(self, name: str, share: _Share) -> None:
        """Queue as many of the tenant's tasks as it may have under way."""
        queue, most = (self._probes, 1) if share.tries else (self._queue, OF_ONE_MAX)
        while share.waiting and share.taken < most and not share.asleep:
            task = share.waiting.popleft()
            task.probe = share.tries > 0
            share.taken += 1
            queue.put(name, [(task, task.job.cost())], weight=share.weight)

    # writing

    def turn(self, tp: TopicPartition) -> Task | None:
        """The partition's first task, if it is ready and nobody writes it yet: the caller does, and says so by `written`."""
        line = self._partitions.get(tp)
        if not line or not line[0].ready or line[0].writing:
            return None
        line[0].writing = True
        return line[0]

    def written(self, task: Task) -> None:
        """It is written: the turn is the next one's."""
        line = self._partitions[task.job.tp]
        assert line[0] is task, "a partition is written in order"
        line.popleft()
        if not line:
            del self._partitions[task.job.tp]
