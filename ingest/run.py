"""★ The ingest role: documents logs → vectors log.

Law 3 is visible as line order in `Ingest._process`: the rows and dead letters are durable before the position is committed.
A crash anywhere does the work again, and versions make that harmless.

Each tenant's records are a row of jobs of its own, at most IN_FLIGHT at once: a tenant with a backlog, or whose model is
away, holds up nobody else (law 7). Vectors that tenants computed themselves never wait for an embedder.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import orjson
import pyarrow as pa

from ingest import dead_letters
from ingest.documents import Entry, Rules, parse_arrow, parse_json
from ingest.embedding import Embedder, Lane
from tenants.entities import CLASS_WEIGHT, Collection, Generation, Group, Tenant
from tenants.provisioning import VECTORS_TOPIC, ensure_topics
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import NotFound, Overloaded, Refused, Unavailable
from vicinage.faults import crash_point
from vicinage.log import Log, Record, Stored, TopicPartition
from vicinage.records import Deletion, Document, Floats, Passage, Position, Rejected
from vicinage.routing import shard_of
from vicinage.settings import IngestSettings
from vicinage.telemetry import counter, events, histogram
from vicinage.wire import (
    ARROW,
    DELETED,
    decode_documents,
    encode_rows,
    load_json,
    rows_key,
    vector_column,
    vectors_schema,
)

IN_FLIGHT: Final = 2
"""Jobs of one tenant under way; its topic is not read further until one ends."""
WORKERS: Final = 4
MESSAGE_BYTES: Final = 3 << 20
RETRY_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)

_event = events("ingest")
_documents = counter("vicinage_ingest_documents_total", "documents taken from the documents log")
_passages = counter("vicinage_ingest_passages_total", "passages written to the vectors log")
_rejected = counter("vicinage_ingest_rejected_total", "documents sent to dead letters")
_seconds = histogram("vicinage_ingest_step_seconds", "one job of ingest: parsed to committed")


class Cutter(Protocol):
    """Cuts a text into passages that its model reads whole."""

    def cut(self, text: str) -> list[Passage]:
        """At least one passage, in order; `text[start:end]` each."""
        ...


@dataclass(frozen=True, slots=True)
class Write:
    """One document's new content, or its deletion, at its version."""

    collection: Collection
    id: str
    version: int
    event_time_ms: int
    document: Document | None


@dataclass(slots=True)
class Job:
    """Records of one partition, parsed: what to write, what to reject, and how far it goes."""

    tenant: Tenant
    tp: TopicPartition
    end: int
    writes: list[Write] = field(default_factory=list)
    rejected: list[tuple[Stored, Rejected]] = field(default_factory=list)

    def needs_embedding(self) -> bool:
        """True when some text of it has no vector yet."""
        return any(w.document is not None and w.document.vectors is None for w in self.writes)


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
        self._embedder_for = embedder_for
        self._cutter_for = cutter_for
        self._settings = settings
        self._clock = clock
        self._reader = log.reader({})
        self._places: dict[TopicPartition, int] = {}
        self._flights: dict[TopicPartition, list[Future[None]]] = {}
        self._halted: dict[TopicPartition, str] = {}
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="ingest")
        self._stopping = threading.Event()
        self._discovered = -1e9

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what is under way is finished or left for the next start."""
        self._stopping = stop
        try:
            while not stop.is_set():
                self.step(wait_s=0.25)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._reader.close()

    def step(self, wait_s: float = 0.0) -> int:
        """Take what has come and hand it on; the number of records taken. Raises what a job raised."""
        self._land()
        self._discover()
        taken = self._poll(wait_s)
        self._registry.refresh()  # after the poll: see docs/architecture.md, "Ingest"
        for tp, records in _by_partition(taken).items():
            self._start(tp, records)
        return len(taken)

    def drain(self, deadline_s: float = 60.0) -> None:
        """Wait until nothing is under way. For tests and for an orderly stop."""
        end = time.monotonic() + deadline_s
        while any(self._flights.values()):
            if time.monotonic() > end:
                raise Unavailable("ingest did not drain in time", dependency="ingest")
            self._land()
            time.sleep(0.001)

    # reading

    def _discover(self) -> None:
        """Read the topics of new tenants; stop reading those of suspended and deleted ones."""
        now = self._clock.monotonic()
        if now - self._discovered < self._settings.discover_s:
            return
        self._discovered = now
        self._registry.refresh()
        active = {t.documents_topic: t for t in self._registry.tenants() if t.state == "active"}
        for tp in [tp for tp in self._places if tp[0] not in active]:
            self._reader.remove(*tp)
            del self._places[tp]
        new = [t for topic, t in active.items() if (topic, 0) not in self._places and (topic, 0) not in self._halted]
        if not new:
            return
        partitions = self._log.topics("vicinage.docs.")
        for tenant in new:
            if tenant.documents_topic not in partitions:
                ensure_topics(self._log, tenant, self._settings.partitions)
            self._add(tenant.documents_topic, partitions.get(tenant.documents_topic, self._settings.partitions))

    def _add(self, topic: str, partitions: int) -> None:
        tps = [(topic, p) for p in range(partitions)]
        committed = self._log.committed(Group.INGEST, tps)
        for tp in tps:
            self._places[tp] = committed[tp] if tp in committed else self._log.begin(*tp)
            self._reader.add(*tp, self._places[tp])

    def _poll(self, wait_s: float) -> list[Stored]:
        busy = any(self._flights.values())
        try:
            return self._reader.poll(bytes_max=self._settings.batch_bytes, wait_s=min(wait_s, 0.02) if busy else wait_s)
        except Refused as refused:
            self._halt(refused.detail)
            return []

    def _halt(self, reason: str) -> None:
        """Stop reading the topic whose position the log no longer has: said loudly, never skipped."""
        for tp in list(self._places):
            if reason.startswith(f"{tp[0]}/{tp[1]}:"):
                self._reader.remove(*tp)
                del self._places[tp]
                self._halted[tp] = reason
                _event.error("halted", topic=tp[0], partition=tp[1], reason=reason)
                return
        raise Refused(reason)

    # jobs

    def _start(self, tp: TopicPartition, records: list[Stored]) -> None:
        try:
            tenant = self._registry.tenant(tp[0].removeprefix("vicinage.docs."))  # law 1: the topic says whose it is
        except NotFound:
            return  # deleted since it was read; `_discover` stops reading it
        jobs = list(_jobs(tenant, tp, records, self._registry, self._settings))
        self._places[tp] = records[-1].offset + 1
        flights = self._flights.setdefault(tp, [])
        if not flights and not any(job.needs_embedding() for job in jobs):
            for job in jobs:
                self._process(job)
            return
        previous = flights[-1] if flights else None
        for job in jobs:
            previous = self._pool.submit(self._in_turn, job, previous)
            flights.append(previous)
        if len(flights) >= IN_FLIGHT:
            self._reader.remove(*tp)

    def _in_turn(self, job: Job, previous: Future[None] | None) -> None:
        """Embed at once, but write after the job before it: positions are committed in order."""
        start = time.perf_counter()
        vectors = self._embed(job)
        if previous is not None:
            previous.result()
        self._write(job, vectors, start)

    def _process(self, job: Job) -> None:
        start = time.perf_counter()
        self._write(job, self._embed(job), start)

    def _write(self, job: Job, vectors: "Embedded", start: float) -> None:
        """Law 3: effects, then positions."""
        for slot, record in _messages(job, vectors):
            crash_point("ingest.before_append")
            self._log.append(VECTORS_TOPIC, slot, [record])
        if job.rejected:
            dead_letters.append(self._log, job.tenant, job.rejected)
        crash_point("ingest.between_append_and_commit")
        self._log.commit(Group.INGEST, {job.tp: job.end})
        crash_point("ingest.after_commit")
        _documents.inc(len(job.writes))
        _rejected.inc(len(job.rejected))
        _passages.inc(sum(len(pieces) for pieces in vectors.pieces.values()))
        _seconds.observe(time.perf_counter() - start)

    def _land(self) -> None:
        """Take in finished jobs; read on where a tenant has room again. Raises what a job raised."""
        for tp, flights in list(self._flights.items()):
            was_full = len(flights) >= IN_FLIGHT
            while flights and flights[0].done():
                flights.pop(0).result()
            if was_full and len(flights) < IN_FLIGHT and tp in self._places:
                self._reader.add(*tp, self._places[tp])
            if not flights:
                del self._flights[tp]

    # embedding

    def _embed(self, job: Job) -> "Embedded":
        """Passages and vectors of every document, for each model that a serving generation of it uses."""
        made = Embedded()
        for write in job.writes:
            if write.document is not None:
                for model in {g.model for g in write.collection.generations}:
                    self._cut(write, model, made)
        for model, asked in made.wanted.items():
            texts = [p.text for key in asked for p in made.pieces[key] if p is not None]
            vectors = self._embedded(job.tenant, model, texts)
            at = 0
            for key in asked:
                n = len(made.pieces[key])
                made.vectors[key] = vectors[at : at + n]
                at += n
        return made

    def _cut(self, write: Write, model: str | None, made: "Embedded") -> None:
        document = write.document
        assert document is not None
        key = (id(write), model)
        if document.vectors is not None:
            made.pieces[key] = _given_pieces(document)
            made.vectors[key] = document.vectors
            return
        assert model is not None, "text without a model is rejected when it is parsed"
        cutter = self._cutter_for(model)
        made.pieces[key] = _cut_pieces(document, cutter)
        made.wanted[model].append(key)

    def _embedded(self, tenant: Tenant, model: str, texts: list[str]) -> Floats:
        parts = [
            self._patiently(tenant, model, texts[i : i + self._settings.batch_passages])
            for i in range(0, len(texts), self._settings.batch_passages)
        ]
        return np.concatenate(parts)

    def _patiently(self, tenant: Tenant, model: str, texts: list[str]) -> Floats:
        """Embed, waiting out an embedder that is away or busy: the documents are safe in the log meanwhile."""
        attempt = 0
        while True:
            try:
                return self._embedder_for(model).embed(
                    texts, tenant=tenant.name, lane=Lane.DOCUMENT, weight=CLASS_WEIGHT[tenant.priority]
                )
            except (Unavailable, Overloaded) as away:
                if attempt in (0, len(RETRY_S)):
                    _event.warning("waiting for the embedder", model=model, tenant=tenant.name, reason=str(away))
                if self._stopping.wait(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
                    raise
                attempt += 1


@dataclass(slots=True)
class Embedded:
    """Of each (write, model): its passages and their vectors."""

    pieces: dict[tuple[int, str | None], list[Passage | None]] = field(default_factory=dict)
    vectors: dict[tuple[int, str | None], Floats] = field(default_factory=dict)
    wanted: defaultdict[str, list[tuple[int, str | None]]] = field(default_factory=lambda: defaultdict(list))


# Parsing is pure.


def _by_partition(taken: Sequence[Stored]) -> dict[TopicPartition, list[Stored]]:
    found: dict[TopicPartition, list[Stored]] = {}
    for stored in taken:
        found.setdefault((stored.topic, stored.partition), []).append(stored)
    return found


def _jobs(
    tenant: Tenant, tp: TopicPartition, records: list[Stored], registry: Registry, settings: IngestSettings
) -> Iterator[Job]:
    """The records as jobs of about `batch_passages` documents; a record is never split over two."""
    job = Job(tenant, tp, 0)
    for stored in records:
        for outcome in parse(stored, tenant, registry, settings):
            if isinstance(outcome, Rejected):
                job.rejected.append((stored, outcome))
            else:
                job.writes.append(outcome)
        job.end = stored.offset + 1
        if len(job.writes) + len(job.rejected) >= settings.batch_passages:
            yield _newest(job)
            job = Job(tenant, tp, 0)
    if job.end:
        yield _newest(job)


def _newest(job: Job) -> Job:
    """Of each document only its last write: the earlier ones would be replaced at once."""
    last = {(w.collection.name, w.id): w for w in job.writes}
    job.writes = list(last.values())
    return job


def parse(stored: Stored, tenant: Tenant, registry: Registry, limits: IngestSettings) -> list[Write | Rejected]:
    """Every document that one record holds, as a write or as a reason."""
    version = Position(stored.partition, stored.offset).version()
    try:
        entries = list(_entries(stored, tenant, registry, limits))
    except Refused as refused:
        return [Rejected(refused.detail, field=refused.field)]
    found: list[Write | Rejected] = []
    for collection, entry in entries:
        if isinstance(entry, Rejected):
            found.append(entry)
        else:
            document = entry if isinstance(entry, Document) else None
            found.append(Write(collection, entry.id, version, stored.record.event_time_ms, document))
    return found


def _entries(
    stored: Stored, tenant: Tenant, registry: Registry, limits: IngestSettings
) -> Iterable[tuple[Collection, Entry | Deletion]]:
    record = stored.record
    if record.value is None:
        name, _, document_id = _text(record.key or b"", "key").partition("/")
        collection = _collection(registry, tenant, name)
        if not document_id:
            raise Refused("a deletion's key is <collection>/<id>", field="key")
        return [(collection, Deletion(name, document_id))]
    if dict(record.headers).get("content-type") == ARROW.encode():
        name_given, batches = decode_documents(record.value)
        collection = _collection(registry, tenant, name_given or _key_collection(record))
        return [(collection, e) for e in parse_arrow(batches, Rules.of(collection, limits))]
    body = load_json(record.value, field="value")
    if not isinstance(body, dict):
        raise Refused("a document is a JSON object", field="value")
    collection = _collection(registry, tenant, body.get("collection"))
    return [(collection, parse_json(body, Rules.of(collection, limits), tenant=tenant.name))]


def _key_collection(record: Record) -> str:
    return _text(record.key or b"", "key").partition("/")[0]


def _collection(registry: Registry, tenant: Tenant, name: object) -> Collection:
    if not isinstance(name, str) or not name:
        raise Refused("the document names no collection", field="collection")
    try:
        return registry.collection(tenant.name, name)
    except NotFound as missing:
        raise Refused(f"{missing} of this tenant", field="collection") from None


def _text(data: bytes, field_name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(f"the {field_name} is not UTF-8", field=field_name) from None


# So is the making of passages and rows.


def _given_pieces(document: Document) -> list[Passage | None]:
    assert document.vectors is not None
    if document.passages is not None:
        return [Passage(p, 0, len(p)) for p in document.passages]
    if document.text is not None:
        return [Passage(document.text, 0, len(document.text))]
    return [None] * len(document.vectors)


def _cut_pieces(document: Document, cutter: Cutter) -> list[Passage | None]:
    if document.text is not None:
        return list(cutter.cut(document.text))
    return [piece for passage in document.passages or () for piece in cutter.cut(passage)]


def _messages(job: Job, made: Embedded) -> Iterator[tuple[int, Record]]:
    """One message per generation and slot (more where it grows large), all passages of a document together."""
    runs: dict[tuple[str, int, int], tuple[Generation, list[Write]]] = {}
    for write in job.writes:
        for generation in write.collection.generations:
            slot = generation.slots[shard_of(write.id, len(generation.slots))]
            key = (write.collection.name, generation.number, slot)
            runs.setdefault(key, (generation, []))[1].append(write)
    for (collection, number, slot), (generation, writes) in runs.items():
        for part in _parts(writes, generation, made):
            value = encode_rows(
                rows_batch(part, generation, made), tenant=job.tenant.name, collection=collection, generation=number
            )
            yield (
                slot,
                Record(
                    value,
                    rows_key(job.tenant.name, collection, number),
                    event_time_ms=min(w.event_time_ms for w in part),
                ),
            )


def _parts(writes: list[Write], generation: Generation, made: Embedded) -> Iterator[list[Write]]:
    part: list[Write] = []
    size = 0
    for write in writes:
        pieces = made.pieces.get((id(write), generation.model), [])
        weight = 128 + sum(generation.dimension * 4 + 64 + 2 * len(p.text if p else "") for p in pieces)
        if part and size + weight > MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(write)
        size += weight
    if part:
        yield part


def rows_batch(writes: Sequence[Write], generation: Generation, made: Embedded) -> pa.RecordBatch:
    """The rows of these writes, in the columns of a vectors message; a document's passages stand together."""
    ids: list[str] = []
    versions: list[int] = []
    times: list[int] = []
    passages: list[int] = []
    texts: list[str | None] = []
    starts: list[int | None] = []
    ends: list[int | None] = []
    metadata: list[str | None] = []
    vectors: list[Floats] = []
    missing: list[bool] = []
    nothing = np.zeros((1, generation.dimension), np.float32)
    for w in writes:
        key = (id(w), generation.model)
        pieces: Sequence[Passage | None] = made.pieces[key] if w.document is not None else [None]
        n = len(pieces)
        ids.extend([w.id] * n)
        versions.extend([w.version] * n)
        times.extend([w.event_time_ms] * n)
        passages.extend(range(n) if w.document is not None else [DELETED])
        texts.extend(p.text if p else None for p in pieces)
        starts.extend(p.start if p else None for p in pieces)
        ends.extend(p.end if p else None for p in pieces)
        metadata.extend([_json(w.document)] * n)
        vectors.append(made.vectors[key] if w.document is not None else nothing)
        missing.extend([w.document is None] * n)
    columns = [ids, versions, times, passages, texts, starts, ends, metadata]
    schema = vectors_schema(generation.dimension)
    arrays = [pa.array(values, schema.field(i).type) for i, values in enumerate(columns)]
    return pa.RecordBatch.from_arrays([*arrays, vector_column(np.concatenate(vectors), missing)], schema=schema)


def _json(document: Document | None) -> str | None:
    return orjson.dumps(document.metadata).decode() if document is not None and document.metadata else None
