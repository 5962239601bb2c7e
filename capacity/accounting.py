"""Bytes and passages by tenant and by searcher. Pure over a Snapshot."""

from collections.abc import Iterable
from dataclasses import dataclass

from capacity.headroom import measured
from capacity.snapshot import Snapshot
from vicinage.records import ShardId
from vicinage.stats import ShardStats


@dataclass(frozen=True, slots=True)
class CollectionUsage:
    """One collection's use of the platform: counts, and bytes in memory and in the store.

    `at_least`: the counts are lower bounds, because a shard did not answer or was not counted yet.
    `bytes_per_passage` is the mean memory of its passages; None if none was measured.
    """

    tenant: str
    collection: str
    documents: int
    passages: int
    at_least: bool
    host_bytes: int
    store_bytes: int
    bytes_per_passage: float | None


def collection_usage(snapshot: Snapshot) -> tuple[CollectionUsage, ...]:
    """Returns one row per collection: counts of the live generation, bytes of all generations."""
    shards: dict[tuple[str, str], list[ShardStats]] = {}
    for s in snapshot.shards:
        shards.setdefault((s.shard.tenant, s.shard.collection), []).append(s)
    return tuple(
        _usage_of(name, live, shards.get(name, [])) for name, live in snapshot.live.items()
    )


def _usage_of(
    name: tuple[str, str], live: tuple[ShardId, ...], shards: list[ShardStats]
) -> CollectionUsage:
    counted = [s for s in shards if s.shard in set(live)]
    n, size = measured(shards)
    return CollectionUsage(
        *name,
        documents=sum(s.documents for s in counted),
        passages=sum(s.passages for s in counted),
        at_least=len(counted) < len(live) or not all(s.exact for s in counted),
        host_bytes=sum(s.host_bytes for s in shards),
        store_bytes=sum(s.store_bytes for s in shards),
        bytes_per_passage=round(size / n, 1) if n else None,
    )


def total(rows: Iterable[CollectionUsage]) -> CollectionUsage:
    """Returns the sum of some rows, without a mean over collections."""
    every = list(rows)
    return CollectionUsage(
        "*",
        "*",
        documents=sum(r.documents for r in every),
        passages=sum(r.passages for r in every),
        at_least=any(r.at_least for r in every),
        host_bytes=sum(r.host_bytes for r in every),
        store_bytes=sum(r.store_bytes for r in every),
        bytes_per_passage=None,
    )
