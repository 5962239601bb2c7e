"""What the catalog says of a searcher's slots: which shards are served, and what their newest manifests name.

`read` asks the catalog and changes nothing but `away`; the other methods are called under the lock of the shard table. Single
facts may be read without it: each is replaced in one step.
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
"""A shard with more is loaded before anybody asks, as long as there is room: verifying its bytes takes longer than 100 ms."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the newest manifest seen says of a shard, in memory or not."""

    version: int
    sealed: int
    segments: int
    kinds: tuple[str, ...]
    documents: int
    passages: int
    bytes: int
    at_least: int = 0
    """Documents that are there in any case: those of one segment, but for what the others may delete."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Stored":
        """Counted over its segments."""
        refs = manifest.segments
        return cls(
            manifest.version,
            manifest.sealed,
            len(refs),
            tuple(ref.kind for ref in refs),
            sum(ref.n_documents for ref in refs),
            sum(ref.n_passages for ref in refs),
            sum(ref.bytes() for ref in refs),
            max((ref.n_documents - sum(r.n_deletes for r in refs if r is not ref) for ref in refs), default=0),
        )


NOTHING: Final = Stored(0, 0, 0, (), 0, 0, 0)
"""Of a shard without a manifest."""


@dataclass(frozen=True, slots=True)
class CatalogRead:
    """What one look at the catalog found. `every`: all shards of all slots; None where the catalog is as it was."""

    catalog: int
    every: Mapping[ShardId, Generation] | None
    change: int
    changed: tuple[Manifest, ...]


class CatalogView:
    """The catalog as it was last seen, for these slots."""

    def __init__(self, slots: frozenset[int], registry: Registry, manifests: Manifests) -> None:
        self.slots = slots
        self._registry = registry
        self._manifests = manifests
        self.catalog = -1
        """The catalog version seen."""
        self.away = False
        """Whether the catalog could not be reached at the last look."""
        self.serving: dict[ShardId, Generation] = {}
        """Every shard that lies in these slots and may be searched."""
        self._change = 0
        self._stored: dict[ShardId, Stored] = {}
        """Of each shard that has segments."""

    def read(self) -> CatalogRead:
        """Asks the catalog what it has now. Raises Unavailable."""
        try:
            # Before the manifests: those of a generation that is live here name all that was copied into it.
            catalog = self._registry.refresh()
            every = serving(self._registry) if catalog != self.catalog else None
            change, changed = self._manifests.changed_since(self._change, self.slots)
        except Unavailable as error:
            self.away = unreachable(error)
            raise
        return CatalogRead(catalog, every, change, tuple(changed))

    def begin(self, read: CatalogRead) -> bool:
        """Notes that the catalog answered; returns whether it went back: it was restored from a backup."""
        went_back = read.change < self._change
        self._change, self.away = read.change, False
        return went_back

    def end(self, read: CatalogRead) -> None:
        """The last step of a look: from here on searches planned on this version are answered."""
        self.catalog = read.catalog

    def serve(self, every: Mapping[ShardId, Generation]) -> tuple[frozenset[ShardId], frozenset[ShardId]]:
        """Takes in which shards are served; returns those that are no more, and those that are new."""
        before = self.serving
        self.serving = {shard: g for shard, g in every.items() if shard.slot in self.slots}
        for gone in [s for s in self._stored if s not in self.serving and self.is_over(s)]:
            del self._stored[gone]
        return frozenset(before.keys() - self.serving.keys()), frozenset(self.serving.keys() - before.keys())

    def is_over(self, shard: ShardId) -> bool:
        """Whether the shard's generation ended for ever."""
        return self._registry.is_over(shard)

    def note(self, manifest: Manifest) -> None:
        """Takes in a shard's newest manifest."""
        self._stored[manifest.shard] = Stored.of(manifest)

    def forget(self, shard: ShardId) -> None:
        """The shard is served no more."""
        self._stored.pop(shard, None)

    # facts of a shard

    def stored(self, shard: ShardId) -> Stored:
        """Returns what its newest manifest says; NOTHING without one."""
        return self._stored.get(shard, NOTHING)

    def sealed(self, shard: ShardId, generation: Generation) -> int:
        """Returns the offset below which its segments have everything."""
        stored = self._stored.get(shard)
        return stored.sealed if stored else generation.start(shard.slot)

    def replay_start(self, slot: int, end: int) -> int:
        """Returns the lowest offset that some shard of the slot has not sealed; `end` if there is none."""
        return min((self.sealed(s, g) for s, g in self.serving.items() if s.slot == slot), default=end)

    def is_eager(self, shard: ShardId, resident: Container[ShardId]) -> bool:
        """Whether it is loaded before anybody asks: it is large, or follows one that is `resident`."""
        return self.stored(shard).passages > EAGER_PASSAGES or self._follows(shard, resident)

    def _follows(self, shard: ShardId, resident: Container[ShardId]) -> bool:
        """Whether an older generation of the same collection is in memory: whoever asks for that will soon ask for this."""
        try:
            of = self._registry.collection(shard.tenant, shard.collection)
        except NotFound:
            return False
        return len(of.generations) > 1 and any(s in resident for g in of.generations for s in g.shards())

    def objective(self, shard: ShardId) -> float:
        """Returns the recall objective of its collection. Raises NotFound, also for one in `serving`: it may be gone meanwhile."""
        return self._registry.collection(shard.tenant, shard.collection).objectives.recall

    def of_tenant(self, tenant: str | None) -> Iterable[ShardId]:
        """Returns the shards of one tenant as the registry knows them now; of all, those that are served here."""
        return list(self.serving) if tenant is None else list(serving(self._registry, tenant))

    def weights(self) -> dict[str, int]:
        """Returns every tenant's weight, by name."""
        return {t.name: CLASS_WEIGHT[t.priority] for t in self._registry.tenants()}
