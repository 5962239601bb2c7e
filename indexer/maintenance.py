"""What the indexer does beside sealing: repair, compaction and the scrub, one at a time on a worker thread; jobs beside them; sweeping; trimming the log.

Nothing here is urgent. A kill loses at most the work under way: what was published stays, the rest becomes orphans.
"""

import threading
from collections.abc import Callable, Container, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from indexer.compact import compact
from indexer.documents_trim import DocumentsTrim
from indexer.forgetting import Passed, Seen, is_past, passed
from indexer.reindex import Reindex
from indexer.repair import Repair
from indexer.scrub import Scrub
from indexer.seal import Builder
from indexer.superseded import Superseded
from indexer.trim import Trim
from tenants.entities import Generation, Group, Job, Lease, Manifest
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

SWEEP_EVERY_S: Final = 60.0
LOG_EVERY_S: Final = 10.0
"""Between two looks at what of the vectors log is needed; longer where a look takes long."""
LOG_LOOK_SHARE: Final = 50
"""At most one part in so many of the time is spent on these looks."""
LOOKS_FOR_OVERDUE: Final = 8
"""Within `erase_s`; each reads every manifest, and the segments of shards that have old ones."""
JOBS_AT_ONCE: Final = 4
"""Reindexes that embed anew with different models, and one that copies vectors, at once."""
AGAIN_S: Final = (5.0, 300.0)
"""The least and the most wait before a compaction that failed is tried anew."""

_event = events("indexer")
_compactions = counter("vicinage_indexer_compactions_total")


class Maintenance:
    """Keeps shards compact, jobs moving and the store clean.

    One thread calls `step`; the worker is a thread of its own.
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
        self._again: dict[ShardId, tuple[float, float]] = {}
        """Those whose compaction failed: when to try anew, and after what wait."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="indexer-worker")
        self._working: Future[None] | None = None
        self._job_workers = ThreadPoolExecutor(JOBS_AT_ONCE, thread_name_prefix="indexer-job")
        self._jobs_under_way: dict[str, Future[None]] = {}
        """By bulkhead (`_bulkhead`)."""
        self._turn = 0
        self._passed: dict[tuple[str, str, int], Passed] = {}
        self._swept = self._overdue_looked = self._log_due = -1e9
        self._repair = Repair(log, registry, builder, lease, clock)
        self._scrub = Scrub(builder, clock)
        self._trim = Trim(log, slots_total, builder.settings, clock)
        self._documents = DocumentsTrim(log, registry, builder.settings, clock)

    def compact_soon(self, shards: Iterable[ShardId]) -> None:
        """Have the worker see whether these have segments to merge. Safe for several threads."""
        wanted = dict.fromkeys(shards)
        with self._lock:
            self._to_compact |= wanted

    def step(self, *, leading: bool) -> None:
        """Give the workers their next work, sweep and trim when it is time.

        `leading`: jobs, orphans, the log's length are this one's.
        """
        self._look_for_overdue()
        self._work()
        self._work_on_jobs(leading=leading)
        self._superseded.step()
        if leading:
            self._sweep()
            self._look_at_log()
            self._trim.step()
            self._documents.step()
        else:
            self._trim.forget()
            self._documents.forget()

    def settle(self, wait_s: float = 20.0) -> None:
        """Wait until the workers' present work is done; raises what it raised. For tests."""
        for work in (self._working, *self._jobs_under_way.values()):
            if work is not None:
                work.result(wait_s)

    def stop(self) -> None:
        """End the workers once their present work is done."""
        for workers in (self._worker, self._job_workers):
            workers.shutdown(wait=True, cancel_futures=True)

    # the worker threads: maintenance one thing at a time, and jobs beside it

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
        """What answers depend on first; the scrub only when there is nothing else."""
        slots = self._slots()
        return self._repair.next(slots) or self._next_compaction() or self._scrub.next(slots)

    def _slots(self) -> frozenset[int]:
        """Those whose lease is held here."""
        return frozenset(slot for slot in range(self._slots_total) if self._holds(slot))

    def _holds(self, slot: int) -> bool:
        try:
            self._lease(slot)
        except Conflict:
            return False
        return True

    def _next_compaction(self) -> Callable[[], None] | None:
        now = self._clock.monotonic()
        self.compact_soon([shard for shard, (due, _) in self._again.items() if due <= now])
        while (shard := self._first_to_compact()) is not None:
            generation = generation_of(self._registry, shard)
            if generation is not None:
                return partial(self._compact, shard, generation)
            self._again.pop(shard, None)
        return None

    def _first_to_compact(self) -> ShardId | None:
        with self._lock:
            shard = next(iter(self._to_compact), None)
            if shard is not None:
                del self._to_compact[shard]
            return shard

    def _work_on_jobs(self, *, leading: bool) -> None:
        """Starts the next step of jobs, one a bulkhead at a time: a model's server that hangs holds the jobs of that model alone."""
        for bulkhead, work in list(self._jobs_under_way.items()):
            if work.done():
                del self._jobs_under_way[bulkhead]
                work.result()
        jobs = (
            self._jobs.list(open_only=True)
            if leading and len(self._jobs_under_way) < JOBS_AT_ONCE
            else ()
        )
        self._turn += 1  # in turn: one that waits long holds up none
        for i in range(len(jobs)):
            job = jobs[(self._turn + i) % len(jobs)]
            if (
                len(self._jobs_under_way) < JOBS_AT_ONCE
                and _bulkhead(job) not in self._jobs_under_way
            ):
                self._jobs_under_way[_bulkhead(job)] = self._job_workers.submit(self._advance, job)

    def _advance(self, job: Job) -> None:
        self._reindex.advance(job)
        if (
            job.state == "building"
        ):  # what was copied part by part becomes one before it is searched
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
            self._try_later(shard)
            return
        except VicinageError as error:
            _event.error("compaction.failed", shard=str(shard), reason=str(error))
            self._try_later(shard)
            return
        self._again.pop(shard, None)
        if done is not None:
            _compactions.inc()
            _event.info("shard.compacted", shard=str(shard), segments=len(done.segments))
            self.compact_soon([shard])  # until there is nothing left to gain

    def _look_for_overdue(self) -> None:
        """Has the worker see whether old segments of the slots held here hold rows that are deleted (`compact.pick`)."""
        now, erase_s = self._clock.monotonic(), self._builder.settings.erase_s
        if now < self._overdue_looked + erase_s / LOOKS_FOR_OVERDUE:
            return
        self._overdue_looked = now
        _, manifests = self._manifests.changed_since(0, self._slots())
        before_ms = self._clock.now_ms() - 1_000 * erase_s
        self.compact_soon(
            m.shard
            for m in manifests
            if len(m.segments) > 1 and min(s.created_ms for s in m.segments) <= before_ms
        )

    def _try_later(self, shard: ShardId) -> None:
        """What was due stays due, as long as the shard is this indexer's."""
        _, waited = self._again.pop(shard, (0.0, None))
        if self._holds(shard.slot):
            wait = longer(waited, AGAIN_S)
            self._again[shard] = self._clock.monotonic() + wait, wait

    def forgettable(self, shard: ShardId) -> Callable[[int], bool]:
        """Returns whether no record with a version or a lower one can reach the shard again.

        That is so once ingest, and the lanes of the shard's generation, have long been beyond it in
        every partition. How long, and why that is enough:
        docs/decisions/007-tombstone-removal.md.
        """
        topic = self._registry.tenant(shard.tenant).documents_topic
        tps = [(topic, p) for p in range(self._log.topics(topic).get(topic, 1))]
        committed = self._log.committed(Group.INGEST, tps)
        lanes = self._registry.lanes.of(
            shard.tenant, shard.collection, [shard.generation]
        )  # after what was committed
        seen = Seen(
            committed=tuple(owed_from(lanes, tp[1], committed.get(tp, 0)) for tp in tps),
            ends=tuple(self._log.end(*tp) for tp in tps),
        )
        age_s = self._builder.settings.tombstone_age_s
        key = (shard.tenant, shard.collection, shard.generation)
        known = self._passed[key] = passed(
            self._passed.get(key), seen, now=self._clock.monotonic(), age_s=age_s
        )
        return partial(is_past, known, self._registry.partition_maps(shard.tenant))

    def forget_gone(self, served: Iterable[ShardId]) -> None:
        """Forgets what is known of generations that are served no more."""
        kept = {(s.tenant, s.collection, s.generation) for s in served}
        for key in [key for key in tuple(self._passed) if key not in kept]:
            self._passed.pop(key, None)

    # orphans, and what of the log nobody needs any more

    def _sweep(self) -> None:
        """Deletes objects that no manifest names and that nothing can still be about to name."""
        now = self._clock.monotonic()
        if now - self._swept < SWEEP_EVERY_S:
            return
        self._swept = now
        _, every = self._manifests.changed_since(0, range(self._slots_total))
        # after: the generation of every manifest seen above is seen here, if it is still served
        self._registry.refresh()
        served = serving(self._registry)
        self._forget_gone(every, served)
        age_s = self._builder.settings.orphan_age_s
        gone = self._builder.store.sweep("segments", keep=self._kept, age_s=age_s)
        self._manifests.drafts.forget_stale()
        if gone:
            _event.info("orphans.swept", objects=len(gone))

    def _look_at_log(self) -> None:
        """Sees what of the vectors log is still needed."""
        now = self._clock.monotonic()
        if now < self._log_due:
            return
        _, every = self._manifests.changed_since(0, range(self._slots_total))
        self._registry.refresh()  # after: as in `_sweep`
        self._trim.look(serving(self._registry), every)
        after = self._clock.monotonic()
        self._log_due = after + max(LOG_EVERY_S, LOG_LOOK_SHARE * (after - now))

    def _kept(self) -> "_Kept":
        """The order matters: what leaves the drafts is in a manifest by then, and what leaves those may be in quarantine."""
        pinned = self._manifests.drafts.pinned()
        named = self._manifests.paths()
        return _Kept(named | self._keep_quarantined(), pinned)

    def _keep_quarantined(self) -> set[str]:
        """Objects that were found damaged, but for those that have been kept for long enough: they are forgotten."""
        quarantine = self._manifests.quarantine
        before_ms = self._clock.now_ms() - int(1_000 * self._builder.settings.quarantine_s)
        every = quarantine.every()
        over = [d for d in every if d.state == "replaced" and d.seen_ms <= before_ms]
        for damage in over:
            self._builder.store.delete(damage.path)
            quarantine.forget(damage, actor="indexer", why="its time in quarantine is over")
        return {d.path for d in every if d not in over}

    def _forget_gone(self, every: Iterable[Manifest], served: Container[ShardId]) -> None:
        """Drop the manifests of generations that are retired or failed: their objects become orphans."""
        for manifest in every:
            if manifest.shard not in served:
                self._manifests.drop(manifest.shard)
                self._superseded.add(manifest.segments)
                _event.info("generation.forgotten", shard=str(manifest.shard))


def _bulkhead(job: Job) -> str:
    """Returns what jobs share that may hang: the model that they ask for vectors; "" for those that copy vectors."""
    return job.model or ""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Objects that a sweep keeps: by path, and by the folder of unfinished work."""

    paths: set[str]
    folders: frozenset[str]

    def __contains__(self, path: object) -> bool:
        return path in self.paths or (
            isinstance(path, str) and path.rpartition("/")[0] in self.folders
        )
