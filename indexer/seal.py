"""Sealing: pending rows of a shard become a segment, and the manifest moves on.

`due` decides; `seal` does. Objects are durable before the manifest names them (law 8), and the manifest's `sealed` is the
position up to which they are complete (law 3).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from indexer.backends import Backend
from indexer.loading import Loading
from indexer.segment import newest, write
from tenants.entities import Generation, Lease, Manifest, SegmentRef
from tenants.manifests import Manifests
from vicinage.errors import Conflict
from vicinage.faults import crash_point
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings
from vicinage.store import Store
from vicinage.telemetry import counter
from vicinage.wire import vectors_schema

SWAP_TRIES: Final = 5
_conflicts = counter("vicinage_indexer_swap_conflicts_total", "manifest swaps refused by compare-and-set or fencing")
_sealed = counter("vicinage_indexer_sealed_passages_total", "passages written to a segment for the first time")
_written = counter(
    "vicinage_indexer_written_passages_total",
    "passages written to segments: beside those sealed, again by compaction, reindex and mending (write amplification)",
)


@dataclass(slots=True)
class Pending:
    """Rows of one shard that no segment has yet, oldest first."""

    shard: ShardId
    since: float
    """Monotonic time at which the oldest came."""
    batches: list[tuple[int, pa.RecordBatch]] = field(default_factory=list)
    passages: int = 0
    bytes: int = 0

    def add(self, offset: int, batch: pa.RecordBatch) -> None:
        """One more message."""
        self.batches.append((offset, batch))
        self.passages += batch.num_rows
        self.bytes += batch.nbytes

    def first(self) -> int:
        """Offset of the oldest message: the slot's replay must begin there or before."""
        return self.batches[0][0]

    def end(self) -> int:
        """The offset after the newest message."""
        return self.batches[-1][0] + 1


def due(pending: Pending, settings: IndexerSettings, *, now: float, slot_end: int) -> str | None:
    """Why the shard is to be sealed now, or None. Pure."""
    if pending.passages >= settings.seal_passages:
        return "passages"
    if pending.bytes >= settings.seal_bytes:
        return "bytes"
    if now - pending.since >= settings.seal_age_s:
        return "age"
    if slot_end - pending.first() > settings.replay_records_max:
        return "replay"
    return None


@dataclass(frozen=True, slots=True)
class Builder:
    """What it takes to make segments and publish them."""

    manifests: Manifests
    store: Store
    backend: Backend
    settings: IndexerSettings

    def seal(self, pending: Pending, generation: Generation, lease: Lease, *, sealed: int) -> Manifest:
        """Write the pending rows as a segment and publish it; everything below `sealed` is then in segments.

        Raises Conflict when the lease has passed to another: nothing was published then.
        """
        nothing = pa.RecordBatch.from_pylist([], schema=vectors_schema(generation.dimension))
        live, deletes = newest([nothing, *(batch for _, batch in pending.batches)])
        segment = self.write(pending.shard, generation, live, deletes, logged=(pending.first(), pending.end()))
        crash_point("seal.after_put_before_swap")
        published = self.publish(pending.shard, generation, lease, lambda m: (*m.segments, segment), sealed=sealed)
        crash_point("seal.after_swap")
        _sealed.inc(live.num_rows)
        return published

    def loading(self) -> Loading:
        """How this indexer loads segments."""
        return Loading(self.store, self.backend, self.manifests.quarantine, "indexer")

    def write(
        self,
        shard: ShardId,
        generation: Generation,
        live: pa.RecordBatch,
        deletes: pa.RecordBatch,
        *,
        logged: tuple[int, int] | None = None,
    ) -> SegmentRef:
        """A segment in the store, which no manifest names yet; `logged` as in `segment.write`."""
        asked = self.manifests.questions.of(shard.tenant, shard.collection, generation.model, generation.dimension)
        written = write(
            live,
            deletes,
            shard=shard,
            spec=generation.index,
            metric=generation.metric,
            dimension=generation.dimension,
            backend=self.backend,
            store=self.store,
            flat_max=self.settings.flat_max,
            index_bytes_max=self.settings.index_bytes_max,
            threads=self.settings.threads,
            questions=asked,
            logged=logged,
        )
        _written.inc(live.num_rows)
        return written

    def current(self, shard: ShardId, generation: Generation) -> Manifest:
        """The shard's manifest as it is now."""
        return self.manifests.of(shard, start=generation.start(shard.slot))

    def publish(
        self,
        shard: ShardId,
        generation: Generation,
        lease: Lease,
        change: Callable[[Manifest], tuple[SegmentRef, ...]],
        *,
        sealed: int | None = None,
    ) -> Manifest:
        """Swap in `change(current manifest)`; again on the newest one when another swap came first. Raises Conflict."""
        for _ in range(SWAP_TRIES):
            old = self.current(shard, generation)
            try:
                return self.manifests.swap(old, segments=change(old), sealed=max(old.sealed, sealed or 0), lease=lease)
            except Conflict as conflict:
                _conflicts.inc()
                if conflict.found is not None:  # the lease, not the version: no second try can win
                    raise
        raise Conflict(f"the manifest of {shard} changed {SWAP_TRIES} times under us")
