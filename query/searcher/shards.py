"""The shard table of a searcher: the shards of its slots as the catalog names them, some in memory.

`catalog_view.py` holds what the catalog says. `load_queue.py` chooses the next shard to load,
`loading.py` loads it, and `memory_budget.py` makes room for it. This module tracks which searches
wait for a shard, which shards may answer, and which cannot be used.

Separate threads read the catalog and load segments. A search that was planned on a newer catalog
waits for a catalog read, which is two small SELECTs. Only searches of a shard that is being loaded
wait for the store (law 7).

The first search of a shard loads it. Two kinds are loaded before a search: large shards, whose load
takes long (`EAGER_PASSAGES`), and the next generation of a collection in use. A shard stays in
memory until others need the room (`memory.py`).
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from indexer.backends import Backend
from indexer.index.loader import Loading
from indexer.index.objects import Damaged
from indexer.index.scans import ScanBudget
from indexer.index.shard import Shard
from query.searcher.catalog_view import CatalogView
from query.searcher.counting import Counting
from query.searcher.load_queue import LoadQueue
from query.searcher.loading import RETRY_S, ShardLoader
from query.searcher.memory_budget import MemoryBudget, NoRoom
from query.searcher.tail import Tail
from tenants.entities import Generation, Manifest
from tenants.manifests import Manifests
from tenants.registry import Registry
from vicinage.clock import Clock, Deadline, longer
from vicinage.errors import Corrupt, NotFound, Overloaded, Unavailable, VicinageError
from vicinage.metrics import counter, gauge
from vicinage.records import ShardId
from vicinage.settings import SearcherSettings
from vicinage.stats import ShardStats
from vicinage.store import Store
from vicinage.telemetry import events

NEWEST: Final = 1 << 62
"""A version that no catalog has: a search planned on it waits for the next catalog read."""
CORRUPT_RETRY_S: Final = (1.0, 300.0)
"""Initial and maximum exponential backoff, in seconds, between retries of a corrupt manifest.

It is retried because it may have been found whole meanwhile.
"""

_event = events("searcher")
_let_go = counter("vicinage_searcher_shards_evicted_total")
_stale = gauge("vicinage_searcher_stale_shards")


@dataclass(frozen=True, slots=True)
class Stale:
    """A corrupt manifest while an older one serves: the reason, and the backoff until the retry."""

    reason: str
    wait_s: float


@dataclass(slots=True, eq=False)
class _Wait:
    """A search that waits for a shard and for this version of the catalog (0: already read)."""

    shard: ShardId
    catalog: int
    deadline: Deadline
    future: Future[Shard] = field(default_factory=Future)

    def over(self) -> bool:
        return self.deadline.passed() or self.future.cancelled()


class ShardTable:
    """The table of shards. Any thread may call it, except the thread loops.

    One thread runs `look_all`; any number run `load_all`.
    """

    def __init__(
        self,
        slots: Iterable[int],
        *,
        tail: Tail,
        registry: Registry,
        manifests: Manifests,
        store: Store,
        backend: Backend,
        settings: SearcherSettings,
        clock: Clock,
    ) -> None:
        self._tail = tail
        self._settings = settings
        self._clock = clock
        self._stop = threading.Event()
        self._looked_for = threading.Event()
        """Set while a search waits for a catalog read."""
        self._known = threading.Condition()
        """Guards all that follows; notified when there is a shard to load."""
        self.view = CatalogView(frozenset(slots), registry, manifests)
        self.queue = LoadQueue()
        self._whole: set[ShardId] = set()
        """Shards in memory that had all of their manifest after their generation became live.

        Later rows are in the log, and so in memory. Rows that a reindex copies before the cutover
        are in its segments alone, so only these shards may answer.
        """
        self.failed: dict[ShardId, str] = {}
        """Shards with unreadable rows → the reason.

        They are refused until the manifest changes or a retry succeeds.
        """
        self._again_s: dict[ShardId, float] = {}
        """Shards that failed because of a segment → the backoff until the retry, in seconds."""
        self.stale: dict[ShardId, Stale] = {}
        """Shards whose newest manifest is corrupt; meanwhile the previous one serves."""
        self._waits: list[_Wait] = []
        self.budget = MemoryBudget(settings.resident_bytes_max, self, clock)
        self.loader = ShardLoader(
            tail=tail,
            manifests=manifests,
            store=store,
            backend=backend,
            budget=self.budget,
            scans=ScanBudget(
                settings.scan_rows_max, settings.scan_cpu_share, threads=settings.threads
            ),
            objective=self.view.objective,
            clock=clock,
        )
        self.counting = Counting(
            tail=tail,
            manifests=manifests,
            loading=Loading(store, backend, manifests.quarantine, "searcher"),
            served=lambda: self.view.serving,
            version_of=lambda shard: self.view.stored(shard).version,
            to_count=self._to_count,
        )

    # requests for a shard: any thread

    def at_once(self, shard: ShardId, catalog: int = 0) -> Shard | None:
        """Returns the shard if it can now answer a search planned on that catalog version."""
        # NOTE: without the lock: each value changes in one step, and only after it is true.
        return self._tail.shards.get(shard) if self._may_answer(shard, catalog) else None

    def soon(self, shard: ShardId, deadline: Deadline, catalog: int = NEWEST) -> Future[Shard]:
        """Returns a future of the shard, set once it can answer; dropped after the deadline.

        Raises Unavailable, Corrupt, NotFound or Overloaded, at once or through the future. One
        tenant may have at most half of all waits, so that others find room.
        """
        if shard.slot not in self.view.slots:
            raise Unavailable(f"slot {shard.slot} is not held here", dependency="searcher")
        wait = _Wait(shard, catalog, deadline)
        with self._known:
            self._waits = [w for w in self._waits if not w.over()]
            own = sum(w.shard.tenant == shard.tenant for w in self._waits)
            if len(self._waits) >= self._settings.queue_max or own >= max(
                1, self._settings.queue_max // 2
            ):
                raise Overloaded(
                    "too many searches wait for their shards to be loaded", retry_after_s=1.0
                )
            self._waits.append(wait)
            self._want(shard)
            self._known.notify_all()
        self._looked_for.set()
        return wait.future

    def _may_answer(self, shard: ShardId, catalog: int) -> bool:
        """Returns whether the shard may answer a search planned on that catalog version.

        While the catalog is unreachable, a complete shard that was live at the last read answers:
        all its rows are in memory, sealed or not.
        """
        return shard in self._whole and (catalog <= self.view.catalog or self.view.away)

    # reading the catalog: one thread

    def look_all(self) -> None:
        """Reads the catalog every `adopt_s`, and whenever a search waits for it, until stopped.

        Evicts shards for grown deltas at most every `adopt_s`, because that visits all shards.
        """
        shed_at = self._clock.monotonic()
        while not self._stop.is_set():
            self._looked_for.wait(self._settings.adopt_s)
            self._looked_for.clear()
            if self._stop.is_set():
                return
            self._look_for_those_who_wait()
            if (now := self._clock.monotonic()) - shed_at >= self._settings.adopt_s:
                shed_at = now
                self.budget.shed()

    def _look_for_those_who_wait(self) -> None:
        with self._known:
            asked = list(self._waits)
        try:
            self.look()
        except Unavailable as error:
            away = error
            _event.warning("the catalog is away", reason=str(away))
            self._settle(lambda w: away if w in asked and w.catalog > self.view.catalog else None)
        else:
            for wait in asked:
                # Read, whatever its version: a catalog restored from a backup may have a lower one.
                wait.catalog = 0
            self._settle(self._refusal)

    def look(self) -> None:
        """Applies the catalog's changes of shards and manifests. Raises Unavailable."""
        read = self.view.read()
        with self._known:
            if self.view.begin(read):
                self._tail.forget_what_passed()
            if read.every is not None:
                self._see(read.every)
            for manifest in read.changed:
                self._see_manifest(manifest)
            if read.every is not None:
                self._whole.update(s for s in list(self._tail.shards) if self._has_all(s))
                self._aim()
            for wait in self._waits:
                self._want(wait.shard)
            self.view.end(read)
            _stale.set(len(self.stale))
            self._known.notify_all()

    def _aim(self) -> None:
        """Gives each shard in memory its collection's recall objective.

        Meanwhile other threads load shards and refresh the registry, which then may lack a
        collection that is served.
        """
        for shard, held in list(self._tail.shards.items()):
            if shard in self.view.serving:
                with suppress(NotFound):
                    held.aim_at(self.view.objective(shard))

    def _see(self, every: Mapping[ShardId, Generation]) -> None:
        gone, new = self.view.serve(every)
        serving = self.view.serving
        for shard in [*gone, *(s for s in self._tail.shards if s not in serving)]:
            self._forget(shard)
        self._tail.forget_others(lambda s: s not in serving and self.view.is_over(s))
        self._tail.forget_tenants({s.tenant for s in serving})
        for shard in new:
            if self.view.is_eager(shard, self._tail.shards):
                self._want(shard)

    def _see_manifest(self, manifest: Manifest) -> None:
        """Applies a changed manifest, and clears failures: its segments may be intact."""
        shard = manifest.shard
        self.view.note(manifest)
        self.stale.pop(shard, None)
        self._again_s.pop(shard, None)
        failed = self.failed.pop(shard, None)
        if shard in self._tail.shards:
            self.queue.at(shard)
            return
        if failed:
            self.queue.drop(shard)  # load it now, not after its backoff
        self._tail.sealed(shard, manifest.sealed)
        if failed or self.view.is_eager(shard, self._tail.shards):
            self._want(shard)

    def _want(self, shard: ShardId) -> None:
        """Queues the shard's load if it is served, not in memory and not failed."""
        if (
            shard in self.view.serving
            and shard not in self._tail.shards
            and shard not in self.failed
        ):
            self.queue.want(shard)

    def _is_behind(self, shard: ShardId, held: Shard) -> bool:
        return held.snapshot.manifest.version < self.view.stored(shard).version

    def _has_all(self, shard: ShardId) -> bool:
        held, generation = self._tail.shards.get(shard), self.view.serving.get(shard)
        return bool(
            held and generation and generation.state == "live" and not self._is_behind(shard, held)
        )

    def _forget(self, shard: ShardId) -> None:
        """Removes all state of a shard that is no longer served and never will be again."""
        self._tail.forget(shard)
        self._whole.discard(shard)
        self.view.forget(shard)
        self.queue.drop(shard)
        for held in (self.failed, self._again_s, self.stale):
            held.pop(shard, None)

    def serves(self, shard: ShardId) -> bool:
        """Returns whether the shard may be searched here."""
        return shard in self.view.serving

    def replay_start(self, slot: int, end: int) -> int:
        """Returns the lowest offset that a shard of the slot has not sealed; `end` if none."""
        with self._known:
            return self.view.replay_start(slot, end)

    # counts of shards that are not in memory: any thread

    def not_resident(self, shard: ShardId, watermark: int) -> ShardStats | None:
        """Returns the statistics of a shard that is not in memory; None if failed or not served.

        The counts are exact or lower bounds (`ShardStats.exact`).
        """
        if shard not in self.view.serving or shard in self.failed:
            return None
        s, known = self.view.stored(shard), self.counting.known(shard)
        whole = not self._is_to_count(shard)
        passed = bool(self._tail.noted(shard)[0])
        documents, passages = (
            (s.documents, s.passages) if whole else (0, 0) if passed else (max(0, s.at_least),) * 2
        )
        return ShardStats(
            shard,
            known.documents if known else documents,
            known.passages if known else passages,
            0,
            s.segments,
            s.kinds,
            0,
            s.bytes,
            watermark,
            s.version,
            resident=False,
            exact=whole or known is not None,
            segment_passages=s.passages,
            log_bytes=known.log_bytes if known else 0,
        )

    def _is_to_count(self, shard: ShardId) -> bool:
        """Returns whether the manifest alone does not determine the shard's counts.

        Segments may replace each other's documents, and the log may have rows.
        """
        generation = self.view.serving.get(shard)
        if generation is None:
            return False
        sealed, segments = self.view.sealed(shard, generation), self.view.stored(shard).segments
        return (
            segments > 1
            or self._tail.noted(shard)[0] > 0
            or not self._tail.knows_all(shard, sealed)
        )

    def _to_count(self, tenant: str | None) -> list[ShardId]:
        """Returns shards of one or all tenants whose manifest does not determine their counts.

        Takes about 1.5 µs per shard.
        """
        return [
            s for s in self.view.of_tenant(tenant) if s not in self.failed and self._is_to_count(s)
        ]

    # loading: any number of threads, a shard at a time each

    def load_all(self) -> None:
        """Loads or updates shards until stopped; those that searches wait for come first."""
        while not self._stop.is_set():
            with self._known:
                shard = self._next()
                if shard is None:
                    self._known.wait(min(self._settings.adopt_s, RETRY_S))
                    continue
                generation, version = self.view.serving[shard], self.view.stored(shard).version
            self._loaded(shard, version, self.loader.load(shard, generation, self.unload))

    def load_first(self) -> None:
        """Loads each shard that the first catalog read queued, once.

        Runs before the tail begins, so that there is no log to catch up with.
        """
        for shard in list(self.queue.due):
            version = self.view.stored(shard).version
            self._loaded(
                shard, version, self.loader.load(shard, self.view.serving[shard], self.unload)
            )

    def _next(self) -> ShardId | None:
        unwell = self.stale.keys() | self.failed.keys()
        return self.queue.take((w.shard for w in self._waits), unwell, self._clock.monotonic())

    def _loaded(self, shard: ShardId, version: int, error: VicinageError | None) -> None:
        """Records the end of a load. `version`: the manifest version known when the load began."""
        with self._known:
            self.queue.done(shard)
            if shard not in self.view.serving:
                self._forget(shard)  # deleted meanwhile
            elif error is None:
                self._note_here(shard)
            elif self.view.stored(shard).version != version:
                self.queue.at(shard)  # its manifest changed meanwhile
            else:
                self._note_failed(shard, error)
            _stale.set(len(self.stale))
        self._settle(lambda w: self._refusal(w, error) if w.shard == shard else None)

    def _note_here(self, shard: ShardId) -> None:
        held = self._tail.shards.get(shard)
        if held is None:
            return  # the tail dropped it meanwhile
        for unwell in (self.stale, self.failed, self._again_s):
            unwell.pop(shard, None)
        if self._is_behind(shard, held):
            self.queue.at(shard)  # its manifest changed meanwhile
        else:
            self.queue.drop(shard)
        if self._has_all(shard):
            self._whole.add(shard)

    def _note_failed(self, shard: ShardId, error: VicinageError) -> None:
        """Handles a failed load: corrupt data is never served, and other errors are retried.

        Without memory for a shard that is not loaded, only the next search retries.
        """
        if isinstance(error, NoRoom) and shard not in self._tail.shards:
            self.queue.drop(shard)  # it stays unloaded until the next search
        elif not isinstance(error, Corrupt):
            self.queue.at(shard, self._clock.monotonic() + RETRY_S)
            _event.error(
                "shard not brought in", shard=str(shard), error=str(error), kind=error.kind
            )
        elif shard in self._whole and shard in self._tail.shards:
            self._let_be(shard, error)
        else:
            self._fail(shard, error)
            if isinstance(error, Damaged):  # may be restored or found intact; log rows may not
                self._again_s[shard] = wait_s = longer(self._again_s.get(shard), CORRUPT_RETRY_S)
                self.queue.at(shard, self._clock.monotonic() + wait_s)

    def _let_be(self, shard: ShardId, corrupt: Corrupt) -> None:
        """Keeps serving the older manifest, and retries the newest with exponential backoff."""
        before = self.stale.get(shard)
        wait_s = longer(before.wait_s if before else None, CORRUPT_RETRY_S)
        self.stale[shard] = Stale(corrupt.detail, wait_s)
        self.queue.at(shard, self._clock.monotonic() + wait_s)
        _event.error(
            "manifest not adopted",
            shard=str(shard),
            error=corrupt.detail,
            path=corrupt.path,
            retry_s=wait_s,
        )

    def _fail(self, shard: ShardId, corrupt: Corrupt) -> None:
        self._tail.remove(shard)
        self._whole.discard(shard)
        self.queue.drop(shard)
        self.stale.pop(shard, None)
        self.failed[shard] = corrupt.detail
        _event.error("shard failed", shard=str(shard), error=corrupt.detail)

    # owner of the shards that the memory budget accounts for

    def resident(self) -> Mapping[ShardId, Shard]:
        """Returns the shards in memory."""
        return self._tail.shards

    def weights(self) -> Mapping[str, int]:
        """Returns every tenant's weight."""
        return self.view.weights()

    def is_asked(self, shard: ShardId) -> bool:
        """Returns whether a search waits for the shard, or it is in memory already."""
        return shard in self._tail.shards or any(wait.shard == shard for wait in self._waits)

    def staying(self) -> Collection[ShardId]:
        """Returns shards that must not be evicted: being loaded, or stale and so not reloadable."""
        with self._known:
            return {*self.queue.loading, *self.stale}

    def evict(self, shard: ShardId) -> None:
        """Unloads the shard unless it is being loaded or updated by now."""
        with self._known:
            if shard not in self.queue.loading:
                self.unload(shard)

    def unload(self, shard: ShardId) -> None:
        """Unloads the shard; the next search loads it again."""
        with self._known:
            self._whole.discard(shard)
            self.queue.drop(shard)
            self._tail.remove(shard)
        _let_go.inc()

    # resolving waits

    def _refusal(self, wait: _Wait, error: VicinageError | None = None) -> VicinageError | None:
        """Returns why the wait cannot be served; None while waiting may help.

        `error` is the error of the shard's last load.
        """
        if wait.catalog > self.view.catalog:
            return None  # waits for the next catalog read
        if wait.shard in self.failed:
            return Corrupt(self.failed[wait.shard], path=str(wait.shard))
        if wait.shard not in self.view.serving:
            return NotFound(
                f"there is no generation {wait.shard.generation} of {wait.shard.collection!r}"
            )
        if self.view.serving[wait.shard].state != "live":
            return Unavailable(
                "the generation is not seen to be live yet",
                dependency="searcher",
                retry_after_s=RETRY_S,
            )
        return error

    def _settle(self, refusal: Callable[[_Wait], VicinageError | None]) -> None:
        """Resolves waits that can be served, fails those that cannot, and keeps the others."""
        settled: list[tuple[_Wait, Shard | VicinageError]] = []
        with self._known:
            for wait in self._waits:
                outcome = self.at_once(wait.shard, wait.catalog) or refusal(wait)
                if outcome is not None:
                    settled.append((wait, outcome))
            ended = {id(wait) for wait, _ in settled}
            self._waits = [w for w in self._waits if id(w) not in ended and not w.over()]
        for wait, outcome in settled:  # without the lock: a callback may call `soon` at once
            if wait.future.set_running_or_notify_cancel():
                if isinstance(outcome, Shard):
                    wait.future.set_result(outcome)
                else:
                    wait.future.set_exception(outcome)

    def stop(self) -> None:
        """Stops the thread loops. `refuse_all` then fails the remaining waits."""
        self._stop.set()
        self._looked_for.set()
        with self._known:
            self._known.notify_all()

    def refuse_all(self, error: VicinageError) -> None:
        """Resolves waits that can be served, and fails the others with `error`."""
        self._settle(lambda _: error)
