"""The catalog's view of a searcher's slots: the shards served, and their newest manifests.

`read` reads the catalog and changes only `unreachable`. Other methods run under the shard table's
lock. Single facts may be read without the lock: each is replaced in one step.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tenants.entities import CLASS_WEIGHT, Generation, Manifest
from tenants.manifests import Manifests
from tenants.registry import Registry
from tenants.serving import serving
from vicinage.catalog import unreachable
from vicinage.errors import NotFound, Unavailable
from vicinage.records import ShardId

EAGER_PASSAGES: Final = 10_000
"""A shard with more passages is loaded before its first search, while memory has room.

To verify its bytes takes longer than 100 ms.
"""


@dataclass(frozen=True, slots=True)
class ManifestFigures:
    """Figures of a shard from the newest manifest read, in memory or not."""

    version: int
    sealed: int
    segments: int
    kinds: tuple[str, ...]
    documents: int
    passages: int
    bytes: int
    at_least: int = 0
    """Lower bound on documents: those of one segment minus the deletes of the others."""

    @classmethod
    def of(cls, manifest: Manifest) -> "ManifestFigures":
        """Returns the figures summed over the manifest's segments."""
        refs = manifest.segments
        return cls(
            manifest.version,
            manifest.sealed,
            len(refs),
            tuple(ref.kind for ref in refs),
            sum(ref.n_documents for ref in refs),
            sum(ref.n_passages for ref in refs),
            sum(ref.bytes() for ref in refs),
            max(
                (ref.n_documents - sum(r.n_deletes for r in refs if r is not ref) for ref in refs),
                default=0,
            ),
        )


NO_MANIFEST: Final = ManifestFigures(0, 0, 0, (), 0, 0, 0)
"""Figures of a shard without a manifest."""


@dataclass(frozen=True, slots=True)
class CatalogRead:
    """Result of one catalog read. `every`: all shards of all slots; None if unchanged."""

    catalog: int
    every: Mapping[ShardId, Generation] | None
    change: int
    changed: tuple[Manifest, ...]


class CatalogView:
    """The catalog as last read, for these slots."""

    def __init__(self, slots: frozenset[int], registry: Registry, manifests: Manifests) -> None:
        self.slots = slots
        self._registry = registry
        self._manifests = manifests
        self.catalog = -1
        """The catalog version last read."""
        self.unreachable = False
        """Whether the catalog was unreachable at the last read."""
        self.serving: dict[ShardId, Generation] = {}
        """Every shard in these slots that may be searched."""
        self._change = 0
        self._stored: dict[ShardId, ManifestFigures] = {}
        """Figures of each shard with a manifest."""

    def read(self) -> CatalogRead:
        """Reads the catalog's present state. Raises Unavailable."""
        try:
            # Before the manifests: those of a live generation name all that was copied into it.
            catalog = self._registry.refresh()
            every = serving(self._registry) if catalog != self.catalog else None
            change, changed = self._manifests.changed_since(self._change, self.slots)
        except Unavailable as error:
            self.unreachable = unreachable(error)
            raise
        return CatalogRead(catalog, every, change, tuple(changed))

    def begin(self, read: CatalogRead) -> bool:
        """Notes a successful read; returns whether the catalog was restored from a backup."""
        restored = read.change < self._change
        self._change, self.unreachable = read.change, False
        return restored

    def end(self, read: CatalogRead) -> None:
        """Ends a catalog read: from now on, searches planned on this version are answered."""
        self.catalog = read.catalog

    def serve(
        self, every: Mapping[ShardId, Generation]
    ) -> tuple[frozenset[ShardId], frozenset[ShardId]]:
        """Sets the shards served; returns those no longer served, and those that are new."""
        before = self.serving
        self.serving = {shard: g for shard, g in every.items() if shard.slot in self.slots}
        for gone in [s for s in self._stored if s not in self.serving and self.is_over(s)]:
            del self._stored[gone]
        return frozenset(before.keys() - self.serving.keys()), frozenset(
            self.serving.keys() - before.keys()
        )

    def is_over(self, shard: ShardId) -> bool:
        """Returns whether the shard's generation ended permanently."""
        return self._registry.is_over(shard)

    def note(self, manifest: Manifest) -> None:
        """Notes a shard's newest manifest."""
        self._stored[manifest.shard] = ManifestFigures.of(manifest)

    def forget(self, shard: ShardId) -> None:
        """Removes the figures of a shard that is no longer served."""
        self._stored.pop(shard, None)

    # facts of a shard

    def stored(self, shard: ShardId) -> ManifestFigures:
        """Returns the figures of its newest manifest; NO_MANIFEST without one."""
        return self._stored.get(shard, NO_MANIFEST)

    def sealed(self, shard: ShardId, generation: Generation) -> int:
        """Returns the offset below which its segments have everything."""
        stored = self._stored.get(shard)
        return stored.sealed if stored else generation.start(shard.slot)

    def replay_start(self, slot: int, end: int) -> int:
        """Returns the lowest offset that a shard of the slot has not sealed; `end` if none."""
        return min(
            (self.sealed(s, g) for s, g in self.serving.items() if s.slot == slot), default=end
        )

    def is_eager(self, shard: ShardId, resident: Container[ShardId]) -> bool:
        """Returns whether it is loaded before its first search.

        It is large, or another generation of its collection is `resident`.
        """
        return self.stored(shard).passages > EAGER_PASSAGES or self._follows(shard, resident)

    def _follows(self, shard: ShardId, resident: Container[ShardId]) -> bool:
        """Returns whether another generation of the collection is in memory.

        Searches of an older generation soon need this one.
        """
        try:
            of = self._registry.collection(shard.tenant, shard.collection)
        except NotFound:
            return False
        return len(of.generations) > 1 and any(
            s in resident for g in of.generations for s in g.shards()
        )

    def objective(self, shard: ShardId) -> float:
        """Returns the recall objective of its collection.

        Raises NotFound, also for a shard in `serving`: its collection may be deleted meanwhile.
        """
        return self._registry.collection(shard.tenant, shard.collection).objectives.recall

    def of_tenant(self, tenant: str | None) -> Iterable[ShardId]:
        """Returns one tenant's shards as the registry has them now; for None, those served here."""
        return list(self.serving) if tenant is None else list(serving(self._registry, tenant))

    def weights(self) -> dict[str, int]:
        """Returns every tenant's weight, by name."""
        return {t.name: CLASS_WEIGHT[t.priority] for t in self._registry.tenants()}
