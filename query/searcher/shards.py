"""The shard table of a searcher: the shards of its slots as the catalog names them, some in memory.

`shard_states.py` decides; this module waits, locks and calls. `loading.py` loads a shard, and
`memory_budget.py` evicts others for it.

Separate threads read the catalog and load segments. A search that was planned on a newer catalog
waits for a catalog read, which is two small SELECTs. Only searches of a shard that is being loaded
wait for the store (guarantee 7).

The first search of a shard loads it. Two kinds are loaded before a search: large shards, whose load
takes long (`EAGER_PASSAGES`), and the next generation of a collection in use. A shard stays in
memory until it is evicted for others (`memory.py`).
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future

from indexer.backends import Backend
from indexer.index.loader import Loading
from indexer.index.scans import ScanBudget
from indexer.index.shard import Shard
from query.searcher.catalog_view import CatalogView
from query.searcher.counting import Counting
from query.searcher.load_failures import RETRY_S
from query.searcher.loading import ShardLoader
from query.searcher.memory_budget import MemoryBudget
from query.searcher.shard_states import ShardStates
from query.searcher.shard_waits import NEWEST, ShardWait, ShardWaits, settle
from query.searcher.tail import Tail
from query.searcher.unloaded import UnloadedShards
from tenants.entities import Generation
from tenants.manifests import Manifests
from tenants.registry import Registry
from vicinage.clock import Clock, Deadline
from vicinage.errors import Unavailable, VicinageError
from vicinage.metrics import counter, gauge
from vicinage.records import ShardId
from vicinage.settings import SearcherSettings
from vicinage.stats import ShardStats
from vicinage.store import Store
from vicinage.telemetry import events

_event = events("searcher")
_evictions = counter("vicinage_searcher_shards_evicted_total")
_stale = gauge("vicinage_searcher_stale_shards")


class ShardTable:
    """The table of shards. Any thread may call it, except the thread loops.

    One thread runs `run_refresh`; any number run `run_loads`.
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
        self._refresh_wanted = threading.Event()
        """Set while a search waits for a catalog read."""
        self._changed = threading.Condition()
        """Guards the states and the waits; notified when there is a shard to load."""
        self.view = CatalogView(frozenset(slots), registry, manifests)
        self.states = ShardStates(self.view, tail, clock)
        self.failures = self.states.failures
        self._waits = ShardWaits(settings.queue_max)
        self.budget = MemoryBudget(settings.resident_bytes_max, self, clock)
        scans = ScanBudget(
            settings.scan_rows_max, settings.scan_cpu_share, threads=settings.threads
        )
        self.loader = ShardLoader(
            tail=tail,
            manifests=manifests,
            store=store,
            backend=backend,
            budget=self.budget,
            scans=scans,
            objective=self.view.objective,
            clock=clock,
        )
        self._unloaded = UnloadedShards(self.view, tail, self.failures)
        self.counting = Counting(
            tail=tail,
            manifests=manifests,
            loading=Loading(store, backend, manifests.quarantine, "searcher"),
            served=lambda: self.view.serving,
            version_of=lambda shard: self.view.stored(shard).version,
            to_count=self._unloaded.to_count,
        )

    # requests for a shard: any thread

    def get(self, shard: ShardId, catalog: int = 0) -> Shard | None:
        """Returns the shard if it can now answer a search planned on that catalog version."""
        return self.states.get(shard, catalog)

    def request(self, shard: ShardId, deadline: Deadline, catalog: int = NEWEST) -> Future[Shard]:
        """Returns a future of the shard, set once it can answer; dropped after the deadline.

        Raises Unavailable, Corrupt, NotFound or Overloaded, at once or through the future.
        """
        if shard.slot not in self.view.slots:
            raise Unavailable(
                f"this searcher does not hold slot {shard.slot}", dependency="searcher"
            )
        wait = ShardWait(shard, catalog, deadline)
        with self._changed:
            self._waits.add(wait)
            self.states.queue_load(shard)
            self._changed.notify_all()
        self._refresh_wanted.set()
        return wait.future

    def is_served(self, shard: ShardId) -> bool:
        """Returns whether the shard may be searched here."""
        return self.states.is_served(shard)

    def stats_unloaded(self, shard: ShardId, watermark: int) -> ShardStats | None:
        """Returns the statistics of a shard that is not in memory; None if failed or not served."""
        return self._unloaded.stats(shard, watermark, self.counting.known(shard))

    # reading the catalog: one thread

    def run_refresh(self) -> None:
        """Reads the catalog every `adopt_s`, and whenever a search waits for it, until stopped.

        Evicts shards for grown deltas at most every `adopt_s`, because that visits all shards.
        """
        shed_at = self._clock.monotonic()
        while not self._stop.is_set():
            self._refresh_wanted.wait(self._settings.adopt_s)
            self._refresh_wanted.clear()
            if self._stop.is_set():
                return
            self._refresh_and_settle()
            if (now := self._clock.monotonic()) - shed_at >= self._settings.adopt_s:
                shed_at = now
                self.budget.shed()

    def _refresh_and_settle(self) -> None:
        with self._changed:
            waiting = list(self._waits)
        try:
            self.refresh()
        except Unavailable as error:
            unavailable = error
            _event.warning("catalog.read_failed", reason=str(unavailable))
            self._settle(
                lambda w: unavailable if w in waiting and w.catalog > self.view.catalog else None
            )
        else:
            for wait in waiting:
                # Read, whatever its version: a catalog restored from a backup may have a lower one.
                wait.catalog = 0
            self._settle(self.states.refusal)

    def refresh(self) -> None:
        """Applies the catalog's changes of shards and manifests. Raises Unavailable."""
        read = self.view.read()
        with self._changed:
            self.states.apply(read, [wait.shard for wait in self._waits])
            _stale.set(len(self.failures.stale))
            self._changed.notify_all()

    def replay_start(self, slot: int, end: int) -> int:
        """Returns the lowest offset that a shard of the slot has not sealed; `end` if none."""
        with self._changed:
            return self.view.replay_start(slot, end)

    # loading: any number of threads, a shard at a time each

    def run_loads(self) -> None:
        """Loads or updates shards until stopped; those that searches wait for come first."""
        while not self._stop.is_set():
            with self._changed:
                shard = self.states.next_load(wait.shard for wait in self._waits)
                if shard is None:
                    self._changed.wait(min(self._settings.adopt_s, RETRY_S))
                    continue
                generation, version = self.view.serving[shard], self.view.stored(shard).version
            self._load(shard, generation, version)

    def load_queued(self) -> None:
        """Loads each shard that the first catalog read queued, once.

        Runs before the tail begins, so that there is no log to catch up with.
        """
        for shard in list(self.states.queue.due):
            self._load(shard, self.view.serving[shard], self.view.stored(shard).version)

    def _load(self, shard: ShardId, generation: Generation, version: int) -> None:
        error = self.loader.load(shard, generation, self.unload)
        with self._changed:
            self.states.load_ended(shard, version, error)
            _stale.set(len(self.failures.stale))
        self._settle(lambda w: self.states.refusal(w, error) if w.shard == shard else None)

    # owner of the shards that the memory budget accounts for

    def resident(self) -> Mapping[ShardId, Shard]:
        """Returns the shards in memory."""
        return self._tail.shards

    def weights(self) -> Mapping[str, int]:
        """Returns every tenant's weight."""
        return self.view.weights()

    def is_in_use(self, shard: ShardId) -> bool:
        """Returns whether a search waits for the shard, or it is in memory already."""
        return shard in self._tail.shards or self._waits.is_waited_for(shard)

    def pinned(self) -> Collection[ShardId]:
        """Returns shards that must not be evicted: being loaded, or stale and so not reloadable."""
        with self._changed:
            return self.states.pinned()

    def evict(self, shard: ShardId) -> None:
        """Unloads the shard unless it is being loaded or updated by now."""
        with self._changed:
            if shard not in self.states.queue.loading:
                self.unload(shard)

    def unload(self, shard: ShardId) -> None:
        """Unloads the shard; the next search loads it again."""
        with self._changed:
            self.states.unload(shard)
        _evictions.inc()

    # settling waits

    def _settle(self, refusal: Callable[[ShardWait], VicinageError | None]) -> None:
        """Settles waits that can be served, fails those that cannot, and keeps the others."""
        with self._changed:
            settled = self._waits.take_settled(
                lambda wait: self.states.get(wait.shard, wait.catalog) or refusal(wait)
            )
        settle(settled)

    def stop(self) -> None:
        """Stops the thread loops. `refuse_all` then fails the remaining waits."""
        self._stop.set()
        self._refresh_wanted.set()
        with self._changed:
            self._changed.notify_all()

    def refuse_all(self, error: VicinageError) -> None:
        """Settles waits that can be served, and fails the others with `error`."""
        self._settle(lambda _: error)
