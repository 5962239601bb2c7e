"""★ The indexer role: tails the slots it holds leases on, seals, compacts, reindexes, sweeps.

It keeps nothing that the log and the catalog do not have: kill it, and the next one begins at the manifests' positions.
Law 8: every publication goes through a compare-and-set under the slot's lease, so a stale indexer can only lose.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from indexer.backends import Backend
from indexer.compact import compact
from indexer.reindex import EmbedTexts, Reindex
from indexer.seal import Builder, Pending, due
from tenants.entities import Generation, Group, Lease, Manifest
from tenants.jobs import Jobs
from tenants.leases import Leases
from tenants.manifests import Manifests
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import Conflict, NotFound, Unavailable, VicinageError
from vicinage.log import Log, Stored
from vicinage.records import PARTITION_BITS, ShardId
from vicinage.settings import IndexerSettings
from vicinage.store import Store
from vicinage.telemetry import counter, events, histogram
from vicinage.wire import decode_rows, parse_rows_key

PENDING_BYTES_MAX: Final = 512 << 20
"""Over all shards; beyond it the largest is sealed, whatever its age."""
SWEEP_EVERY_S: Final = 60.0
POLL_BYTES: Final = 16 << 20

_event = events("indexer")
_seals = counter("vicinage_indexer_seals_total", "segments sealed")
_compactions = counter("vicinage_indexer_compactions_total", "compactions finished")
_seconds = histogram("vicinage_indexer_seal_seconds", "building and publishing one segment")


class Indexer:
    """The role. One thread calls `step`; compactions and reindex jobs run on a worker thread of its own."""

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
        self._builder = Builder(manifests, store, backend, settings)
        self._reindex = Reindex(log, registry, jobs, self._builder, slots_total, embed, self.lease)
        self._jobs = jobs
        self._leases: dict[int, Lease] = {}
        self._reader = log.reader({})
        self._places: dict[int, int] = {}
        self._floors: dict[int, int] = {}
        """Where each slot's replay would begin, as last looked."""
        self._pending: dict[ShardId, Pending] = {}
        self._to_compact: dict[ShardId, None] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="indexer-worker")
        self._working: Future[None] | None = None
        self._renewed = self._swept = -1e9

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then give the leases back."""
        try:
            while not stop.is_set():
                try:
                    self.step(wait_s=0.25)
                except Unavailable as away:
                    _event.warning("waiting", reason=str(away))
                    stop.wait(0.5)
        finally:
            self._worker.shutdown(wait=True, cancel_futures=True)
            for lease in self._leases.values():
                self._leases_of.release(lease)
            self._reader.close()

    def step(self, wait_s: float = 0.0) -> int:
        """Hold leases, take what has come, seal what is due, hand on what else there is; the messages taken."""
        self._hold_leases()
        taken = self._reader.poll(bytes_max=POLL_BYTES, wait_s=wait_s)
        self._registry.refresh()
        for stored in taken:
            self._take(stored)
        for pending in self._due():
            self._seal(pending)
        self._let_go_of_idle()
        self._work()
        self._sweep()
        return len(taken)

    def lease(self, slot: int) -> Lease:
        """The lease held on a slot. Raises Conflict when it is not held here."""
        if slot not in self._leases:
            raise Conflict(f"the lease on slot {slot} is not held here", found="none")
        return self._leases[slot]

    # leases

    def _hold_leases(self) -> None:
        """Renew at a third of their time; take every slot that is free. A slot whose lease was lost is let go at once."""
        now = self._clock.monotonic()
        if now - self._renewed < self._settings.lease_s / 3:
            return
        self._renewed = now
        for slot, lease in list(self._leases.items()):
            try:
                self._leases[slot] = self._leases_of.renew(lease, ttl_s=self._settings.lease_s)
            except Conflict as lost:
                _event.error("lease lost", slot=slot, reason=str(lost))
                self._drop(slot)
        for slot in range(self._slots_total):
            if slot not in self._leases:
                lease_or_none = self._leases_of.acquire(f"slot/{slot}", self._owner, ttl_s=self._settings.lease_s)
                if lease_or_none is not None:
                    self._begin(slot, lease_or_none)

    def _begin(self, slot: int, lease: Lease) -> None:
        self._leases[slot] = lease
        self._registry.refresh()
        sealed = [self._builder.current(shard, g).sealed for shard, g in self._in_slot(slot)]
        self._places[slot] = self._floors[slot] = min(sealed, default=self._log.end(VECTORS_TOPIC, slot))
        self._reader.add(VECTORS_TOPIC, slot, self._places[slot])

    def _drop(self, slot: int) -> None:
        del self._leases[slot]
        self._reader.remove(VECTORS_TOPIC, slot)
        self._places.pop(slot, None)
        self._pending = {shard: p for shard, p in self._pending.items() if shard.slot != slot}

    # sealing

    def _serving(self) -> dict[ShardId, Generation]:
        return {shard: g for c in self._registry.collections() for g in c.generations for shard in g.shards()}

    def _generation(self, shard: ShardId) -> Generation | None:
        try:
            return self._registry.collection(shard.tenant, shard.collection).generation(shard.generation)
        except (NotFound, KeyError):
            return None  # deleted or retired: its rows are for nobody

    def _take(self, stored: Stored) -> None:
        slot = stored.partition
        if slot not in self._leases or stored.offset < self._places.get(slot, 0):
            return
        self._places[slot] = stored.offset + 1
        shard = ShardId(*parse_rows_key(stored.record.key or b""), slot)
        generation = self._generation(shard)
        if generation is None:
            return
        pending = self._pending.get(shard)
        if pending is None:
            if stored.offset < self._builder.current(shard, generation).sealed:
                return  # replayed for another shard's sake
            pending = self._pending[shard] = Pending(shard, self._clock.monotonic())
        pending.add(stored.offset, decode_rows(stored.record.value or b"").batch)

    def _due(self) -> list[Pending]:
        now = self._clock.monotonic()
        found = [
            p for p in self._pending.values() if due(p, self._settings, now=now, slot_end=self._places[p.shard.slot])
        ]
        if not found and sum(p.bytes for p in self._pending.values()) > PENDING_BYTES_MAX:
            found = [max(self._pending.values(), key=lambda p: p.bytes)]
        return found

    def _seal(self, pending: Pending) -> None:
        shard = pending.shard
        del self._pending[shard]
        generation = self._generation(shard)
        if generation is None:
            return
        try:
            with _seconds.time():
                manifest = self._builder.seal(pending, generation, self.lease(shard.slot), sealed=pending.end())
        except Conflict as lost:
            _event.error("seal refused", shard=str(shard), reason=str(lost))
            if shard.slot in self._leases:
                self._drop(shard.slot)
            return
        _seals.inc()
        _event.info(
            "sealed",
            shard=str(shard),
            passages=pending.passages,
            sealed=manifest.sealed,
            segments=len(manifest.segments),
        )
        if len(manifest.segments) > 1:
            self._to_compact[shard] = None

    def _let_go_of_idle(self) -> None:
        """Where a slot's replay has grown too long, move `sealed` on for its shards that have nothing pending."""
        for slot, place in self._places.items():
            if place - self._floors[slot] > self._settings.replay_records_max:
                self._floors[slot] = min((self._advanced(s, g, place) for s, g in self._in_slot(slot)), default=place)

    def _in_slot(self, slot: int) -> list[tuple[ShardId, Generation]]:
        return [(shard, g) for shard, g in self._serving().items() if shard.slot == slot]

    def _advanced(self, shard: ShardId, generation: Generation, place: int) -> int:
        """The shard's `sealed`, moved on to `place` if it may be."""
        manifest = self._builder.current(shard, generation)
        if shard in self._pending or place <= manifest.sealed:
            return manifest.sealed
        self._advance(manifest, generation, place)
        return place

    def _advance(self, manifest: Manifest, generation: Generation, sealed: int) -> None:
        try:
            self._builder.publish(
                manifest.shard, generation, self.lease(manifest.shard.slot), lambda m: m.segments, sealed=sealed
            )
        except Conflict as lost:
            _event.warning("idle shard not advanced", shard=str(manifest.shard), reason=str(lost))

    # the worker thread: compaction and reindexing, one thing at a time

    def _work(self) -> None:
        if self._working is not None and not self._working.done():
            return
        if self._working is not None:
            self._working.result()
            self._working = None
        work = self._next_work()
        if work is not None:
            self._working = self._worker.submit(work)

    def _next_work(self) -> Callable[[], None] | None:
        while self._to_compact:
            shard = next(iter(self._to_compact))
            del self._to_compact[shard]
            generation = self._generation(shard)
            if generation is not None:
                return partial(self._compact, shard, generation)
        if 0 in self._leases and (job := next(iter(self._jobs.list(open_only=True)), None)):
            return partial(self._reindex.advance, job)
        return None

    def _compact(self, shard: ShardId, generation: Generation) -> None:
        try:
            manifest = self._builder.current(shard, generation)
            done = compact(
                self._builder, manifest, generation, self.lease(shard.slot), forgettable=self._forgettable(shard.tenant)
            )
        except Conflict as lost:
            _event.warning("compaction given up", shard=str(shard), reason=str(lost))
            return
        except VicinageError as error:
            _event.error("compaction failed", shard=str(shard), reason=str(error))
            return
        if done is not None:
            _compactions.inc()
            _event.info("compacted", shard=str(shard), segments=len(done.segments))
            self._to_compact[shard] = None  # until there is nothing left to gain

    def _forgettable(self, tenant: str) -> Callable[[int], bool]:
        """Says of a version whether ingest has committed beyond it."""
        topic = self._registry.tenant(tenant).documents_topic
        n = self._log.topics(topic).get(topic, 1)
        committed = self._log.committed(Group.INGEST, [(topic, p) for p in range(n)])
        partition_mask = (1 << PARTITION_BITS) - 1
        return lambda version: version >> PARTITION_BITS < committed.get((topic, version & partition_mask), 0)

    # orphans

    def _sweep(self) -> None:
        """Delete objects that no manifest names and that nobody can still be about to name."""
        now = self._clock.monotonic()
        if now - self._swept < SWEEP_EVERY_S or 0 not in self._leases:
            return
        self._swept = now
        older_than = self._clock.now_ms() - int(self._settings.orphan_age_s * 1000)
        gone = self._builder.store.sweep("segments", keep=self._manifests.paths(), older_than_ms=older_than)
        if gone:
            _event.info("swept", objects=len(gone))

    def stats(self) -> dict[str, Any]:
        """What waits to be sealed."""
        return {"pending_passages": sum(p.passages for p in self._pending.values()), "slots": sorted(self._leases)}
