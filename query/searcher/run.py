"""★ The searcher role: serves slots, tails their vectors log, and runs search requests.

The main path: `submit` queues a request; a search thread takes it with others of its batch key
(`search_queue.py`), gets the shard, and searches it once for the batch (`batch.py`). A batch whose
shard must be loaded or warmed up first is requeued, so that no search thread waits.

The tail thread applies the log (`tail.py`). Other threads read the catalog and load segments
(`shards.py`), so that neither the log nor other tenants wait for a large segment. Separate threads
load lexical indexes and filter columns before their first use (`warmup.py`).
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from indexer.backends import Backend
from indexer.index.shard import Shard
from indexer.index.snapshot import StoredDocument
from query.searcher.batch import (
    QueuedSearch,
    batch_key,
    combine,
    fail_all,
    set_results,
    without_late,
)
from query.searcher.cost import search_cost
from query.searcher.futures import result_within
from query.searcher.reads import ShardReads
from query.searcher.search_queue import SearchQueue
from query.searcher.shards import ShardTable
from query.searcher.statistics import Statistics
from query.searcher.tail import Tail
from query.searcher.warmup import WarmUps
from tenants.entities import CLASS_WEIGHT
from tenants.manifests import Manifests
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Clock, Deadline
from vicinage.errors import NotFound, Unavailable, VicinageError
from vicinage.log import Log
from vicinage.records import ShardId, ShardQuery, ShardResult
from vicinage.settings import SearcherSettings
from vicinage.stats import SearcherStats
from vicinage.store import Store
from vicinage.threads import EssentialThread

LOADERS: Final = 2
"""Threads that load segments: while one loads a large shard, another loads a small one."""


class Searcher:
    """Searches the shards of its slots. `start` returns at once; `ready` says when it caught up."""

    def __init__(
        self,
        slots: Iterable[int],
        *,
        log: Log,
        registry: Registry,
        manifests: Manifests,
        store: Store,
        backend: Backend,
        settings: SearcherSettings,
        clock: Clock,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.slots = frozenset(slots)
        self._log = log
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._on_failure = on_failure
        self.tail = Tail(log, self.slots, clock, self._is_served)
        self.shards = ShardTable(
            self.slots,
            tail=self.tail,
            registry=registry,
            manifests=manifests,
            store=store,
            backend=backend,
            settings=settings,
            clock=clock,
        )
        queue_max, batch_max = settings.queue_max, settings.batch_max
        self._queue = SearchQueue(items_max=queue_max, batch_max=batch_max, weight=self._weight)
        self._warm_ups = WarmUps(self._requeue_warmed_up, waiting_max=queue_max)
        self._reads = ShardReads(self.shards, clock)
        self._statistics = Statistics(self.tail, self.shards, self._reads, registry)
        self._searches = 0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    # searching: any thread submits, the search threads run batches

    async def search(self, query: ShardQuery, deadline: Deadline) -> ShardResult:
        """Returns the shard's result. Raises Overloaded, Unavailable, DeadlineExceeded, Corrupt."""
        future = self.submit(query, deadline)
        result: ShardResult = await result_within(future, deadline, "the search")
        return result

    def submit(self, query: ShardQuery, deadline: Deadline) -> Future[ShardResult]:
        """Queues the request and returns its future. Raises Overloaded if the queue is full."""
        cost = search_cost(query, self.tail.shards.get(query.shard))
        search = QueuedSearch(query, deadline, query.catalog, cost, batch_key(query))
        self._queue.put(search)
        return search.future

    def _run_batches(self) -> None:
        while not self._stop.is_set():
            self._run_batch(self._queue.take_batch())

    def _run_batch(self, batch: Sequence[QueuedSearch]) -> None:
        """Searches the batch's shard, or has it loaded or warmed up and the batch requeued."""
        batch = without_late(batch)
        if not batch:
            return
        query, catalog = batch[0].query, max(each.catalog for each in batch)
        # Read before the shard, which thus has all of the log below it, even if evicted since.
        watermark = self.tail.watermark(query.shard.slot)
        shard = self.shards.get(query.shard, catalog)
        if shard is None:
            self._load_and_requeue(batch, catalog)
            return
        shard.last_access_s = self._clock.monotonic()
        is_warm = all(each.warmed_up for each in batch)
        if not is_warm and (needed := shard.needs(query)) is not None:
            self._warm_ups.load_then_requeue(shard, needed, batch)
            return
        self._search_shard(shard, batch, watermark)

    def _load_and_requeue(self, batch: Sequence[QueuedSearch], catalog: int) -> None:
        """Has the shard loaded, or the catalog read, and then requeues the batch."""

        def requeue(load: Future[Shard]) -> None:
            error = load.exception()
            if error is None:
                self._requeue(batch)
            else:
                fail_all(batch, error)

        latest = max((each.deadline for each in batch), key=lambda deadline: deadline.at)
        try:
            load = self.shards.request(batch[0].query.shard, latest, catalog)
        except VicinageError as error:
            fail_all(batch, error)
        else:
            load.add_done_callback(requeue)

    def _requeue_warmed_up(self, batch: Sequence[QueuedSearch]) -> None:
        for each in batch:
            each.warmed_up = True
        self._requeue(batch)

    def _requeue(self, batch: Sequence[QueuedSearch]) -> None:
        for each in batch:
            each.catalog = 0  # read by now
        self._queue.requeue(batch)

    def _search_shard(self, shard: Shard, batch: Sequence[QueuedSearch], watermark: int) -> None:
        batch = [each for each in batch if each.future.set_running_or_notify_cancel()]
        if not batch:
            return  # all were canceled meanwhile
        self._searches += len(batch)
        try:
            set_results(batch, shard.search(combine(batch)), watermark)
        except VicinageError as error:
            fail_all(batch, error)
        finally:  # any other error ends the role; no request is left waiting
            fail_all(batch, Unavailable("the search failed", dependency="searcher"))

    def _weight(self, tenant: str) -> int:
        try:
            return CLASS_WEIGHT[self._registry.tenant(tenant).priority]
        except NotFound:
            return 1  # not read from the catalog yet, or deleted

    # other requests: any event loop

    async def reach(self, positions: Mapping[int, int], deadline: Deadline) -> dict[int, int]:
        """Waits until every slot's watermark reaches its position; returns all watermarks.

        Raises DeadlineExceeded, and Unavailable if a slot below its position is not being read.
        """
        return await self.tail.reach(positions, deadline)

    def watermarks(self) -> dict[int, int]:
        """Returns slot → the offset up to which everything is searchable."""
        return self.tail.watermarks()

    async def document(
        self, shard: ShardId, document_id: str, deadline: Deadline
    ) -> StoredDocument | None:
        """Returns the document as it is searchable now; None if there is none."""
        return await self._reads.document(shard, document_id, deadline)

    async def matching(
        self, shard: ShardId, condition: Mapping[str, Any], deadline: Deadline, *, limit: int
    ) -> tuple[tuple[str, int], ...]:
        """Returns (id, version) of at most `limit` documents of the shard that pass the filter."""
        return await self._reads.matching(shard, condition, deadline, limit=limit)

    async def stats(
        self, tenant: str | None = None, collection: str | None = None
    ) -> SearcherStats:
        """Returns the statistics of all tenants, of one tenant, or of one tenant's collection.

        `Statistics.collect` says which counts are exact.
        """
        return await self._statistics.collect(tenant, collection, searches=self._searches)

    # start and stop

    def start(self) -> None:
        """Starts the tail and the search threads."""
        self._spawn("searcher-tail", self._load_and_tail)
        for i in range(self._settings.threads):
            self._spawn(f"searcher-{i}", self._run_batches)

    def ready(self) -> bool:
        """Returns whether everything that was in the log at the start is searchable."""
        return self.tail.caught_up()

    def _load_and_tail(self) -> None:
        """Loads the shards that are due, starts the other threads, and tails the log."""
        self.shards.refresh()
        targets = {slot: self._log.end(VECTORS_TOPIC, slot) for slot in self.slots}
        self.shards.load_queued()
        ends = {slot: self._log.end(VECTORS_TOPIC, slot) for slot in self.slots}
        starts = {slot: self.shards.replay_start(slot, end) for slot, end in ends.items()}
        self.tail.begin(starts, targets)
        # Only now: a shard that joins before `begin` would assume a wrong start of the tail.
        self._spawn("searcher-catalog", self.shards.run_refresh)
        for i in range(LOADERS):
            self._spawn(f"searcher-load-{i}", self.shards.run_loads)
        self._spawn("searcher-count", lambda: self.shards.counting.run(self._stop))
        self.tail.run(self._stop)

    def _is_served(self, shard: ShardId) -> bool:
        return self.shards.is_served(shard)

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        thread = EssentialThread(name, work, stopping=self._stop.is_set, on_death=self._on_failure)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Stops all threads; waiting requests fail with Unavailable. Idempotent."""
        self._stop.set()
        self.shards.stop()
        self._queue.close()
        for thread in self._threads:
            thread.join(10)
        stopping = Unavailable("the searcher is stopping", dependency="searcher")
        self._warm_ups.stop(stopping)  # before the drain: it may have requeued requests
        fail_all(self._queue.drain(), stopping)
        self.shards.refuse_all(stopping)
        self.tail.fail_waits(stopping)
        self._reads.close()
        self._statistics.close()
