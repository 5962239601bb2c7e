"""Turns records of the documents log into jobs of writes, deletions and rejections. Pure.

A version is the record's position under its partition map (guarantee 3). The tenant is the topic's;
a tenant named in the record does not change it (guarantee 1).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ingest.columns import parse_arrow
from ingest.documents import Entry, parse_json
from ingest.homes import Homes, PartitionMaps, RefreshMaps
from ingest.identity import judged_version, mismatch
from ingest.ids import fault_of
from ingest.validation import DocumentLimits
from tenants.entities import Collection, Generation, Tenant
from vicinage.errors import NotFound, Refused
from vicinage.exact_json import Exactly
from vicinage.log import LogRecord, Record, TopicPartition
from vicinage.records import Deletion, Document, Rejected
from vicinage.settings import IngestSettings
from vicinage.wire import ARROW, decode_documents, load_json

PASSAGE_CHARS: Final = 800
PARSED_BYTES: Final = 1 << 20
"""Bytes of records that are parsed in one turn and form a job; a single record may have more."""


Target = tuple[str, int]
"""A generation within its tenant: the collection's name and the generation's number."""


class Collections(PartitionMaps, Protocol):
    """A lookup of a record's collection and partition maps; a Registry is one."""

    def collection(self, tenant: str, name: str) -> Collection:
        """Returns the tenant's collection. Raises NotFound."""
        ...


@dataclass(frozen=True, slots=True)
class Need:
    """A job's work for one generation: the offset of its first record, and whether it is embedded.

    `needs_model`: the generation's model must embed at least one document.
    """

    generation: Generation
    first: int
    needs_model: bool


@dataclass(frozen=True, slots=True)
class Write:
    """One document's new content, or its deletion, at its version."""

    collection: Collection
    id: str
    version: int
    event_time_ms: int
    document: Document | None
    record: LogRecord
    """The record that holds it."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A deletion that was written to an earlier collection of this name."""


@dataclass(slots=True)
class Job:
    """Parsed records of one partition: writes and rejections for the offsets [start, end).

    `only` is the one generation that a lane's job writes. `detached` has the generations that
    lanes write instead of this job.
    """

    tenant: Tenant
    tp: TopicPartition
    start: int
    end: int = 0
    read_after: float = 0.0
    """Monotonic time, in seconds, before the records were read."""
    writes: list[Write] = field(default_factory=list)
    rejected: list[tuple[LogRecord, Rejected]] = field(default_factory=list)
    skipped: int = 0
    """Deletions that were written to an earlier collection of this name; they have no effect."""
    only: Target | None = None
    detached: frozenset[Target] = frozenset()

    def targets(self, write: Write) -> Sequence[Generation]:
        """Returns the generations that this job writes the write to."""
        generations = write.collection.generations
        if self.only is None and not self.detached:
            return generations
        return [g for g in generations if self._takes((write.collection.name, g.number))]

    def _takes(self, target: Target) -> bool:
        return target not in self.detached if self.only is None else target == self.only

    def needs(self) -> dict[Target, Need]:
        """Returns the job's work for each generation that it writes to."""
        found: dict[Target, Need] = {}
        for write in self.writes:
            for generation in self.targets(write):
                target = (write.collection.name, generation.number)
                known, offset = found.get(target), write.record.offset
                needs_model = _needs_model(write, generation)
                if known is None:
                    found[target] = Need(generation, offset, needs_model)
                elif offset < known.first or needs_model > known.needs_model:
                    # Writes are ordered by document, not by offset.
                    first = min(offset, known.first)
                    found[target] = Need(generation, first, needs_model or known.needs_model)
        return found

    def cost(self) -> int:
        """Returns the estimated number of passages, which is charged to the tenant's share."""
        documents = [w.document for w in self.writes if w.document is not None]
        return 1 + sum(
            1 + len(d.passages or ()) + len(d.text or "") // PASSAGE_CHARS for d in documents
        )


def uses_document_vectors(write: Write, generation: Generation) -> bool:
    """Returns whether the generation uses the vectors that were sent with the document.

    Such vectors are from the live generation's model.
    """
    document = write.document
    return (
        document is not None
        and document.vectors is not None
        and generation.model == write.collection.generation().model
    )


def _needs_model(write: Write, generation: Generation) -> bool:
    return write.document is not None and not uses_document_vectors(write, generation)


def jobs_of(
    tenant: Tenant,
    tp: TopicPartition,
    records: Sequence[LogRecord],
    collections: Collections,
    settings: IngestSettings,
    *,
    read_after: float,
    refresh_maps: RefreshMaps | None = None,
    topic_id: str | None = None,
    start: int | None = None,
    end: int | None = None,
    only: Target | None = None,
) -> Iterator[Job]:
    """Yields the records as jobs of about `batch_passages` documents; no record spans two jobs.

    The jobs cover the offsets [start, end), by default those of the records. With `only`, they hold
    that generation's writes alone; the partition's own jobs reject what cannot be parsed.
    `refresh_maps` is called once, for the first document outside its home partition. `topic_id` is
    the identity of the records' topic; None means the topic that has the name now.
    """

    def job_at(offset: int) -> Job:
        return Job(tenant, tp, offset, read_after=read_after, only=only)

    homes = Homes(collections, refresh_maps, topic_id)
    job, size = job_at(records[0].offset if start is None else start), 0
    for record in records:
        for outcome in parse(record, tenant, collections, settings, homes):
            if only is not None and not (
                isinstance(outcome, Write) and outcome.collection.name == only[0]
            ):
                continue
            if isinstance(outcome, Rejected):
                job.rejected.append((record, outcome))
            elif isinstance(outcome, Skipped):
                job.skipped += 1
            else:
                job.writes.append(outcome)
        job.end = record.offset + 1
        size += record.size()
        if len(job.writes) + len(job.rejected) >= settings.batch_passages or size >= PARSED_BYTES:
            yield _with_newest_writes(job)
            job, size = job_at(job.end), 0
    job.end = job.end if end is None else end
    if job.end > job.start:
        yield _with_newest_writes(job)


def _with_newest_writes(job: Job) -> Job:
    """Keeps the writes of each document since its newest deletion, oldest first.

    The write to keep is known after embedding: if the model's server refuses the last one, the
    previous one applies. A deletion is never refused. A deletion by filter removes only writes
    that are not newer than its version.
    """
    by_document: dict[tuple[str, str], list[Write]] = {}
    for write in job.writes:
        writes = by_document.setdefault((write.collection.name, write.id), [])
        if write.document is None:
            writes[:] = [w for w in writes if w.version > write.version]
        elif any(w.document is None and w.version >= write.version for w in writes):
            continue
        writes.append(write)
        writes.sort(key=_rank)
    job.writes = [write for writes in by_document.values() for write in writes]
    return job


def _rank(write: Write) -> tuple[int, bool]:
    """Orders the writes of one document: a deletion beats a document of its own version."""
    return write.version, write.document is None


def parse(
    record: LogRecord,
    tenant: Tenant,
    collections: Collections,
    settings: IngestSettings,
    homes: Homes | None = None,
) -> list[Write | Rejected | Skipped]:
    """Returns every document of one record as a write, a rejection or a skipped deletion."""
    homes = homes or Homes(collections, None)
    try:
        entries = list(_entries(record, tenant, collections, settings))
    except _OtherCollection as other:
        return [Skipped() if record.record.value is None else other.rejected]
    except Refused as refused:
        return [Rejected(refused.detail, field=refused.field)]
    found: list[Write | Rejected | Skipped] = []
    for collection, entry in entries:
        if isinstance(entry, Rejected):
            found.append(entry)
        else:
            document = entry if isinstance(entry, Document) else None
            try:
                version = homes.version(tenant, record, collection.name, entry.id)
                if document is None:
                    version = judged_version(record.record, version)
            except Refused as refused:
                found.append(
                    Rejected(
                        refused.detail, field=refused.field, id=entry.id, collection=collection.name
                    )
                )
                continue
            found.append(
                Write(collection, entry.id, version, record.record.event_time_ms, document, record)
            )
    return found


def _entries(
    log_record: LogRecord, tenant: Tenant, collections: Collections, settings: IngestSettings
) -> Iterable[tuple[Collection, Entry | Deletion]]:
    record = log_record.record
    if record.unreadable is not None:
        raise Refused(record.unreadable, field="headers")
    if record.value is None:
        name, _, document_id = _text(record.key or b"", "key").partition("/")
        collection = _collection(collections, tenant, name, log_record)
        if not document_id:
            raise Refused("a deletion's key is <collection>/<id>", field="key")
        if (fault := fault_of(document_id, settings.id_bytes_max)) is not None:
            raise Refused(f"a deletion's key is <collection>/<id>, and its id {fault}", field="key")
        return [(collection, Deletion(name, document_id))]
    if dict(record.headers).get("content-type") == ARROW.encode():
        name_in_stream, batches = decode_documents(record.value)
        name = name_in_stream or _key_collection(record)
        collection = _collection(collections, tenant, name, log_record)
        return [
            (collection, e) for e in parse_arrow(batches, DocumentLimits.of(collection, settings))
        ]
    body = load_json(record.value, field="value")
    if not isinstance(body, dict):
        raise Refused("a document is a JSON object", field="value")
    collection = _collection(collections, tenant, body.get("collection"), log_record)
    return [
        (
            collection,
            parse_json(
                body,
                DocumentLimits.of(collection, settings),
                tenant=tenant.name,
                exactly=Exactly(record.value),
            ),
        )
    ]


def _key_collection(record: Record) -> str:
    return _text(record.key or b"", "key").partition("/")[0]


class _OtherCollection(Exception):
    """The record was not written to the collection that now has its name."""

    def __init__(self, reason: str, collection: str) -> None:
        super().__init__(reason)
        self.rejected = Rejected(reason, field="collection", collection=collection)


def _collection(
    collections: Collections, tenant: Tenant, name: object, record: LogRecord
) -> Collection:
    if not isinstance(name, str) or not name:
        raise Refused("the document names no collection", field="collection")
    try:
        found = collections.collection(tenant.name, name)
    except NotFound as missing:
        raise Refused(f"{missing} of this tenant", field="collection") from None
    if (reason := mismatch(record, found)) is not None:
        raise _OtherCollection(reason, name)
    return found


def _text(data: bytes, field_name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(f"the {field_name} is not UTF-8", field=field_name) from None
