"""Shards of synthetic passages."""

from dataclasses import replace

import pyarrow as pa
from rows import message, unit

from indexer.backends import open_backend
from indexer.index.rows import newest
from indexer.index.segment import Segment, load
from indexer.index.segment_writer import write
from indexer.index.shard import Shard
from tenants.entities import Manifest
from vicinage.records import ShardId
from vicinage.store import LocalStore

BACKEND = open_backend()
SHARD = ShardId("acme", "docs", 1, 0)
D = 4


def shard(sealed: int = 0) -> Shard:
    manifest = Manifest(SHARD, 0, 0, sealed, ())
    return Shard(
        SHARD, dimension=D, metric="cosine", recall=0.95, backend=BACKEND, manifest=manifest
    )


def segment(store: LocalStore, batches: list[pa.RecordBatch], spec: str = "flat") -> Segment:
    ref = write(
        *newest(batches), shard=SHARD, spec=spec, metric="cosine", dimension=D,
        backend=BACKEND, store=store, flat_max=8, threads=1,
    )  # fmt: skip
    return load(ref, store, BACKEND, "cosine")


def adopt(to: Shard, segments: list[Segment], sealed: int) -> None:
    old = to.snapshot.manifest
    refs = tuple(s.ref for s in segments)
    to.adopt(replace(old, version=old.version + 1, segments=refs, sealed=sealed), segments)


def one(name: str, version: int, seed: int | None = None, metadata: str = "{}") -> pa.RecordBatch:
    return message([(name, version, [unit(version if seed is None else seed)], metadata)])
