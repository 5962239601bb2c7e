"""Moves generations between their partition's jobs and lanes, and reads the lanes.

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
from ingest.scheduler import ModelFailures, Part, Scheduler, Task
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import NotFound, Refused, Unavailable
from vicinage.log import TopicPartition
from vicinage.telemetry import events

IN_FLIGHT: Final = 2
"""Jobs of one lane that are not written yet, while its model is available."""
LOG_RETRY_S: Final = 0.5
"""Seconds until a lane is read again after the log was unavailable."""
CHECK_S: Final = 0.1
"""Seconds between checks for partitions whose first job waits too long."""
LANE_READERS: Final = 4
LANE_READS_MAX: Final = 8
"""Reads of lanes that run or are queued at once; LANE_READS_OF_ONE_MAX per tenant."""
LANE_READS_OF_ONE_MAX: Final = 2
HALTED_S: Final = 60.0
"""Seconds until a lane is read again if the log no longer has its records."""

_event = events("ingest")


class LaneScheduler:
    """Moves generations between their partition's jobs and lanes. One thread, unless stated.

    `routed` has each partition's offset up to which records are queued as its jobs, or left to
    lanes.
    """

    def __init__(
        self,
        lane_registry: LaneRegistry,
        scheduler: Scheduler,
        lock: threading.Lock,
        registry: Registry,
        clock: Clock,
        routed: Mapping[TopicPartition, int],
        *,
        complete_without_model: Callable[[Iterable[Part]], None],
        write_ready: Callable[[Hashable], None],
        check: Callable[[Task, float], None],
    ) -> None:
        self._lane_registry = lane_registry
        self._scheduler = scheduler
        self._lock = lock
        self._registry = registry
        self._clock = clock
        self._routed = routed
        self._complete_without_model = complete_without_model
        self._write_ready = write_ready
        self._check = check
        self._heads = lanes.Heads()
        self._gates: dict[TopicPartition, threading.RLock] = {}
        self._checked_at = -1e9
        self._seen_versions = (-1, -1)
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

    def n_behind(self) -> int:
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
        self._discard(self._lane_registry.forget(tp))

    def detach_early(self, job: Job) -> None:
        """Opens lanes for generations whose writes must not enter the partition's queue.

        After Unavailable, the caller routes the job again.
        """
        job.detached = frozenset(self._lane_registry.of(job.tp))
        needs = job.needs()
        with self._lock:
            failures = {
                n.generation.model: self._scheduler.failures((job.tenant.name, n.generation.model))
                for n in needs.values()
            }
        found = lanes.detached_at_once(job, needs, failures, self._clock.monotonic())
        for target, need in found.items():
            known = failures[need.generation.model]
            self._lane_registry.open(
                job.tenant,
                job.tp,
                {target: need},
                state="unavailable" if known else "behind",
                reason=known.reason if known else "building",
            )
        job.detached |= frozenset(found)

    def update(self) -> None:
        """Detaches generations that block their partition, and drops lanes of retired generations.

        Continues reading the other lanes.
        """
        if (
            versions := (self._registry.version, self._lane_registry.changes)
        ) != self._seen_versions:
            self._release_gone()
            self._seen_versions = versions
        now = self._clock.monotonic()
        if now - self._checked_at >= CHECK_S:
            self._checked_at = now
            self._check_heads(now)
        self._read_lanes()

    def _release_gone(self) -> None:
        """Discards work for deleted collections and for retired or canceled generations."""
        gone = [
            lane
            for lane in self._lane_registry
            if not lanes.is_serving(self._registry, lane.tenant, lane.target)
        ]
        if gone:
            self._lane_registry.drop(gone)
            self._discard(gone)
        with self._lock:
            waiting = {tp: self._scheduler.tasks(tp) for tp in self._scheduler.partitions()}
        for tp, tasks in waiting.items():
            tenant = tasks[0].job.tenant
            targets = {target for task in tasks for target in task.needs}
            retired = frozenset(
                t for t in targets if not lanes.is_serving(self._registry, tenant, t)
            )
            if retired:
                with self._held(tp) as held:
                    if held:
                        self._skip(tp, retired)

    def _discard(self, gone: Sequence[Lane]) -> None:
        with self._lock:
            for lane in gone:
                self._scheduler.discard(lane)

    def _check_heads(self, now: float) -> None:
        """Detaches generations that block a partition's first job.

        Records in the catalog which lanes wait for an unavailable model.
        """
        with self._lock:
            heads = {task.source: task for task in self._scheduler.heads() if not task.ready()}
        waited = self._heads.update(heads, now)
        for source, head in heads.items():
            with self._lock:
                pending = {
                    m: self._scheduler.failures(p.share)
                    for m, p in list(head.parts.items())
                    if not p.ready
                }
            if isinstance(source, Lane):
                self._mark_unavailable(source, head, pending, now)
            elif waited[source] >= lanes.SLOW_S or any(
                lanes.is_unavailable(known, now) for known in pending.values()
            ):
                self._detach(head, pending, waited[source], now)

    def _mark_unavailable(
        self, lane: Lane, head: Task, pending: dict[str | None, ModelFailures | None], now: float
    ) -> None:
        known = pending.get(lane.row.model)
        if known is None or not lanes.is_unavailable(known, now):
            return
        if not lane.reading:
            # Read again once the model is available: no backlog is kept.
            lane.reads_batches, lane.unparsed = False, None
        if lane.row.state != "unavailable":
            first = min((need.first for need in head.needs.values()), default=lane.row.position)
            self._lane_registry.move(
                lane, max(lane.row.position, first), "unavailable", known.reason
            )

    def _detach(
        self,
        head: Task,
        pending: dict[str | None, ModelFailures | None],
        waited_s: float,
        now: float,
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
                needs = [task.needs for task in self._scheduler.tasks(job.tp)]
            found = lanes.blocked(needs, pending, waited_s=waited_s, now=now, serving=serving)
            if not found:
                return
            self._check(head, 0.0)
            known = next((k for k in pending.values() if k is not None), None)
            self._lane_registry.open(
                job.tenant,
                job.tp,
                found,
                state="unavailable" if known else "behind",
                reason=known.reason if known else "slow",
            )
            self._skip(job.tp, frozenset(found))

    @contextmanager
    def _held(self, tp: TopicPartition) -> Iterator[bool]:
        """Pauses writes of the partition in the block.

        Yields False, without a pause, if a write is in progress.
        """
        with self.gate(tp):
            with self._lock:
                held = self._scheduler.hold(tp)
            try:
                yield held
            finally:
                if held:
                    with self._lock:
                        self._scheduler.release(tp)
        if held:
            self._write_ready(tp)

    def _skip(self, tp: TopicPartition, targets: frozenset[Target]) -> None:
        with self._lock:
            renewed = self._scheduler.skip(tp, targets)
        self._complete_without_model(renewed)
        with self._lock:
            for part in renewed:
                if not part.ready:
                    self._scheduler.offer(part)

    def _read_lanes(self) -> None:
        """Continues reading lanes that have room; closes those that have caught up."""
        for read in [read for read in self._reads if read.done()]:
            self._reads.pop(read).reading = False
            read.result()
        reads = Counter(lane.tenant.name for lane in self._reads.values())
        now = self._clock.monotonic()
        for lane in self._lane_registry.in_turn():
            if lane.reading or lane.rest_until > now:
                continue
            routed, waiting = self._routed.get(lane.tp, 0), self._scheduler.of(lane)
            if self._has_caught_up(lane):
                self._reattach(lane)
            elif lane.read < routed and waiting < (IN_FLIGHT if lane.reads_batches else 1):
                if (
                    len(self._reads) >= LANE_READS_MAX
                    or reads[lane.tenant.name] >= LANE_READS_OF_ONE_MAX
                ):
                    continue
                lane.reading = True
                reads[lane.tenant.name] += 1
                self._lane_registry.move_to_end(lane)
                self._reads[self._readers.submit(self._read_lane, lane, routed)] = lane

    def _reattach(self, lane: Lane) -> None:
        """Closes the lane, unless its generation always has one."""
        collection = self._registry.collection(lane.tenant.name, lane.row.collection)
        if lanes.needs_own_lane(collection.generation(lane.row.generation), collection):
            return
        with self.gate(lane.tp):
            if self._has_caught_up(lane):  # the gate prevents routing until it is closed
                self._lane_registry.close(lane)

    def _has_caught_up(self, lane: Lane) -> bool:
        routed, waiting = self._routed.get(lane.tp, 0), self._scheduler.of(lane)
        return lanes.caught_up(
            read=lane.read, written=lane.row.position, routed=routed, waiting=waiting
        )

    def _read_lane(self, lane: Lane, until: int) -> None:
        """Appends the lane's next job to its queue. Runs on a lane reader's thread."""
        try:
            job = self._lane_registry.next_job(lane, until)
        except Refused as refused:
            _event.error(
                "lane.halted", topic=lane.tp[0], partition=lane.tp[1], reason=refused.detail
            )
            lane.rest_until = self._clock.monotonic() + HALTED_S
            return
        except (Unavailable, NotFound) as error:
            _event.warning("lane.read_failed", reason=str(error))
            lane.rest_until = self._clock.monotonic() + LOG_RETRY_S
            return
        if job is None:
            return
        task = Task(job, time.perf_counter(), lane)
        self._complete_without_model(task.parts.values())
        with self._lock:
            if lane.over:
                return
            lane.read = job.end
            self._scheduler.add(task)
        self._write_ready(lane)
