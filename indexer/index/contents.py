"""The documents of a shard, in its delta and its segments, and which write of each counts.

Guarantee 3: a document's higher version replaces the lower one, in segments and delta alike; other
writes are dropped (`order.supersedes`).
"""

import numpy as np
import pyarrow as pa

from indexer.index.delta import Delta, Entry
from indexer.index.order import supersedes
from indexer.index.rows import document_runs
from indexer.index.segment_set import NewestWrites, SegmentSet
from vicinage.errors import Corrupt
from vicinage.records import ShardId
from vicinage.wire import DELETED, is_deletions


class Contents:
    """Delta and segments as the shard's single writer changes them, under the shard's lock."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self.delta = Delta(dimension)
        self.sealed = SegmentSet()
        self.n_documents = 0

    def add(self, batch: pa.RecordBatch, offset: int) -> None:
        """Adds the documents that are newer, and marks the rows that they replace as dead."""
        ids, versions = batch.column("document_id").to_pylist(), batch.column("version").to_numpy()
        passages = batch.column("passage").to_numpy()
        runs = document_runs(ids, versions)
        names = [ids[start] for start, _ in runs]
        sealed = self.sealed.newest(names)
        alive = np.zeros(batch.num_rows, np.bool_)
        accepted: list[int] = []
        replaced: list[Entry] = []
        for number, (start, end) in enumerate(runs):
            held = self.delta.documents.get(names[number])
            version, gone = int(versions[start]), bool(passages[start] == DELETED)
            if not _is_newest(version, held, sealed, number, gone=gone):
                continue
            alive[start:end] = not gone
            accepted.append(number)
            was_alive = held.count > 0 if held else self.sealed.is_alive(sealed, number)
            self.n_documents += int(not gone) - int(was_alive)
            if held:
                replaced.append(held)
            # Recorded at once: the message may hold the same document again.
            self.delta.documents[names[number]] = Entry(
                self.delta.n + start, 0 if gone else end - start, version
            )
        if not accepted:
            return  # a duplicate delivery
        self.delta.append(batch, offset, alive)
        self.delta.kill(replaced)
        self.sealed.kill(sealed, accepted)

    def adopt(self, sealed: SegmentSet, offset: int) -> None:
        """Replaces the segments, which contain every message below `offset`.

        Those messages leave the delta; the others are added to a new one.
        """
        self.sealed, self.n_documents = sealed, sealed.n_documents
        kept = [m for m in self.delta.messages if m.offset >= offset]
        self.delta = Delta(self._dimension)
        for message in kept:
            self.add(message.batch, message.offset)


def check_dimension(batch: pa.RecordBatch, dimension: int, shard: ShardId, offset: int) -> None:
    """Raises Corrupt if the message's vectors have another dimension than the generation."""
    if is_deletions(batch) or batch.schema.field("vector").type.list_size == dimension:
        return
    raise Corrupt(
        f"the message at offset {offset} of {shard} is not of dimension {dimension}",
        path=f"vicinage.vectors/{shard.slot}/{offset}",
    )


def _is_newest(
    version: int, held: Entry | None, sealed: NewestWrites, number: int, *, gone: bool
) -> bool:
    """Returns whether a write replaces the delta's entry and the segments' newest write."""
    if held and not supersedes(version, gone, held.version, held.count == 0):
        return False
    return supersedes(version, gone, int(sealed.version[number]), bool(sealed.deleted[number]))
