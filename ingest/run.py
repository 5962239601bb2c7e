"""★ The ingest role: documents log → vectors log.

A record's path is read → parse → validate → chunk → embed → append → commit. This file has it,
in the order of the methods `step`, `_read`, `_parse`, `_route`, `_process` and `_write_ready`.
Tasks wait in queues between these methods, and workers run the last two. Commits follow appends
(guarantee 3): after a crash, the work is done again, and versions make that harmless.

Beside it: `scheduler` decides whose work is next (guarantee 7) and `dispatcher` runs it;
`job_parser` parses; `topics` decides which partitions are read, `partitions` reads them, and
`idle_partitions` and `position_store` keep their positions. `lanes` decides which generations are
written separately from their partition, because their model is unavailable or slow, and
`lane_scheduler` does it.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final

from ingest.dispatcher import Dispatcher
from ingest.embed import Chunker, Vectors
from ingest.embedding import Embedder
from ingest.fencing import Fence
from ingest.heartbeat import Heartbeat
from ingest.idle_partitions import IdlePartitions
from ingest.job_parser import JobParser
from ingest.jobs import Job, jobs_of
from ingest.lane_registry import LaneRegistry, lane_of
from ingest.lane_scheduler import LaneScheduler
from ingest.metrics import count_written
from ingest.partitions import Partitions
from ingest.position_store import PositionStore
from ingest.scheduler import Part, Task
from ingest.topics import Topics
from ingest.workers import Workers
from ingest.writer import Writer
from tenants.positions import PREFIX
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import NotFound, Unavailable
from vicinage.log import Log, LogRecord, TopicPartition
from vicinage.settings import IngestSettings
from vicinage.telemetry import events

STOP_S: Final = 5.0
"""Longest wait of a stop, in seconds, for calls that are in progress."""

_event = events("ingest")


class Ingest:
    """The role. `run` works until it is stopped; the role's state is in the log and the catalog."""

    def __init__(
        self,
        log: Log,
        registry: Registry,
        embedder_for: Callable[[str], Embedder],
        chunker_for: Callable[[str], Chunker],
        settings: IngestSettings,
        clock: Clock,
    ) -> None:
        self._registry, self._settings, self._clock = registry, settings, clock
        self._stopping = threading.Event()
        self._workers = Workers("ingest")
        self._vectors = Vectors(embedder_for, chunker_for, settings.batch_passages, clock)
        self._dispatcher = Dispatcher(
            self._workers, clock, self._stopping, process=self._process, write=self._write_ready
        )
        self._partitions = Partitions(
            log, self._dispatcher.scheduler, settings, clock, self._stopping
        )
        self._positions = PositionStore(
            log, registry.positions, clock, recommit_s=settings.recommit_s
        )
        self._lane_registry = LaneRegistry(registry.lanes, log, registry, settings, clock)
        fence = Fence(log, self._lane_registry, clock, self._stopping)
        self._writer = Writer(log, self._positions, self._lane_registry, fence)
        self._lanes = LaneScheduler(
            self._lane_registry,
            self._dispatcher.scheduler,
            self._dispatcher.lock,
            registry,
            clock,
            self._partitions.routed,
            complete_without_model=self._complete_without_model,
            write_ready=self._write_ready,
            check=fence.check,
        )
        self._parser = JobParser(
            self._partitions, registry, self._workers, self._stopping, route=self._route
        )
        positions = (self._partitions, self._positions, self._lane_registry, self._lanes)
        self._topics = Topics(
            log, registry, settings, clock, *positions, self._parser, self._dispatcher
        )
        self._idle = IdlePartitions(log, registry, *positions)
        self._heartbeat = Heartbeat(log, clock)
        self._checked_at = -1e9

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set. Work in progress is finished, or left for the next start."""
        try:
            while not stop.is_set():
                self.step(wait_s=0.25)
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends its threads; a model call that hangs is abandoned after STOP_S. Idempotent."""
        self._stopping.set()
        self._parser.stop()
        self._lanes.stop()
        self._workers.join(STOP_S)
        self._partitions.reader.close()
        self._positions.close()

    def drain(self, deadline_s: float = 60.0) -> None:
        """Waits until no work is left.

        For tests and for an orderly stop. Raises Unavailable after `deadline_s`.
        """
        end = time.monotonic() + deadline_s
        while self._has_work():
            if time.monotonic() > end:
                raise Unavailable("ingest did not drain in time", dependency="ingest")
            self._proceed()
            time.sleep(0.001)

    def _has_work(self) -> bool:
        with self._dispatcher.lock:
            return bool(
                len(self._dispatcher.scheduler)
                + len(self._partitions.unparsed)
                + self._lanes.n_behind()
            )

    # the path of a record, from the documents log to the vectors log

    def step(self, wait_s: float = 0.0) -> int:
        """Reads new records and starts to parse them; returns their number.

        Raises what a worker raised.
        """
        self._proceed()
        self._check_partitions()
        self._heartbeat.beat()
        records = self._read(wait_s)
        for tp, of_partition in records.items():
            self._parse(tp, of_partition)
        return sum(map(len, records.values()))

    def _read(self, wait_s: float) -> dict[TopicPartition, list[LogRecord]]:
        """Returns new records by partition; waits at most `wait_s`."""
        is_busy = bool(self._parser.partitions()) or self._lanes.reading()
        records = self._partitions.poll(wait_s, self._dispatcher.idle_s(is_busy))
        self._registry.refresh()  # after the poll: see docs/concepts/architecture.md, "Ingest"
        return records

    def _parse(self, tp: TopicPartition, records: Sequence[LogRecord]) -> None:
        """Parses and validates records into jobs.

        `_route` gets each job when the partition's queue has room.
        """
        try:
            # Guarantee 1: the topic determines the tenant of a record.
            tenant = self._registry.tenant(tp[0].removeprefix(PREFIX))
        except NotFound:
            return  # deleted since it was read; `Topics.discover` stops reading it
        self._partitions.positions[tp] = records[-1].offset + 1
        jobs = jobs_of(
            tenant,
            tp,
            records,
            self._registry,
            self._settings,
            read_after=self._partitions.read_after,
            refresh_maps=self._topics.grow,
            topic_id=self._partitions.topic_ids[tp[0]],
        )
        self._parser.start(tp, tenant, records, jobs)
        self._dispatcher.dispatch()

    def _route(self, job: Job) -> None:
        """Queues the job as a task of its partition, except what lanes write.

        After Unavailable, the caller routes the job again.
        """
        with self._lanes.gate(job.tp):
            self._lanes.detach_early(job)
            task = Task(job, time.perf_counter())
            self._complete_without_model(task.parts.values())
            self._dispatcher.add(task)
            self._partitions.routed[job.tp] = job.end
        self._write_ready(job.tp)
        self._dispatcher.dispatch()

    def _process(self, part: Part) -> None:
        """★ Chunks and embeds the part, then writes the tasks of its source that are ready.

        Runs on a worker.
        """
        job, embedded = part.task.job, part.embedded
        with self._dispatcher.embedding(part):
            self._vectors.chunk(job, part.model, embedded)
            self._vectors.embed(job, embedded, lambda: part.over or self._stopping.is_set())
        self._write_ready(part.task.source)

    def _write_ready(self, source: Hashable) -> None:
        """Appends and commits the source's tasks that are ready, in order (guarantee 3)."""
        for task in self._dispatcher.in_turn(source):
            with self._dispatcher.writing(task):
                if (lane := lane_of(task)) is None or not lane.over:
                    n_rejected = self._writer.append(task)
                    self._writer.commit(task)
                    count_written(task, n_rejected)

    def _complete_without_model(self, parts: Iterable[Part]) -> None:
        """Completes the parts that need no model: they have deletions or vectors of documents."""
        for part in parts:
            if not part.needs_model:
                self._vectors.chunk(part.task.job, part.model, part.embedded)
                part.ready = True

    # between two reads

    def _proceed(self) -> None:
        """Retries writes that are due, and continues to parse and read where queues have room.

        Raises what a worker raised.
        """
        self._workers.check()
        self._dispatcher.retry_writes()
        self._parser.proceed()
        self._partitions.resume_paused()
        try:
            self._lanes.update()
        except Unavailable as error:
            _event.warning("lanes.update_failed", reason=str(error))
        self._dispatcher.dispatch()

    def _check_partitions(self) -> None:
        """Every `discover_s`, updates the topics that are read and positions of idle partitions."""
        now = self._clock.monotonic()
        if now - self._checked_at >= self._settings.discover_s:
            self._checked_at = now
            self._topics.discover()
            self._idle.resume()
            self._lane_registry.compare(self._partitions.positions)
            self._idle.commit_markers()
            self._positions.save_changed(
                self._partitions.topic_ids,
                self._partitions.reader.halted(),
                self._partitions.paused,
            )
