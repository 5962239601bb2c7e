"""Maintenance: the indexer's work beside sealing.

Repair, compaction and the scrub run one at a time on a worker thread, and reindex jobs on threads
of their own. The calling thread sweeps the store and trims the logs. A kill loses at most the work
under way: published segments stay, and others become orphans.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

from indexer.compact import compact
from indexer.documents_trim import DocumentsTrim
from indexer.forgetting import Observation, RoundState, after_observation, is_past
from indexer.reindex import Reindex
from indexer.repair import Repair
from indexer.scrub import Scrub
from indexer.seal import Builder
from indexer.superseded import Superseded
from indexer.sweep import Sweep
from indexer.trim import Trim
from tenants.entities import Generation, Group, Job, Lease
from tenants.ingest_lanes import owed_from
from tenants.jobs import Jobs
from tenants.registry import Registry
from tenants.serving import generation_of, serving
from vicinage.clock import Clock, longer
from vicinage.errors import Conflict, VicinageError
from vicinage.log import Log
from vicinage.metrics import counter
from vicinage.records import ShardId
from vicinage.telemetry import events

LOG_EVERY_S: Final = 10.0
"""Time between observations of which part of the vectors log is needed; more if one takes long."""
LOG_TIME_SHARE: Final = 50
"""Observations take at most this fraction (one part in 50) of the time."""
OVERDUE_CHECKS: Final = 8
"""Searches for overdue segments within `erase_s`.

Each reads every manifest, and the segments of shards that have old ones.
"""
JOBS_AT_ONCE: Final = 4
"""Most reindexes at once: of different models each, and one that copies vectors."""
BACKOFF_S: Final = (5.0, 300.0)
"""The shortest and the longest wait before a failed compaction is retried."""

_event = events("indexer")
_compactions = counter("vicinage_indexer_compactions_total")


class Maintenance:
    """Repairs and compacts shards, advances jobs, and cleans up store and logs.

    One thread calls `step`; workers have threads of their own.
    """

    def __init__(
        self,
        log: Log,
        registry: Registry,
        jobs: Jobs,
        builder: Builder,
        superseded: Superseded,
        reindex: Reindex,
        slots_total: int,
        lease: Callable[[int], Lease],
        clock: Clock,
    ) -> None:
        self._log = log
        self._registry = registry
        self._manifests = builder.manifests
        self._jobs = jobs
        self._builder = builder
        self._superseded = superseded
        self._reindex = reindex
        self._slots_total = slots_total
        self._lease = lease
        self._clock = clock
        self._lock = threading.Lock()
        self._to_compact: dict[ShardId, None] = {}
        self._retries: dict[ShardId, tuple[float, float]] = {}
        """Shards whose compaction failed: when to retry (monotonic), and the last wait."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="indexer-worker")
        self._working: Future[None] | None = None
        self._job_workers = ThreadPoolExecutor(JOBS_AT_ONCE, thread_name_prefix="indexer-job")
        self._running_jobs: dict[str, Future[None]] = {}
        """By bulkhead (`_bulkhead`)."""
        self._turn = 0
        self._rounds: dict[tuple[str, str, int], RoundState] = {}
        self._overdue_checked = self._log_due = -1e9
        self._repair = Repair(log, registry, builder, lease, clock)
        self._scrub = Scrub(builder, clock)
        self._sweep = Sweep(registry, builder, superseded, slots_total, clock)
        self._trim = Trim(log, slots_total, builder.settings, clock)
        self._documents = DocumentsTrim(log, registry, builder.settings, clock)

    def compact_soon(self, shards: Iterable[ShardId]) -> None:
        """Queues shards whose segments may have to be merged. Safe for many threads."""
        wanted = dict.fromkeys(shards)
        with self._lock:
            self._to_compact |= wanted

    def step(self, *, leading: bool) -> None:
        """Starts the workers' next work; sweeps and trims if it is due.

        `leading`: whether this indexer is responsible for jobs, orphans and the length of logs.
        """
        self._queue_overdue()
        self._work()
        self._work_on_jobs(leading=leading)
        self._superseded.step()
        if leading:
            self._sweep.step()
            self._observe_log()
            self._trim.step()
            self._documents.step()
        else:
            self._trim.forget()
            self._documents.forget()

    def settle(self, wait_s: float = 20.0) -> None:
        """Waits until the workers' present work is done; raises its errors. For tests."""
        for work in (self._working, *self._running_jobs.values()):
            if work is not None:
                work.result(wait_s)

    def stop(self) -> None:
        """Stops the workers once their present work is done."""
        for workers in (self._worker, self._job_workers):
            workers.shutdown(wait=True, cancel_futures=True)

    # worker threads: one for repair, compaction and the scrub; others for jobs

    def _work(self) -> None:
        if self._working is not None:
            if not self._working.done():
                return
            ended, self._working = self._working, None
            ended.result()
        work = self._next_work()
        if work is not None:
            self._working = self._worker.submit(work)

    def _next_work(self) -> Callable[[], None] | None:
        """Returns the next work: repairs first, the scrub only if nothing else is due."""
        slots = self._slots()
        return self._repair.next(slots) or self._next_compaction() or self._scrub.next(slots)

    def _slots(self) -> frozenset[int]:
        """Returns the slots whose lease is held here."""
        return frozenset(slot for slot in range(self._slots_total) if self._holds(slot))

    def _holds(self, slot: int) -> bool:
        try:
            self._lease(slot)
        except Conflict:
            return False
        return True

    def _next_compaction(self) -> Callable[[], None] | None:
        now = self._clock.monotonic()
        self.compact_soon([shard for shard, (due, _) in self._retries.items() if due <= now])
        while (shard := self._first_to_compact()) is not None:
            generation = generation_of(self._registry, shard)
            if generation is not None:
                return partial(self._compact, shard, generation)
            self._retries.pop(shard, None)
        return None

    def _first_to_compact(self) -> ShardId | None:
        with self._lock:
            shard = next(iter(self._to_compact), None)
            if shard is not None:
                del self._to_compact[shard]
            return shard

    def _work_on_jobs(self, *, leading: bool) -> None:
        """Starts the next steps of jobs, one per bulkhead at a time.

        A model server that hangs thus blocks only the jobs of that model.
        """
        for bulkhead, work in list(self._running_jobs.items()):
            if work.done():
                del self._running_jobs[bulkhead]
                work.result()
        jobs = (
            self._jobs.list(open_only=True)
            if leading and len(self._running_jobs) < JOBS_AT_ONCE
            else ()
        )
        self._turn += 1  # round robin: a job that waits long delays no other
        for i in range(len(jobs)):
            job = jobs[(self._turn + i) % len(jobs)]
            if len(self._running_jobs) < JOBS_AT_ONCE and _bulkhead(job) not in self._running_jobs:
                self._running_jobs[_bulkhead(job)] = self._job_workers.submit(self._advance, job)

    def _advance(self, job: Job) -> None:
        self._reindex.advance(job)
        # The segments of the copied parts are merged before they are searched.
        if job.state == "building":
            every = serving(self._registry)
            self.compact_soon(
                s for s in every if (s.tenant, s.collection) == (job.tenant, job.collection)
            )

    def _compact(self, shard: ShardId, generation: Generation) -> None:
        try:
            manifest = self._builder.current(shard, generation)
            lease = self._lease(shard.slot)
            forgettable, now_ms = self.forgettable(shard), self._clock.now_ms()
            done = compact(
                self._builder, manifest, generation, lease, forgettable=forgettable, now_ms=now_ms
            )
        except Conflict as lost:
            _event.warning("compaction.abandoned", shard=str(shard), reason=str(lost))
            self._retry_later(shard)
            return
        except VicinageError as error:
            _event.error("compaction.failed", shard=str(shard), reason=str(error))
            self._retry_later(shard)
            return
        self._retries.pop(shard, None)
        if done is not None:
            _compactions.inc()
            _event.info("shard.compacted", shard=str(shard), segments=len(done.segments))
            self.compact_soon([shard])  # until no merge is due

    def _queue_overdue(self) -> None:
        """Queues shards of the held slots with segments older than `erase_s`.

        `compact.pick` decides whether these have deleted rows.
        """
        now, erase_s = self._clock.monotonic(), self._builder.settings.erase_s
        if now < self._overdue_checked + erase_s / OVERDUE_CHECKS:
            return
        self._overdue_checked = now
        _, manifests = self._manifests.changed_since(0, self._slots())
        before_ms = self._clock.now_ms() - 1_000 * erase_s
        self.compact_soon(
            m.shard
            for m in manifests
            if len(m.segments) > 1 and min(s.created_ms for s in m.segments) <= before_ms
        )

    def _retry_later(self, shard: ShardId) -> None:
        """Schedules a retry, with exponential backoff, if this indexer still holds the slot."""
        _, waited = self._retries.pop(shard, (0.0, None))
        if self._holds(shard.slot):
            wait = longer(waited, BACKOFF_S)
            self._retries[shard] = self._clock.monotonic() + wait, wait

    def forgettable(self, shard: ShardId) -> Callable[[int], bool]:
        """Returns a predicate: no record with this version or a lower one can arrive again.

        That holds once ingest, and the lanes of the shard's generation, have long been beyond it in
        every partition. docs/decisions/007-tombstone-removal.md states how long, and why
        that is enough.
        """
        topic = self._registry.tenant(shard.tenant).documents_topic
        tps = [(topic, p) for p in range(self._log.topics(topic).get(topic, 1))]
        committed = self._log.committed(Group.INGEST, tps)
        # read after the committed positions: see tenants/ingest_lanes.py
        lanes = self._registry.lanes.of(shard.tenant, shard.collection, [shard.generation])
        seen = Observation(
            committed=tuple(owed_from(lanes, tp[1], committed.get(tp, 0)) for tp in tps),
            ends=tuple(self._log.end(*tp) for tp in tps),
        )
        age_s = self._builder.settings.tombstone_age_s
        key = (shard.tenant, shard.collection, shard.generation)
        known = self._rounds[key] = after_observation(
            self._rounds.get(key), seen, now=self._clock.monotonic(), age_s=age_s
        )
        return partial(is_past, known, self._registry.partition_maps(shard.tenant))

    def forget_gone(self, served: Iterable[ShardId]) -> None:
        """Forgets the observations of generations that are no longer served."""
        kept = {(s.tenant, s.collection, s.generation) for s in served}
        for key in [key for key in tuple(self._rounds) if key not in kept]:
            self._rounds.pop(key, None)

    def _observe_log(self) -> None:
        """Observes which part of the vectors log is still needed."""
        now = self._clock.monotonic()
        if now < self._log_due:
            return
        _, every = self._manifests.changed_since(0, range(self._slots_total))
        self._registry.refresh()  # after the manifests are read, as in `Sweep.step`
        self._trim.observe(serving(self._registry), every)
        after = self._clock.monotonic()
        self._log_due = after + max(LOG_EVERY_S, LOG_TIME_SHARE * (after - now))


def _bulkhead(job: Job) -> str:
    """Returns the dependency that jobs share and that may hang.

    It is the model that embeds their passages, or "" for jobs that copy vectors.
    """
    return job.model or ""
