"""The searcher role: holds slots, tails their vectors log, answers questions.

The tail thread applies the log; the loader thread brings in shards and adopts manifests, so that neither the log nor the
other tenants wait for a large segment; search threads only read snapshots. While one call is under way the next questions
gather; those of one shard, k, effort and filter go as one batch.

Law 7: questions wait in a fair queue, by their tenants' weight and by what they will cost to answer; a batch is on the account
of the tenant that asked.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np

from indexer.backends import Backend
from indexer.segment import Segment, load
from indexer.serving import serving
from indexer.shard import Shard, ShardStats, StoredDocument
from tenants.entities import CLASS_WEIGHT, Generation, Manifest
from tenants.manifests import Manifests
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.catalog import unreachable
from vicinage.clock import Clock, Deadline
from vicinage.errors import Corrupt, DeadlineExceeded, NotFound, Overloaded, Unavailable, VicinageError
from vicinage.fair import FairQueue
from vicinage.log import Log, Stored
from vicinage.records import Partial, ShardId, ShardQuery
from vicinage.settings import SearcherSettings
from vicinage.store import Store
from vicinage.telemetry import counter, events, gauge, histogram
from vicinage.wire import decode_rows, parse_rows_key, rows_key

POLL_S: Final = 0.25
POLL_BYTES: Final = 16 << 20
RETRY_S: Final = 0.5
CORRUPT_RETRY_S: Final = (1.0, 300.0)
"""A corrupt manifest is tried again after the first, then after twice as long each time, up to the second: every try reads it whole."""
TURN: Final = 8
"""What a tenant of weight 1 may ask in a turn, in questions to a graph."""
GRAPH_NUMBERS: Final = 1 << 20
"""So many numbers compared one by one (4,096 rows × 256) cost about what a question to a graph does."""
LAGS_KEPT: Final = 2_000
"""Recent index lags kept per tenant."""

_event = events("searcher")
_applied = counter("vicinage_searcher_applied_passages_total", "passages made searchable")
_resident = gauge("vicinage_searcher_resident_bytes", "bytes of vectors and indexes held in memory")
_stale = gauge(
    "vicinage_searcher_stale_shards",
    "shards searched as of an older manifest, since a segment of the newest is corrupt",
)
_lag = histogram("vicinage_searcher_index_lag_seconds", "searchable time minus event time, per message")


@dataclass(frozen=True, slots=True)
class SearcherStats:
    """What a searcher holds and has done. `index_lag_ms` are recent lags per tenant, newest last."""

    shards: tuple[ShardStats, ...]
    watermarks: Mapping[int, int]
    searches: int
    applied: int
    index_lag_ms: Mapping[str, tuple[float, ...]]
    failed: Mapping[ShardId, str]
    stale: Mapping[ShardId, str]
    """Shards searched as of an older manifest, and what is corrupt in the newest."""


@dataclass(frozen=True, slots=True)
class _Stale:
    """A manifest that was found corrupt: why, how long it is let be, and until when (monotonic)."""

    reason: str
    wait_s: float
    until: float


@dataclass(slots=True, eq=False)
class _Asked:
    """One waiting question."""

    query: ShardQuery
    deadline: Deadline
    cost: int = 1
    answer: Future[Partial] = field(default_factory=Future)


class Searcher:
    """Searches the shards of its slots. `start` returns at once; `ready` says when it has caught up."""

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
        self._manifests = manifests
        self._store = store
        self._backend = backend
        self._settings = settings
        self._clock = clock
        self._on_failure = on_failure
        self._shards: dict[ShardId, Shard] = {}
        self._failed: dict[ShardId, str] = {}
        self._requests: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue(self._settings.queue_max)
        self._writing = threading.Lock()
        """Held while shards take in rows, so that one that is being loaded misses none."""
        self._watermarks: dict[int, int] = {}
        self._reached = threading.Condition()
        self._waiters: list[tuple[Mapping[int, int], Future[None]]] = []
        self._asked: FairQueue[_Asked] = FairQueue(items_max=settings.queue_max, quantum=TURN)
        self._asking = threading.Condition()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._targets: dict[int, int] = {}
        self._change = 0
        self._catalog = 0
        """The catalog version whose every manifest has been adopted here."""
        self._away = False
        """Whether the catalog could not be reached at the last look."""
        self._seen = -1
        self._serving: dict[ShardId, Generation] = {}
        """Every shard that lies in these slots and may be searched, as of catalog version `_seen`."""
        self._behind: dict[ShardId, Manifest] = {}
        """Manifests that are still to be adopted: the store was away, or a segment is corrupt."""
        self._whole: set[ShardId] = set()
        """Shards that had all of their manifest once their generation was live: what came since is in the log, and so here.

        What a reindex copies before the cut-over is in its segments alone.
        """
        self._stale: dict[ShardId, _Stale] = {}
        """Of `_behind`, those that are corrupt: the shard is searched as it was meanwhile."""
        self._searches = 0
        self._applied = 0
        self._lags: dict[str, deque[float]] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to tail and to answer."""
        loader = threading.Thread(target=self._guard, args=(self._load_all,), name="searcher-loader", daemon=True)
        workers = [
            threading.Thread(target=self._guard, args=(self._answer_all,), name=f"searcher-{i}", daemon=True)
            for i in range(self._settings.threads)
        ]
        self._threads = [loader, *workers]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all threads; whoever waits hears Unavailable. Idempotent."""
        self._stop.set()
        with self._asking:
            self._asking.notify_all()
        with suppress(queue.Full):  # wakes the loader; where it is full, the loader is awake
            self._requests.put_nowait((lambda: None, Future()))
        for thread in self._threads:
            thread.join(10)
        gone = Unavailable("the searcher is stopping", dependency="searcher")
        with self._asking:
            asked = self._asked.take(self._asked.cost)
        waiting = [a.answer for a in asked] + [w[1] for w in self._waiters] + [r[1] for r in list(self._requests.queue)]
        for future in waiting:
            _refuse(future, gone)

    def ready(self) -> bool:
        """True once everything that was in the log at the start is searchable."""
        return self._ready.is_set()

    # questions: any thread, any event loop

    async def search(self, query: ShardQuery, deadline: Deadline) -> Partial:
        """The shard's answer. Raises Overloaded, Unavailable, DeadlineExceeded, Corrupt."""
        found: Partial = await _within(self.submit(query, deadline), deadline, "the search")
        return found

    def submit(self, query: ShardQuery, deadline: Deadline) -> Future[Partial]:
        """The same, as a future."""
        asked = _Asked(query, deadline, self._cost(query))
        tenant = query.shard.tenant
        with self._asking:
            self._asked.put(tenant, [(asked, asked.cost)], weight=self._weight(tenant))
            self._asking.notify()
        return asked.answer

    def _cost(self, query: ShardQuery) -> int:
        shard = self._shards.get(query.shard)
        numbers = shard.scanned(exact=query.exact) if shard else 0
        return (len(query.vectors) or 1) * (1 + numbers // GRAPH_NUMBERS)

    def _weight(self, tenant: str) -> int:
        try:
            return CLASS_WEIGHT[self._registry.tenant(tenant).priority]
        except NotFound:
            return 1  # not seen here yet, or no more

    async def reach(self, positions: Mapping[int, int], deadline: Deadline) -> dict[int, int]:
        """Wait until every slot's watermark is at least as asked; the watermarks then. Raises DeadlineExceeded."""
        with self._reached:
            if self._has_reached(positions):
                return self.watermarks()
            future: Future[None] = Future()
            self._waiters.append((positions, future))
        await _within(future, deadline, f"slots {sorted(positions)}")
        return self.watermarks()

    async def document(self, shard: ShardId, document_id: str, deadline: Deadline) -> StoredDocument | None:
        """The document as it is searchable now, or None."""
        held: Shard | None = self._shards.get(shard)
        if held is None:
            held = await _within(self._load_soon(shard), deadline, "loading the shard")
        return await asyncio.get_running_loop().run_in_executor(None, held.document, document_id)

    async def matching(
        self, shard: ShardId, condition: Mapping[str, Any], deadline: Deadline, *, limit: int
    ) -> tuple[str, ...]:
        """Ids of at most `limit` documents of the shard whose metadata passes the filter."""
        held: Shard | None = self._shards.get(shard)
        if held is None:
            held = await _within(self._load_soon(shard), deadline, "loading the shard")
        return await asyncio.get_running_loop().run_in_executor(None, partial(held.matching, condition, limit=limit))

    async def stats(self, tenant: str | None = None) -> SearcherStats:
        """What it holds now, of one tenant or of all."""
        shards = tuple(s.stats() for s in list(self._shards.values()) if tenant in (None, s.id.tenant))
        if tenant is None:
            _resident.set(sum(s.host_bytes for s in shards))
        lags = {tenant: tuple(recent) for tenant, recent in list(self._lags.items())}
        passed = self.watermarks()
        shards = tuple(replace(s, watermark=max(s.watermark, passed.get(s.shard.slot, 0))) for s in shards)
        stale = {shard: s.reason for shard, s in list(self._stale.items()) if tenant in (None, shard.tenant)}
        return SearcherStats(shards, passed, self._searches, self._applied, lags, dict(self._failed), stale)

    def watermarks(self) -> dict[int, int]:
        """Slot → the offset up to which everything is searchable."""
        return dict(self._watermarks)

    # answering: the worker threads

    def _answer_all(self) -> None:
        while not self._stop.is_set():
            with self._asking:
                while not (gathered := self._gather()) and not self._stop.is_set():
                    self._asking.wait()
            self._answer(gathered)

    def _gather(self) -> list[_Asked]:
        """The question whose turn it is, and those that can go along in the same call."""
        turn = self._asked.take(1)
        if turn and self._asked.cost:
            asks = _asks(turn[0].query)
            turn += self._asked.take_along(
                turn[0].query.shard.tenant, lambda a: _asks(a.query) == asks, self._settings.batch_max - 1
            )
        return turn

    def _answer(self, gathered: list[_Asked]) -> None:
        live = [a for a in gathered if not a.deadline.passed()]
        for a in gathered:
            if a not in live:
                _refuse(
                    a.answer, DeadlineExceeded("the deadline passed while waiting to search", dependency="searcher")
                )
        if not live:
            return
        shard = self._shards.get(live[0].query.shard)
        if shard is None or self._must_look(shard.id, max(a.query.catalog for a in live)):
            self._answer_later(live)
            return
        live = [a for a in live if a.answer.set_running_or_notify_cancel()]
        if not live:
            return  # whoever asked has given up meanwhile
        self._searches += len(live)
        # Read before the snapshot is taken: all of the slot's log below it is in that snapshot.
        passed = self._watermarks.get(shard.id.slot, 0)
        try:
            _answer_together(shard, live, passed)
        except VicinageError as error:
            for a in live:
                _refuse(a.answer, error)
        finally:  # what else it may be ends the role; nobody is left waiting for it
            for a in live:
                _refuse(a.answer, Unavailable("the search failed", dependency="searcher"))

    def _must_look(self, shard: ShardId, catalog: int) -> bool:
        """Whether questions planned on that catalog version wait until it has been seen here.

        While the catalog is away, a shard that was live at the last look is whole: its rows are here, sealed or not.
        """
        if catalog <= self._catalog:
            return False
        seen = self._serving.get(shard)
        return not self._away or self._lacks(shard) or seen is None or seen.state != "live"

    def _lacks(self, shard: ShardId) -> bool:
        return shard in self._behind and shard not in self._stale

    def _answer_later(self, gathered: list[_Asked]) -> None:
        """Have the loader bring the shard in, or up to date, then ask again; other questions go on meanwhile."""

        def loaded(done: Future[Any]) -> None:
            error = done.exception()
            with self._asking:
                if error is None:
                    tenant = gathered[0].query.shard.tenant
                    self._asked.put_back(tenant, [(a, a.cost) for a in gathered], weight=self._weight(tenant))
                    self._asking.notify()
            for a in gathered if error is not None else ():
                _refuse(a.answer, error or Unavailable("not loaded", dependency="searcher"))

        try:
            self._load_soon(gathered[0].query.shard).add_done_callback(loaded)
        except VicinageError as error:
            for a in gathered:
                _refuse(a.answer, error)

    def _load_soon(self, shard: ShardId) -> Future[Shard]:
        """Ask the loader for a shard that is here and has seen the catalog as it is now."""
        if shard.slot not in self.slots:
            raise Unavailable(f"slot {shard.slot} is not held here", dependency="searcher")
        if shard in self._failed:
            raise Corrupt(self._failed[shard], path=str(shard))
        future: Future[Shard] = Future()
        try:
            self._requests.put_nowait((partial(self._bring, shard), future))
        except queue.Full:
            raise Overloaded("too many shards wait to be loaded", retry_after_s=1.0) from None
        return future

    # the tail thread

    def _tail(self, starts: Mapping[int, int]) -> None:
        reader = self._log.reader({(VECTORS_TOPIC, slot): start for slot, start in starts.items()})
        try:
            while not self._stop.is_set():
                try:
                    taken = reader.poll(bytes_max=POLL_BYTES, wait_s=POLL_S)
                except Unavailable as away:
                    _event.warning("the log is away", reason=str(away))
                    self._stop.wait(RETRY_S)
                    continue
                if taken or not self._ready.is_set():
                    self._apply_all(taken)
        finally:
            reader.close()

    def _apply_all(self, taken: list[Stored]) -> None:
        now_ms = self._clock.now_ms()
        last = {stored.partition: stored.offset + 1 for stored in taken}
        with self._writing:
            for stored in taken:
                self._apply(stored, now_ms)
            self._publish(last)

    def _apply(self, stored: Stored, now_ms: int) -> None:
        try:
            tenant, collection, generation = parse_rows_key(stored.record.key or b"")
        except Corrupt:
            _event.error("a record is of no shard", slot=stored.partition, offset=stored.offset)
            return
        shard = self._shards.get(ShardId(tenant, collection, generation, stored.partition))
        if shard is None:
            return  # cold: it catches up from the log when it is loaded
        try:
            batch = decode_rows(stored.record.value or b"").batch
            shard.apply(batch, stored.offset)
        except Corrupt as error:
            self._fail(shard.id, error)  # it is never served without these rows; the others go on
            return
        self._applied += batch.num_rows
        _applied.inc(batch.num_rows)
        lag_ms = max(0, now_ms - stored.record.event_time_ms)
        self._lags.setdefault(tenant, deque(maxlen=LAGS_KEPT)).append(float(lag_ms))
        _lag.observe(lag_ms / 1000)

    def _publish(self, watermarks: Mapping[int, int]) -> None:
        with self._reached:
            for slot, offset in watermarks.items():
                self._watermarks[slot] = max(self._watermarks.get(slot, 0), offset)
            if not self._ready.is_set() and self._has_reached(self._targets):
                self._ready.set()
            done = [w for w in self._waiters if self._has_reached(w[0])]
            self._waiters = [w for w in self._waiters if w not in done and not w[1].done()]
        for _, future in done:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def _has_reached(self, positions: Mapping[int, int]) -> bool:
        return all(self._watermarks.get(slot, 0) >= offset for slot, offset in positions.items())

    # the loader thread

    def _load_all(self) -> None:
        self._look()
        self._targets = {slot: self._log.end(VECTORS_TOPIC, slot) for slot in self.slots}
        starts = {slot: self._replay_start(slot) for slot in self.slots}
        self._publish(starts)
        tail = threading.Thread(
            target=self._guard, args=(partial(self._tail, starts),), name="searcher-tail", daemon=True
        )
        tail.start()
        while not self._stop.is_set():
            try:
                work, future = self._requests.get(timeout=self._settings.adopt_s)
            except queue.Empty:
                self._look_patiently()
                continue
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except VicinageError as error:
                    future.set_exception(error)
        tail.join(10)

    def _look_patiently(self) -> None:
        try:
            self._look_again()
        except Unavailable as away:
            _event.warning("the catalog is away", reason=str(away))

    def _look_again(self) -> None:
        try:
            self._look()
        except Unavailable as error:
            self._away = unreachable(error)
            raise
        self._away = False

    def _look(self) -> None:
        """See what the catalog has now: load new shards, adopt new manifests, let go of generations that are gone."""
        # Before the manifests: those of a generation that is live here name all that was copied into it.
        catalog = self._registry.refresh()
        self._change, changed = self._manifests.changed_since(self._change, self.slots)
        news = catalog != self._seen
        if news:
            self._serving, self._seen = self._find_serving(), catalog
            self._let_go()
        self._behind |= {m.shard: m for m in changed if m.shard in self._serving}
        for manifest in changed:
            self._stale.pop(manifest.shard, None)  # it has other segments now: they may be whole
        for shard in list(self._behind):  # the tail may give up a shard meanwhile
            self._failed.pop(shard, None)  # it has other segments now: they may be whole
        for shard in [s for s in self._serving if s not in self._shards and s not in self._failed]:
            self._try(shard, partial(self._load, shard, self._serving[shard]))
        now = self._clock.monotonic()
        for shard, manifest in list(self._behind.items()):
            stale = self._stale.get(shard)
            if stale is None or now >= stale.until:
                self._try(shard, partial(self._adopt, manifest, self._serving[shard]))
        _stale.set(len(self._stale))
        if news:
            self._whole |= {s for s, g in self._serving.items() if self._has_all(s, g)}
        self._catalog = catalog

    def _let_go(self) -> None:
        with self._writing:
            for held in (self._shards, self._failed, self._behind, self._stale):
                for shard in [s for s in held if s not in self._serving]:
                    del held[shard]
        self._whole &= self._serving.keys()

    def _has_all(self, shard: ShardId, generation: Generation) -> bool:
        return generation.state == "live" and shard in self._shards and shard not in self._behind

    def _bring(self, shard: ShardId) -> Shard:
        try:
            self._look_again()
        except Unavailable:
            if shard not in self._shards or self._must_look(shard, self._catalog + 1):
                raise
        if shard in self._shards:
            return self._shards[shard]
        if shard in self._failed:
            raise Corrupt(self._failed[shard], path=str(shard))
        if shard in self._serving:
            raise Unavailable("the shard could not be loaded; it is tried again", dependency="store")
        raise NotFound(f"there is no generation {shard.generation} of {shard.collection!r}")

    def _replay_start(self, slot: int) -> int:
        """The lowest offset that some shard of the slot has not sealed; the end if there is none."""
        sealed = [s.snapshot.manifest.sealed for s in self._shards.values() if s.id.slot == slot]
        return min(sealed, default=self._log.end(VECTORS_TOPIC, slot))

    def _find_serving(self) -> dict[ShardId, Generation]:
        return {shard: g for shard, g in serving(self._registry).items() if shard.slot in self.slots}

    def _load(self, shard: ShardId, generation: Generation) -> Shard:
        """Segments from the store, then the log from `sealed` up to the slot's watermark."""
        start = generation.starts[generation.slots.index(shard.slot)]
        manifest = self._manifests.of(shard, start=start)
        recall = self._registry.collection(shard.tenant, shard.collection).objectives.recall
        made = Shard(
            shard,
            dimension=generation.dimension,
            metric=generation.metric,
            recall=recall,
            backend=self._backend,
            manifest=manifest,
        )
        made.adopt(manifest, self._segments(manifest, generation, {}))
        passed = self._watermarks.get(shard.slot, 0)
        self._catch_up(made, manifest.sealed, passed)
        with self._writing:
            self._catch_up(made, passed, self._watermarks.get(shard.slot, 0))
            self._shards[shard] = made
        if self._has_all(shard, generation):
            self._whole.add(shard)
        return made

    def _segments(self, manifest: Manifest, generation: Generation, held: Mapping[str, Segment]) -> list[Segment]:
        return [
            held.get(ref.id) or load(ref, self._store, self._backend, generation.metric) for ref in manifest.segments
        ]

    def _catch_up(self, shard: Shard, start: int, end: int) -> None:
        """Apply what the slot's tail has already passed by: the log from `start` to `end`."""
        key = rows_key(shard.id.tenant, shard.id.collection, shard.id.generation)
        while start < end and (run := self._log.read(VECTORS_TOPIC, shard.id.slot, start, bytes_max=POLL_BYTES)):
            for stored in run:
                if stored.offset < end and stored.record.key == key:
                    shard.apply(decode_rows(stored.record.value or b"").batch, stored.offset)
            start = run[-1].offset + 1
        shard.advance(end)

    def _adopt(self, manifest: Manifest, generation: Generation) -> None:
        held = self._shards.get(manifest.shard)
        if held is not None and manifest.version > held.snapshot.manifest.version:
            have = {s.ref.id: s for s in held.snapshot.segments}
            try:
                segments = self._segments(manifest, generation, have)
            except Corrupt as corrupt:
                if manifest.shard not in self._whole:
                    raise
                self._let_be(manifest.shard, corrupt)
                return
            held.adopt(manifest, segments)
        if held is not None:
            self._behind.pop(manifest.shard, None)
            self._stale.pop(manifest.shard, None)
            if self._has_all(manifest.shard, generation):
                self._whole.add(manifest.shard)

    def _let_be(self, shard: ShardId, corrupt: Corrupt) -> None:
        """Serve on from what is held, and try the manifest again later."""
        if shard not in self._behind:
            return  # the tail has given it up meanwhile
        least, most = CORRUPT_RETRY_S
        before = self._stale.get(shard)
        wait_s = min(2 * before.wait_s, most) if before else least
        self._stale[shard] = _Stale(corrupt.detail, wait_s, self._clock.monotonic() + wait_s)
        _event.error("manifest not adopted", shard=str(shard), error=corrupt.detail, path=corrupt.path, retry_s=wait_s)

    def _try(self, shard: ShardId, work: Callable[[], Any]) -> None:
        try:
            work()
        except VicinageError as error:
            self._fail(shard, error)

    def _fail(self, shard: ShardId, error: VicinageError) -> None:
        """A corrupt shard is never served; anything else is tried again at the next look."""
        _event.error("shard failed", shard=str(shard), error=str(error), kind=error.kind)
        if isinstance(error, Corrupt):
            self._failed[shard] = error.detail
            self._shards.pop(shard, None)
            self._behind.pop(shard, None)
            self._stale.pop(shard, None)
            self._whole.discard(shard)

    def _guard(self, work: Callable[[], None]) -> None:
        """The role's boundary: a thread that dies ends the role, loudly."""
        try:
            work()
        except BaseException as error:
            _event.exception("searcher thread died", thread=threading.current_thread().name)
            if self._on_failure is None:
                raise
            self._on_failure(error)


def _answer_together(shard: Shard, asked: list[_Asked], passed: int) -> None:
    query = asked[0].query
    if len(asked) > 1:
        query = replace(query, vectors=np.concatenate([a.query.vectors for a in asked]))
    found = shard.search(query)
    watermark, at = max(found.watermark, passed), 0
    for a in asked:
        n = len(a.query.vectors)
        a.answer.set_result(replace(found, hits=found.hits[at : at + n], watermark=watermark))
        at += n


def _asks(query: ShardQuery) -> tuple[object, ...]:
    """All that questions must have in common to go in one call. A filter by its text: {"x": 1} == {"x": True} in Python, not in a filter."""
    condition = None if query.filter is None else repr(query.filter)
    width = query.vectors.shape[1:]
    return (query.shard, query.k, query.effort, query.exact, query.include, condition, width)


def _refuse(future: Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


async def _within(future: Future[Any], deadline: Deadline, what: str) -> Any:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), deadline.left_s())
    except TimeoutError:
        raise DeadlineExceeded(f"{what} was not done in time", dependency="searcher") from None
