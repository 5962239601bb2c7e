"""The memory budget of shards: evicts other shards before a load (`memory.py` chooses which)."""

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from indexer.index.segment import Segment
from query.searcher.memory import ResidentBytes, ResidentShard, choose_evictions
from vicinage.clock import Clock
from vicinage.errors import Unavailable
from vicinage.records import ShardId
from vicinage.stats import SHARD_BYTES
from vicinage.tenant_context import TenantContext

SPARE_SHARE: Final = 64
"""An eviction frees 1/SPARE_SHARE of the budget in addition, so that it serves several loads."""


class NoRoom(Unavailable):
    """The shard exceeds the memory budget, or other shards use the memory."""


class Resident(Protocol):
    """The properties of a shard in memory that the budget accounts for."""

    last_access_s: float

    def made_bytes(self) -> int:
        """Returns the bytes of what is made in memory: its delta and filter columns."""
        ...

    def held_bytes(self) -> int:
        """Returns the bytes that the shard takes in memory."""
        ...


class Owner(Protocol):
    """The owner of the shards: lists those in memory, and evicts."""

    def resident(self) -> Mapping[ShardId, Resident]:
        """Returns the shards in memory."""
        ...

    def weights(self) -> Mapping[str, int]:
        """Returns every tenant's weight."""
        ...

    def is_in_use(self, shard: ShardId) -> bool:
        """Returns whether a search waits for the shard, or it is in memory."""
        ...

    def pinned(self) -> Collection[ShardId]:
        """Returns shards that must not be evicted, such as those that could not be reloaded."""
        ...

    def evict(self, shard: ShardId) -> None:
        """Unloads the shard, unless it is pinned by now."""
        ...


@dataclass(slots=True)
class Reservation:
    """Bytes that are reserved and not loaded yet."""

    left: int


class MemoryBudget:
    """Accounts for shards in memory, at most `bytes_max` bytes. Thread-safe."""

    def __init__(self, bytes_max: int, owner: Owner, clock: Clock) -> None:
        self._segments = ResidentBytes(bytes_max)
        self.bytes_max = self._segments.bytes_max
        """Maximum accounted bytes in memory."""
        self._owner = owner
        self._clock = clock
        self._lock = threading.Lock()
        self._made = 0
        """Bytes of deltas and columns at the last count."""
        self._reserved = 0
        """Bytes that are reserved and still being loaded."""

    @contextmanager
    def reserve(self, shard: ShardId, need: int) -> Iterator[Reservation]:
        """Reserves `need` bytes until they are loaded and counted; evicts other shards.

        Raises NoRoom.
        """
        reservation = Reservation(need + SHARD_BYTES)
        with self._lock:
            self._make_room(shard, reservation.left)
            self._reserved += reservation.left
        try:
            yield reservation
        finally:
            with self._lock:
                self._reserved -= reservation.left

    def count(self, segment: Segment, reservation: Reservation) -> None:
        """Moves a loaded segment's bytes from reserved to resident."""
        with self._lock:
            self._segments.count(segment)
            self._reserved -= segment.resident_bytes()
            reservation.left -= segment.resident_bytes()

    def shed(self) -> None:
        """Evicts shards until the budget holds, because deltas grow without a load."""
        with self._lock:
            over = self._resident_bytes() + self._reserved - self.bytes_max
            if over > 0:
                self._evict(
                    choose_evictions(self._evictable(but=None), over, self.bytes_max, partial=True)
                )

    def resident_bytes(self) -> int:
        """Returns the accounted bytes: segments, deltas, columns, and SHARD_BYTES per shard."""
        with self._lock:
            return self._resident_bytes()

    def _make_room(self, shard: ShardId, need: int) -> None:
        limit = self.bytes_max
        if need > limit:
            raise NoRoom(
                f"the shard takes {need} bytes of memory, and searcher.resident_bytes_max is "
                f"{limit}: raise it, or give the collection more shards",
                dependency="searcher",
            )
        if self._about_resident() + self._reserved + need <= limit:
            return
        over = self._resident_bytes() + self._reserved + need - limit
        if over <= 0:
            return
        if self._owner.is_in_use(shard):  # only a shard in use or waited for may evict others
            requester = TenantContext(shard.tenant, self._owner.weights().get(shard.tenant, 1))
            self._evict(
                choose_evictions(
                    self._evictable(but=shard),
                    over,
                    limit,
                    requester=requester,
                    spare=limit // SPARE_SHARE,
                )
            )
        if self._resident_bytes() + self._reserved + need > limit:
            raise NoRoom(
                "the memory is in use by other collections that are searched now",
                dependency="searcher",
                retry_after_s=1.0,
            )

    def _resident_bytes(self) -> int:
        self._made = sum(s.made_bytes() for s in list(self._owner.resident().values()))
        return self._about_resident()

    def _about_resident(self) -> int:
        """Returns the accounted bytes, with deltas and columns as last counted.

        `shed` counts them again at least: to visit 10,000 shards takes longer than to load one.
        """
        return self._segments.bytes() + self._made + len(self._owner.resident()) * SHARD_BYTES

    def _evictable(self, *, but: ShardId | None) -> list[ResidentShard]:
        now = self._clock.monotonic()
        weight = self._owner.weights()
        pinned = {but, *self._owner.pinned()}
        return [
            ResidentShard(
                shard,
                s.held_bytes() + SHARD_BYTES,
                now - s.last_access_s,
                weight.get(shard.tenant, 1),
            )
            for shard, s in list(self._owner.resident().items())
            if shard not in pinned
        ]

    def _evict(self, shards: Collection[ShardId]) -> None:
        for shard in shards:
            self._owner.evict(shard)
