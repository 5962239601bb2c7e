"""Rows of vectors messages: the newest write of each document, and runs of one document. Pure."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexer.index.order import supersedes
from vicinage.errors import TooLarge
from vicinage.wire import DELETED, is_deletions


def has_text(rows: pa.RecordBatch) -> bool:
    """Returns whether any row has text: a tenant's own vectors need none."""
    return bool(rows.column("text").null_count < rows.num_rows)


def newest(batches: Sequence[pa.RecordBatch]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Returns the live rows and the deletions of each document's newest write. Raises TooLarge.

    The passages of a document are adjacent; deletions have the columns document_id and version. Of
    two deliveries of one write, the later batch's rows count. A deletion beats a document of its
    own version (`order.supersedes`). At least one batch has a column of vectors; it may be empty.
    """
    rows = _joined(batches)
    ids, versions = rows.column("document_id").to_pylist(), rows.column("version").to_numpy()
    passages = rows.column("passage").to_numpy()
    best: dict[str, tuple[int, int, int]] = {}
    for start, end in _runs_by_batch(batches, ids, versions):
        held, version = best.get(ids[start]), int(versions[start])
        deleted = bool(passages[start] == DELETED)
        if held is None or not supersedes(
            held[0], bool(passages[held[1]] == DELETED), version, deleted
        ):
            best[ids[start]] = (version, start, end)
    gone = sorted(i for i, (_, start, _) in best.items() if passages[start] == DELETED)
    live = sorted(i for i, (_, start, _) in best.items() if passages[start] != DELETED)
    order = (
        np.concatenate([np.arange(best[i][1], best[i][2]) for i in live])
        if live
        else np.zeros(0, np.int64)
    )
    deletes = pa.record_batch(
        {
            "document_id": pa.array(gone, pa.utf8()),
            "version": pa.array([best[i][0] for i in gone], pa.int64()),
        }
    )
    return rows.take(order), deletes


def no_deletes() -> pa.RecordBatch:
    """Returns an empty batch of deletions, in the columns of `newest`."""
    return pa.record_batch(
        {"document_id": pa.array([], pa.utf8()), "version": pa.array([], pa.int64())}
    )


class _Joined:
    """Rows of many messages, concatenated; those of deletions take no space for vectors."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        bare = [b.replace_schema_metadata(None) for b in batches]
        wide = [b for b in bare if not is_deletions(b)]
        assert wide, "the caller prepends an empty batch with vectors to messages of deletions"
        self._schema = wide[0].schema
        self._vectors = pa.concat_arrays([b.column("vector") for b in wide])
        has_vector = np.concatenate([np.full(b.num_rows, not is_deletions(b)) for b in bare])
        self._position = np.cumsum(has_vector) - 1
        self._others = pa.concat_batches(
            [b if is_deletions(b) else b.drop_columns(["vector"]) for b in bare]
        )

    def column(self, name: str) -> pa.Array:
        """Returns a column of all rows, other than `vector`."""
        return self._others.column(name)

    def take(self, order: NDArray[np.int64]) -> pa.RecordBatch:
        """Returns these rows, none of them a deletion, in the columns of a vectors message."""
        vectors = self._vectors.take(pa.array(self._position[order]))
        others = self._others.take(pa.array(order))
        columns = {**dict(zip(others.schema.names, others.columns, strict=True)), "vector": vectors}
        return pa.RecordBatch.from_arrays(
            [columns[name] for name in self._schema.names], schema=self._schema
        )


def _joined(batches: Sequence[pa.RecordBatch]) -> _Joined:
    try:
        return _Joined(batches)
    except pa.ArrowInvalid as error:  # 32-bit text offsets: refused beyond 2 GiB, not truncated
        raise TooLarge(
            f"the rows exceed one segment; give the collection more shards: {error}",
            limit=2**31 - 1,
        ) from error


def _runs_by_batch(
    batches: Sequence[pa.RecordBatch], ids: Sequence[str], versions: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Returns the runs of every batch: a record that is delivered twice in a row is two runs."""
    ends = np.cumsum([b.num_rows for b in batches]).tolist()
    return [
        (first + start, first + end)
        for first, last in zip([0, *ends], ends, strict=False)
        for start, end in document_runs(ids[first:last], versions[first:last])
    ]


def document_runs(ids: Sequence[str], versions: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Returns [start, end) of each run of rows of one version of one document."""
    n = len(ids)
    if n == 0:
        return []
    starts = [0] + [
        i for i in range(1, n) if ids[i] != ids[i - 1] or versions[i] != versions[i - 1]
    ]
    return list(zip(starts, [*starts[1:], n], strict=True))
