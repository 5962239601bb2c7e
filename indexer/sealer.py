"""Collects the rows of the held slots that no segment has yet, and seals them.

Each shard's `sealed` position is kept as its manifest has it. It cannot change elsewhere while the
lease on its slot is held.
"""

from collections.abc import Callable, Container, Mapping
from typing import Final

from indexer.seal import Builder, Pending, due
from indexer.vectors_log import quarantine, readable
from tenants.entities import Generation, Lease, Manifest
from tenants.registry import Registry
from tenants.serving import generation_of
from vicinage.clock import Clock
from vicinage.errors import Corrupt
from vicinage.log import LogRecord
from vicinage.metrics import counter, histogram
from vicinage.records import ShardId
from vicinage.telemetry import events
from vicinage.wire import parse_rows_key

PENDING_BYTES_MAX: Final = 512 << 20
"""Bound on pending bytes of all shards.

Beyond it, reading stops until the largest shard is sealed.
"""

_event = events("indexer")
_seals = counter("vicinage_indexer_seals_total")
_seconds = histogram("vicinage_indexer_seal_seconds")


class Sealer:
    """Pending rows by shard. Used by one thread. `lease(slot)` raises Conflict if it is lost."""

    def __init__(
        self,
        registry: Registry,
        builder: Builder,
        lease: Callable[[int], Lease],
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._builder = builder
        self._lease = lease
        self._clock = clock
        self.pending: dict[ShardId, Pending] = {}
        self.sealed: dict[ShardId, int] = {}
        """`sealed` of each shard's manifest in the held slots."""

    def receive(self, record: LogRecord) -> None:
        """Adds the record's rows to its shard. Quarantines it if it is not a valid message.

        Raises Unavailable if the shard's manifest cannot be read.
        """
        slot = record.partition
        try:
            shard = ShardId(*parse_rows_key(record.record.key or b""), slot)
        except Corrupt as corrupt:
            quarantine(record, corrupt.detail)
            return
        generation = generation_of(self._registry, shard)
        if generation is not None and slot not in generation.slots:
            quarantine(record, f"its generation has no shard in slot {slot}")
        elif generation is not None:
            self._add(shard, generation, record)

    def _add(self, shard: ShardId, generation: Generation, record: LogRecord) -> None:
        if shard not in self.sealed:
            self.sealed[shard] = self._builder.current(shard, generation).sealed
        if record.offset < self.sealed[shard]:
            return  # replayed for another shard of the slot
        batch = readable(record, generation.dimension)
        if batch is None:
            return
        if shard not in self.pending:
            self.pending[shard] = Pending(shard, self._clock.monotonic())
        self.pending[shard].add(record.offset, batch)

    def is_full(self) -> bool:
        """Returns whether the pending bytes exceed their bound."""
        return sum(p.bytes for p in self.pending.values()) > PENDING_BYTES_MAX

    def due(self, positions: Mapping[int, int]) -> list[Pending]:
        """Returns the shards to seal now; the largest one if the bound on bytes is exceeded.

        `positions`: the offset up to which each slot was read.
        """
        now, settings = self._clock.monotonic(), self._builder.settings
        found = [
            p
            for p in self.pending.values()
            if due(p, settings, now=now, slot_end=positions[p.shard.slot])
        ]
        if not found and self.is_full():
            found = [max(self.pending.values(), key=lambda p: p.bytes)]
        return found

    def seal(self, pending: Pending) -> Manifest | None:
        """Seals a shard's pending rows and returns its new manifest.

        Returns None if there is nothing to seal: the slot was dropped, or the shard is not served
        any more. Raises Conflict if the lease is lost.
        """
        shard = pending.shard
        if self.pending.get(shard) is not pending:
            return None
        generation = generation_of(self._registry, shard)
        if generation is None:
            del self.pending[shard]
            return None
        with _seconds.time():
            manifest = self._builder.seal(
                pending, generation, self._lease(shard.slot), sealed=pending.end()
            )
        del self.pending[shard]  # only now: rows stay pending until they are published
        self.sealed[shard] = manifest.sealed
        _seals.inc()
        _event.info(
            "shard.sealed",
            shard=str(shard),
            passages=pending.passages,
            sealed=manifest.sealed,
            segments=len(manifest.segments),
        )
        return manifest

    def advance(self, shard: ShardId, slot_position: int) -> None:
        """Advances `sealed` to the shard's oldest pending row, or to the slot's position.

        Raises Conflict if the lease is lost.
        """
        generation = generation_of(self._registry, shard)
        pending = self.pending.get(shard)
        position = pending.first() if pending else slot_position
        if generation is None or position <= self.sealed.get(shard, generation.start(shard.slot)):
            return
        moved = self._builder.publish(
            shard, generation, self._lease(shard.slot), lambda m: m.segments, sealed=position
        )
        self.sealed[shard] = moved.sealed

    def drop(self, slot: int) -> None:
        """Forgets the pending rows of a slot: its next holder reads them again."""
        for by_shard in (self.pending, self.sealed):
            for shard in [s for s in by_shard if s.slot == slot]:
                del by_shard[shard]

    def forget_gone(self, served: Container[ShardId]) -> None:
        """Forgets `sealed` of shards that are no longer served."""
        self.sealed = {shard: at for shard, at in self.sealed.items() if shard in served}
