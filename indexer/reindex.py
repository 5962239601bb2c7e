"""Reindex: builds a collection's next generation beside the live one while writes continue.

A job only moves forward, one stored step at a time. So a kill loses at most the current step:

    pending   create generation N+1; record B, the end of the tenant's documents log
    waiting   until ingest has committed B: from there on N+1 receives every write itself
    building  copy the rows of N, part by part, into segments of N+1; rows that N+1 received
              meanwhile have higher versions and win
    ready     cut over atomically: N+1 becomes live, N retires
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from indexer.index.objects import Damaged
from indexer.reindex_copy import EmbedTexts, GenerationCopy, parts, rows_after
from indexer.reindex_jobs import ACTOR, abandon, collection_of
from indexer.seal import Builder
from tenants.entities import Generation, Group, Job, Lease
from tenants.jobs import ENDED, Jobs
from tenants.provisioning import VECTORS_TOPIC, placer
from tenants.registry import Registry
from vicinage.errors import Conflict, Overloaded, Refused, Unavailable, VicinageError
from vicinage.faults import crash_point
from vicinage.log import Log
from vicinage.records import ShardId
from vicinage.telemetry import events

_event = events("indexer")


class Reindex:
    """Advances reindex jobs.

    `lease(slot)` returns the lease under which a slot's manifests are swapped.
    """

    def __init__(
        self,
        log: Log,
        registry: Registry,
        jobs: Jobs,
        builder: Builder,
        slots_total: int,
        embed: EmbedTexts | None,
        lease: Callable[[int], Lease],
        stopping: threading.Event,
    ) -> None:
        self._log = log
        self._registry = registry
        self._jobs = jobs
        self._builder = builder
        self._slots_total = slots_total
        self._stopping = stopping
        self._copy = GenerationCopy(log, registry, builder, embed, lease, stopping)

    def advance(self, job: Job) -> None:
        """Does the job's next step and stores it.

        An error that waiting cannot resolve ends the job as failed, with the reason. Raises
        Unavailable only if that cannot be stored either.
        """
        step = {
            "pending": self._begin,
            "waiting": self._wait,
            "building": self._build,
            "ready": self._cut_over,
        }[job.state]
        self._registry.refresh()
        try:
            step(job)
        except (Unavailable, Overloaded) as later:
            _event.warning("reindex.waited", job=job.id, reason=str(later))
        except Conflict as moved:
            _event.warning("reindex.waited", job=job.id, reason=str(moved))
            self._abandon_if_ended(job)
        except Damaged as damaged:
            if self._builder.manifests.quarantine.is_stuck(damaged.path):
                self._fail(job, damaged)
            else:
                _event.warning("reindex.blocked", job=job.id, reason=str(damaged))
        except VicinageError as error:
            self._fail(job, error)

    def _abandon_if_ended(self, job: Job) -> None:
        """Abandons the generation that this step made if another process has ended the job."""
        current = self._jobs.get(job.id)
        if current.state in ENDED and current.state != "done":
            abandon(self._registry, current)

    def _begin(self, job: Job) -> None:
        collection = collection_of(self._registry, job)
        # Stored first: after a kill, a generation above it is known to be this job's own.
        if "above" not in job.barrier:
            job = self._jobs.advance(
                job, barrier={"above": max(g.number for g in collection.generations)}
            )
        started = [g for g in collection.generations if g.number > job.barrier["above"]]
        generation = started[-1] if started else self._add(job)
        crash_point("reindex.after_generation")
        # Read after the generation is in the catalog: every record from here on reaches it
        # (docs/concepts/architecture.md, Reindex).
        ends = self._ends(self._registry.tenant(job.tenant).documents_topic)
        self._jobs.advance(
            job,
            state="waiting",
            generation=generation.number,
            barrier={**job.barrier, "documents": ends},
        )

    def _ends(self, topic: str) -> dict[str, int]:
        return {
            str(p): self._log.end(topic, p) for p in range(self._log.topics(topic).get(topic, 0))
        }

    def _is_topic_new(self, topic: str, barrier: Mapping[str, int]) -> bool:
        """Returns whether the topic was deleted and created again.

        Ingest may never reach the positions of the barrier then.
        """
        ends = self._ends(topic)
        return any(end > ends.get(partition, 0) for partition, end in barrier.items())

    def _add(self, job: Job) -> Generation:
        live = self._live(job)
        model = job.model or live.model
        if model != live.model and live.model is None:
            raise Refused(
                "this collection's tenant sends vectors, so its model cannot be changed; leave the "
                "model out",
                field="model",
            )
        dimension = self._registry.model(model).dimension if model else live.dimension
        return self._registry.add_generation(
            job.tenant,
            job.collection,
            index=job.index or live.index,
            model=model,
            dimension=dimension,
            place=placer(
                self._log,
                job.tenant,
                job.collection,
                job.shards or len(live.slots),
                self._slots_total,
            ),
            uid=job.uid,
            actor=ACTOR,
        )

    def _wait(self, job: Job) -> None:
        topic = self._registry.tenant(job.tenant).documents_topic
        if self._is_topic_new(topic, job.barrier["documents"]):
            self._jobs.advance(job, barrier={**job.barrier, "documents": self._ends(topic)})
            return
        for partition, end in job.barrier["documents"].items():
            reached = (
                self._log.wait_committed(Group.INGEST, topic, int(partition), end - 1, wait_s=0.5)
                if end
                else True
            )
            if not reached:
                return
        live = self._live(job)
        lanes = self._registry.lanes.of(
            job.tenant, job.collection, [live.number, self._new(job).number]
        )
        if any(
            lane.position < job.barrier["documents"].get(str(lane.partition), 0) for lane in lanes
        ):
            # The copy must include every row that the new generation does not receive itself.
            return
        ends = {str(slot): self._log.end(VECTORS_TOPIC, slot) for slot in live.slots}
        total = sum(
            s.n_passages
            for shard in live.shards()
            for s in self._builder.current(shard, live).segments
        )
        self._jobs.advance(
            job,
            state="building",
            barrier={**job.barrier, "vectors": ends, "after": {}},
            total=total,
        )

    def _build(self, job: Job) -> None:
        live, new = self._live(job), self._new(job)
        for shard in live.shards():
            after = job.barrier["after"].get(str(shard.slot), "")
            if after is None:
                continue
            rows = self._copy.rows(shard, live, job.barrier["vectors"][str(shard.slot)])
            todo = rows_after(rows, after)
            done_before = job.done
            for part in parts(todo):
                self._copy.write(part, live, new, job.tenant)
                crash_point("reindex.after_part")
                last = part.column("document_id")[part.num_rows - 1].as_py()
                job = self._progress(job, shard, last, part.num_rows, done_before + rows.num_rows)
                if self._stopping.is_set():
                    return
            job = self._progress(job, shard, None, 0, job.done)
        self._registry.set_generation_state(
            job.tenant, job.collection, new.number, "ready", actor=ACTOR
        )
        crash_point("reindex.after_ready")
        self._jobs.advance(job, state="ready", total=job.done)

    def _progress(self, job: Job, shard: ShardId, last: str | None, n: int, total: int) -> Job:
        after = {**job.barrier["after"], str(shard.slot): last}
        return self._jobs.advance(
            job,
            barrier={**job.barrier, "after": after},
            done=job.done + n,
            total=max(job.total, total),
        )

    def _cut_over(self, job: Job) -> None:
        assert job.generation is not None
        if collection_of(self._registry, job).live != job.generation:
            self._new(job)  # raises Refused if it was abandoned: waiting cannot help then
            if not self._has_caught_up(job):
                return
            self._registry.cut_over(job.tenant, job.collection, job.generation, actor=ACTOR)
        crash_point("reindex.after_cut_over")
        self._jobs.advance(job, state="done")
        _event.info(
            "reindex.finished",
            job=job.id,
            tenant=job.tenant,
            collection=job.collection,
            generation=job.generation,
        )

    def _has_caught_up(self, job: Job) -> bool:
        """Returns whether the new generation has all rows of the live one.

        Searches would miss the rows that its ingest lanes have not written yet.
        """
        topic = self._registry.tenant(job.tenant).documents_topic
        partitions = [(topic, int(p)) for p in job.barrier["documents"]]
        committed = self._log.committed(Group.INGEST, partitions)
        lanes = self._registry.lanes.of(job.tenant, job.collection, [self._new(job).number])
        behind = [x for x in lanes if x.position < committed.get((topic, x.partition), 0)]
        for lane in behind:
            _event.info(
                "reindex.waited",
                job=job.id,
                model=lane.model,
                partition=lane.partition,
                state=lane.state,
            )
        return not behind

    def _fail(self, job: Job, error: VicinageError) -> None:
        _event.error("reindex.failed", job=job.id, reason=str(error))
        current = self._jobs.get(job.id)
        with suppress(Conflict):  # another process ended it first
            abandon(self._registry, current)
            if current.state not in ENDED:
                self._jobs.advance(current, state="failed", error=str(error))

    def _new(self, job: Job) -> Generation:
        try:
            return collection_of(self._registry, job).generation(job.generation)
        except KeyError:
            raise Refused(
                f"generation {job.generation} was abandoned; start the reindex again"
            ) from None

    def _live(self, job: Job) -> Generation:
        return collection_of(self._registry, job).generation()
