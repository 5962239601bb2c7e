"""Chooses idle shards whose `sealed` must advance, so that a replay of their slot stays bounded.

A slot is read again from the lowest `sealed` of its shards. `seal.due` seals rows that are pending
beyond `replay_records_max`; shards without such rows advance here. So a replay stays within 1.5 ×
that bound.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from tenants.registry import Registry
from tenants.serving import serving
from vicinage.records import ShardId

PER_STEP: Final = 32
"""Shards that advance in one step: ten thousand at once would delay the seals."""


class IdleShards:
    """A queue of shards of the held slots. Used by one thread."""

    def __init__(self, registry: Registry, replay_records_max: int) -> None:
        self._registry = registry
        self._every_records = replay_records_max // 2
        self._checked: dict[int, int] = {}
        """The position of each slot when its shards were last queued."""
        self._queue: dict[ShardId, None] = {}

    def start(self, slot: int, position: int) -> None:
        """Counts the slot's records from this position on."""
        self._checked[slot] = position

    def drop(self, slot: int) -> None:
        """Forgets the slot and its shards."""
        self._checked.pop(slot, None)
        for shard in [s for s in self._queue if s.slot == slot]:
            del self._queue[shard]

    def due(self, positions: Mapping[int, int]) -> Iterator[ShardId]:
        """Yields the next shards to advance; each leaves the queue once the caller goes on."""
        for slot, position in positions.items():
            if position - self._checked[slot] > self._every_records:
                self._checked[slot] = position
                self._queue |= {
                    shard: None for shard in serving(self._registry) if shard.slot == slot
                }
        for shard in list(self._queue)[:PER_STEP]:
            if shard in self._queue:  # its slot is still held
                yield shard
                self._queue.pop(shard, None)
