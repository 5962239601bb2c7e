"""Turns embedded documents into messages of the vectors log. Pure.

A message holds rows of many documents of one generation and slot, with all passages of each.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from ingest.embed import Embedded
from ingest.jobs import Job, Write
from tenants.entities import Generation
from vicinage.log import LogRecord, Record
from vicinage.records import Document, Floats, Passage, Rejected
from vicinage.routing import shard_of
from vicinage.vectors import unit_length
from vicinage.wire import (
    DELETED,
    deletions_schema,
    encode_rows,
    rows_key,
    vector_column,
    vectors_schema,
)

EmbeddedByModel = Mapping[str | None, Embedded]
"""The embedded passages of a job, by model."""
NOTHING: Final = Embedded()
"""The value for a model without a part of the job: the job has only deletions for it."""
MESSAGE_BYTES: Final = 3 << 20
"""Target size of a message of many documents.

A message of one document may have wire.MESSAGE_BYTES_MAX.
"""


def messages(job: Job, by_model: EmbeddedByModel) -> Iterator[tuple[int, Record]]:
    """Yields (slot, message) for each generation and slot; several if they exceed MESSAGE_BYTES.

    All passages of a document are in one message. Deletions are in separate messages without
    vectors. A write that a generation's model refused has no rows there; the last of the
    document's other writes has.
    """
    groups: dict[tuple[str, int, int, bool], tuple[Generation, list[Write]]] = {}
    for write, generation in _accepted(job, by_model):
        slot = generation.slots[shard_of(write.id, len(generation.slots))]
        key = (write.collection.name, generation.number, slot, write.document is None)
        groups.setdefault(key, (generation, []))[1].append(write)
    for (collection, number, slot, _), (generation, writes) in groups.items():
        embedded = by_model.get(generation.model, NOTHING)
        for part in _parts(writes, generation, embedded):
            value = encode_rows(
                _batch(part, generation, embedded),
                tenant=job.tenant.name,
                collection=collection,
                generation=number,
            )
            yield (
                slot,
                Record(
                    value,
                    rows_key(job.tenant.name, collection, number),
                    event_time_ms=min(w.event_time_ms for w in part),
                ),
            )


def _accepted(job: Job, by_model: EmbeddedByModel) -> Iterable[tuple[Write, Generation]]:
    found: dict[tuple[str, str, int], tuple[Write, Generation]] = {}
    for write in job.writes:
        for generation in job.targets(write):
            if id(write) not in by_model.get(generation.model, NOTHING).refused:
                found[write.collection.name, write.id, generation.number] = (write, generation)
    return found.values()


def rejections(job: Job, by_model: EmbeddedByModel) -> list[tuple[LogRecord, Rejected]]:
    """Returns the job's rejections: those of parsing, and those of embedding."""
    reasons = {
        key: reason for embedded in by_model.values() for key, reason in embedded.refused.items()
    }
    refused = [
        (
            w.record,
            Rejected(
                reasons[id(w)], field=_content(w.document), id=w.id, collection=w.collection.name
            ),
        )
        for w in job.writes
        if id(w) in reasons
    ]
    return job.rejected + refused


def _content(document: Document | None) -> str:
    return "passages" if document is not None and document.passages is not None else "text"


def _parts(
    writes: list[Write], generation: Generation, embedded: Embedded
) -> Iterator[list[Write]]:
    part: list[Write] = []
    size = 0
    for write in writes:
        weight = embedded.bytes(write, generation)
        if part and size + weight > MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(write)
        size += weight
    if part:
        yield part


def _batch(writes: Sequence[Write], generation: Generation, embedded: Embedded) -> pa.RecordBatch:
    """Returns the rows of these writes in the columns of a vectors message.

    The writes are all documents or all deletions. A document's passages are consecutive, with the
    metadata in the first row.
    """
    are_deletions = writes[0].document is None
    ids: list[str] = []
    versions: list[int] = []
    times: list[int] = []
    passages: list[int] = []
    texts: list[str | None] = []
    starts: list[int | None] = []
    ends: list[int | None] = []
    metadata: list[str | None] = []
    vectors: list[Floats] = []
    for w in writes:
        key = (id(w), generation.model)
        pieces: Sequence[Passage | None] = (
            embedded.passages[key] if w.document is not None else [None]
        )
        n = len(pieces)
        ids.extend([w.id] * n)
        versions.extend([w.version] * n)
        times.extend([w.event_time_ms] * n)
        passages.extend(range(n) if w.document is not None else [DELETED])
        texts.extend(p.text if p else None for p in pieces)
        starts.extend(p.start if p else None for p in pieces)
        ends.extend(p.end if p else None for p in pieces)
        metadata.extend(
            [w.document.metadata_json if w.document is not None else None] + [None] * (n - 1)
        )
        if not are_deletions:
            vectors.append(_vectors(w, embedded, generation))
    columns = [ids, versions, times, passages, texts, starts, ends, metadata]
    schema = deletions_schema() if are_deletions else vectors_schema(generation.dimension)
    arrays = [pa.array(values, schema.field(i).type) for i, values in enumerate(columns)]
    if not are_deletions:
        arrays.append(vector_column(np.concatenate(vectors)))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _vectors(write: Write, embedded: Embedded, generation: Generation) -> Floats:
    """Returns the write's vectors, always L2-normalized under cosine."""
    return unit_length(embedded.vectors[id(write), generation.model], generation.metric)
