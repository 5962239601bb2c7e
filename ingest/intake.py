"""POSTed batches into the tenant's documents log: the same road that a data team's own producer takes.

Law 2: the token is returned once the log has the records.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ingest.documents import Entry
from ingest.identity import header_of, judged_header
from tenants.entities import Collection, Tenant
from vicinage.errors import NotFound, Unavailable
from vicinage.log import Log, Record
from vicinage.records import Document, Position, Rejected, Token
from vicinage.routing import document_key, home_of
from vicinage.wire import ARROW, encode_documents, rows_bytes

RECORD_BYTES: Final = 2 << 20
"""What a record of many documents aims at."""
CONTENT_TYPE: Final = ("content-type", ARROW.encode())


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a batch. `token` is None when nothing was accepted."""

    accepted: int
    rejected: tuple[Rejected, ...]
    token: Token | None


def accept(
    log: Log,
    tenant: Tenant,
    collection: Collection,
    entries: Sequence[Entry],
    *,
    now_ms: int,
    partitions: int | None = None,
) -> Accepted:
    """Writes the batch's documents, in order; durable on return. What was rejected stays out and is reported.

    `partitions`: of the newest partition map; None: as many as the topic has.
    """
    documents = [e for e in entries if isinstance(e, Document)]
    dimension = collection.generation().dimension
    positions: list[Position] = []
    for partition, run in _by_partition(documents, collection.name, partitions or _partitions(log, tenant)):
        records = [
            Record(
                encode_documents(chunk, collection=collection.name, dimension=dimension),
                headers=(CONTENT_TYPE, header_of(collection)),
                event_time_ms=now_ms,
            )
            for chunk in _chunks(run, dimension)
        ]
        positions.extend(Position(partition, o) for o in _append(log, tenant, partition, records))
    rejected = tuple(e for e in entries if isinstance(e, Rejected))
    return Accepted(len(documents), rejected, Token.covering(positions) if positions else None)


def delete(
    log: Log,
    tenant: Tenant,
    collection: Collection,
    ids: Iterable[str],
    *,
    judged: Mapping[str, int] | None = None,
    now_ms: int,
    partitions: int | None = None,
) -> Token:
    """Appends the deletions; durable on return. Deleting what is not there is no error. `partitions` as for `accept`.

    With `judged`, id → version, each holds only while its document is not newer than that version.
    """
    n = partitions or _partitions(log, tenant)
    homes: dict[int, list[Record]] = {}
    for i in ids:
        headers = (header_of(collection), *([judged_header(judged[i])] if judged is not None else []))
        record = Record(None, document_key(collection.name, i), headers, now_ms)
        homes.setdefault(home_of(collection.name, i, n), []).append(record)
    positions: list[Position] = []
    for partition, records in sorted(homes.items()):
        positions.extend(Position(partition, o) for o in _append(log, tenant, partition, records))
    return Token.covering(positions)


def _append(log: Log, tenant: Tenant, partition: int, records: list[Record]) -> list[int]:
    """Appends to the tenant's documents log. Raises Unavailable where it is missing: the request is not at fault."""
    try:
        return log.append(tenant.documents_topic, partition, records)
    except NotFound as missing:
        raise Unavailable(
            f"the documents topic {tenant.documents_topic!r} is missing: an operator has to create it again",
            dependency="log",
            retry_after_s=30,
        ) from missing


def _partitions(log: Log, tenant: Tenant) -> int:
    return log.topics(tenant.documents_topic).get(tenant.documents_topic, 1)


def _by_partition(documents: list[Document], collection: str, n: int) -> Iterator[tuple[int, list[Document]]]:
    homes: dict[int, list[Document]] = {}
    for d in documents:
        homes.setdefault(home_of(collection, d.id, n), []).append(d)
    yield from sorted(homes.items())


def _chunks(documents: list[Document], dimension: int) -> Iterator[list[Document]]:
    """Runs of documents for a record each: of RECORD_BYTES, or a single one of at most wire.MESSAGE_BYTES_MAX."""
    chunk: list[Document] = []
    size = 0
    for d in documents:
        more = _size(d, dimension)
        if chunk and size + more > RECORD_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(d)
        size += more
    if chunk:
        yield chunk


def _size(d: Document, dimension: int) -> int:
    """What it takes of a record: vectors, or passages that have none yet, take no more than they will as rows."""
    words = len((d.text or "").encode()) + sum(len(p.encode()) for p in d.passages or ())
    if d.vectors is None:
        return rows_bytes(d.id, 1 + len(d.passages or ()), 0, text_bytes=words, metadata=d.metadata)
    return rows_bytes(d.id, len(d.vectors), dimension, text_bytes=words, metadata=d.metadata)
