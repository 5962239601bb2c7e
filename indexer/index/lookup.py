"""Reads stored documents of a shard: one by its id, or the ids of those that pass a filter."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from indexer.index.delta import DeltaView, Entry
from indexer.index.hits import Passages
from indexer.index.search import allowed_rows
from indexer.index.segment import Segment
from indexer.index.segment_set import NewestWrites
from indexer.index.snapshot import Snapshot, StoredDocument, StoredPassage
from vicinage import filters
from vicinage.records import Floats


def in_delta(view: DeltaView, document_id: str, entry: Entry) -> StoredDocument | None:
    """Returns the delta's document; None if the entry is a deletion."""
    if not entry.count:
        return None
    message, at = view.row(entry.first)
    vectors = view.vectors[entry.first : entry.first + entry.count]
    return _stored(document_id, entry.version, message.passages, at, vectors)


def in_segments(
    segments: tuple[Segment, ...], document_id: str, writes: NewestWrites
) -> StoredDocument | None:
    """Returns the document whose newest write is the only one in `writes`; None if deleted."""
    version = int(writes.version[0])
    for segment, positions in zip(segments, writes.positions, strict=True):
        at = int(positions[0])
        if (
            at >= 0
            and segment.version[at] == version
            and not writes.deleted[0]
            and segment.count[at]
        ):
            first, count = int(segment.first[at]), int(segment.count[at])
            vectors = segment.vectors[first : first + count]
            return _stored(document_id, version, segment.passages, first, vectors)
    return None


def matching(
    snapshot: Snapshot, condition: Mapping[str, Any], *, limit: int
) -> tuple[tuple[str, int], ...]:
    """Returns (id, version) of at most `limit` documents whose metadata passes the filter."""
    tree = filters.parse(condition)
    found: dict[str, int] = {}
    for segment, alive in zip(snapshot.segments, snapshot.alive, strict=True):
        allowed = allowed_rows(alive, segment.columns.columns(), tree)
        rows = np.flatnonzero(allowed if allowed is not None else np.ones(len(segment), np.bool_))
        ids, versions = (
            segment.rows.column(name).take(pa.array(rows)) for name in ("document_id", "version")
        )
        found |= zip(ids.to_pylist(), versions.to_pylist(), strict=True)
    delta = snapshot.delta
    allowed = allowed_rows(delta.alive, delta.columns(), tree)
    for row in np.flatnonzero(allowed if allowed is not None else ()):
        message, at = delta.row(int(row))
        found[message.passages.id(at)] = message.batch.column("version")[at].as_py()
    return tuple(islice(found.items(), limit))


def _stored(
    document_id: str, version: int, passages: Passages, first: int, vectors: Floats
) -> StoredDocument:
    """Returns the document whose rows begin at `first`; `vectors` float32 [n, d] are theirs."""
    extents = zip(*passages.extents(first, len(vectors)), vectors, strict=True)
    return StoredDocument(
        document_id,
        version,
        tuple(StoredPassage(*each) for each in extents),
        passages.metadata(first),
    )
