"""Sealing: writes a shard's pending rows as a segment and publishes it in the manifest.

`due` decides, `Builder.seal` acts. Objects are durable before the manifest names them (guarantee
8). The manifest's `sealed` is the position below which every record is in the segments (guarantee
3).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from indexer.backends import Backend
from indexer.index.loader import Loading
from indexer.index.rows import newest
from indexer.index.segment_writer import write
from tenants.entities import Generation, Lease, Manifest, SegmentRef
from tenants.manifests import Manifests
from vicinage.errors import Conflict, Unavailable
from vicinage.faults import crash_point
from vicinage.metrics import counter
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings
from vicinage.store import Store
from vicinage.wire import vectors_schema

SWAP_TRIES: Final = 5
_conflicts = counter("vicinage_indexer_swap_conflicts_total")
_sealed = counter("vicinage_indexer_sealed_passages_total")
_written = counter("vicinage_indexer_written_passages_total")


@dataclass(slots=True)
class Pending:
    """Rows of one shard that no segment has yet, oldest first."""

    shard: ShardId
    since: float
    """Monotonic time at which the oldest row was read."""
    batches: list[tuple[int, pa.RecordBatch]] = field(default_factory=list)
    passages: int = 0
    bytes: int = 0

    def add(self, offset: int, batch: pa.RecordBatch) -> None:
        """Appends one message."""
        self.batches.append((offset, batch))
        self.passages += batch.num_rows
        self.bytes += batch.nbytes

    def first(self) -> int:
        """Returns the offset of the oldest message: a replay of the slot starts at or before it."""
        return self.batches[0][0]

    def end(self) -> int:
        """Returns the offset after the newest message."""
        return self.batches[-1][0] + 1


def due(pending: Pending, settings: IndexerSettings, *, now: float, slot_end: int) -> str | None:
    """Returns why the shard must be sealed now; None if it need not be. Pure."""
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
    """Writes segments and publishes them."""

    manifests: Manifests
    store: Store
    backend: Backend
    settings: IndexerSettings
    on_superseded: Callable[[Iterable[SegmentRef]], None] = lambda _refs: None
    """Called with the segments that a manifest no longer names."""
    abandoned: list[str] = field(default_factory=list)
    """Folders of abandoned drafts that the catalog does not know as ended yet."""

    def seal(
        self, pending: Pending, generation: Generation, lease: Lease, *, sealed: int
    ) -> Manifest:
        """Writes the pending rows as a segment and publishes it with `sealed`.

        Returns the new manifest. Raises Conflict if another indexer holds the lease; nothing is
        published then.
        """
        nothing = pa.RecordBatch.from_pylist([], schema=vectors_schema(generation.dimension))
        live, deletes = newest([nothing, *(batch for _, batch in pending.batches)])
        logged = (pending.first(), pending.end())
        with self.written(
            pending.shard, generation, live, deletes, lease, logged=logged
        ) as segment:
            crash_point("seal.after_put_before_swap")
            published = self.publish(
                pending.shard, generation, lease, lambda m: (*m.segments, segment), sealed=sealed
            )
        crash_point("seal.after_swap")
        _sealed.inc(live.num_rows)
        return published

    def loading(self) -> Loading:
        """Returns the loader of segments for this indexer."""
        return Loading(self.store, self.backend, self.manifests.quarantine, "indexer")

    @contextmanager
    def written(
        self,
        shard: ShardId,
        generation: Generation,
        live: pa.RecordBatch,
        deletes: pa.RecordBatch,
        lease: Lease,
        *,
        logged: tuple[int, int] | None = None,
    ) -> Iterator[SegmentRef]:
        """Writes a segment and pins its objects for the block, which publishes it.

        Abandons it if the block raises. No sweep removes the objects while the writer holds the
        lease. Raises Conflict, Unavailable.
        """
        folders: list[str] = []

        def claim(folder: str) -> None:
            self.manifests.drafts.begin(folder, lease)
            folders.append(folder)

        self._abandon(())
        try:
            yield self.write(shard, generation, live, deletes, logged=logged, claim=claim)
        except BaseException:
            self._abandon(folders)
            raise

    def _abandon(self, folders: Iterable[str]) -> None:
        """Ends drafts, those of failed calls included.

        While the catalog is unavailable, keeps them for the next call.

        The sealing and the compacting thread may call this at once; each folder is removed by one
        of them.
        """
        self.abandoned.extend(folders)
        with suppress(Unavailable):
            for folder in tuple(self.abandoned):
                self.manifests.drafts.end([folder])
                with suppress(ValueError):
                    self.abandoned.remove(folder)

    def write(
        self,
        shard: ShardId,
        generation: Generation,
        live: pa.RecordBatch,
        deletes: pa.RecordBatch,
        *,
        logged: tuple[int, int] | None = None,
        claim: Callable[[str], None] = lambda _folder: None,
    ) -> SegmentRef:
        """Writes a segment to the store, in no manifest yet.

        `logged` and `claim` are those of `segment_writer.write`.
        """
        copies = {"never": False, "unlogged": logged is None, "always": True}[
            self.settings.second_copies
        ]
        recent_queries = self.manifests.recent_queries.of(
            shard.tenant, shard.collection, generation.model, generation.dimension
        )
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
            recent_queries=recent_queries,
            logged=logged,
            copies=copies,
            claim=claim,
        )
        _written.inc(live.num_rows)
        return written

    def current(self, shard: ShardId, generation: Generation) -> Manifest:
        """Returns the shard's present manifest."""
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
        """Swaps in `change(current manifest)` and returns the new manifest. Raises Conflict.

        Retries on the newest manifest after a concurrent swap.
        """
        for _ in range(SWAP_TRIES):
            old = self.current(shard, generation)
            try:
                new = self.manifests.swap(
                    old, segments=change(old), sealed=max(old.sealed, sealed or 0), lease=lease
                )
            except Conflict as conflict:
                _conflicts.inc()
                # The lease was lost; this is no race of versions, so a retry cannot succeed.
                if conflict.found is not None:
                    raise
            else:
                self.on_superseded([ref for ref in old.segments if ref not in new.segments])
                return new
        raise Conflict(f"the manifest of {shard} changed {SWAP_TRIES} times during the swap")
