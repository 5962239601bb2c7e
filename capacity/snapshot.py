"""The state of the platform at one moment, from catalog, log and searchers.

This package's only I/O.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tenants.entities import Tenant
from tenants.registry import Registry
from tenants.serving import serving
from vicinage.log import Log
from vicinage.records import ShardId
from vicinage.stats import SHARD_BYTES, Host, SearcherStats, ShardStats

RATE_WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Events per second over the last `window_s` seconds."""

    per_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class SearcherMemory:
    """Memory of one searcher, in bytes: in use, its bound, and what its unloaded shards would take.

    `at_least`: rows in the log of some unloaded shards are not counted yet.
    """

    host: str
    resident_bytes: int
    resident_bytes_max: int
    not_resident_bytes: int
    at_least: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Shards, log ends, memory of each host and searcher, and rates, as of `at_ms`."""

    at_ms: int
    tenants: tuple[Tenant, ...]
    live: Mapping[tuple[str, str], tuple[ShardId, ...]]
    """(tenant, collection) → shards of the live generation."""
    dimensions: Mapping[ShardId, int]
    """Dimension of every shard that is served."""
    shards: tuple[ShardStats, ...]
    memory: tuple[SearcherMemory, ...]
    documents_logged: Mapping[str, int]
    hosts: tuple[Host, ...]
    searches: Rate
    applied: Rate
    log_bytes: int | None = None
    """Bytes of the log on this machine's disk; None if brokers store it."""


class Rates:
    """Turns counters into rates over RATE_WINDOW_S, or since the last call if that is longer."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int, int]] = [(time.monotonic(), 0, 0)]

    def rate(self, searches: int, applied: int) -> tuple[Rate, Rate]:
        """Returns the rates between the oldest reading in the window and this one."""
        now = time.monotonic()
        # a restarted searcher counts from 0
        earlier = [s for s in self._seen if s[1] <= searches and s[2] <= applied]
        lately = [s for s in earlier if now - s[0] <= RATE_WINDOW_S]
        then = (lately or earlier[-1:] or [(now, searches, applied)])[0]
        self._seen = [*(lately or earlier[-1:]), (now, searches, applied)]
        seconds = now - then[0]
        if seconds <= 0:
            return Rate(0.0, 0.0), Rate(0.0, 0.0)
        return Rate((searches - then[1]) / seconds, seconds), Rate(
            (applied - then[2]) / seconds, seconds
        )


def take(
    registry: Registry, log: Log, stats: Sequence[SearcherStats], rates: Rates, now_ms: int
) -> Snapshot:
    """Takes a snapshot. Blocks on the log. Raises Unavailable."""
    tenants = registry.tenants()
    logged = {t.name: _records(log, t.documents_topic) for t in tenants}
    searches, applied = rates.rate(sum(s.searches for s in stats), sum(s.applied for s in stats))
    return Snapshot(
        at_ms=now_ms,
        tenants=tenants,
        live={(c.tenant, c.name): tuple(c.generation().shards()) for c in registry.collections()},
        dimensions={shard: g.dimension for shard, g in serving(registry).items()},
        shards=tuple(shard for s in stats for shard in s.shards),
        memory=tuple(map(memory_of, stats)),
        documents_logged=logged,
        hosts=each_once(s.host for s in stats),
        searches=searches,
        applied=applied,
        log_bytes=log.disk_bytes(),
    )


def memory_of(stats: SearcherStats) -> SearcherMemory:
    """Returns the memory of a searcher, from its statistics. Pure."""
    others = [s for s in stats.shards if not s.resident]
    return SearcherMemory(
        stats.host.name,
        stats.resident_bytes,
        stats.resident_bytes_max,
        sum(s.store_bytes + s.log_bytes + SHARD_BYTES for s in others),
        not all(s.exact for s in others),
    )


def each_once(seen: Iterable[Host]) -> tuple[Host, ...]:
    """Returns each host once, by name. Pure.

    Sums the resident memory of its searchers, and takes the least available memory that they found.
    """
    found: dict[str, Host] = {}
    for h in seen:
        before = found.get(h.name, replace(h, resident=0))
        found[h.name] = replace(
            h, available=min(h.available, before.available), resident=h.resident + before.resident
        )
    return tuple(h for _, h in sorted(found.items()))


def _records(log: Log, topic: str) -> int:
    partitions = range(log.topics(topic).get(topic, 0))
    extents = log.extents([(topic, p) for p in partitions])
    return sum(log_end - log_start for log_start, log_end in extents.values())
