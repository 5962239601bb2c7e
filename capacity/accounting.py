"""Who holds what. Pure over a Snapshot."""

from collections.abc import Iterable
from dataclasses import dataclass

from capacity.snapshot import Snapshot
from indexer.shard import ShardStats


@dataclass(frozen=True, slots=True)
class Holding:
    """One collection's part of the platform: counts, and bytes in memory and in the store."""

    tenant: str
    collection: str
    documents: int
    passages: int
    host_bytes: int
    store_bytes: int


def holdings(snapshot: Snapshot) -> tuple[Holding, ...]:
    """One row per collection, generations being built included in its bytes, counts of the newest."""
    shards: dict[tuple[str, str], list[ShardStats]] = {}
    for s in snapshot.shards:
        shards.setdefault((s.shard.tenant, s.shard.collection), []).append(s)
    return tuple(_holding(name, shards.get(name, [])) for name in snapshot.collections)


def _holding(name: tuple[str, str], shards: list[ShardStats]) -> Holding:
    generation = min((s.shard.generation for s in shards), default=0)  # the live one: the next is numbered higher
    live = [s for s in shards if s.shard.generation == generation]
    return Holding(
        *name,
        documents=sum(s.documents for s in live),
        passages=sum(s.passages for s in live),
        host_bytes=sum(s.host_bytes for s in shards),
        store_bytes=sum(s.store_bytes for s in shards),
    )


def total(rows: Iterable[Holding]) -> Holding:
    """The sum of some rows."""
    every = list(rows)
    return Holding(
        "*",
        "*",
        documents=sum(r.documents for r in every),
        passages=sum(r.passages for r in every),
        host_bytes=sum(r.host_bytes for r in every),
        store_bytes=sum(r.store_bytes for r in every),
    )
