"""Loads segments for searchers and indexers: refuses quarantined objects, and reports damaged ones.

Guarantee 8: a corrupt object is not loaded until its segment is rebuilt, or until the indexer of
its slot verifies it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from indexer.backends import Backend
from indexer.index.objects import Damaged, Documents, opened, read_documents
from indexer.index.segment import Segment, load
from tenants.entities import Damage, Metric, SegmentRef
from tenants.quarantine import Quarantine
from vicinage.errors import Unavailable
from vicinage.metrics import counter
from vicinage.records import ShardId
from vicinage.store import Store
from vicinage.telemetry import events

_event = events("segment")
_quarantined = counter("vicinage_indexer_quarantined_total")


@dataclass(frozen=True, slots=True)
class Loading:
    """Loads segments. `actor` is the name in the audit records."""

    store: Store
    backend: Backend
    quarantine: Quarantine
    actor: str

    def segments(self, shard: ShardId, refs: Iterable[SegmentRef], metric: Metric) -> list[Segment]:
        """Returns all segments, verified.

        Raises Damaged after reporting the damage, and Unavailable.
        """
        barred = self.quarantine.barred(shard)
        return [self.segment(shard, ref, metric, barred) for ref in refs]

    def segment(
        self, shard: ShardId, ref: SegmentRef, metric: Metric, barred: frozenset[str]
    ) -> Segment:
        """Returns one segment, verified; raises as `segments` does."""
        on_damage = partial(self._note_in_passing, shard, ref)
        try:
            return load(ref, self.store, self.backend, metric, barred=barred, on_damage=on_damage)
        except Damaged as damaged:
            if damaged.path not in barred:
                self.note(shard, ref, damaged)
            raise

    def documents(self, shard: ShardId, refs: Iterable[SegmentRef]) -> list[Documents]:
        """Returns the documents object of each segment.

        Raises Damaged after reporting the damage, and Unavailable.
        """
        barred = self.quarantine.barred(shard)
        return [self._documents(shard, ref, barred) for ref in refs]

    def _documents(self, shard: ShardId, ref: SegmentRef, barred: frozenset[str]) -> Documents:
        try:
            return opened(ref, "documents", self.store, read_documents, barred)
        except Damaged as damaged:
            if damaged.path not in barred:
                self.note(shard, ref, damaged)
            raise

    def note(self, shard: ShardId, ref: SegmentRef, damaged: Damaged) -> None:
        """Quarantines the object, so that it is rebuilt if the shard's manifest names it.

        Raises Unavailable.
        """
        damage = Damage(damaged.path, shard, ref.id, damaged.role, damaged.fault, damaged.detail)
        if self.quarantine.note(damage, actor=self.actor):
            _quarantined.inc()
            _event.error(
                "object.quarantined",
                shard=str(shard),
                path=damage.path,
                fault=damage.fault,
                why=damage.reason,
            )

    def _note_in_passing(self, shard: ShardId, ref: SegmentRef, damaged: Damaged) -> None:
        """Calls `note` during a search, which goes on.

        If the catalog is unavailable, a later reader reports the damage.
        """
        try:
            self.note(shard, ref, damaged)
        except Unavailable as unavailable:
            _event.warning("damage.note_failed", path=damaged.path, reason=str(unavailable))
