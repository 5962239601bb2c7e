"""★ The ingest role: documents logs → vectors log.

Law 3 is visible as line order in `Ingest._write`: the rows and dead letters are durable before the position is stored.
A crash anywhere does the work again, and versions make that harmless.

`ingest/scheduler.py` decides whose work is next (law 7) and `ingest/lanes.py` which generations are written apart from their
partition, because their model is away or slow; here it is done. A worker embeds what one model has of a job, and then writes
what the job's line has ready in order. It never waits for another job. Vectors that tenants computed are written at once.
"""

import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Final

from ingest import dead_letters
from ingest.book import PositionBook
from ingest.crew import Crew
from ingest.detached import Detached, Lane
from ingest.embed import Cutter, Vectors
from ingest.embedding import Embedder
from ingest.jobs import Job, jobs_of
from ingest.lane_scheduler import LOOK_S, LaneScheduler
from ingest.parsing import Parsing
from ingest.pulse import Pulse
from ingest.rows import messages, rejections
from ingest.scheduler import RETRY_S, Part, Scheduler, Task
from ingest.topic_settings import report
from tenants.entities import Group, Tenant
from tenants.growth import finish_growth, sync_partition_map
from tenants.provisioning import VECTORS_TOPIC, ensure_topics
from tenants.registry import Registry
from vicinage.clock import Clock, longer
from vicinage.errors import Conflict, NotFound, Overloaded, Refused, Unavailable
from vicinage.faults import crash_point
from vicinage.log import Halt, Log, LogRecord, TopicPartition
from vicinage.log.halts import Halts
from vicinage.partition_maps import PartitionMap
from vicinage.settings import IngestSettings
from vicinage.telemetry import counter, events, gauge, histogram

IN_FLIGHT: Final = 2
"""Jobs of one partition that are not written yet; it is not read further until there are fewer."""
IDLE_S: Final = 60.0
STOP_S: Final = 5.0
"""How long a stop waits for calls that are under way."""
LISTED_S: Final = 5.0
"""Partitions that were added to a topic longer ago are read."""
TOPIC_AGAIN_S: Final = (30.0, 600.0)
"""The least and the most wait before a topic is tried again that the log did not make, describe or grow."""
GROWN_S: Final = 30.0
"""How often a topic is looked at that has more partitions than its map and gets no new one: it is refused, or another topic."""
BUSY_S: Final = 0.02
AWAY_S: Final = 0.5
PASSED_AT_ONCE: Final = 200
"""Partitions whose readers are asked where they are, in one look around: the next ones in the next."""
STALE_S: Final = 10.0
"""A job whose records were read longer ago looks before each append whether another ingest has gone on meanwhile."""

WRITE_AGAIN_AT_ONCE: Final = 8
"""Lines that could not be written, and are tried again at once."""

_event = events("ingest")
_documents = counter("vicinage_ingest_documents_total", "documents taken from the documents log")
_passages = counter("vicinage_ingest_passages_total", "passages written to the vectors log")
_rejected = counter("vicinage_ingest_rejected_total", "documents sent to dead letters")
_skipped = counter(
    "vicinage_ingest_skipped_total", "deletions written to an earlier collection of the same name, without effect"
)
_halted = gauge(
    "vicinage_ingest_halted_partitions",
    "partitions of documents topics that ingest does not read: `vicinage freshness` says why",
)
_seconds = histogram("vicinage_ingest_step_seconds", "one job of ingest: parsed to committed")


class Ingest:
    """The role. `run` goes on until told to stop; everything it knows is in the log and the catalog."""

    def __init__(
        self,
        log: Log,
        registry: Registry,
        embedder_for: Callable[[str], Embedder],
        cutter_for: Callable[[str], Cutter],
        settings: IngestSettings,
        clock: Clock,
    ) -> None:
        self._log = log
        self._registry = registry
        self._vectors = Vectors(embedder_for, cutter_for, settings.batch_passages, clock)
        self._settings = settings
        self._clock = clock
        self._pulse = Pulse(log, clock)
        self._reader = log.reader({})
        self._places: dict[TopicPartition, int] = {}
        self._topic_ids: dict[str, str] = {}
        """The topics that the places are of: one that is created again under its name is another."""
        self._put_off: dict[str, tuple[float, float | None]] = {}
        """Topics that could not be taken up: when (monotonic) they are tried again, and the wait before that."""
        self._grown: dict[str, tuple[int, float]] = {}
        """With how many partitions a topic was looked at that has more than its map, and when (monotonic)."""
        self._halts = Halts(_event, _halted)
        self._book = PositionBook(log, registry.positions, clock, recommit_s=settings.recommit_s)
        self._unparsed: dict[TopicPartition, Iterator[Job]] = {}
        """What was read of a partition and is not yet a job."""
        self._routed: dict[TopicPartition, int] = {}
        """Offset up to which each partition's records are in its line, or left to lanes."""
        self._full: set[TopicPartition] = set()
        self._round: list[TopicPartition] = []
        """Whose readers are still to be asked where they are."""
        self._lines = Scheduler()
        self._writing_again: set[Hashable] = set()
        self._lock = threading.Lock()
        """Of the lines."""
        self._crew = Crew("ingest")
        self._parsing = Parsing(self._parse_one, self._crew)
        self._detached = Detached(registry.lanes, log, registry, settings, clock)
        self._lanes = LaneScheduler(
            self._detached, self._lines, self._lock, registry, clock, self._routed,
            make_given=self._make_given, write_in_turn=self._write_in_turn, check=self._check_not_overtaken,
        )  # fmt: skip
        self._stopping = threading.Event()
        self._discovered = -1e9
        self._polled = self._read_after = clock.monotonic()
        """When the last poll and the one before it began: what the last one gave was not in hand before the latter."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what is under way is finished or left for the next start."""
        try:
            while not stop.is_set():
                self.step(wait_s=0.25)
        finally:
            self.stop()

    def stop(self) -> None:
        """End its threads; a call of a model that hangs is left behind after STOP_S. Idempotent."""
        self._stopping.set()
        self._parsing.stop()
        self._lanes.stop()
        self._crew.join(STOP_S)
        self._reader.close()
        self._book.close()

    def step(self, wait_s: float = 0.0) -> int:
        """Take what has come and hand it on; the number of records taken. Raises what a job raised."""
        self._land()
        self._look_around()
        self._pulse.beat()
        taken = self._poll(wait_s)
        self._registry.refresh()  # after the poll: see docs/concepts/architecture.md, "Ingest"
        for tp, records in _by_partition(taken).items():
            self._start(tp, records)
        return len(taken)

    def drain(self, deadline_s: float = 60.0) -> None:
        """Wait until nothing is under way. For tests and for an orderly stop."""
        end = time.monotonic() + deadline_s
        while self._left():
            if time.monotonic() > end:
                raise Unavailable("ingest did not drain in time", dependency="ingest")
            self._land()
            time.sleep(0.001)

    def _left(self) -> int:
        with self._lock:
            return len(self._lines) + len(self._unparsed) + self._lanes.behind()

    # reading

    def _look_around(self) -> None:
        """Every `discover_s`."""
        now = self._clock.monotonic()
        if now - self._discovered >= self._settings.discover_s:
            self._discovered = now
            self._discover()
            self._resume()
            self._detached.compare(self._places)
            self._pass_markers()
            self._book.tend(self._topic_ids, self._reader.halted(), self._full)

    def _pass_markers(self) -> None:
        """Commit beyond what is no record: where nothing is under way, ingest is where its reader is.

        Else whoever waits until ingest has reached the end of a topic would wait for ever for a marker of its producer's transaction.
        """
        if not self._round:
            self._round = list(self._places)
        some, self._round = self._round[:PASSED_AT_ONCE], self._round[PASSED_AT_ONCE:]
        halted = self._halts.known()
        idle = [tp for tp in some if tp in self._places and tp not in halted and self._is_idle(tp)]
        places = {tp: self._reader.position(*tp) for tp in idle}
        passed = {tp: at for tp, at in places.items() if at > self._places[tp] or self._book.is_due(tp)}
        if passed:
            self._log.commit(Group.INGEST, passed)
            self._book.committed(passed)
            self._places.update(passed)
            self._routed.update(passed)

    def _is_idle(self, tp: TopicPartition) -> bool:
        """Returns whether everything that was read of the partition is written and committed."""
        return tp not in self._full and tp not in self._unparsed and self._lines.of(tp) == 0

    def _resume(self) -> None:
        """Take up the positions that `vicinage tenant resume-ingest` gave, where nothing of the partition is under way."""
        version = self._registry.version
        resuming = [s for s in self._book.resuming(version) if s.topic_partition() in self._places]
        for state in resuming:
            tp = state.topic_partition()
            if self._is_idle(tp) and state.topic_id == self._topic_ids[tp[0]]:  # else: in the next look
                self._book.resume(state)
                self._lanes.forget(tp)
                self._detached.adopt([tp])
                self._places[tp] = self._routed[tp] = state.position
                self._reader.add(*tp, state.position, topic_id=state.topic_id)
        if all(self._is_idle(state.topic_partition()) for state in resuming):
            self._book.all_resumed(version)

    def _discover(self) -> None:
        """Read the topics of new tenants; stop reading those of suspended and deleted ones."""
        self._registry.refresh()
        active = {t.documents_topic: t for t in self._registry.tenants() if t.state == "active"}
        for tp in [tp for tp in self._places if tp[0] not in active]:
            self._drop(tp)
            self._topic_ids.pop(tp[0], None)
        known = {topic for topic, _ in self._places}
        # A tenant that was suspended and is back begins at its committed position: once nothing of it is under way any more.
        with self._lock:
            lines = self._lines.partitions()
        under_way = {topic for topic, _ in (*lines, *self._unparsed, *self._parsing.partitions())}
        new = [t for topic, t in active.items() if topic not in known | under_way]
        topics = self._log.topics("vicinage.docs.", max_age_s=LISTED_S)
        if new:
            report(self._log, new)
        self._forget(lambda tp: tp not in self._places and tp[0] not in under_way)
        self._put_off = {topic: until for topic, until in self._put_off.items() if topic in active}
        skipped = under_way - known
        missing = {t.documents_topic for t in new} - topics.keys()
        self._add(self._to_add([t for topic, t in active.items() if topic not in skipped], topics, missing))

    def _to_add(
        self, tenants: Iterable[Tenant], topics: Mapping[str, int], missing: Collection[str]
    ) -> list[TopicPartition]:
        """Returns the partitions that are not read yet. Makes the topics that are missing, and notices those that have grown.

        A topic for which the log does not do that is put off. The tenants behind it have their turn in the next look,
        so that a look waits for one such topic at most.
        """
        found: list[TopicPartition] = []
        now = self._clock.monotonic()
        for tenant in tenants:
            topic = tenant.documents_topic
            if self._put_off.get(topic, (0.0, 0.0))[0] > now:
                continue
            try:
                if topic in missing:
                    ensure_topics(self._log, tenant, self._settings.partitions)
                found.extend(self._partitions(tenant, topics))
            except (NotFound, Refused, Unavailable) as error:
                if isinstance(error, Unavailable) and error.dependency != "log":
                    raise
                self._put_off_topic(topic, error.detail)
                break
        return found

    def _put_off_topic(self, topic: str, reason: str) -> None:
        _, waited = self._put_off.get(topic, (0.0, None))
        wait_s = longer(waited, TOPIC_AGAIN_S)
        self._put_off[topic] = self._clock.monotonic() + wait_s, wait_s
        _event.error("topic.put_off", topic=topic, reason=reason, again_in_s=wait_s)

    def _forget(self, is_gone: Callable[[TopicPartition], bool]) -> None:
        """Forgets what was kept for the jobs of partitions that are gone."""
        for tp in [tp for tp in list(self._routed) if is_gone(tp)]:
            self._routed.pop(tp, None)
        self._lanes.forget_gates(is_gone)

    def _partitions(self, tenant: Tenant, topics: Mapping[str, int]) -> list[TopicPartition]:
        """Returns the partitions of the tenant's topic that are not read yet, by its newest map."""
        topic, maps = tenant.documents_topic, self._registry.partition_maps(tenant.name)
        n = topics.get(topic, 0)
        if not maps or (n > maps[-1].partitions and self._is_news(topic, n)):
            maps = self._grow(tenant)
            if not maps:
                raise NotFound(f"the partitions of {topic} are not known")
        elif topics.get(topic, maps[-1].partitions) < maps[-1].partitions:
            finish_growth(self._log, tenant, maps[-1])
        if self._topic_ids.get(topic, maps[-1].topic_id) != maps[-1].topic_id:
            self._begin_anew(topic, maps[-1].partitions)
        self._topic_ids[topic] = maps[-1].topic_id
        return [(topic, p) for p in range(maps[-1].partitions) if (topic, p) not in self._places]

    def _begin_anew(self, topic: str, partitions: int) -> None:
        """Let go of the earlier topic of this name; `_resume` reads the new one once its records are written."""
        for tp in [tp for tp in self._places if tp[0] == topic]:
            self._full.discard(tp)
            self._lanes.forget(tp)
            if tp[1] >= partitions:
                self._drop(tp)

    def _is_news(self, topic: str, partitions: int) -> bool:
        """Whether the topic was not looked at lately with as many partitions. A look asks the brokers, and delays all reading."""
        now, (n, at) = self._clock.monotonic(), self._grown.get(topic, (0, -1e9))
        if n == partitions and now - at < GROWN_S:
            return False
        self._grown[topic] = partitions, now
        return True

    def _grow(self, tenant: Tenant) -> tuple[PartitionMap, ...]:
        try:
            return sync_partition_map(self._registry, self._log, tenant, actor="ingest")
        except (NotFound, Refused) as refused:
            _event.error("topic.refused", tenant=tenant.name, reason=refused.detail)
            return self._registry.partition_maps(tenant.name)

    def _add(self, tps: Sequence[TopicPartition]) -> None:
        starts = self._book.starts(tps, self._topic_ids)
        self._detached.adopt(starts)  # before the first record is read: what a lane has is not written twice
        for tp, (place, halt) in starts.items():
            self._places[tp] = self._routed[tp] = place
            self._read(tp, halt)
            self._put_off.pop(tp[0], None)
        if failed := next((tp for tp in tps if tp not in starts), None):
            self._put_off_topic(failed[0], f"where partition {failed[1]} begins is not known")

    def _read(self, tp: TopicPartition, halt: Halt | None = None) -> None:
        self._reader.add(*tp, self._places[tp], topic_id=self._topic_ids[tp[0]], halt=halt)

    def _drop(self, tp: TopicPartition) -> None:
        self._reader.remove(*tp)
        self._book.forget(tp)
        self._lanes.forget(tp)
        del self._places[tp]
        self._unparsed.pop(tp, None)

    def _poll(self, wait_s: float) -> list[LogRecord]:
        self._read_after, self._polled = self._polled, self._clock.monotonic()
        try:
            taken = self._reader.poll(bytes_max=self._settings.batch_bytes, wait_s=min(wait_s, self._rest_s()))
        except Unavailable as away:
            _event.warning("the log is away", reason=str(away))
            self._stopping.wait(min(wait_s, AWAY_S))
            return []
        self._halts.update(self._reader.halted())
        return taken

    def _rest_s(self) -> float:
        """How long there may be nothing to do: short while a worker may end, or fail; else until an embedder is asked again."""
        parsing = bool(self._parsing.partitions())
        with self._lock:
            busy = self._lines.working or self._lanes.reading() or parsing
            if busy:
                return BUSY_S
            return min(LOOK_S, self._lines.sleep_s(self._clock.monotonic())) if len(self._lines) else IDLE_S

    # jobs

    def _start(self, tp: TopicPartition, records: list[LogRecord]) -> None:
        try:
            tenant = self._registry.tenant(tp[0].removeprefix("vicinage.docs."))  # law 1: the topic says whose it is
        except NotFound:
            return  # deleted since it was read; `_discover` stops reading it
        self._places[tp] = records[-1].offset + 1
        self._unparsed[tp] = jobs_of(
            tenant,
            tp,
            records,
            self._registry,
            self._settings,
            read_after=self._read_after,
            look_again=self._grow,
            topic_id=self._topic_ids[tp[0]],
        )
        if self._parsing.is_light(tenant.name, records):
            self._proceed(tp, tenant)
        else:
            self._parsing.put(tp, tenant)
        if tp in self._unparsed or self._lines.of(tp) >= IN_FLIGHT:
            self._reader.remove(*tp)
            self._full.add(tp)
        self._employ()

    def _proceed(self, tp: TopicPartition, tenant: Tenant) -> None:
        """Parse the few records that were read of the partition, at once."""
        began = time.monotonic()
        while self._parse_one(tp):
            pass
        self._parsing.took(tenant.name, time.monotonic() - began)

    def _parse_one(self, tp: TopicPartition) -> bool:
        """Parse one job of the partition and put it into its line; whether another can follow now.

        One that no model is to be asked for is written at once if it is first.
        """
        unparsed = self._unparsed.get(tp)
        if unparsed is None or self._lines.of(tp) >= IN_FLIGHT or self._stopping.is_set():
            return False
        if (job := next(unparsed, None)) is None:
            self._unparsed.pop(tp, None)
            return False
        try:
            self._route(job)
        except Unavailable as away:
            _event.warning("the catalog is away", reason=str(away))
            if tp in self._unparsed:
                self._unparsed[tp] = chain([job], unparsed)
            return False
        self._write_in_turn(tp)
        self._employ()
        return True

    def _route(self, job: Job) -> None:
        """Put the job into its partition's line. Raises Unavailable: then it is still to be routed."""
        with self._lanes.gate(job.tp):
            self._lanes.detach_early(job)
            task = Task(job, time.perf_counter())
            self._make_given(task.parts.values())
            with self._lock:
                self._lines.add(task)
            self._routed[job.tp] = job.end

    def _land(self) -> None:
        """Raise what a worker raised; read on where a partition has room again; have done what has become due."""
        self._crew.check()
        self._write_again()
        for tp in [tp for tp in list(self._unparsed) if self._lines.of(tp) < IN_FLIGHT]:
            self._parse_on(tp)
        for tp in [tp for tp in self._full if tp not in self._unparsed and self._lines.of(tp) < IN_FLIGHT]:
            self._full.remove(tp)
            if tp in self._places:
                self._read(tp)
        try:
            self._lanes.tend()
        except Unavailable as away:
            _event.warning("the catalog is away", reason=str(away))
        self._employ()

    def _parse_on(self, tp: TopicPartition) -> None:
        try:
            self._parsing.put(tp, self._registry.tenant(tp[0].removeprefix("vicinage.docs.")))
        except NotFound:
            self._unparsed.pop(tp, None)  # deleted since it was read

    def _employ(self) -> None:
        while (part := self._next()) is not None:
            self._crew.start(partial(self._work, part))

    def _next(self, freed: Part | None = None) -> Part | None:
        """Returns what is to be embedded now, if anything, by a worker that is done with `freed`."""
        with self._lock:
            if freed is not None:
                self._lines.free(freed)
            return None if self._stopping.is_set() else self._lines.take(self._clock.monotonic())

    # in the workers

    def _work(self, part: Part | None) -> None:
        while part is not None:
            self._embed(part)
            self._write_in_turn(part.task.line)
            part = self._next(freed=part)

    def _embed(self, part: Part) -> None:
        try:
            self._make(part)
        except (Unavailable, Overloaded) as away:
            reason = away.operator_detail if isinstance(away, Unavailable) else away.detail
            with self._lock:
                tries = self._lines.failed(part, self._clock.monotonic(), reason)
            if tries in (1, len(RETRY_S)) and not part.over:
                _event.warning("waiting for the embedder", tenant=part.share[0], model=part.model, reason=reason)
        else:
            with self._lock:
                self._lines.done(part)

    def _make(self, part: Part) -> None:
        self._vectors.make(part.task.job, part.model, part.made, lambda: part.over or self._stopping.is_set())

    def _make_given(self, parts: Iterable[Part]) -> None:
        """Make the parts that no model is to be asked for."""
        for part in parts:
            if not part.asks:
                self._make(part)
                part.ready = True

    def _write_in_turn(self, line: Hashable) -> None:
        """Write what the line has ready, in order: positions are stored in order. If another thread does, it does all of it."""
        while (task := self._turn(line)) is not None:
            try:
                self._write(task)
            except Unavailable as away:  # of one tenant, maybe: its dead letters, its topic's positions
                with self._lock:
                    again_s = self._lines.put_off(task, self._clock.monotonic())
                _event.warning("write.put_off", line=str(line), reason=away.operator_detail, again_in_s=again_s)
                return
            with self._lock:
                self._lines.written(task)

    def _write_again(self) -> None:
        """Have lines that were put off written again, each by a thread of its own: one may wait long for its answer."""
        with self._lock:
            due = self._lines.due(self._clock.monotonic()) if not self._stopping.is_set() else []
            due = [line for line in due if line not in self._writing_again][
                : WRITE_AGAIN_AT_ONCE - len(self._writing_again)
            ]
            self._writing_again |= set(due)
        for line in due:
            self._crew.start(partial(self._try_again, line))

    def _try_again(self, line: Hashable) -> None:
        try:
            self._write_in_turn(line)
        finally:
            with self._lock:
                self._writing_again.discard(line)

    def _turn(self, line: Hashable) -> Task | None:
        """Returns what is to be written now. Nothing once this ingest stops: a thread of it may be left behind, beside another."""
        with self._lock:
            return None if self._stopping.is_set() else self._lines.turn(line, self._clock.monotonic())

    def _write(self, task: Task) -> None:
        """Law 3: effects, then positions."""
        job, made, lane = task.job, task.made(), _lane(task)
        if lane is not None and lane.over:
            return
        rejected = rejections(job, made)
        for slot, record in messages(job, made):
            crash_point("ingest.before_append")
            self._check_not_overtaken(task)
            self._log.append(VECTORS_TOPIC, slot, [record])
        self._check_not_overtaken(task)
        if rejected:
            dead_letters.append(self._log, job.tenant, rejected)
        crash_point("ingest.between_append_and_commit")
        if lane is None:
            self._log.commit(Group.INGEST, {job.tp: job.end})
            self._book.committed({job.tp: job.end})
        else:
            self._detached.move(lane, job.end, "behind")
            lane.whole = True
        crash_point("ingest.after_commit")
        _count(task, rejected)

    def _check_not_overtaken(self, task: Task, after_s: float = STALE_S) -> None:
        """Raise Conflict where another ingest has done this job while this process stood still.

        Then a later deletion may be done too, and already forgotten: what is written now could bring its document back
        (docs/decisions/007-when-a-deletion-is-forgotten.md). The role ends, and begins anew at the stored positions.
        """
        job, lane = task.job, _lane(task)
        if self._clock.monotonic() - job.read_after < after_s and not self._stopping.is_set():
            return
        if lane is not None:
            self._detached.check(lane)
            return
        place = self._log.committed(Group.INGEST, [job.tp]).get(job.tp, 0)
        if place > job.start:
            raise Conflict(f"another ingest is at {place} of {job.tp[0]}/{job.tp[1]}", expected=job.start, found=place)


def _lane(task: Task) -> Lane | None:
    return task.line if isinstance(task.line, Lane) else None


def _count(task: Task, rejected: Sequence[object]) -> None:
    job = task.job
    if _lane(task) is None:
        _documents.inc(len(job.writes))
    _rejected.inc(len(rejected))
    _skipped.inc(job.skipped)
    for part in task.parts.values():
        _passages.inc(sum(len(p) for (write, _), p in part.made.pieces.items() if write not in part.made.refused))
    _seconds.observe(time.perf_counter() - task.since)


def _by_partition(taken: Sequence[LogRecord]) -> dict[TopicPartition, list[LogRecord]]:
    found: dict[TopicPartition, list[LogRecord]] = {}
    for record in taken:
        found.setdefault((record.topic, record.partition), []).append(record)
    return found
