"""Sweeps the store: deletes objects of segments that no manifest names and no writer still needs.

These are orphans of killed processes, and objects of generations that are not served any more.
Damaged objects are kept in quarantine for `quarantine_s`.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Final

from indexer.seal import Builder
from indexer.superseded import Superseded
from tenants.entities import Manifest
from tenants.registry import Registry
from tenants.serving import serving
from vicinage.clock import Clock
from vicinage.records import ShardId
from vicinage.telemetry import events

SWEEP_EVERY_S: Final = 60.0

_event = events("indexer")


class Sweep:
    """Deletes unneeded objects, once per SWEEP_EVERY_S. Used by one thread of the leader."""

    def __init__(
        self,
        registry: Registry,
        builder: Builder,
        superseded: Superseded,
        slots_total: int,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._builder = builder
        self._manifests = builder.manifests
        self._superseded = superseded
        self._slots_total = slots_total
        self._clock = clock
        self._swept = -1e9

    def step(self) -> None:
        """Sweeps if it is due. Raises Unavailable."""
        now = self._clock.monotonic()
        if now - self._swept < SWEEP_EVERY_S:
            return
        self._swept = now
        _, every = self._manifests.changed_since(0, range(self._slots_total))
        # Refreshed after the manifests are read: the generation of each manifest is found here if
        # it is still served.
        self._registry.refresh()
        self._drop_unserved(every, serving(self._registry))
        age_s = self._builder.settings.orphan_age_s
        gone = self._builder.store.sweep("segments", keep=self._kept, age_s=age_s)
        self._manifests.drafts.forget_stale()
        if gone:
            _event.info("orphans.swept", objects=len(gone))

    def _drop_unserved(self, every: Iterable[Manifest], served: Container[ShardId]) -> None:
        """Drops manifests of retired or failed generations: their objects become orphans."""
        for manifest in every:
            if manifest.shard not in served:
                self._manifests.drop(manifest.shard)
                self._superseded.add(manifest.segments)
                _event.info("generation.forgotten", shard=str(manifest.shard))

    def _kept(self) -> "_Kept":
        """Returns the objects to keep.

        Reads drafts, manifests and quarantine in this order. An object that leaves the drafts is in
        a manifest by then, and one that leaves the manifests may be in quarantine.
        """
        pinned = self._manifests.drafts.pinned()
        named = self._manifests.paths()
        return _Kept(named | self._quarantined(), pinned)

    def _quarantined(self) -> set[str]:
        """Returns the objects in quarantine. Deletes those whose time in quarantine is over."""
        quarantine = self._manifests.quarantine
        before_ms = self._clock.now_ms() - int(1_000 * self._builder.settings.quarantine_s)
        every = quarantine.every()
        over = [d for d in every if d.state == "replaced" and d.seen_ms <= before_ms]
        for damage in over:
            self._builder.store.delete(damage.path)
            quarantine.forget(damage, actor="indexer", why="its time in quarantine is over")
        return {d.path for d in every if d not in over}


@dataclass(frozen=True, slots=True)
class _Kept:
    """Objects that a sweep keeps: by path, and by the folder of a draft."""

    paths: set[str]
    folders: frozenset[str]

    def __contains__(self, path: object) -> bool:
        return path in self.paths or (
            isinstance(path, str) and path.rpartition("/")[0] in self.folders
        )
