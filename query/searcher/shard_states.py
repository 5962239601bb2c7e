"""Decides which shards to load, which may answer a search, and which are refused.

No thread waits here, and nothing is read: `shards.py` does that, and calls these methods under its
lock. `get` and `is_served` need no lock: each value that they read changes in one step.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from indexer.index.shard import Shard
from query.searcher.catalog_view import CatalogRead, CatalogView
from query.searcher.load_failures import RETRY_S, LoadFailures
from query.searcher.load_queue import LoadQueue
from query.searcher.memory_budget import NoRoom
from query.searcher.shard_waits import ShardWait
from query.searcher.tail import Tail
from tenants.entities import Generation, Manifest
from vicinage.clock import Clock
from vicinage.errors import Corrupt, NotFound, Unavailable, VicinageError
from vicinage.records import ShardId
from vicinage.telemetry import events

_event = events("searcher")


class ShardStates:
    """The state of every shard: in memory, complete, queued to be loaded, stale or failed."""

    def __init__(self, view: CatalogView, tail: Tail, clock: Clock) -> None:
        self.view = view
        self._tail = tail
        self._clock = clock
        self.queue = LoadQueue()
        self.failures = LoadFailures()
        self._complete: set[ShardId] = set()
        """Shards in memory that had all of their manifest after their generation became live.

        Later rows are in the log, and so in memory. Rows that a reindex copies before the cutover
        are in its segments alone, so only these shards may answer.
        """

    # answering

    def get(self, shard: ShardId, catalog: int) -> Shard | None:
        """Returns the shard if it can now answer a search planned on that catalog version.

        While the catalog is unreachable, a complete shard that was live at the last read answers:
        all its rows are in memory, sealed or not.
        """
        is_current = catalog <= self.view.catalog or self.view.unreachable
        return self._tail.shards.get(shard) if shard in self._complete and is_current else None

    def is_served(self, shard: ShardId) -> bool:
        """Returns whether the shard may be searched here."""
        return shard in self.view.serving

    def refusal(self, wait: ShardWait, error: VicinageError | None = None) -> VicinageError | None:
        """Returns why the wait cannot be served; None while waiting may help.

        `error` is the error of the shard's last load.
        """
        shard = wait.shard
        if wait.catalog > self.view.catalog:
            return None  # waits for the next catalog read
        if shard in self.failures.failed:
            return Corrupt(self.failures.failed[shard], path=str(shard))
        if shard not in self.view.serving:
            return NotFound(f"there is no generation {shard.generation} of {shard.collection!r}")
        if self.view.serving[shard].state != "live":
            return Unavailable(
                "the searcher does not know yet that the generation is live",
                dependency="searcher",
                retry_after_s=RETRY_S,
            )
        return error

    # a catalog read

    def apply(self, read: CatalogRead, waited_for: Iterable[ShardId]) -> None:
        """Applies the catalog's changes of shards and manifests, and queues loads."""
        if self.view.begin(read):
            self._tail.reset_skipped()
        if read.every is not None:
            self._apply_served(read.every)
        for manifest in read.changed:
            self._apply_manifest(manifest)
        if read.every is not None:
            self._complete.update(s for s in list(self._tail.shards) if self._is_complete(s))
            self._apply_objectives()
        for shard in waited_for:
            self.queue_load(shard)
        self.view.end(read)

    def _apply_served(self, every: Mapping[ShardId, Generation]) -> None:
        removed, added = self.view.serve(every)
        serving = self.view.serving
        for shard in [*removed, *(s for s in self._tail.shards if s not in serving)]:
            self._forget(shard)
        self._tail.drop_skipped(lambda s: s not in serving and self.view.is_over(s))
        self._tail.drop_figures_except({s.tenant for s in serving})
        for shard in added:
            if self.view.is_eager(shard, self._tail.shards):
                self.queue_load(shard)

    def _apply_manifest(self, manifest: Manifest) -> None:
        """Applies a changed manifest, and clears failures: its segments may be intact."""
        shard = manifest.shard
        self.view.note(manifest)
        had_failed = self.failures.clear(shard)
        if shard in self._tail.shards:
            self.queue.schedule(shard)
            return
        if had_failed:
            self.queue.remove(shard)  # load it now, not after its backoff
        self._tail.drop_skipped_below(shard, manifest.sealed)
        if had_failed or self.view.is_eager(shard, self._tail.shards):
            self.queue_load(shard)

    def _apply_objectives(self) -> None:
        """Gives each shard in memory its collection's recall objective.

        Meanwhile other threads load shards and refresh the registry, which then may lack a
        collection that is served.
        """
        for shard, resident in list(self._tail.shards.items()):
            if shard in self.view.serving:
                with suppress(NotFound):
                    resident.aim_at(self.view.objective(shard))

    def _is_complete(self, shard: ShardId) -> bool:
        resident, generation = self._tail.shards.get(shard), self.view.serving.get(shard)
        return bool(
            resident
            and generation
            and generation.state == "live"
            and not self._is_behind(shard, resident)
        )

    def _is_behind(self, shard: ShardId, resident: Shard) -> bool:
        return resident.snapshot.manifest.version < self.view.stored(shard).version

    # loads

    def queue_load(self, shard: ShardId) -> None:
        """Queues the shard's load if it is served, not in memory and not failed."""
        if (
            shard in self.view.serving
            and shard not in self._tail.shards
            and shard not in self.failures.failed
        ):
            self.queue.add(shard)

    def next_load(self, waited_for: Iterable[ShardId]) -> ShardId | None:
        """Returns the shard to load now, or None; the caller must call `load_ended`."""
        return self.queue.take(waited_for, self.failures.backing_off(), self._clock.monotonic())

    def load_ended(self, shard: ShardId, version: int, error: VicinageError | None) -> None:
        """Records the end of a load. `version`: the manifest version known when it began."""
        self.queue.done(shard)
        if shard not in self.view.serving:
            self._forget(shard)  # deleted meanwhile
        elif error is None:
            self._loaded(shard)
        elif self.view.stored(shard).version != version:
            self.queue.schedule(shard)  # its manifest changed meanwhile
        else:
            self._load_failed(shard, error)

    def _loaded(self, shard: ShardId) -> None:
        resident = self._tail.shards.get(shard)
        if resident is None:
            return  # the tail dropped it meanwhile
        self.failures.clear(shard)
        if self._is_behind(shard, resident):
            self.queue.schedule(shard)  # its manifest changed meanwhile
        else:
            self.queue.remove(shard)
        if self._is_complete(shard):
            self._complete.add(shard)

    def _load_failed(self, shard: ShardId, error: VicinageError) -> None:
        """Handles a failed load: corrupt data is never served, and other errors are retried.

        Without memory for a shard that is not loaded, only the next search retries.
        """
        if isinstance(error, NoRoom) and shard not in self._tail.shards:
            self.queue.remove(shard)  # it stays unloaded until the next search
        elif not isinstance(error, Corrupt):
            self._retry_after(shard, RETRY_S)
            _event.error("shard.load_failed", shard=str(shard), error=str(error), kind=error.kind)
        elif shard in self._complete and shard in self._tail.shards:
            self._serve_stale(shard, error)
        else:
            self._refuse(shard, error)

    def _serve_stale(self, shard: ShardId, corrupt: Corrupt) -> None:
        """Keeps serving the older manifest, and retries the newest with exponential backoff."""
        wait_s = self.failures.serve_stale(shard, corrupt)
        self._retry_after(shard, wait_s)
        _event.error(
            "manifest.load_failed",
            shard=str(shard),
            error=corrupt.detail,
            path=corrupt.path,
            retry_s=wait_s,
        )

    def _refuse(self, shard: ShardId, corrupt: Corrupt) -> None:
        self.unload(shard)
        wait_s = self.failures.refuse(shard, corrupt)
        _event.error("shard.failed", shard=str(shard), error=corrupt.detail)
        if wait_s is not None:
            self._retry_after(shard, wait_s)

    def _retry_after(self, shard: ShardId, wait_s: float) -> None:
        self.queue.schedule(shard, self._clock.monotonic() + wait_s)

    # unloading

    def pinned(self) -> set[ShardId]:
        """Returns shards that must not be evicted: being loaded, or stale and so not reloadable."""
        return {*self.queue.loading, *self.failures.stale}

    def unload(self, shard: ShardId) -> None:
        """Unloads the shard; the next search loads it again."""
        self._complete.discard(shard)
        self.queue.remove(shard)
        self._tail.remove(shard)

    def _forget(self, shard: ShardId) -> None:
        """Removes all state of a shard that is no longer served and never will be again."""
        self._tail.forget(shard)
        self._complete.discard(shard)
        self.view.forget(shard)
        self.queue.remove(shard)
        self.failures.clear(shard)
