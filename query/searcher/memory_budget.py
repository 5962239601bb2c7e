"""The memory that shards may take: room is made before a shard is loaded, by evicting others (`memory.py` decides which)."""

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from indexer.index.segment import Segment
from query.searcher.memory import Asker, Held, Residency, to_let_go
from vicinage.clock import Clock
from vicinage.errors import Unavailable
from vicinage.records import ShardId
from vicinage.stats import SHARD_BYTES

SPARE_SHARE: Final = 64
"""Where shards must be evicted, this part of the bound is freed beside: one choice serves several loads."""


class NoRoom(Unavailable):
    """Memory is in use by shards that are asked right now."""


class Resident(Protocol):
    """A shard in memory, as far as it is accounted for."""

    asked_s: float

    def made_bytes(self) -> int:
        """Bytes of what is made in memory."""
        ...

    def held_bytes(self) -> int:
        """Bytes that its rows take in memory."""
        ...


class Owner(Protocol):
    """Who has the shards: says which are there, and evicts."""

    def resident(self) -> Mapping[ShardId, Resident]:
        """Returns those in memory."""
        ...

    def weights(self) -> Mapping[str, int]:
        """Returns every tenant's weight."""
        ...

    def is_asked(self, shard: ShardId) -> bool:
        """Whether a search waits for it, or it is in memory."""
        ...

    def staying(self) -> Collection[ShardId]:
        """Returns those that must not be evicted: none that could not be loaded again as it is."""
        ...

    def evict(self, shard: ShardId) -> None:
        """Unloads it, unless it must stay by now."""
        ...


@dataclass(slots=True)
class Room:
    """Bytes that were promised, and are not loaded yet."""

    left: int


class MemoryBudget:
    """Accounts for shards in memory, at most `bytes_max` of them. Any thread."""

    def __init__(self, bytes_max: int, owner: Owner, clock: Clock) -> None:
        self._residency = Residency(bytes_max)
        self.bytes_max = self._residency.bytes_max
        """Accounted bytes that may be in memory."""
        self._owner = owner
        self._clock = clock
        self._lock = threading.Lock()
        self._made = 0
        """Bytes of deltas and columns, when they were last counted."""
        self._promised = 0
        """Bytes for which room was made, and that are still being loaded."""

    @contextmanager
    def room(self, shard: ShardId, need: int) -> Iterator[Room]:
        """Room for so many bytes until they are loaded, and counted; evicts other shards. Raises NoRoom."""
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
        """The segment is loaded: held from now on, and no more promised."""
        with self._lock:
            self._residency.count(segment)
            self._promised -= segment.resident_bytes()
            room.left -= segment.resident_bytes()

    def shed(self) -> None:
        """Evicts what is too much: deltas grow by themselves."""
        with self._lock:
            over = self._resident_bytes() + self._promised - self.bytes_max
            if over > 0:
                self._evict(to_let_go(self._held(but=None), over, self.bytes_max, partial=True))

    def resident_bytes(self) -> int:
        """Bytes of memory that are accounted for: segments, deltas, and what each shard takes."""
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
        if self._owner.is_asked(shard):  # nothing is evicted for what nobody asked for
            asker = Asker(shard.tenant, self._owner.weights().get(shard.tenant, 1))
            self._evict(to_let_go(self._held(but=shard), over, most, asker=asker, spare=most // SPARE_SHARE))
        if self._resident_bytes() + self._promised + need > most:
            raise NoRoom(
                "memory is in use by collections that are asked right now", dependency="searcher", retry_after_s=1.0
            )

    def _resident_bytes(self) -> int:
        self._made = sum(s.made_bytes() for s in list(self._owner.resident().values()))
        return self._about_resident()

    def _about_resident(self) -> int:
        """The same, with deltas and columns as last counted, at every look at least: to ask 10,000 shards takes longer than to load one."""
        return self._residency.bytes() + self._made + len(self._owner.resident()) * SHARD_BYTES

    def _held(self, *, but: ShardId | None) -> list[Held]:
        now = self._clock.monotonic()
        weight = self._owner.weights()
        staying = {but, *self._owner.staying()}
        return [
            Held(shard, s.held_bytes() + SHARD_BYTES, now - s.asked_s, weight.get(shard.tenant, 1))
            for shard, s in list(self._owner.resident().items())
            if shard not in staying
        ]

    def _evict(self, shards: Collection[ShardId]) -> None:
        for shard in shards:
            self._owner.evict(shard)
