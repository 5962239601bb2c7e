"""Records of the documents log to jobs: which documents they write, which they delete, which are rejected. Pure.

A version is the record's position under its partition map (law 3); the tenant is the topic's, whatever the record says (law 1).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from ingest.columns import parse_arrow
from ingest.documents import Entry, parse_json
from ingest.homes import Homes, LookAgain
from ingest.identity import judged_version, stranger
from ingest.ids import fault_of
from ingest.rules import Rules
from tenants.entities import Collection, Tenant
from tenants.registry import Registry
from vicinage.errors import NotFound, Refused
from vicinage.log import Record, Stored, TopicPartition
from vicinage.records import Deletion, Document, Rejected
from vicinage.settings import IngestSettings
from vicinage.wire import ARROW, decode_documents, load_json

PASSAGE_CHARS: Final = 800


@dataclass(frozen=True, slots=True)
class Write:
    """One document's new content, or its deletion, at its version."""

    collection: Collection
    id: str
    version: int
    event_time_ms: int
    document: Document | None
    stored: Stored
    """The record that it came in."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A deletion that was written to an earlier collection of this name."""


@dataclass(slots=True)
class Job:
    """Records of one partition, parsed: what to write, what to reject, and from where to where it goes."""

    tenant: Tenant
    tp: TopicPartition
    start: int
    end: int = 0
    read_after: float = 0.0
    """Monotonic time before which nobody had these records in hand."""
    writes: list[Write] = field(default_factory=list)
    rejected: list[tuple[Stored, Rejected]] = field(default_factory=list)
    skipped: int = 0
    """Deletions that were written to an earlier collection of the name: they have no effect."""

    def needs_embedding(self) -> bool:
        """True when some text of it has no vector yet, or not of each model."""
        return any(
            w.document is not None and (w.document.vectors is None or w.collection.moving()) for w in self.writes
        )

    def cost(self) -> int:
        """About how many passages it makes: what it takes of its tenant's share."""
        documents = [w.document for w in self.writes if w.document is not None]
        return 1 + sum(1 + len(d.passages or ()) + len(d.text or "") // PASSAGE_CHARS for d in documents)


def jobs_of(
    tenant: Tenant,
    tp: TopicPartition,
    records: list[Stored],
    registry: Registry,
    settings: IngestSettings,
    *,
    read_after: float,
    look_again: LookAgain | None = None,
) -> Iterator[Job]:
    """Yields the records as jobs of about `batch_passages` documents; a record is never split over two.

    `look_again` is called once, for the first document that is not in its home partition.
    """
    homes = Homes(registry, look_again)
    job = Job(tenant, tp, records[0].offset, read_after=read_after)
    for stored in records:
        for outcome in parse(stored, tenant, registry, settings, homes):
            if isinstance(outcome, Rejected):
                job.rejected.append((stored, outcome))
            elif isinstance(outcome, Skipped):
                job.skipped += 1
            else:
                job.writes.append(outcome)
        job.end = stored.offset + 1
        if len(job.writes) + len(job.rejected) >= settings.batch_passages:
            yield _newest(job)
            job = Job(tenant, tp, job.end, read_after=read_after)
    if job.end:
        yield _newest(job)


def _newest(job: Job) -> Job:
    """Keeps of each document what may come to stand, oldest first: its writes since the newest deletion.

    Which one stands is known once they are embedded: the last one may yet be refused by the model's server, then the
    one before it stands. A deletion is never refused; one by filter takes out only what is not newer than its version.
    """
    lines: dict[tuple[str, str], list[Write]] = {}
    for write in job.writes:
        line = lines.setdefault((write.collection.name, write.id), [])
        if write.document is None:
            line[:] = [w for w in line if w.version > write.version]
        elif any(w.document is None and w.version >= write.version for w in line):
            continue
        line.append(write)
        line.sort(key=_rank)
    job.writes = [write for line in lines.values() for write in line]
    return job


def _rank(write: Write) -> tuple[int, bool]:
    """Orders the writes of one document: a deletion beats a document of its own version."""
    return write.version, write.document is None


def parse(
    stored: Stored, tenant: Tenant, registry: Registry, limits: IngestSettings, homes: Homes | None = None
) -> list[Write | Rejected | Skipped]:
    """Returns every document that one record holds, as a write or as a reason why not."""
    homes = homes or Homes(registry, None)
    try:
        entries = list(_entries(stored, tenant, registry, limits))
    except _Strange as strange:
        return [Skipped() if stored.record.value is None else strange.rejected]
    except Refused as refused:
        return [Rejected(refused.detail, field=refused.field)]
    found: list[Write | Rejected | Skipped] = []
    for collection, entry in entries:
        if isinstance(entry, Rejected):
            found.append(entry)
        else:
            document = entry if isinstance(entry, Document) else None
            try:
                version = homes.version(tenant, stored, collection.name, entry.id)
                if document is None:
                    version = judged_version(stored.record, version)
            except Refused as refused:
                found.append(Rejected(refused.detail, field=refused.field, id=entry.id, collection=collection.name))
                continue
            found.append(Write(collection, entry.id, version, stored.record.event_time_ms, document, stored))
    return found


def _entries(
    stored: Stored, tenant: Tenant, registry: Registry, limits: IngestSettings
) -> Iterable[tuple[Collection, Entry | Deletion]]:
    record = stored.record
    if record.unreadable is not None:
        raise Refused(record.unreadable, field="headers")
    if record.value is None:
        name, _, document_id = _text(record.key or b"", "key").partition("/")
        collection = _collection(registry, tenant, name, stored)
        if not document_id:
            raise Refused("a deletion's key is <collection>/<id>", field="key")
        if (fault := fault_of(document_id, limits.id_bytes_max)) is not None:
            raise Refused(f"a deletion's key is <collection>/<id>, and its id {fault}", field="key")
        return [(collection, Deletion(name, document_id))]
    if dict(record.headers).get("content-type") == ARROW.encode():
        name_given, batches = decode_documents(record.value)
        collection = _collection(registry, tenant, name_given or _key_collection(record), stored)
        return [(collection, e) for e in parse_arrow(batches, Rules.of(collection, limits))]
    body = load_json(record.value, field="value")
    if not isinstance(body, dict):
        raise Refused("a document is a JSON object", field="value")
    collection = _collection(registry, tenant, body.get("collection"), stored)
    return [(collection, parse_json(body, Rules.of(collection, limits), tenant=tenant.name))]


def _key_collection(record: Record) -> str:
    return _text(record.key or b"", "key").partition("/")[0]


class _Strange(Exception):
    """The record was not written to the collection that now has its name."""

    def __init__(self, reason: str, collection: str) -> None:
        super().__init__(reason)
        self.rejected = Rejected(reason, field="collection", collection=collection)


def _collection(registry: Registry, tenant: Tenant, name: object, stored: Stored) -> Collection:
    if not isinstance(name, str) or not name:
        raise Refused("the document names no collection", field="collection")
    try:
        found = registry.collection(tenant.name, name)
    except NotFound as missing:
        raise Refused(f"{missing} of this tenant", field="collection") from None
    if (reason := stranger(stored, found)) is not None:
        raise _Strange(reason, name)
    return found


def _text(data: bytes, field_name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(f"the {field_name} is not UTF-8", field=field_name) from None
