"""Loads shards: a manifest's segments from the store, then the log rows that no segment has."""

from collections.abc import Callable, Mapping
from typing import Final

from indexer.backends import Backend
from indexer.index.loader import Loading
from indexer.index.objects import Damaged
from indexer.index.scans import ScanBudget
from indexer.index.segment import Segment, placed
from indexer.index.shard import Shard
from query.searcher.memory_budget import MemoryBudget, NoRoom, Room
from query.searcher.tail import Tail
from tenants.entities import Generation, Manifest
from tenants.manifests import Manifests
from vicinage.clock import Clock
from vicinage.errors import Unavailable, VicinageError
from vicinage.metrics import counter
from vicinage.records import ShardId
from vicinage.store import Store

RETRY_S: Final = 0.5

_brought_in = counter("vicinage_searcher_shards_loaded_total")


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
        held = self._tail.shards.get(shard)
        try:
            manifest = self._manifests.of(shard, start=generation.start(shard.slot))
            if held is None:
                self._load(shard, generation, manifest)
            elif manifest.version > held.snapshot.manifest.version:
                self._adopt(held, generation, manifest, unload)
        except Damaged as damaged:  # a lost segment is Unavailable: its collection still exists
            lost = damaged.fault == "lost"
            return (
                Unavailable(damaged.detail, dependency="store", retry_after_s=RETRY_S)
                if lost
                else damaged
            )
        except VicinageError as error:
            return error
        return None

    def _load(self, shard: ShardId, generation: Generation, manifest: Manifest) -> None:
        """Loads segments from the store, then applies the log from `sealed` on."""
        with self._budget.room(shard, sum(ref.loaded_bytes() for ref in manifest.segments)) as room:
            made = Shard(
                shard,
                dimension=generation.dimension,
                metric=generation.metric,
                recall=self._objective(shard),
                backend=self._backend,
                manifest=manifest,
                scans=self._scans,
            )
            made.adopt(manifest, self._segments(manifest, generation, {}, room))
            made.last_access_s = self._clock.monotonic()
            self._tail.join(made, manifest.sealed)
        _brought_in.inc()

    def _adopt(
        self,
        held: Shard,
        generation: Generation,
        manifest: Manifest,
        unload: Callable[[ShardId], None],
    ) -> None:
        """Loads the manifest's new segments beside those that they replace.

        Without room for both, unloads the shard, so that it is loaded again. Raises NoRoom.
        """
        have = {s.ref.id: s for s in held.snapshot.segments}
        need = sum(ref.loaded_bytes() for ref in manifest.segments if ref.id not in have)
        try:
            with self._budget.room(held.id, need) as room:
                held.adopt(manifest, self._segments(manifest, generation, have, room))
        except NoRoom:
            have.clear()
            unload(held.id)
            raise

    def _segments(
        self, manifest: Manifest, generation: Generation, have: Mapping[str, Segment], room: Room
    ) -> list[Segment]:
        loading = Loading(self.store, self._backend, self._manifests.quarantine, "searcher")
        barred = self._manifests.quarantine.barred(manifest.shard)
        found = []
        for ref in manifest.segments:
            segment = have.get(ref.id)
            if segment is None:
                loaded = loading.segment(manifest.shard, ref, generation.metric, barred)
                segment = placed(loaded, self._backend)
                self._budget.count(segment, room)
            found.append(segment)
        return found
