"""Compares the memory growth of a process with the accounted bytes of a segment.

It loads the segment, touches every byte of it and searches it.
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from indexer.backends import open_backend
from indexer.index.rows import newest
from indexer.index.segment import Segment, load
from indexer.index.segment_writer import write
from indexer.index.shard import Shard
from tenants.entities import Manifest, SegmentRef
from vicinage.records import ShardId, ShardQuery
from vicinage.store import LocalStore
from vicinage.wire import vector_column, vectors_schema

N, D = 12_000, 384
SHARD = ShardId("acme", "docs", 1, 0)


def written(spec: str, folder: Path, n: int) -> SegmentRef:
    """Returns a segment of `n` rows with a text each."""
    rng = np.random.default_rng(n)
    vectors = rng.standard_normal((n, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = [f"w{i}" for i in range(2_000)]
    texts = [" ".join(words[w] for w in rng.integers(0, 2_000, 12)) for _ in range(n)]
    columns = [
        [f"d{i}" for i in range(n)],
        [1] * n,
        [1] * n,
        [0] * n,
        texts,
        [0] * n,
        [1] * n,
        ["{}"] * n,
    ]
    schema = vectors_schema(D)
    arrays = [pa.array(c, schema.field(i).type) for i, c in enumerate(columns)]
    batch = pa.RecordBatch.from_arrays([*arrays, vector_column(vectors)], schema=schema)
    return write(
        *newest([batch]),
        shard=SHARD,
        spec=spec,
        metric="cosine",
        dimension=D,
        backend=open_backend(),
        store=LocalStore(folder),
        flat_max=2_000,
    )


def use(segment: Segment, ref: SegmentRef, folder: Path) -> None:
    """Searches it by vectors and by words, then reads every page of its files."""
    shard = Shard(
        SHARD,
        dimension=D,
        metric="cosine",
        recall=0.95,
        backend=open_backend(),
        manifest=Manifest(SHARD, 0, 0, 0, ()),
    )
    shard.adopt(Manifest(SHARD, 1, 0, 0, (ref,)), [segment])
    queries = np.random.default_rng(1).standard_normal((50, D)).astype(np.float32)
    for query in queries:
        shard.search(ShardQuery(SHARD, query[None], 10, mode="hybrid", texts=("w1 w2 w3",)))
        shard.search(ShardQuery(SHARD, query[None], 10, exact=True))
    for column in segment.rows.columns:
        for buffer in column.buffers():
            if buffer is not None:
                np.frombuffer(buffer, np.uint8).max(initial=0)


def resident() -> int:
    """Returns the resident bytes of this process."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    """Prints both figures."""
    spec, folder = sys.argv[1], Path(sys.argv[2])
    store, backend = LocalStore(folder), open_backend()
    small, ref = written(spec, folder, 3_000), written(spec, folder, N)
    use(load(small, store, backend, "cosine"), small, folder)  # what the libraries take once
    before = resident()
    segment = load(ref, store, backend, "cosine")
    use(segment, ref, folder)
    print(json.dumps({"accounted": segment.resident_bytes(), "resident": resident() - before}))


if __name__ == "__main__":
    main()
