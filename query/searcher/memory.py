"""Accounts for the bytes in memory, and chooses the shards to evict when more are needed.

A shard that is not in memory costs a few bytes of bookkeeping: its rows are in the store and in the
log. Accounting counts every mapped page as resident. Memory thus never exceeds the budget,
whichever pages searches read.
"""

import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import psutil

from indexer.index.segment import Segment
from vicinage.records import ShardId
from vicinage.tenant_context import TenantContext

IN_USE_S: Final = 1.0
"""A shard accessed within it is not evicted, unless its tenant exceeds its fair share."""
SHARE_OF_HOST: Final = 0.5
"""Share of a machine's memory for all its searchers, if no budget is set."""


@dataclass(frozen=True, slots=True)
class ResidentShard:
    """A shard in memory.

    `weight` is that of its tenant's class, `idle_s` the time since its last access or its load.
    """

    shard: ShardId
    bytes: int
    idle_s: float
    weight: int


def choose_evictions(
    resident: Iterable[ResidentShard],
    need: int,
    bytes_max: int,
    *,
    requester: TenantContext | None = None,
    spare: int = 0,
    partial: bool = False,
) -> tuple[ShardId, ...]:
    """Returns shards to evict for `need` bytes, and for `spare` more if candidates remain. Pure.

    Returns () if evicting every candidate frees too little, unless `partial`. The order is LRU,
    with idle time divided by class weight and multiplied by the square of the tenant's excess over
    its fair share. A tenant that scans all its shards thus evicts its own. Shards accessed within
    IN_USE_S stay, except those of tenants above their share.
    """
    every = list(resident)
    excess = _excess(every, bytes_max, requester)
    candidates = [h for h in every if h.idle_s >= IN_USE_S or excess[h.shard.tenant] > 1]
    if not partial and sum(h.bytes for h in candidates) < need:
        return ()

    def urgency(h: ResidentShard) -> float:
        return max(h.idle_s, IN_USE_S) * excess[h.shard.tenant] ** 2 / h.weight

    chosen: list[ShardId] = []
    left = need + spare
    for h in sorted(candidates, key=urgency, reverse=True):
        if left <= 0:
            break
        chosen.append(h.shard)
        left -= h.bytes
    return tuple(chosen)


def _excess(
    resident: Iterable[ResidentShard], bytes_max: int, requester: TenantContext | None
) -> dict[str, float]:
    """Returns each tenant's bytes as a multiple of its fair share of the budget; at least 1."""
    bytes_of: dict[str, int] = {}
    weight_of: dict[str, int] = {requester.name: requester.weight} if requester else {}
    for h in resident:
        bytes_of[h.shard.tenant] = bytes_of.get(h.shard.tenant, 0) + h.bytes
        weight_of[h.shard.tenant] = h.weight
    fair = bytes_max / max(1, sum(weight_of.values()))
    return {tenant: max(1.0, n / (fair * weight_of[tenant])) for tenant, n in bytes_of.items()}


class ResidentBytes:
    """Counts the bytes of a searcher's segments in memory.

    Includes segments that only a running search still references. Any thread may call `count`.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max or int(SHARE_OF_HOST * psutil.virtual_memory().total)
        self._bytes = 0
        self._freed: deque[int] = deque()
        """Bytes freed since the last `bytes` (negative: added).

        A finalizer may run in any thread at any time, and so takes no lock.
        """

    def count(self, segment: Segment) -> None:
        """Counts the segment's bytes until the segment is garbage-collected."""
        n = segment.resident_bytes()
        self._freed.append(-n)
        weakref.finalize(segment, self._freed.append, n).atexit = False

    def bytes(self) -> int:
        """Returns the bytes of segments in memory. One thread at a time."""
        while self._freed:
            self._bytes -= self._freed.popleft()
        return self._bytes
