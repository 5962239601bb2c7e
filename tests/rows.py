"""Builders of vectors messages for tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vicinage.wire import deletions_schema, encode_rows, vector_column, vectors_schema

Row = tuple[str, int, Sequence[np.ndarray] | None, str]
"""(document ID, version, one vector per passage or None for a deletion, metadata as JSON)."""


def message(rows: Sequence[Row], dimension: int = 4, *, older: bool = False) -> pa.RecordBatch:
    """Returns a vectors message's batch; `older`: of format 1, with the metadata in every row.

    Deletions alone have no vectors.
    """
    flat = [
        (
            name,
            version,
            i if vectors is not None else -1,
            vector,
            metadata if older or not i else None,
        )
        for name, version, vectors, metadata in rows
        for i, vector in enumerate(
            vectors if vectors is not None else [np.full(dimension, np.nan, np.float32)]
        )
    ]
    n = len(flat)
    columns = [
        [f[0] for f in flat],
        [f[1] for f in flat],
        [1] * n,
        [f[2] for f in flat],
        [f"text {f[0]} {f[1]}" if f[2] >= 0 else None for f in flat],
        [0] * n,
        [1] * n,
        [f[4] for f in flat],
    ]
    schema = vectors_schema(dimension)
    arrays = [pa.array(c, schema.field(i).type) for i, c in enumerate(columns)]
    if flat and not older and all(vectors is None for _, _, vectors, _ in rows):
        return pa.RecordBatch.from_arrays(arrays, schema=deletions_schema())
    vectors = vector_column(
        np.stack([f[3] for f in flat]) if flat else np.empty((0, dimension), np.float32),
        [f[2] < 0 for f in flat],
    )
    return pa.RecordBatch.from_arrays([*arrays, vectors], schema=schema)


def unit(seed: int, dimension: int = 4) -> np.ndarray:
    """Returns a unit vector that the seed alone determines."""
    v = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    return v / np.linalg.norm(v)


def invalid_values(collection: str) -> list[bytes]:
    """Returns values that are not valid messages of generation 1 of acme's collection.

    Their keys may name it.
    """

    def encoded(batch: pa.RecordBatch, **names: Any) -> bytes:
        return encode_rows(
            batch, **{"tenant": "acme", "collection": collection, "generation": 1, **names}
        )

    whole = message([("p", 9, [unit(1), unit(2)], "{}"), ("q", 9, [unit(3)], "{}")])
    endless = message([("p", 9, [np.full(4, np.inf, np.float32)], "{}")])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink,
        whole.schema.with_metadata({"vicinage": "2"}),
        options=pa.ipc.IpcWriteOptions(compression="zstd"),
    ) as writer:
        writer.write_batch(message([("p", 9, [np.zeros(4, np.float32)] * 700_000, "{}")]))
    return [
        b"no arrow",
        b"",
        b"22 bytes of something.",
        encoded(message([("p", 9, [unit(1, 9)], "{}")], 9)),
        encoded(whole, collection="another"),
        encoded(whole.slice(1)),
        encoded(whole.take(pa.array([0, 2, 1]))),
        encoded(endless),
        encoded(whole)[:-90],
        sink.getvalue().to_pybytes(),
    ]
