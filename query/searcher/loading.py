"""Loads shards: a manifest's segments from the store, then the log rows that no segment has."""

from collections.abc import Callable, Mapping

from indexer.backends import Backend
from indexer.index.loader import Loading
from indexer.index.objects import Damaged
from indexer.index.scans import ScanBudget
from indexer.index.segment import Segment, placed
from indexer.index.shard import Shard
from query.searcher.load_failures import RETRY_S
from query.searcher.memory_budget import MemoryBudget, NoRoom, Reservation
from query.searcher.tail import Tail
from tenants.entities import Generation, Manifest
from tenants.manifests import Manifests
from vicinage.clock import Clock
from vicinage.errors import Unavailable, VicinageError
from vicinage.metrics import counter
from vicinage.records import ShardId
from vicinage.store import Store

_loads = counter("vicinage_searcher_shards_loaded_total")


class ShardLoader:
    """Loads shards, and updates loaded shards to their manifest.

    Any thread may call it; one thread at a time per shard.
    """

    def __init__(
        self,
        *,
        tail: Tail,
        manifests: Manifests,
        store: Store,
        backend: Backend,
        budget: MemoryBudget,
        scans: ScanBudget,
        objective: Callable[[ShardId], float],
        clock: Clock,
    ) -> None:
        self._tail = tail
        self._manifests = manifests
        self.store = store
        self._backend = backend
        self._budget = budget
        self._scans = scans
        self._objective = objective
        self._clock = clock

    def load(
        self, shard: ShardId, generation: Generation, unload: Callable[[ShardId], None]
    ) -> VicinageError | None:
        """Loads or updates the shard to its manifest; returns the error, or None on success.

        Calls `unload` if memory lacks room for new segments beside those that they replace: the
        shard is then loaded again.
        """
        resident = self._tail.shards.get(shard)
        try:
            manifest = self._manifests.of(shard, start=generation.start(shard.slot))
            if resident is None:
                self._load(shard, generation, manifest)
            elif manifest.version > resident.snapshot.manifest.version:
                self._adopt(resident, generation, manifest, unload)
        except Damaged as damaged:  # a lost segment is Unavailable: its collection still exists
            error: VicinageError = damaged
            if damaged.fault == "lost":
                error = Unavailable(damaged.detail, dependency="store", retry_after_s=RETRY_S)
        except VicinageError as failure:
            error = failure
        else:
            return None
        return error.with_traceback(None)  # its frames would keep the old segments in memory

    def _load(self, shard: ShardId, generation: Generation, manifest: Manifest) -> None:
        """Loads segments from the store, then applies the log from `sealed` on."""
        need = sum(ref.loaded_bytes() for ref in manifest.segments)
        with self._budget.reserve(shard, need) as reservation:
            loaded = Shard(
                shard,
                dimension=generation.dimension,
                metric=generation.metric,
                recall=self._objective(shard),
                backend=self._backend,
                manifest=manifest,
                scans=self._scans,
            )
            loaded.adopt(manifest, self._segments(manifest, generation, {}, reservation))
            loaded.last_access_s = self._clock.monotonic()
            self._tail.join(loaded, manifest.sealed)
        _loads.inc()

    def _adopt(
        self,
        resident: Shard,
        generation: Generation,
        manifest: Manifest,
        unload: Callable[[ShardId], None],
    ) -> None:
        """Loads the manifest's new segments beside those that they replace.

        Without room for both, unloads the shard, so that it is loaded again. Raises NoRoom.
        """
        have = {s.ref.id: s for s in resident.snapshot.segments}
        need = sum(ref.loaded_bytes() for ref in manifest.segments if ref.id not in have)
        try:
            with self._budget.reserve(resident.id, need) as reservation:
                resident.adopt(manifest, self._segments(manifest, generation, have, reservation))
        except NoRoom:
            unload(resident.id)
            raise

    def _segments(
        self,
        manifest: Manifest,
        generation: Generation,
        have: Mapping[str, Segment],
        reservation: Reservation,
    ) -> list[Segment]:
        loading = Loading(self.store, self._backend, self._manifests.quarantine, "searcher")
        barred = self._manifests.quarantine.barred(manifest.shard)
        segments = []
        for ref in manifest.segments:
            segment = have.get(ref.id)
            if segment is None:
                loaded = loading.segment(manifest.shard, ref, generation.metric, barred)
                segment = placed(loaded, self._backend)
                self._budget.count(segment, reservation)
            segments.append(segment)
        return segments
