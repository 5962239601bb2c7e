"""Which shards lie in memory: the bytes that are held, and who lets go when more are needed.

A shard that does not lie in memory costs a few bytes of bookkeeping; its rows lie in the store, and behind them in the log. Bytes are
accounted as if every mapped page were touched, so that what is held never grows beyond what was allowed, whoever reads what.
"""

import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import psutil

from indexer.index.segment import Segment
from vicinage.records import ShardId

IN_USE_S: Final = 1.0
"""A shard asked within it is not let go of for another, unless its tenant holds more than its share."""
SHARE_OF_HOST: Final = 0.5
"""Of a machine's memory, for all its searchers, where nothing is set."""


@dataclass(frozen=True, slots=True)
class Held:
    """A shard in memory: `weight` is that of its tenant's class, `idle_s` the time since it was asked or brought in."""

    shard: ShardId
    bytes: int
    idle_s: float
    weight: int


@dataclass(frozen=True, slots=True)
class Asker:
    """The tenant that needs the room, and its class's weight."""

    tenant: str
    weight: int


def to_let_go(
    held: Iterable[Held],
    need: int,
    bytes_max: int,
    *,
    asker: Asker | None = None,
    spare: int = 0,
    partial: bool = False,
) -> tuple[ShardId, ...]:
    """The shards that make room for `need` bytes, and for `spare` more where that is easy. Pure.

    None, where all that may go would not make the room, unless `partial`. Who was not asked for longest goes first. The time counts for more the
    lower the class, and much more where its tenant holds beyond its share: who walks through all that he has lets go of his own.
    Who was asked just now stays, but for tenants beyond their share.
    """
    every = list(held)
    excess = _excess(every, bytes_max, asker)
    may_go = [h for h in every if h.idle_s >= IN_USE_S or excess[h.shard.tenant] > 1]
    if not partial and sum(h.bytes for h in may_go) < need:
        return ()

    def urgency(h: Held) -> float:
        return max(h.idle_s, IN_USE_S) * excess[h.shard.tenant] ** 2 / h.weight

    going: list[ShardId] = []
    left = need + spare
    for h in sorted(may_go, key=urgency, reverse=True):
        if left <= 0:
            break
        going.append(h.shard)
        left -= h.bytes
    return tuple(going)


def _excess(held: Iterable[Held], bytes_max: int, asker: Asker | None) -> dict[str, float]:
    """How many times its fair share of all the bytes each tenant holds; at least 1."""
    bytes_of: dict[str, int] = {}
    weight_of: dict[str, int] = {asker.tenant: asker.weight} if asker else {}
    for h in held:
        bytes_of[h.shard.tenant] = bytes_of.get(h.shard.tenant, 0) + h.bytes
        weight_of[h.shard.tenant] = h.weight
    fair = bytes_max / max(1, sum(weight_of.values()))
    return {tenant: max(1.0, n / (fair * weight_of[tenant])) for tenant, n in bytes_of.items()}


class Residency:
    """Counts the segments of a searcher that are in memory, those too that only a search under way still holds. Any thread."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max or int(SHARE_OF_HOST * psutil.virtual_memory().total)
        self._bytes = 0
        self._gone: deque[int] = deque()
        """Bytes of segments that were freed since the last look: a finalizer may run anywhere, and so takes no lock."""

    def count(self, segment: Segment) -> None:
        """The segment's bytes are held until nobody holds it any more."""
        n = segment.resident_bytes()
        self._gone.append(-n)
        weakref.finalize(segment, self._gone.append, n).atexit = False

    def bytes(self) -> int:
        """Bytes of segments in memory. One thread at a time."""
        while self._gone:
            self._bytes -= self._gone.popleft()
        return self._bytes
