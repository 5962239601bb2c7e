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
from tenants.entities import Generation, Group, Job, Lease
from tenants.jobs import Jobs
from tenants.leases import Leases
from tenants.manifests import Manifests
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import Conflict, Corrupt, NotFound, Unavailable, VicinageError
from vicinage.log import Log, Stored
from vicinage.records import PARTITION_BITS, ShardId
from vicinage.settings import IndexerSettings
from vicinage.store import Store
from vicinage.telemetry import counter, events, histogram
from vicinage.wire import decode_rows, parse_rows_key

PENDING_BYTES_MAX: Final = 512 << 20
"""Over all shards; beyond it the largest is sealed, whatever its age, and nothing is read until it is."""
IDLE_PER_STEP: Final = 32
"""Idle shards whose `sealed` is moved on in one step: ten thousand at once would hold up the seals."""
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
        self._stopping = threading.Event()
        self._reindex = Reindex(log, registry, jobs, self._builder, slots_total, embed, self.lease, self._stopping)
        self._jobs = jobs
        self._leases: dict[int, Lease] = {}
        self._reader = log.reader({})
        self._places: dict[int, int] = {}
        self._looked: dict[int, int] = {}
        """Each slot's place when its idle shards were last looked at."""
        self._sealed: dict[ShardId, int] = {}
        """What the manifests of held slots say; nobody else can move it while the lease holds."""
        self._pending: dict[ShardId, Pending] = {}
        self._idle: dict[ShardId, None] = {}
        self._halted: dict[ShardId, int] = {}
        """Shards with a record that cannot be read, and its offset: nothing of theirs is sealed beyond it."""
        self._to_compact: dict[ShardId, None] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="indexer-worker")
        self._working: Future[None] | None = None
        self._turn = 0
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
            self._stopping.set()
            self._worker.shutdown(wait=True, cancel_futures=True)
            for lease in self._leases.values():
                self._leases_of.release(lease)
            self._reader.close()

    def step(self, wait_s: float = 0.0) -> int:
        """Hold leases, take what has come, seal what is due, hand on what else there is; the messages taken.

        Raises Unavailable when log, catalog or store are away: then nothing that was read is forgotten; step again later.
        """
        self._hold_leases()
        taken = self._poll(wait_s)
        for pending in self._due():
            self._hold_leases()  # a long row of seals must not outlive them
            self._seal(pending)
        self._move_idle()
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
        """Read the slot from the lowest position that some shard of it has not sealed."""
        end = self._log.end(VECTORS_TOPIC, slot)
        _, found = self._manifests.changed_since(0, [slot])
        self._registry.refresh()
        manifests = {m.shard: m for m in found}
        in_slot = {shard: g for shard, g in self._serving().items() if shard.slot == slot}
        sealed = {s: manifests[s].sealed if s in manifests else _start(s, g) for s, g in in_slot.items()}
        start = min(sealed.values(), default=end)
        self._reader.add(VECTORS_TOPIC, slot, start)
        self._sealed |= sealed
        self._places[slot] = self._looked[slot] = start
        self._leases[slot] = lease
        crowded = [s for s in in_slot if s in manifests and len(manifests[s].segments) > self._settings.segments_max]
        self._to_compact |= dict.fromkeys(crowded)

    def _drop(self, slot: int) -> None:
        del self._leases[slot]
        self._reader.remove(VECTORS_TOPIC, slot)
        for by_slot in (self._places, self._looked):
            by_slot.pop(slot, None)
        for by_shard in (self._pending, self._sealed, self._idle, self._halted):
            for shard in [s for s in by_shard if s.slot == slot]:
                del by_shard[shard]

    # sealing

    def _serving(self) -> dict[ShardId, Generation]:
        return {shard: g for c in self._registry.collections() for g in c.generations for shard in g.shards()}

    def _generation(self, shard: ShardId) -> Generation | None:
        try:
            return self._registry.collection(shard.tenant, shard.collection).generation(shard.generation)
        except (NotFound, KeyError):
            return None  # deleted or retired: its rows are for nobody

    def _poll(self, wait_s: float) -> list[Stored]:
        """What has come is pending, or for nobody; if that could not be decided, it is read again."""
        if sum(p.bytes for p in self._pending.values()) > PENDING_BYTES_MAX:
            return []
        try:
            taken = self._reader.poll(bytes_max=POLL_BYTES, wait_s=wait_s)
            self._registry.refresh()  # after the poll: the generation of every row was in the catalog before the row
            for stored in taken:
                self._take(stored)
        except Unavailable:
            for slot, place in self._places.items():
                self._reader.remove(VECTORS_TOPIC, slot)
                self._reader.add(VECTORS_TOPIC, slot, place)
            raise
        return taken

    def _take(self, stored: Stored) -> None:
        slot = stored.partition
        if slot not in self._leases or stored.offset < self._places[slot]:
            return
        try:
            shard = ShardId(*parse_rows_key(stored.record.key or b""), slot)
        except Corrupt as stranger:
            _event.error("a record is of no shard", slot=slot, offset=stored.offset, reason=str(stranger))
        else:
            generation = self._generation(shard)
            if generation is not None and shard not in self._halted:
                self._keep(shard, generation, stored)
        self._places[slot] = stored.offset + 1

    def _keep(self, shard: ShardId, generation: Generation, stored: Stored) -> None:
        if shard not in self._sealed:
            self._sealed[shard] = self._builder.current(shard, generation).sealed
        if stored.offset < self._sealed[shard]:
            return  # replayed for another shard's sake
        try:
            batch = decode_rows(stored.record.value or b"").batch
        except Corrupt as corrupt:
            self._halted[shard] = stored.offset
            _event.error("shard halted", shard=str(shard), offset=stored.offset, reason=str(corrupt))
            return
        if shard not in self._pending:
            self._pending[shard] = Pending(shard, self._clock.monotonic())
        self._pending[shard].add(stored.offset, batch)

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
        if self._pending.get(shard) is not pending:
            return  # its slot was let go meanwhile
        generation = self._generation(shard)
        if generation is None:
            del self._pending[shard]
            return
        try:
            with _seconds.time():
                manifest = self._builder.seal(pending, generation, self.lease(shard.slot), sealed=pending.end())
        except Conflict as lost:
            _event.error("seal refused", shard=str(shard), reason=str(lost))
            self._drop(shard.slot)
            return
        del self._pending[shard]  # only now: what could not be published stays pending
        self._sealed[shard] = manifest.sealed
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

    def _move_idle(self) -> None:
        """Keep a slot's replay within 1.5 × replay_records_max, though most of its shards have nothing to seal.

        `due` seals whatever pends for longer than the bound; here `sealed` follows for the shards in between, a few at a time.
        """
        for slot, place in self._places.items():
            if place - self._looked[slot] > self._settings.replay_records_max // 2:
                self._looked[slot] = place
                self._idle |= {shard: None for shard in self._serving() if shard.slot == slot}
        for shard in list(self._idle)[:IDLE_PER_STEP]:
            if shard in self._idle:  # its slot is still held
                self._move(shard)
                self._idle.pop(shard, None)

    def _move(self, shard: ShardId) -> None:
        """Say in the manifest that the shard has nothing unsealed below its oldest pending row."""
        generation = self._generation(shard)
        pending = self._pending.get(shard)
        place = pending.first() if pending else self._places[shard.slot]
        if generation is None or shard in self._halted or place <= self._sealed.get(shard, _start(shard, generation)):
            return
        try:
            moved = self._builder.publish(shard, generation, self.lease(shard.slot), lambda m: m.segments, sealed=place)
            self._sealed[shard] = moved.sealed
        except Conflict as lost:
            _event.error("idle shard not moved on", shard=str(shard), reason=str(lost))
            self._drop(shard.slot)

    # the worker thread: compaction and reindexing, one thing at a time

    def _work(self) -> None:
        if self._working is not None:
            if not self._working.done():
                return
            ended, self._working = self._working, None
            ended.result()
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
        if 0 in self._leases and (jobs := self._jobs.list(open_only=True)):
            self._turn += 1  # in turn: one that waits long holds up none
            return partial(self._advance, jobs[self._turn % len(jobs)])
        return None

    def _advance(self, job: Job) -> None:
        self._reindex.advance(job)
        if job.state == "building":  # what was copied part by part becomes one before it is searched
            of_job = [s for s in self._serving() if (s.tenant, s.collection) == (job.tenant, job.collection)]
            self._to_compact |= dict.fromkeys(of_job)

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
        """Says of a version whether no record with it or a lower one can come again: ingest is beyond it in every partition."""
        topic = self._registry.tenant(tenant).documents_topic
        n = self._log.topics(topic).get(topic, 1)
        committed = self._log.committed(Group.INGEST, [(topic, p) for p in range(n)])
        lowest = min(committed.get((topic, p), 0) for p in range(n))
        return lambda version: version >> PARTITION_BITS < lowest

    # orphans

    def _sweep(self) -> None:
        """Delete objects that no manifest names and that nobody can still be about to name."""
        now = self._clock.monotonic()
        if now - self._swept < SWEEP_EVERY_S or 0 not in self._leases:
            return
        self._swept = now
        self._forget_gone()
        older_than = self._clock.now_ms() - int(self._settings.orphan_age_s * 1000)
        gone = self._builder.store.sweep("segments", keep=self._manifests.paths(), older_than_ms=older_than)
        if gone:
            _event.info("swept", objects=len(gone))

    def _forget_gone(self) -> None:
        """Drop the manifests of generations that are retired or failed: their objects become orphans."""
        _, every = self._manifests.changed_since(0, range(self._slots_total))
        self._registry.refresh()  # after: the generation of every manifest seen above is seen here, if it is still served
        serving = self._serving()
        for manifest in every:
            if manifest.shard not in serving:
                self._manifests.drop(manifest.shard)
                _event.info("generation forgotten", shard=str(manifest.shard))

    def stats(self) -> dict[str, Any]:
        """What waits to be sealed."""
        return {"pending_passages": sum(p.passages for p in self._pending.values()), "slots": sorted(self._leases)}


def _start(shard: ShardId, generation: Generation) -> int:
    return generation.starts[generation.slots.index(shard.slot)]
