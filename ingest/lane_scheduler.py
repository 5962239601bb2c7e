"""Moves generations between their partition's jobs and lanes of their own, and reads the lanes.

`ingest/lanes.py` decides when; `ingest/lane_registry.py` keeps the lanes' rows. All of this runs on
the thread that reads the log, except `_read_lane`. It runs on separate threads, because a lane is
read from the log at its own offset.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from ingest import lanes
from ingest.jobs import Job, Target
from ingest.lane_registry import Lane, LaneRegistry
from ingest.scheduler import Away, Part, Scheduler, Task
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.log import TopicPartition
from vicinage.telemetry import events

IN_FLIGHT: Final = 2
"""Jobs of one lane that are not written yet, while its model answers."""
AWAY_S: Final = 0.5
"""Seconds that a lane rests while the log is away."""
LOOK_S: Final = 0.1
"""Seconds between checks for partitions whose first job waits too long."""
LANE_READERS: Final = 4
LANE_READS_MAX: Final = 8
"""Reads of lanes that run or are queued at once; LANE_READS_OF_ONE_MAX per tenant."""
LANE_READS_OF_ONE_MAX: Final = 2
HALTED_S: Final = 60.0
"""Seconds that a lane rests if the log no longer has its records."""

_event = events("ingest")


class LaneScheduler:
    """Moves generations between their partition's jobs and lanes. One thread, unless stated.

    `routed` has each partition's offset up to which records are queued as its jobs, or left to
    lanes.
    """

    def __init__(
        self,
        lane_registry: LaneRegistry,
        lines: Scheduler,
        lock: threading.Lock,
        registry: Registry,
        clock: Clock,
        routed: Mapping[TopicPartition, int],
        *,
        complete_given: Callable[[Iterable[Part]], None],
        write_ready: Callable[[Hashable], None],
        check: Callable[[Task, float], None],
    ) -> None:
        self._lane_registry = lane_registry
        self._lines = lines
        self._lock = lock
        self._registry = registry
        self._clock = clock
        self._routed = routed
        self._complete_given = complete_given
        self._write_ready = write_ready
        self._check = check
        self._heads = lanes.Heads()
        self._gates: dict[TopicPartition, threading.RLock] = {}
        self._looked = -1e9
        self._seen = (-1, -1)
        self._readers = ThreadPoolExecutor(LANE_READERS, thread_name_prefix="ingest-lanes")
        self._reads: dict[Future[None], Lane] = {}

    def gate(self, tp: TopicPartition) -> threading.RLock:
        """Returns the lock for adding jobs to the partition's queue and for changing its lanes.

        So each record of a generation enters either the queue or a lane. Safe for many threads.
        """
        with self._lock:
            return self._gates.setdefault(tp, threading.RLock())

    def forget_gates(self, is_gone: Callable[[TopicPartition], bool]) -> None:
        """Forgets the locks of partitions that are gone.

        Such a partition has no job in progress, and gets none before it is read again.
        """
        with self._lock:
            for tp in [tp for tp in self._gates if is_gone(tp)]:
                del self._gates[tp]

    def behind(self) -> int:
        """Returns the number of lanes that have records to read or are being read."""
        return sum(
            lane.read < self._routed.get(lane.tp, 0) or lane.reading for lane in self._lane_registry
        )

    def reading(self) -> bool:
        """Returns whether a lane is being read."""
        return bool(self._reads)

    def stop(self) -> None:
        """Cancels queued reads of lanes and waits for the running ones."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def forget(self, tp: TopicPartition) -> None:
        """Forgets the lanes of a partition that is no longer read. Their catalog rows stay."""
        self._give_up(self._lane_registry.forget(tp))

    def detach_early(self, job: Job) -> None:
        """Opens lanes for generations whose writes must not enter the partition's queue.

        After Unavailable, the caller routes the job again.
        """
        job.apart = frozenset(self._lane_registry.of(job.tp))
        needs = job.needs()
        with self._lock:
            away = {
                n.generation.model: self._lines.away((job.tenant.name, n.generation.model))
                for n in needs.values()
            }
        found = lanes.detached_at_once(job, needs, away, self._clock.monotonic())
        for target, need in found.items():
            known = away[need.generation.model]
            self._lane_registry.open(
                job.tenant, job.tp, {target: need},
                state="unavailable" if known else "behind", reason=known.reason if known else "building",
            )  # fmt: skip
        job.apart |= frozenset(found)

    def tend(self) -> None:
        """Detaches generations that block their partition, and drops lanes of retired generations.

        Continues reading the other lanes.
        """
        if (now_seen := (self._registry.version, self._lane_registry.changes)) != self._seen:
            self._release_gone()
            self._seen = now_seen
        now = self._clock.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._look_at_heads(now)
        self._follow()

    def _release_gone(self) -> None:
        """Discards work for deleted collections and for retired or canceled generations."""
        gone = [
            lane
            for lane in self._lane_registry
            if not lanes.is_serving(self._registry, lane.tenant, lane.target)
        ]
        if gone:
            self._lane_registry.drop(gone)
            self._give_up(gone)
        with self._lock:
            waiting = {tp: self._lines.tasks(tp) for tp in self._lines.partitions()}
        for tp, tasks in waiting.items():
            tenant = tasks[0].job.tenant
            targets = {target for task in tasks for target in task.needs}
            over = frozenset(t for t in targets if not lanes.is_serving(self._registry, tenant, t))
            if over:
                with self._held(tp) as held:
                    if held:
                        self._skip(tp, over)

    def _give_up(self, gone: Sequence[Lane]) -> None:
        with self._lock:
            for lane in gone:
                self._lines.discard(lane)

    def _look_at_heads(self, now: float) -> None:
        """Detaches generations that block a partition's first job.

        Records in the catalog which lanes wait for a model that is away.
        """
        with self._lock:
            heads = {task.line: task for task in self._lines.heads() if not task.ready()}
        waited = self._heads.look(heads, now)
        for line, head in heads.items():
            with self._lock:
                pending = {
                    m: self._lines.away(p.share) for m, p in list(head.parts.items()) if not p.ready
                }
            if isinstance(line, Lane):
                self._say_away(line, head, pending, now)
            elif waited[line] >= lanes.SLOW_S or any(
                lanes.is_away(known, now) for known in pending.values()
            ):
                self._detach(head, pending, waited[line], now)

    def _say_away(
        self, lane: Lane, head: Task, pending: dict[str | None, Away | None], now: float
    ) -> None:
        known = pending.get(lane.row.model)
        if known is None or not lanes.is_away(known, now):
            return
        if not lane.reading:
            lane.whole, lane.unparsed = (
                False,
                None,
            )  # read again once the model answers: no backlog is kept
        if lane.row.state != "unavailable":
            first = min((need.first for need in head.needs.values()), default=lane.row.position)
            self._lane_registry.move(
                lane, max(lane.row.position, first), "unavailable", known.reason
            )

    def _detach(
        self, head: Task, pending: dict[str | None, Away | None], waited_s: float, now: float
    ) -> None:
        """Opens lanes for the generations that block the partition's first job.

        The partition continues without them.
        """
        job = head.job
        serving = sum(len(c.generations) for c in self._registry.collections(job.tenant.name))
        with self._held(job.tp) as held:
            if not held:
                return
            with self._lock:
                needs = [task.needs for task in self._lines.tasks(job.tp)]
            found = lanes.blocked(needs, pending, waited_s=waited_s, now=now, serving=serving)
            if not found:
                return
            self._check(head, 0.0)
            known = next((k for k in pending.values() if k is not None), None)
            self._lane_registry.open(
                job.tenant, job.tp, found,
                state="unavailable" if known else "behind", reason=known.reason if known else "slow",
            )  # fmt: skip
            self._skip(job.tp, frozenset(found))

    @contextmanager
    def _held(self, tp: TopicPartition) -> Iterator[bool]:
        """Pauses writes of the partition in the block.

        Yields False, without a pause, if a write is in progress.
        """
        with self.gate(tp):
            with self._lock:
                held = self._lines.hold(tp)
            try:
                yield held
            finally:
                if held:
                    with self._lock:
                        self._lines.release(tp)
        if held:
            self._write_ready(tp)

    def _skip(self, tp: TopicPartition, targets: frozenset[Target]) -> None:
        with self._lock:
            renewed = self._lines.skip(tp, targets)
        self._complete_given(renewed)
        with self._lock:
            for part in renewed:
                if not part.ready:
                    self._lines.offer(part)

    def _follow(self) -> None:
        """Continues reading lanes that have room; closes those that have caught up."""
        for read in [read for read in self._reads if read.done()]:
            self._reads.pop(read).reading = False
            read.result()
        reads = Counter(lane.tenant.name for lane in self._reads.values())
        now = self._clock.monotonic()
        for lane in self._lane_registry.in_turn():
            if lane.reading or lane.rest_until > now:
                continue
            routed, waiting = self._routed.get(lane.tp, 0), self._lines.of(lane)
            if self._has_caught_up(lane):
                self._rejoin(lane)
            elif lane.read < routed and waiting < (IN_FLIGHT if lane.whole else 1):
                if (
                    len(self._reads) >= LANE_READS_MAX
                    or reads[lane.tenant.name] >= LANE_READS_OF_ONE_MAX
                ):
                    continue
                lane.reading = True
                reads[lane.tenant.name] += 1
                self._lane_registry.to_the_end(lane)
                self._reads[self._readers.submit(self._read_lane, lane, routed)] = lane

    def _rejoin(self, lane: Lane) -> None:
        """Closes the lane, unless its generation always has one."""
        collection = self._registry.collection(lane.tenant.name, lane.row.collection)
        if lanes.own_lane(collection.generation(lane.row.generation), collection):
            return
        with self.gate(lane.tp):
            if self._has_caught_up(lane):  # the gate prevents routing until it is closed
                self._lane_registry.close(lane)

    def _has_caught_up(self, lane: Lane) -> bool:
        routed, waiting = self._routed.get(lane.tp, 0), self._lines.of(lane)
        return lanes.caught_up(
            read=lane.read, written=lane.row.position, routed=routed, waiting=waiting
        )

    def _read_lane(self, lane: Lane, until: int) -> None:
        """Appends the lane's next job to its queue. Runs on a lane reader's thread."""
        try:
            job = self._lane_registry.next_job(lane, until)
        except Refused as gone:
            _event.error("lane.halted", topic=lane.tp[0], partition=lane.tp[1], reason=gone.detail)
            lane.rest_until = self._clock.monotonic() + HALTED_S
            return
        except (Unavailable, NotFound) as away:
            _event.warning("the log is away", reason=str(away))
            lane.rest_until = self._clock.monotonic() + AWAY_S
            return
        if job is None:
            return
        task = Task(job, time.perf_counter(), lane)
        self._complete_given(task.parts.values())
        with self._lock:
            if lane.over:
                return
            lane.read = job.end
            self._lines.add(task)
        self._write_ready(lane)
