"""The searcher role: serves slots, tails their vectors log, and runs search requests.

The tail thread applies the log (`tail.py`). Other threads read the catalog and load segments
(`shards.py`), so that neither the log nor other tenants wait for a large segment. Search threads
only read snapshots. Requests queue while a call runs; those that agree in shard, mode, k, effort
and filter (all of `_asks`) run as one batch. Separate threads load lexical indexes and filter
columns before their first use (`warmup.py`).

Law 7: requests wait in a fair queue, by their tenant's weight and their estimated cost. A batch is
charged to the tenant that sent it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from indexer.backends import Backend
from indexer.index.shard import Shard
from indexer.index.snapshot import StoredDocument
from query.searcher.host import here
from query.searcher.shards import ShardTable
from query.searcher.tail import Tail, within
from query.searcher.warmup import WarmUps, refuse
from tenants.entities import CLASS_WEIGHT
from tenants.manifests import Manifests
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from tenants.serving import serving
from vicinage.clock import Clock, Deadline
from vicinage.errors import DeadlineExceeded, NotFound, Unavailable, VicinageError
from vicinage.fair import FairQueue
from vicinage.log import Log
from vicinage.metrics import gauge
from vicinage.records import ShardId, ShardQuery, ShardResult
from vicinage.settings import SearcherSettings
from vicinage.stats import SearcherStats, ShardStats
from vicinage.store import Store
from vicinage.telemetry import events
from vicinage.threads import EssentialThread

READERS: Final = 4
"""Threads that read single documents."""
FETCHERS: Final = 2
"""Threads that load segments: while one loads a large shard, another loads a small one."""
COUNT_WAIT_S: Final = 1.0
"""Bound on the wait for a collection to be loaded, or for a tenant's shards to be counted."""
TURN: Final = 8
"""The fair queue's quantum: cost that a tenant of weight 1 may use in a turn, in graph searches."""
GRAPH_NUMBERS: Final = 1 << 20
"""Numbers compared in a scan (4,096 rows × 256) that cost about as much as one graph search."""
MANY_HITS: Final = 100
"""Additional hits that cost about as much as another graph search."""
FILTERED: Final = 4
"""Maximum factor by which a filter raises the cost: wider walks, and the mask of every row."""
TOGETHER_MAX: Final = 4_096
"""Maximum cost of one batch of several requests, so that it ends about a second later.

No other request is answered meanwhile.
"""
HITS_TOGETHER_MAX: Final = 1_024
"""Maximum hits of one batch of several requests.

Making 1,000 hits takes about 5 ms, and other tenants wait for it.
"""
GRAPH_PAIRS: Final = 1 << 18
"""Pairs of a word and a row that cost at most about as much as one graph search.

Ranking 6 words in 100,000 rows took 0.7 ms; 128 words took 3 ms.
"""
_event = events("searcher")
_resident = gauge("vicinage_searcher_resident_bytes")


@dataclass(slots=True, eq=False)
class _Waiting:
    """A waiting search request. `catalog`: the version it was planned on (0: already read here)."""

    query: ShardQuery
    deadline: Deadline
    catalog: int = 0
    cost: int = 1
    asks: tuple[object, ...] = ()
    """The batch key: equal for all requests of a batch. Computed once, outside every lock."""
    opened: bool = False
    """True once its warm-up is done: the search itself then loads what is missing again."""
    answer: Future[ShardResult] = field(default_factory=Future)


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
        self._on_failure = on_failure
        self._clock = clock
        self.tail = Tail(log, self.slots, clock, self._serves)
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
        self._asked: FairQueue[_Waiting] = FairQueue(items_max=settings.queue_max, quantum=TURN)
        self._asking = threading.Condition()
        self._warm_ups: WarmUps[_Waiting] = WarmUps(
            self._requeue_warm, waiting_max=settings.queue_max
        )
        self._stop = threading.Event()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="searcher-read")
        self._scanners = ThreadPoolExecutor(1, thread_name_prefix="searcher-scan")
        """Scans for deletions by filter, one at a time: no read or search waits for them."""
        self._counters = ThreadPoolExecutor(1, thread_name_prefix="searcher-counts")
        """Counts one tenant's shards for `stats`, which reports lower bounds after COUNT_WAIT_S."""
        self._searches = 0
        self._resident_bytes = 0
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts the tail and the search threads."""
        self._spawn("searcher-tail", self._begin)
        for i in range(self._settings.threads):
            self._spawn(f"searcher-{i}", self._answer_all)

    def stop(self) -> None:
        """Stops all threads; waiting requests fail with Unavailable. Idempotent."""
        self._stop.set()
        self.shards.stop()
        with self._asking:
            self._asking.notify_all()
        for thread in self._threads:
            thread.join(10)
        gone = Unavailable("the searcher is stopping", dependency="searcher")
        self._warm_ups.stop(gone)  # before the queue is emptied: it may have requeued requests
        with self._asking:
            asked = self._asked.take(self._asked.cost)
        for each in asked:
            refuse(each.answer, gone)
        self.shards.refuse_all(gone)
        self.tail.give_up(gone)
        for pool in (self._readers, self._scanners, self._counters):
            pool.shutdown(wait=True, cancel_futures=True)

    def ready(self) -> bool:
        """Returns whether everything that was in the log at the start is searchable."""
        return self.tail.caught_up()

    # requests: any thread, any event loop

    async def search(self, query: ShardQuery, deadline: Deadline) -> ShardResult:
        """Returns the shard's result. Raises Overloaded, Unavailable, DeadlineExceeded, Corrupt."""
        found: ShardResult = await within(self.submit(query, deadline), deadline, "the search")
        return found

    def submit(self, query: ShardQuery, deadline: Deadline) -> Future[ShardResult]:
        """Queues the request and returns its future. Raises Overloaded if the queue is full."""
        asked = _Waiting(query, deadline, query.catalog, self._cost(query), _asks(query))
        tenant = query.shard.tenant
        with self._asking:
            self._asked.put(tenant, [(asked, asked.cost)], weight=self._weight(tenant))
            self._asking.notify()
        return asked.answer

    def _cost(self, query: ShardQuery) -> int:
        shard = self.tail.shards.get(query.shard)
        if shard is None:
            return len(query.vectors) or 1
        words = sum(1 + shard.lexical_cost(text) // GRAPH_PAIRS for text in query.texts)
        if query.mode == "lexical":
            return words
        many = (1 + query.k // MANY_HITS) * (FILTERED if query.filter else 1)
        return words + (len(query.vectors) or 1) * many * (
            1 + shard.vector_cost(exact=query.exact, scan=query.scan) // GRAPH_NUMBERS
        )

    def _weight(self, tenant: str) -> int:
        try:
            return CLASS_WEIGHT[self._registry.tenant(tenant).priority]
        except NotFound:
            return 1  # not read from the catalog yet, or deleted

    async def reach(self, positions: Mapping[int, int], deadline: Deadline) -> dict[int, int]:
        """Waits until every slot's watermark reaches its position; returns all watermarks.

        Raises DeadlineExceeded, and Unavailable if a slot below its position is not being read.
        """
        return await self.tail.reach(positions, deadline)

    async def document(
        self, shard: ShardId, document_id: str, deadline: Deadline
    ) -> StoredDocument | None:
        """Returns the document as it is searchable now; None if there is none."""
        held = await self._held(shard, deadline)
        found: StoredDocument | None = await within(
            self._readers.submit(held.document, document_id), deadline, "reading the document"
        )
        return found

    async def matching(
        self, shard: ShardId, condition: Mapping[str, Any], deadline: Deadline, *, limit: int
    ) -> tuple[tuple[str, int], ...]:
        """Returns (id, version) of at most `limit` documents of the shard that pass the filter."""
        held = await self._held(shard, deadline)
        scan = self._scanners.submit(held.matching, condition, limit=limit)
        found: tuple[tuple[str, int], ...] = await within(
            scan, deadline, "looking for what the filter passes"
        )
        return found

    async def _held(self, shard: ShardId, deadline: Deadline) -> Shard:
        held = self.shards.at_once(shard)
        if held is None:
            held = await within(self.shards.soon(shard, deadline), deadline, "loading the shard")
        assert held is not None, "the future gives a shard or raises"
        held.last_access_s = self._clock.monotonic()
        return held

    async def stats(
        self, tenant: str | None = None, collection: str | None = None
    ) -> SearcherStats:
        """Returns the statistics of all tenants, of one tenant, or of one tenant's collection.

        Loads the collection's shards first, each within COUNT_WAIT_S. Shards that are not in memory
        are counted: for one tenant within COUNT_WAIT_S, for all tenants in the background. Counts
        that are not known yet are lower bounds (`ShardStats.exact`).
        """
        if tenant is not None and collection is not None:
            await self._bring_in(tenant, collection)
        elif tenant is not None and self.shards.counting.is_missing(tenant):
            await self._count(tenant)
        passed = self.tail.watermarks()
        if tenant is None:
            self._resident_bytes = self.shards.budget.resident_bytes()
            _resident.set(self._resident_bytes)
        stale = {
            shard: s.reason
            for shard, s in list(self.shards.stale.items())
            if tenant in (None, shard.tenant)
        }
        return SearcherStats(
            shards=tuple(self._stats_of(tenant, passed)),
            watermarks=passed,
            searches=self._searches,
            applied=self.tail.applied(),
            index_lag_ms=self.tail.lags_ms(tenant),
            replayed=self.tail.replayed(tenant),
            failed=dict(self.shards.failed),
            stale=stale,
            host=here(),
            resident_bytes=self._resident_bytes,
            resident_bytes_max=self.shards.budget.bytes_max,
        )

    def _stats_of(self, tenant: str | None, passed: Mapping[int, int]) -> Iterator[ShardStats]:
        for shard in serving(self._registry, tenant):
            held, watermark = self.tail.shards.get(shard), passed.get(shard.slot, 0)
            if held is not None:
                found = held.stats()
                yield replace(found, watermark=max(found.watermark, watermark))
            elif (known := self.shards.not_resident(shard, watermark)) is not None:
                yield known

    async def _bring_in(self, tenant: str, collection: str) -> None:
        """Loads the shards of the collection's live generation, each within COUNT_WAIT_S.

        Stops at the first error; the shards not loaded are counted by their segments.
        """
        try:
            live = self._registry.collection(tenant, collection).generation()
            for shard in live.shards():
                if shard.slot in self.slots:
                    await self._held(shard, Deadline.after(COUNT_WAIT_S))
        except VicinageError as error:
            _event.info(
                "counted by its segments", tenant=tenant, collection=collection, reason=str(error)
            )

    async def _count(self, tenant: str) -> None:
        """Counts the tenant's shards, as far as possible within COUNT_WAIT_S."""
        deadline = Deadline.after(COUNT_WAIT_S)
        try:
            await within(
                self._counters.submit(self.shards.counting.at_once, tenant, deadline),
                deadline,
                "counting",
            )
        except DeadlineExceeded:
            _event.info("shards.not_counted_in_time", tenant=tenant)

    def watermarks(self) -> dict[int, int]:
        """Returns slot → the offset up to which everything is searchable."""
        return self.tail.watermarks()

    # searching: the worker threads

    def _answer_all(self) -> None:
        while not self._stop.is_set():
            with self._asking:
                while not (gathered := self._gather()) and not self._stop.is_set():
                    self._asking.wait()
            self._answer(gathered)

    def _gather(self) -> list[_Waiting]:
        """Takes the request whose turn it is, and those that fit in its batch."""
        turn = self._asked.take(1)
        if turn and self._asked.cost:
            asks = turn[0].asks
            room = (
                min(
                    self._settings.batch_max,
                    TOGETHER_MAX // turn[0].cost,
                    HITS_TOGETHER_MAX // turn[0].query.k,
                )
                - 1
            )
            turn += self._asked.take_along(
                turn[0].query.shard.tenant, lambda a: a.asks == asks, max(0, room)
            )
        return turn

    def _answer(self, gathered: list[_Waiting]) -> None:
        live = [a for a in gathered if not a.deadline.passed()]
        for a in gathered:
            if a not in live:
                refuse(
                    a.answer,
                    DeadlineExceeded(
                        "the deadline passed while waiting to search", dependency="searcher"
                    ),
                )
        if not live:
            return
        # Read before the shard, which thus has all of the log below it, even if evicted since.
        passed = self.tail.watermark(live[0].query.shard.slot)
        shard = self.shards.at_once(live[0].query.shard, max(a.catalog for a in live))
        if shard is None:
            self._answer_later(live)
            return
        shard.last_access_s = self._clock.monotonic()
        if not all(a.opened for a in live) and (names := shard.needs(live[0].query)) is not None:
            self._warm_ups.wait(shard, names, live)
            return
        live = [a for a in live if a.answer.set_running_or_notify_cancel()]
        if not live:
            return  # all were canceled meanwhile
        self._searches += len(live)
        try:
            _answer_together(shard, live, passed)
        except VicinageError as error:
            for a in live:
                refuse(a.answer, error)
        finally:  # any other error ends the role; no request is left waiting
            for a in live:
                refuse(a.answer, Unavailable("the search failed", dependency="searcher"))

    def _answer_later(self, gathered: list[_Waiting]) -> None:
        """Has the shard loaded, or the catalog read, then requeues the requests.

        Other requests run meanwhile.
        """

        def here(done: Future[Shard]) -> None:
            error = done.exception()
            if error is None:
                self._requeue(gathered)
            for a in gathered if error is not None else ():
                refuse(a.answer, error or Unavailable("not loaded", dependency="searcher"))

        latest = max((a.deadline for a in gathered), key=lambda d: d.at)
        try:
            self.shards.soon(
                gathered[0].query.shard, latest, max(a.catalog for a in gathered)
            ).add_done_callback(here)
        except VicinageError as error:
            for a in gathered:
                refuse(a.answer, error)

    def _requeue_warm(self, gathered: Sequence[_Waiting]) -> None:
        for a in gathered:
            a.opened = True
        self._requeue(gathered)

    def _requeue(self, gathered: Sequence[_Waiting]) -> None:
        tenant = gathered[0].query.shard.tenant
        for a in gathered:
            a.catalog = 0  # read by now
        with self._asking:
            self._asked.put_back(
                tenant, [(a, a.cost) for a in gathered], weight=self._weight(tenant)
            )
            self._asking.notify()

    # the other threads

    def _begin(self) -> None:
        """Loads the shards that are due, starts the other threads, and tails the log."""
        self.shards.look()
        targets = {slot: self._log.end(VECTORS_TOPIC, slot) for slot in self.slots}
        self.shards.load_first()
        self.tail.begin({slot: self._replay_start(slot) for slot in self.slots}, targets)
        # Only now: a shard that joins before `begin` would assume a wrong start of the tail.
        self._spawn("searcher-look", self.shards.look_all)
        for i in range(FETCHERS):
            self._spawn(f"searcher-fetch-{i}", self.shards.load_all)
        self._spawn("searcher-count", lambda: self.shards.counting.run(self._stop))
        self.tail.run(self._stop)

    def _replay_start(self, slot: int) -> int:
        return self.shards.replay_start(slot, self._log.end(VECTORS_TOPIC, slot))

    def _serves(self, shard: ShardId) -> bool:
        return self.shards.serves(shard)

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        thread = EssentialThread(name, work, stopping=self._stop.is_set, on_death=self._on_failure)
        self._threads.append(thread)
        thread.start()


def _answer_together(shard: Shard, asked: list[_Waiting], passed: int) -> None:
    query = asked[0].query
    if len(asked) > 1:
        texts = tuple(text for a in asked for text in a.query.texts)
        query = replace(
            query, vectors=np.concatenate([a.query.vectors for a in asked]), texts=texts
        )
    found = shard.search(query)
    watermark, at = max(found.watermark, passed), 0
    for a in asked:
        n = len(a.query.vectors)
        mine = slice(at, at + n)
        a.answer.set_result(
            replace(found, hits=found.hits[mine], lexical=found.lexical[mine], watermark=watermark)
        )
        at += n


def _asks(query: ShardQuery) -> tuple[object, ...]:
    """Returns the batch key: requests with equal keys may run in one call."""
    condition = None if query.filter is None else query.filter.text
    width = query.vectors.shape[1:]
    return (
        query.shard,
        query.mode,
        query.k,
        query.effort,
        query.recall,
        query.scan,
        query.exact,
        query.include,
        condition,
        width,
    )
