"""★ Turns a POSTed body into records for the documents log. Pure: it may run in another process.

The number of documents is checked before their contents. A fault rejects its own document alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ingest.columns import parse_arrow_body
from ingest.documents import Entry, parse_all, parse_ndjson
from ingest.validation import DocumentLimits
from vicinage.errors import Refused
from vicinage.exact_json import Exactly
from vicinage.records import Document, Rejected
from vicinage.routing import home_of
from vicinage.wire import ARROW, encode_documents, list_field, load_json, rows_bytes

NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
DOCUMENTS_MAX: Final = 10_000
RECORD_BYTES: Final = 2 << 20
"""Target size of a record of many documents."""
REJECTED_MAX: Final = 1_000
"""Rejections of one body that are returned."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body and its destination.

    `partitions` is the number of partitions of the tenant's documents topic.
    """

    content_type: str
    data: bytes
    limits: DocumentLimits
    tenant: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """Records by partition, in the order of their documents, and the rejections."""

    accepted: int
    records: tuple[tuple[int, tuple[bytes, ...]], ...]
    rejected: tuple[Rejected, ...]


def prepare(body: Body) -> Prepared:
    """Returns the body's records. Raises Refused if the body as a whole cannot be parsed."""
    return prepared(
        entries_of(body), body.limits.collection, body.limits.dimension, body.partitions
    )


def prepared(
    entries: Sequence[Entry], collection: str, dimension: int, partitions: int
) -> Prepared:
    """Returns the records of parsed documents, and the first REJECTED_MAX rejections."""
    documents = [e for e in entries if isinstance(e, Document)]
    rejected = [e for e in entries if isinstance(e, Rejected)]
    homes: dict[int, list[Document]] = {}
    for d in documents:
        homes.setdefault(home_of(collection, d.id, partitions), []).append(d)
    records = tuple(
        (
            partition,
            tuple(
                encode_documents(c, collection=collection, dimension=dimension)
                for c in _chunks(run, dimension)
            ),
        )
        for partition, run in sorted(homes.items())
    )
    return Prepared(len(documents), records, tuple(rejected[:REJECTED_MAX]))


def entries_of(body: Body) -> list[Entry]:
    """Returns every entry of the body: a document or its rejection. Raises Refused."""
    kind, data = body.content_type, body.data
    if kind == ARROW:
        return parse_arrow_body(data, body.limits)  # bounded by wire.ROWS_MAX
    if kind in NDJSON:
        if data.count(b"\n") > 2 * DOCUMENTS_MAX:  # bounds empty lines, which are not documents
            raise _too_many(f"more than {2 * DOCUMENTS_MAX} lines")
        if (n := sum(1 for line in data.split(b"\n") if line.strip())) > DOCUMENTS_MAX:
            raise _too_many(f"{n} documents")
        return parse_ndjson(data, body.limits, tenant=body.tenant)
    if kind not in ("", "application/json"):
        raise Refused(
            f"content-type {kind!r} is not supported; "
            f"send application/json, {NDJSON[0]} or {ARROW}",
            field="content-type",
        )
    body_text = Exactly(data)
    values = (
        (d, body_text.part("documents", i)) for i, d in enumerate(_documents_of(load_json(data)))
    )
    return parse_all(values, body.limits, tenant=body.tenant)


def _documents_of(value: Any) -> list[Any]:
    documents = list_field(value, "documents", "documents")
    if len(documents) > DOCUMENTS_MAX:
        raise _too_many(f"{len(documents)} documents")
    return documents


def _too_many(what: str) -> Refused:
    return Refused(
        f"{what} in one request; at most {DOCUMENTS_MAX}", field="documents", limit=DOCUMENTS_MAX
    )


def _chunks(documents: list[Document], dimension: int) -> Iterator[list[Document]]:
    """Yields the documents of each record, in order.

    A record has up to RECORD_BYTES, or a single document of at most wire.MESSAGE_BYTES_MAX.
    """
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
    """Returns the size of a document in a record: no more than the size of its rows later."""
    text_bytes = len((d.text or "").encode()) + sum(len(p.encode()) for p in d.passages or ())
    if d.vectors is None:
        return rows_bytes(
            d.id, 1 + len(d.passages or ()), 0, text_bytes=text_bytes, metadata_json=d.metadata_json
        )
    return rows_bytes(
        d.id, len(d.vectors), dimension, text_bytes=text_bytes, metadata_json=d.metadata_json
    )
