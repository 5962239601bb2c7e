"""The memory budget of shards: evicts other shards before a load (`memory.py` chooses which)."""

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from indexer.index.segment import Segment
from query.searcher.memory import Held, ResidentBytes, choose_evictions
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

    def is_asked(self, shard: ShardId) -> bool:
        """Returns whether a search waits for the shard, or it is in memory."""
        ...

    def staying(self) -> Collection[ShardId]:
        """Returns shards that must not be evicted, such as those that could not be reloaded."""
        ...

    def evict(self, shard: ShardId) -> None:
        """Unloads the shard, unless it must stay by now."""
        ...


@dataclass(slots=True)
class Room:
    """Bytes that are reserved and not loaded yet."""

    left: int


class MemoryBudget:
    """Accounts for shards in memory, at most `bytes_max` bytes. Thread-safe."""

    def __init__(self, bytes_max: int, owner: Owner, clock: Clock) -> None:
        self._residency = ResidentBytes(bytes_max)
        self.bytes_max = self._residency.bytes_max
        """Maximum accounted bytes in memory."""
        self._owner = owner
        self._clock = clock
        self._lock = threading.Lock()
        self._made = 0
        """Bytes of deltas and columns at the last count."""
        self._promised = 0
        """Bytes that are reserved and still being loaded."""

    @contextmanager
    def room(self, shard: ShardId, need: int) -> Iterator[Room]:
        """Reserves `need` bytes until they are loaded and counted; evicts other shards.

        Raises NoRoom.
        """
        room = Room(need + SHARD_BYTES)
        with self._lock:
            self._make_room(shard, room.left)
            self._promised += room.left
        try:
            yield room
        finally:
            with self._lock:
                self._promised -= room.left

    def count(self, segment: Segment, room: Room) -> None:
        """Moves a loaded segment's bytes from reserved to resident."""
        with self._lock:
            self._residency.count(segment)
            self._promised -= segment.resident_bytes()
            room.left -= segment.resident_bytes()

    def shed(self) -> None:
        """Evicts shards until the budget holds, because deltas grow without a load."""
        with self._lock:
            over = self._resident_bytes() + self._promised - self.bytes_max
            if over > 0:
                self._evict(
                    choose_evictions(self._held(but=None), over, self.bytes_max, partial=True)
                )

    def resident_bytes(self) -> int:
        """Returns the accounted bytes: segments, deltas, columns, and SHARD_BYTES per shard."""
        with self._lock:
            return self._resident_bytes()

    def _make_room(self, shard: ShardId, need: int) -> None:
        most = self.bytes_max
        if need > most:
            raise NoRoom(
                f"the shard takes {need} bytes of memory, and searcher.resident_bytes_max is {most}: raise it, or give the "
                "collection more shards",
                dependency="searcher",
            )
        if self._about_resident() + self._promised + need <= most:
            return
        over = self._resident_bytes() + self._promised + need - most
        if over <= 0:
            return
        if self._owner.is_asked(shard):  # only a shard in use or waited for may evict others
            requester = TenantContext(shard.tenant, self._owner.weights().get(shard.tenant, 1))
            self._evict(
                choose_evictions(
                    self._held(but=shard),
                    over,
                    most,
                    requester=requester,
                    spare=most // SPARE_SHARE,
                )
            )
        if self._resident_bytes() + self._promised + need > most:
            raise NoRoom(
                "memory is in use by collections that are asked right now",
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
        return self._residency.bytes() + self._made + len(self._owner.resident()) * SHARD_BYTES

    def _held(self, *, but: ShardId | None) -> list[Held]:
        now = self._clock.monotonic()
        weight = self._owner.weights()
        staying = {but, *self._owner.staying()}
        return [
            Held(
                shard,
                s.held_bytes() + SHARD_BYTES,
                now - s.last_access_s,
                weight.get(shard.tenant, 1),
            )
            for shard, s in list(self._owner.resident().items())
            if shard not in staying
        ]

    def _evict(self, shards: Collection[ShardId]) -> None:
        for shard in shards:
            self._owner.evict(shard)
