"""★ The indexer role: tails the slots that it holds leases on and seals their shards.

`maintenance.py` has its other work. The indexer keeps no state that the log and the catalog lack:
after a kill, the next one starts at the positions of the manifests. Guarantee 8: every publication
is a compare-and-set under the slot's lease, so a stale indexer cannot publish.
"""

import threading
from typing import Any

from indexer.backends import Backend
from indexer.idle_shards import IdleShards
from indexer.maintenance import Maintenance
from indexer.reindex import Reindex
from indexer.reindex_copy import EmbedTexts
from indexer.seal import Builder, Pending
from indexer.sealer import Sealer
from indexer.slot_leases import SlotLeases
from indexer.slot_reader import SlotReader
from indexer.superseded import Superseded
from tenants.jobs import Jobs
from tenants.leases import Leases
from tenants.manifests import Manifests
from tenants.registry import Registry
from tenants.serving import serving
from vicinage.clock import Clock
from vicinage.errors import Conflict, Unavailable
from vicinage.log import Log
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings
from vicinage.store import Store
from vicinage.telemetry import events

_event = events("indexer")


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
        self._registry = registry
        self._leases = SlotLeases(leases, owner, slots_total, settings.lease_s, clock)
        self.lease = self._leases.of
        """Returns the lease held on a slot. Raises Conflict if it is not held here."""
        superseded = Superseded(store, manifests.quarantine, settings.superseded_age_s, clock)
        self._builder = Builder(manifests, store, backend, settings, superseded.add)
        self._reader = SlotReader(log)
        self._sealer = Sealer(registry, self._builder, self.lease, clock)
        self._idle = IdleShards(registry, settings.replay_records_max)
        self._stopping = threading.Event()
        reindex = Reindex(
            log, registry, jobs, self._builder, slots_total, embed, self.lease, self._stopping
        )
        self._maintenance = Maintenance(
            log,
            registry,
            jobs,
            self._builder,
            superseded,
            reindex,
            slots_total,
            self.lease,
            clock,
        )

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
            self._leases.release_all()
            self._reader.close()

    def step(self, wait_s: float = 0.0) -> int:
        """Renews leases, reads records, seals due shards, and starts maintenance.

        Returns the number of records read. Raises Unavailable while the log, the catalog or the
        store is unavailable. No record that was read is lost then; call `step` again later.
        """
        self._hold_leases()
        n_records = self._read(wait_s)
        for pending in self._sealer.due(self._reader.positions):
            self._hold_leases()  # many seals in a row may take longer than a lease lasts
            self._seal(pending)
        for shard in self._idle.due(self._reader.positions):
            self._advance(shard)
        self._maintenance.step(leading=0 in self._leases.held)
        return n_records

    def _hold_leases(self) -> None:
        """Renews leases and acquires free slots. Drops a slot at once if its lease is lost."""
        if not self._leases.is_due():
            return
        for slot in self._leases.renew():
            self._drop(slot)
        for slot in self._leases.acquire():
            self._start_slot(slot)
        self._leases.renewed()
        served = serving(self._registry)
        self._sealer.forget_gone(served)
        self._maintenance.forget_gone(served)

    def _start_slot(self, slot: int) -> None:
        """Starts reading the slot at the lowest `sealed` of its shards."""
        end = self._reader.end(slot)
        _, found = self._builder.manifests.changed_since(0, [slot])
        self._registry.refresh()
        manifests = {m.shard: m for m in found}
        in_slot = {shard: g for shard, g in serving(self._registry).items() if shard.slot == slot}
        sealed = {
            s: manifests[s].sealed if s in manifests else g.start(s.slot)
            for s, g in in_slot.items()
        }
        start = min(sealed.values(), default=end)
        self._reader.add(slot, start)
        self._sealer.sealed |= sealed
        self._idle.start(slot, start)
        # Compactions that were due when the previous holder ended are still due.
        self._maintenance.compact_soon(
            s for s in in_slot if s in manifests and len(manifests[s].segments) > 1
        )

    def _drop(self, slot: int) -> None:
        """Forgets a slot whose lease is lost: another indexer may hold it."""
        del self._leases.held[slot]
        for holder in (self._reader.remove, self._sealer.drop, self._idle.drop):
            holder(slot)

    def _read(self, wait_s: float) -> int:
        """Reads new records into the sealer. Reads them again if the catalog is unavailable."""
        if self._sealer.is_full():
            return 0
        try:
            records = self._reader.poll(wait_s)
            self._restart_lost_slots()
            # after the poll: the catalog has a row's generation before the log has the row
            self._registry.refresh()
            for record in records:
                if self._reader.is_next(record):
                    self._sealer.receive(record)
                    self._reader.received(record)
        except Unavailable:
            self._reader.rewind()
            raise
        return len(records)

    def _restart_lost_slots(self) -> None:
        """Releases each slot whose next records are gone: it restarts at its manifests."""
        for slot in self._reader.lost_slots():
            if slot in self._leases.held:
                self._leases.release(slot)
                self._drop(slot)

    def _seal(self, pending: Pending) -> None:
        shard = pending.shard
        try:
            manifest = self._sealer.seal(pending)
        except Conflict as lost:
            _event.error("seal.refused", shard=str(shard), reason=str(lost))
            self._drop(shard.slot)
            return
        if manifest is not None and len(manifest.segments) > 1:
            self._maintenance.compact_soon([shard])

    def _advance(self, shard: ShardId) -> None:
        try:
            self._sealer.advance(shard, self._reader.positions[shard.slot])
        except Conflict as lost:
            _event.error("advance.refused", shard=str(shard), reason=str(lost))
            self._drop(shard.slot)

    def stats(self) -> dict[str, Any]:
        """Returns the pending passages, the slots held, and the halted slots with reasons."""
        return {
            "pending_passages": sum(p.passages for p in self._sealer.pending.values()),
            "slots": sorted(self._leases.held),
            "halted": self._reader.halted(),
        }
