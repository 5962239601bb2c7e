"""Reindex: build a collection's next generation beside the live one while writes go on, then cut over atomically.

A job only moves forward, one stored step at a time, so that a kill anywhere loses at most the step under way:

    pending   make generation N+1; note B, the end of the tenant's documents log
    waiting   until ingest has committed B: from there on N+1 receives every write itself
    building  copy what N holds, part by part, into segments of N+1; rows that N+1 got meanwhile have higher versions and win
    ready     cut over: N+1 is live, N retires
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from indexer.backends import choose
from indexer.index.objects import Damaged
from indexer.index.rows import document_runs, newest, no_deletes
from indexer.seal import Builder
from indexer.vectors_log import readable_rows
from tenants.entities import Collection, Generation, Group, Job, Lease, Manifest, SegmentRef
from tenants.jobs import ENDED, Jobs
from tenants.provisioning import VECTORS_TOPIC, placer
from tenants.registry import Registry
from vicinage.errors import Conflict, NotFound, Overloaded, Refused, Unavailable, VicinageError
from vicinage.faults import crash_point
from vicinage.log import Log, read_between
from vicinage.records import Floats, ShardId
from vicinage.routing import shard_of
from vicinage.telemetry import events
from vicinage.vectors import unit_length
from vicinage.wire import deletions_schema, rows_key, vector_column, vectors_schema

PART_PASSAGES: Final = 20_000
EMBED_TEXTS: Final = 512
EMBED_TRIES: Final = 60
ACTOR: Final = "indexer"
_event = events("indexer")


class EmbedTexts(Protocol):
    """How passages are embedded again when the model changes."""

    def __call__(self, model: str, texts: Sequence[str], tenant: str) -> Floats:
        """float32 [n, d]."""
        ...


class Reindex:
    """Moves reindex jobs on.

    `lease(slot)` is the lease under which a slot's manifests are swapped.
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
        self._embed = embed
        self._lease = lease
        self._stopping = stopping

    def advance(self, job: Job) -> None:
        """Do the job's next step and store it.

        What cannot be mended by waiting ends the job as failed, with the reason.

        Raises Unavailable only when not even that could be stored.
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
            self._tidy(job)
        except Damaged as damaged:
            if self._builder.manifests.quarantine.is_stuck(damaged.path):
                self._fail(job, damaged)
            else:
                _event.warning("reindex.blocked", job=job.id, reason=str(damaged))
        except VicinageError as error:
            self._fail(job, error)

    def _tidy(self, job: Job) -> None:
        """Gives up what this step made after the job was ended by another."""
        current = self._jobs.get(job.id)
        if current.state in ENDED and current.state != "done":
            abandon(self._registry, current)

    def _begin(self, job: Job) -> None:
        collection = collection_of(self._registry, job)
        if (
            "above" not in job.barrier
        ):  # noted first: after a kill, a generation above it is known as this job's own
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
        """Whether the topic was deleted and created again: the positions that are waited for may never come."""
        ends = self._ends(topic)
        return any(end > ends.get(partition, 0) for partition, end in barrier.items())

    def _add(self, job: Job) -> Generation:
        live = self._live(job)
        model = job.model or live.model
        if model != live.model and live.model is None:
            raise Refused(
                "this collection's tenant sends vectors: its model cannot be changed here",
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
            # what is copied below must have all that the new generation does not receive itself
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
            rows = self._rows(shard, live, job.barrier["vectors"][str(shard.slot)])
            todo = rows.filter(
                pa.array(
                    np.array([i > after for i in rows.column("document_id").to_pylist()], np.bool_)
                )
            )
            done_before = job.done
            for part in _parts(todo):
                self._write_part(part, live, new, job.tenant)
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
            self._new(job)  # refused where it was given up meanwhile: no waiting brings it back
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
        """Whether the new generation has what the live one has: searches would miss what its lanes still owe."""
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
        with suppress(Conflict):  # another ended it first
            abandon(self._registry, current)
            if current.state not in ENDED:
                self._jobs.advance(current, state="failed", error=str(error))

    def _new(self, job: Job) -> Generation:
        try:
            return collection_of(self._registry, job).generation(job.generation)
        except KeyError:
            raise Refused(f"generation {job.generation} was given up meanwhile") from None

    def _live(self, job: Job) -> Generation:
        return collection_of(self._registry, job).generation()

    def _rows(self, shard: ShardId, generation: Generation, end: int) -> pa.RecordBatch:
        """Everything the shard holds as of `end`: living rows, by document id."""
        manifest = self._builder.current(shard, generation)
        batches = [pa.RecordBatch.from_pylist([], schema=vectors_schema(generation.dimension))]
        for segment in self._builder.loading().segments(
            shard, manifest.segments, generation.metric
        ):
            batches.extend([segment.rows, _deletions(segment.deleted, segment.version)])
        name = rows_key(shard.tenant, shard.collection, shard.generation)
        logged = read_between(self._log, VECTORS_TOPIC, shard.slot, manifest.sealed, end)
        batches.extend(
            readable_rows((s for s in logged if s.record.key == name), generation.dimension)
        )
        live, _ = newest(batches)
        return live

    def _write_part(
        self, part: pa.RecordBatch, live: Generation, new: Generation, tenant: str
    ) -> None:
        if new.model != live.model:
            part = self._embedded_again(part, new, tenant)
        ids = part.column("document_id").to_pylist()
        homes = np.array([shard_of(i, len(new.slots)) for i in ids], np.int64)
        for place, shard in enumerate(new.shards()):
            rows = part.filter(pa.array(homes == place))
            if rows.num_rows:
                lease = self._lease(shard.slot)
                with self._builder.written(shard, new, rows, no_deletes(), lease) as segment:
                    self._builder.publish(shard, new, lease, partial(_with, segment))

    def _embedded_again(self, part: pa.RecordBatch, new: Generation, tenant: str) -> pa.RecordBatch:
        texts = part.column("text").to_pylist()
        if self._embed is None or new.model is None or any(t is None for t in texts):
            raise Refused("some passages have no text to embed with the new model", field="model")
        calls = range(0, len(texts), EMBED_TEXTS)
        vectors = np.concatenate(
            [self._patiently(new, texts[i : i + EMBED_TEXTS], tenant) for i in calls]
        )
        columns = [part.column(name) for name in part.schema.names[:-1]]
        vectors = unit_length(vectors, new.metric)
        return pa.RecordBatch.from_arrays(
            [*columns, vector_column(vectors)], schema=vectors_schema(new.dimension)
        )

    def _patiently(self, new: Generation, texts: Sequence[str], tenant: str) -> Floats:
        """Embed; a full queue is waited out a while, so that a part of many calls gets through a busy embedder.

        Raises Conflict once the generation is given up: a job that was canceled asks for no more.
        """
        assert self._embed is not None
        assert new.model is not None
        for _ in range(EMBED_TRIES):
            self._check_wanted(new)
            try:
                return _checked(self._embed(new.model, texts, tenant), new, len(texts))
            except Overloaded as busy:
                if self._stopping.wait(busy.retry_after_s):
                    raise
        return _checked(self._embed(new.model, texts, tenant), new, len(texts))

    def _check_wanted(self, new: Generation) -> None:
        self._registry.refresh()
        found = self._registry.collection(new.tenant, new.collection)
        if all(g.number != new.number for g in found.generations):
            raise Conflict(f"generation {new.number} was given up meanwhile")


def start(
    registry: Registry,
    jobs: Jobs,
    tenant: str,
    collection: str,
    *,
    index: str,
    model: str | None,
    shards: int,
    actor: str,
) -> Job:
    """Ask for a reindex. Raises NotFound, Refused, and Conflict while another is under way."""
    registry.refresh()
    found = registry.collection(tenant, collection)
    live = found.generation()
    choose(index or live.index, 1, flat_max=1)
    if model is not None:
        if registry.model(model).retired:
            raise Refused(f"model {model} is retired: name another one", field="model")
        if live.model is None:
            raise Refused(
                "this collection's tenant sends vectors: it has no model to change", field="model"
            )
    return jobs.create(
        tenant,
        collection,
        index=index or live.index,
        model=model,
        shards=shards or len(live.slots),
        uid=found.uid,
        actor=actor,
    )


def collection_of(registry: Registry, job: Job) -> Collection:
    """Returns the collection that the job rebuilds.

    Raises NotFound where it is gone, even if another has its name.
    """
    found = registry.collection(job.tenant, job.collection)
    if job.uid not in ("", found.uid):
        raise NotFound(f"collection {job.collection!r} was deleted, and created again")
    return found


def cancel(registry: Registry, jobs: Jobs, job_id: str, *, actor: str) -> Job:
    """End a job that has not cut over; its generation is given up and its objects swept.

    Raises Conflict when it has ended.
    """
    job = jobs.get(job_id)
    if job.state in ("done", "failed", "canceled"):
        raise Conflict(f"reindex {job_id} has ended: {job.state}", found=job.state)
    ended = jobs.cancel(job, actor=actor)
    abandon(registry, ended)
    if job.generation is not None and _is_live(registry, job):
        raise Conflict(
            f"reindex {job_id} had just cut over: generation {job.generation} is live", found="live"
        )
    return ended


def _is_live(registry: Registry, job: Job) -> bool:
    try:
        return collection_of(registry, job).live == job.generation
    except NotFound:
        return False


def abandon(registry: Registry, job: Job) -> None:
    """Mark the generation that the job made failed, if it made one and it is not live.

    The gateway that cancels a job and the indexer that works on it both do: the second finds it
    done.
    """
    registry.refresh()
    try:
        collection = collection_of(registry, job)
    except NotFound:
        return
    for g in collection.generations:
        if g.number != collection.live and g.number > job.barrier.get("above", g.number):
            with suppress(
                Conflict, NotFound
            ):  # it has ended, or gone with its collection, since the refresh
                registry.set_generation_state(
                    job.tenant, job.collection, g.number, "failed", actor=ACTOR
                )


def _with(segment: SegmentRef, manifest: Manifest) -> tuple[SegmentRef, ...]:
    return (*manifest.segments, segment)


def _checked(vectors: Floats, new: Generation, n: int) -> Floats:
    """Returns what a model answered.

    Raises Refused where it is not `n` finite vectors of the generation's dimension.
    """
    if np.shape(vectors) != (n, new.dimension):
        found = " x ".join(str(size) for size in np.shape(vectors)) or "no"
        raise Refused(
            f"model {new.model} answered {found} numbers to {n} texts of {new.dimension}",
            field="model",
        )
    if not np.isfinite(vectors).all():
        raise Refused(f"model {new.model} answered a vector that is not finite", field="model")
    return vectors


def _deletions(deleted: Any, version: Any) -> pa.RecordBatch:
    """Returns a segment's deletions as rows, so that `newest` weighs them too."""
    rows = [
        {"document_id": name, "version": int(version[place]), "event_time_ms": 0, "passage": -1}
        for place, name in deleted.items()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=deletions_schema())


def _parts(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Runs of about PART_PASSAGES rows, whole documents each, in order of document id."""
    runs = document_runs(rows.column("document_id").to_pylist(), rows.column("version").to_numpy())
    start = 0
    for _, end in runs:
        if end - start >= PART_PASSAGES:
            yield rows.slice(start, end - start)
            start = end
    if start < rows.num_rows:
        yield rows.slice(start)
