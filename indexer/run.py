"""★ The indexer role: tails the slots that it holds leases on and seals their shards.

`maintenance.py` has its other work. The indexer keeps no state that the log and the catalog lack:
after a kill, the next one starts at the positions of the manifests. Law 8: every publication is a
compare-and-set under the slot's lease, so a stale indexer cannot publish.
"""

import threading
from typing import Any, Final

from indexer.backends import Backend
from indexer.maintenance import Maintenance
from indexer.reindex import EmbedTexts, Reindex
from indexer.seal import Builder, Pending, due
from indexer.superseded import Superseded
from indexer.vectors_log import quarantine, readable
from tenants.entities import Generation, Lease
from tenants.jobs import Jobs
from tenants.leases import Leases
from tenants.manifests import Manifests
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from tenants.serving import generation_of, serving
from vicinage.clock import Clock
from vicinage.errors import Conflict, Corrupt, Unavailable
from vicinage.log import Log, LogRecord
from vicinage.log.halts import Halts
from vicinage.metrics import counter, gauge, histogram
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings
from vicinage.store import Store
from vicinage.telemetry import events
from vicinage.wire import parse_rows_key

PENDING_BYTES_MAX: Final = 512 << 20
"""Bound on pending bytes of all shards.

Beyond it, reading stops until the largest shard is sealed.
"""
IDLE_PER_STEP: Final = 32
"""Idle shards whose `sealed` advances in one step: ten thousand at once would delay the seals."""
POLL_BYTES: Final = 16 << 20

_event = events("indexer")
_seals = counter("vicinage_indexer_seals_total")
_halted = gauge("vicinage_indexer_halted_slots")
_seconds = histogram("vicinage_indexer_seal_seconds")


class Indexer:
    """The indexer role. One thread calls `step`."""

    def __init__(
        self,
        *,
        log: Log,
        registry: Registry,
        manifests: Manifests,
        leases: Leases,
        jobs: Jobs,
        store: Store,
        backend: Backend,
        settings: IndexerSettings,
        clock: Clock,
        owner: str,
        slots_total: int,
        embed: EmbedTexts | None = None,
    ) -> None:
        self._log = log
        self._registry = registry
        self._manifests = manifests
        self._leases_of = leases
        self._settings = settings
        self._clock = clock
        self._owner = owner
        self._slots_total = slots_total
        superseded = Superseded(store, manifests.quarantine, settings.superseded_age_s, clock)
        self._builder = Builder(manifests, store, backend, settings, superseded.add)
        self._stopping = threading.Event()
        reindex = Reindex(
            log, registry, jobs, self._builder, slots_total, embed, self.lease, self._stopping
        )
        self._maintenance = Maintenance(
            log,
            registry,
            manifests,
            jobs,
            self._builder,
            superseded,
            reindex,
            slots_total,
            self.lease,
            clock,
        )
        self._leases: dict[int, Lease] = {}
        self._reader = log.reader({})
        self._topic_id: str | None = None
        self._halts = Halts(_event, _halted)
        self._positions: dict[int, int] = {}
        self._idle_checked: dict[int, int] = {}
        """The position of each slot when its idle shards were last queued."""
        self._sealed: dict[ShardId, int] = {}
        """`sealed` of each shard's manifest in the held slots; it cannot change elsewhere while the lease is held."""
        self._pending: dict[ShardId, Pending] = {}
        self._idle: dict[ShardId, None] = {}
        self._renewed = -1e9

    def run(self, stop: threading.Event) -> None:
        """Runs until `stop` is set, then releases the leases."""
        try:
            while not stop.is_set():
                try:
                    self.step(wait_s=0.25)
                except Unavailable as unavailable:
                    _event.warning("step.waited", reason=str(unavailable))
                    stop.wait(0.5)
        finally:
            self._stopping.set()
            self._maintenance.stop()
            for lease in self._leases.values():
                self._leases_of.release(lease)
            self._reader.close()

    def step(self, wait_s: float = 0.0) -> int:
        """Renews leases, reads new messages, seals due shards and starts maintenance; returns the number of messages read.

        Raises Unavailable while the log, the catalog or the store is unavailable. Nothing that was read is lost then;
        call `step` again later.
        """
        self._hold_leases()
        records = self._poll(wait_s)
        for pending in self._due():
            self._hold_leases()  # many seals in a row may take longer than a lease lasts
            self._seal(pending)
        self._advance_idle()
        self._maintenance.step(leading=0 in self._leases)
        return len(records)

    def lease(self, slot: int) -> Lease:
        """Returns the lease held on a slot. Raises Conflict if this indexer does not hold it."""
        if slot not in self._leases:
            raise Conflict(f"the lease on slot {slot} is not held here", found="none")
        return self._leases[slot]

    # leases

    def _hold_leases(self) -> None:
        """Renews leases at a third of their duration and acquires free slots.

        Drops a slot at once if its lease is lost.
        """
        now = self._clock.monotonic()
        if now - self._renewed < self._settings.lease_s / 3:
            return
        self._renewed = now
        for slot, lease in list(self._leases.items()):
            try:
                self._leases[slot] = self._leases_of.renew(lease, ttl_s=self._settings.lease_s)
            except Conflict as lost:
                _event.error("lease.lost", slot=slot, reason=str(lost))
                self._drop(slot)
        for slot in range(self._slots_total):
            if slot not in self._leases:
                lease_or_none = self._leases_of.acquire(
                    f"slot/{slot}", self._owner, ttl_s=self._settings.lease_s
                )
                if lease_or_none is not None:
                    self._start_slot(slot, lease_or_none)
        self._forget_gone()

    def _forget_gone(self) -> None:
        """Forgets shards that are no longer served."""
        served = serving(self._registry)
        self._sealed = {
            shard: position for shard, position in self._sealed.items() if shard in served
        }
        self._maintenance.forget_gone(served)

    def _start_slot(self, slot: int, lease: Lease) -> None:
        """Starts reading the slot at the lowest `sealed` of its shards."""
        end = self._log.end(VECTORS_TOPIC, slot)
        _, found = self._manifests.changed_since(0, [slot])
        self._registry.refresh()
        manifests = {m.shard: m for m in found}
        in_slot = {shard: g for shard, g in serving(self._registry).items() if shard.slot == slot}
        sealed = {
            s: manifests[s].sealed if s in manifests else g.start(s.slot)
            for s, g in in_slot.items()
        }
        start = min(sealed.values(), default=end)
        self._reader.add(VECTORS_TOPIC, slot, start, topic_id=self._topic_of_slots())
        self._sealed |= sealed
        self._positions[slot] = self._idle_checked[slot] = start
        self._leases[slot] = lease
        # Compactions that were due when the previous holder ended are still due.
        self._maintenance.compact_soon(
            s for s in in_slot if s in manifests and len(manifests[s].segments) > 1
        )

    def _topic_of_slots(self) -> str | None:
        """Returns the vectors topic's identity as first seen: positions are valid only in that topic."""
        if self._topic_id is None:
            self._topic_id = self._log.topic_ids(VECTORS_TOPIC).get(VECTORS_TOPIC)
        return self._topic_id

    def _drop(self, slot: int) -> None:
        del self._leases[slot]
        self._reader.remove(VECTORS_TOPIC, slot)
        for by_slot in (self._positions, self._idle_checked):
            by_slot.pop(slot, None)
        for by_shard in (self._pending, self._sealed, self._idle):
            for shard in [s for s in by_shard if s.slot == slot]:
                del by_shard[shard]

    # sealing

    def _poll(self, wait_s: float) -> list[LogRecord]:
        """Reads new records into `_pending`.

        Rewinds to the known positions if the catalog is unavailable.
        """
        if sum(p.bytes for p in self._pending.values()) > PENDING_BYTES_MAX:
            return []
        try:
            records = self._reader.poll(bytes_max=POLL_BYTES, wait_s=wait_s)
            self._check_halts()
            # after the poll: the catalog has a row's generation before the log has the row
            self._registry.refresh()
            for record in records:
                self._receive(record)
        except Unavailable:
            for slot, position in self._positions.items():
                self._reader.remove(VECTORS_TOPIC, slot)
                self._reader.add(VECTORS_TOPIC, slot, position, topic_id=self._topic_id)
            raise
        return records

    def _check_halts(self) -> None:
        """Releases each slot whose next records are gone: it restarts at its manifests.

        Other halts stay reported.
        """
        for (_, slot), halt in self._halts.update(self._reader.halted()).items():
            if halt.kind == "offset_gone" and slot in self._leases:
                self._leases_of.release(self._leases[slot])
                self._drop(slot)

    def _receive(self, record: LogRecord) -> None:
        slot = record.partition
        if slot not in self._leases or record.offset < self._positions[slot]:
            return
        try:
            shard = ShardId(*parse_rows_key(record.record.key or b""), slot)
        except Corrupt as corrupt:
            quarantine(record, corrupt.detail)
        else:
            generation = generation_of(self._registry, shard)
            if generation is not None and slot not in generation.slots:
                quarantine(record, f"its generation has no shard in slot {slot}")
            elif generation is not None:
                self._add_pending(shard, generation, record)
        self._positions[slot] = record.offset + 1

    def _add_pending(self, shard: ShardId, generation: Generation, record: LogRecord) -> None:
        if shard not in self._sealed:
            self._sealed[shard] = self._builder.current(shard, generation).sealed
        if record.offset < self._sealed[shard]:
            return  # replayed for another shard of the slot
        batch = readable(record, generation.dimension)
        if batch is None:
            return
        if shard not in self._pending:
            self._pending[shard] = Pending(shard, self._clock.monotonic())
        self._pending[shard].add(record.offset, batch)

    def _due(self) -> list[Pending]:
        now = self._clock.monotonic()
        found = [
            p
            for p in self._pending.values()
            if due(p, self._settings, now=now, slot_end=self._positions[p.shard.slot])
        ]
        if not found and sum(p.bytes for p in self._pending.values()) > PENDING_BYTES_MAX:
            found = [max(self._pending.values(), key=lambda p: p.bytes)]
        return found

    def _seal(self, pending: Pending) -> None:
        shard = pending.shard
        if self._pending.get(shard) is not pending:
            return  # its slot was dropped meanwhile
        generation = generation_of(self._registry, shard)
        if generation is None:
            del self._pending[shard]
            return
        try:
            with _seconds.time():
                manifest = self._builder.seal(
                    pending, generation, self.lease(shard.slot), sealed=pending.end()
                )
        except Conflict as lost:
            _event.error("seal.refused", shard=str(shard), reason=str(lost))
            self._drop(shard.slot)
            return
        del self._pending[shard]  # only now: rows stay pending until they are published
        self._sealed[shard] = manifest.sealed
        _seals.inc()
        _event.info(
            "shard.sealed",
            shard=str(shard),
            passages=pending.passages,
            sealed=manifest.sealed,
            segments=len(manifest.segments),
        )
        if len(manifest.segments) > 1:
            self._maintenance.compact_soon([shard])

    def _advance_idle(self) -> None:
        """Keeps a slot's replay within 1.5 × replay_records_max although most of its shards have nothing to seal.

        `due` seals rows that are pending beyond the bound. This advances `sealed` of the other shards, a few per step.
        """
        for slot, position in self._positions.items():
            if position - self._idle_checked[slot] > self._settings.replay_records_max // 2:
                self._idle_checked[slot] = position
                self._idle |= {
                    shard: None for shard in serving(self._registry) if shard.slot == slot
                }
        for shard in list(self._idle)[:IDLE_PER_STEP]:
            if shard in self._idle:  # its slot is still held
                self._advance(shard)
                self._idle.pop(shard, None)

    def _advance(self, shard: ShardId) -> None:
        """Advances the manifest's `sealed` to the shard's oldest pending row, or to the slot's position if it has none."""
        generation = generation_of(self._registry, shard)
        pending = self._pending.get(shard)
        position = pending.first() if pending else self._positions[shard.slot]
        if generation is None or position <= self._sealed.get(shard, generation.start(shard.slot)):
            return
        try:
            moved = self._builder.publish(
                shard, generation, self.lease(shard.slot), lambda m: m.segments, sealed=position
            )
            self._sealed[shard] = moved.sealed
        except Conflict as lost:
            _event.error("advance.refused", shard=str(shard), reason=str(lost))
            self._drop(shard.slot)

    def stats(self) -> dict[str, Any]:
        """Returns the passages that wait to be sealed, the slots held, and the halted ones with reasons."""
        return {
            "pending_passages": sum(p.passages for p in self._pending.values()),
            "slots": sorted(self._leases),
            "halted": {slot: halt.reason for (_, slot), halt in self._halts.known().items()},
        }
