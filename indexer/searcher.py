"""The searcher role: holds slots, tails their vectors log, answers questions.

One tail thread writes all shards; search threads only read snapshots. While one call is under way the next questions gather;
those of one shard, k, effort and filter go as one batch.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from indexer.backends import Backend
from indexer.segment import Segment, load
from indexer.shard import Shard, ShardStats, StoredDocument
from tenants.entities import Generation, Manifest
from tenants.manifests import Manifests
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Clock, Deadline
from vicinage.errors import Corrupt, DeadlineExceeded, NotFound, Overloaded, Unavailable, VicinageError
from vicinage.log import Log, Stored
from vicinage.records import Partial, ShardId, ShardQuery
from vicinage.settings import SearcherSettings
from vicinage.store import Store
from vicinage.telemetry import counter, events, gauge, histogram
from vicinage.wire import decode_rows, parse_rows_key

POLL_S: Final = 0.25
POLL_BYTES: Final = 16 << 20
RETRY_S: Final = 0.5

_event = events("searcher")
_applied = counter("vicinage_searcher_applied_passages_total", "passages made searchable")
_resident = gauge("vicinage_searcher_resident_bytes", "bytes of vectors and indexes held in memory")
_lag = histogram("vicinage_searcher_index_lag_seconds", "searchable time minus event time, per message", ("tenant",))


@dataclass(frozen=True, slots=True)
class SearcherStats:
    """What a searcher holds and has done. `index_lag_ms` are recent lags per tenant, newest last."""

    shards: tuple[ShardStats, ...]
    watermarks: Mapping[int, int]
    searches: int
    applied: int
    index_lag_ms: Mapping[str, tuple[float, ...]]
    failed: Mapping[ShardId, str]


@dataclass(slots=True, eq=False)
class _Asked:
    """One waiting question."""

    query: ShardQuery
    deadline: Deadline
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
        self._wanted: deque[tuple[ShardId, Future[Shard]]] = deque()
        self._watermarks: dict[int, int] = {}
        self._reached = threading.Condition()
        self._waiters: list[tuple[Mapping[int, int], Future[None]]] = []
        self._asked: deque[_Asked] = deque()
        self._asking = threading.Condition()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._targets: dict[int, int] = {}
        self._change = 0
        self._looked = -1e9
        self._searches = 0
        self._applied = 0
        self._lags: dict[str, deque[float]] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to tail and to answer."""
        tail = threading.Thread(target=self._guard, args=(self._tail,), name="searcher-tail", daemon=True)
        workers = [
            threading.Thread(target=self._guard, args=(self._answer_all,), name=f"searcher-{i}", daemon=True)
            for i in range(self._settings.threads)
        ]
        self._threads = [tail, *workers]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both; whoever waits hears Unavailable. Idempotent."""
        self._stop.set()
        with self._asking:
            self._asking.notify_all()
        for thread in self._threads:
            thread.join(10)
        gone = Unavailable("the searcher is stopping", dependency="searcher")
        for asked in list(self._asked):
            _refuse(asked.answer, gone)
        for _, future in list(self._waiters):
            _refuse(future, gone)
        for _, wanted in list(self._wanted):
            _refuse(wanted, gone)

    def ready(self) -> bool:
        """True once everything that was in the log at the start is searchable."""
        return self._ready.is_set()

    # questions: any thread, any event loop

    async def search(self, query: ShardQuery, deadline: Deadline) -> Partial:
        """The shard's answer. Raises Overloaded, Unavailable, DeadlineExceeded, Corrupt."""
        return await _within(self.submit(query, deadline), deadline, "the search")

    def submit(self, query: ShardQuery, deadline: Deadline) -> Future[Partial]:
        """The same, as a future."""
        asked = _Asked(query, deadline)
        with self._asking:
            if len(self._asked) >= self._settings.queue_max:
                raise Overloaded("too many questions wait at the searcher", retry_after_s=0.5)
            self._asked.append(asked)
            self._asking.notify()
        return asked.answer

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
        held = self._shards.get(shard)
        if held is None:
            held = await _within(self._load_soon(shard), deadline, "loading the shard")
        return await asyncio.get_running_loop().run_in_executor(None, held.document, document_id)

    async def stats(self) -> SearcherStats:
        """What it holds now."""
        shards = tuple(s.stats() for s in list(self._shards.values()))
        _resident.set(sum(s.host_bytes for s in shards))
        lags = {tenant: tuple(recent) for tenant, recent in list(self._lags.items())}
        return SearcherStats(shards, self.watermarks(), self._searches, self._applied, lags, dict(self._failed))

    def watermarks(self) -> dict[int, int]:
        """Slot → the offset up to which everything is searchable."""
        return dict(self._watermarks)

    # answering: the worker threads

    def _answer_all(self) -> None:
        while not self._stop.is_set():
            with self._asking:
                while not self._asked and not self._stop.is_set():
                    self._asking.wait()
                gathered = self._gather()
            self._answer(gathered)

    def _gather(self) -> list[_Asked]:
        """The oldest question, and those that can go along in the same call."""
        if not self._asked:
            return []
        first = self._asked.popleft()
        along = [first]
        if self._asked:
            same = [a for a in self._asked if _together(a.query, first.query)][: self._settings.batch_max - 1]
            for asked in same:
                self._asked.remove(asked)
            along.extend(same)
        return along

    def _answer(self, gathered: list[_Asked]) -> None:
        live = [a for a in gathered if not a.deadline.passed() and a.answer.set_running_or_notify_cancel()]
        if not live:
            return
        try:
            shard = self._shard(live[0].query.shard, live[0].deadline)
            self._searches += len(live)
            if len(live) == 1:
                live[0].answer.set_result(shard.search(live[0].query))
                return
            vectors = np.concatenate([a.query.vectors for a in live])
            together = shard.search(replace(live[0].query, vectors=vectors))
        except VicinageError as error:
            for a in live:
                a.answer.set_exception(error)
            return
        at = 0
        for a in live:
            n = len(a.query.vectors)
            a.answer.set_result(replace(together, hits=together.hits[at : at + n]))
            at += n

    def _shard(self, shard: ShardId, deadline: Deadline) -> Shard:
        held = self._shards.get(shard)
        if held is not None:
            return held
        future = self._load_soon(shard)
        try:
            return future.result(deadline.left_s())
        except TimeoutError:
            raise DeadlineExceeded("the shard is still being loaded", dependency="searcher") from None

    def _load_soon(self, shard: ShardId) -> Future[Shard]:
        """Ask the tail thread, which alone writes shards, to load one."""
        if shard.slot not in self.slots:
            raise Unavailable(f"slot {shard.slot} is not held here", dependency="searcher")
        if shard in self._failed:
            raise Corrupt(self._failed[shard], path=str(shard))
        future: Future[Shard] = Future()
        self._wanted.append((shard, future))
        return future

    # the tail thread

    def _tail(self) -> None:
        self._registry.refresh()
        self._change, _ = self._manifests.changed_since(0, self.slots)
        self._preload()
        self._targets = {slot: self._log.end(VECTORS_TOPIC, slot) for slot in self.slots}
        starts = {slot: self._replay_start(slot) for slot in self.slots}
        self._publish(starts)
        reader = self._log.reader({(VECTORS_TOPIC, slot): start for slot, start in starts.items()})
        try:
            while not self._stop.is_set():
                self._load_wanted()
                self._look_for_manifests()
                try:
                    wait_s = 0.0 if self._wanted else POLL_S
                    self._apply_all(reader.poll(bytes_max=POLL_BYTES, wait_s=wait_s))
                except Unavailable as away:
                    _event.warning("the log is away", reason=str(away))
                    self._stop.wait(RETRY_S)
        finally:
            reader.close()

    def _preload(self) -> None:
        for shard, generation in self._serving().items():
            try:
                self._load(shard, generation)
            except VicinageError as error:
                self._fail(shard, error)

    def _serving(self) -> dict[ShardId, Generation]:
        """Every shard that lies in these slots and may be searched."""
        return {
            shard: g
            for c in self._registry.collections()
            for g in c.generations
            for shard in g.shards()
            if shard.slot in self.slots
        }

    def _replay_start(self, slot: int) -> int:
        """The lowest offset that some shard of the slot has not sealed; the end if there is none."""
        sealed = [s.snapshot.manifest.sealed for s in self._shards.values() if s.id.slot == slot]
        return min(sealed, default=self._log.end(VECTORS_TOPIC, slot))

    def _apply_all(self, taken: list[Stored]) -> None:
        if not taken and self._ready.is_set():
            return
        now_ms = self._clock.now_ms()
        for stored in taken:
            self._apply(stored, now_ms)
        last = {stored.partition: stored.offset + 1 for stored in taken}
        for shard in list(self._shards.values()):
            if shard.id.slot in last:
                shard.advance(last[shard.id.slot])
        self._publish(last)

    def _apply(self, stored: Stored, now_ms: int) -> None:
        tenant, collection, generation = parse_rows_key(stored.record.key or b"")
        shard = self._shards.get(ShardId(tenant, collection, generation, stored.partition))
        if shard is None:
            return  # cold: it catches up from the log when it is loaded
        batch = decode_rows(stored.record.value or b"").batch
        shard.apply(batch, stored.offset)
        self._applied += batch.num_rows
        _applied.inc(batch.num_rows)
        lag_ms = max(0, now_ms - stored.record.event_time_ms)
        self._lags.setdefault(tenant, deque(maxlen=2_000)).append(float(lag_ms))
        _lag.labels(tenant).observe(lag_ms / 1000)

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

    def _load_wanted(self) -> None:
        while self._wanted:
            shard, future = self._wanted.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._shards.get(shard) or self._load_by_name(shard))
            except VicinageError as error:
                self._fail(shard, error)
                future.set_exception(error)

    def _load_by_name(self, shard: ShardId) -> Shard:
        self._registry.refresh()
        generation = self._serving().get(shard)
        if generation is None:
            raise NotFound(f"there is no generation {shard.generation} of {shard.collection!r}")
        return self._load(shard, generation)

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
        self._catch_up(made, manifest.sealed)
        self._shards[shard] = made
        return made

    def _segments(self, manifest: Manifest, generation: Generation, held: Mapping[str, Segment]) -> list[Segment]:
        return [
            held.get(ref.id) or load(ref, self._store, self._backend, generation.metric) for ref in manifest.segments
        ]

    def _catch_up(self, shard: Shard, start: int) -> None:
        """Apply what the slot's tail has already passed by."""
        end = self._watermarks.get(shard.id.slot, 0)
        name = (shard.id.tenant, shard.id.collection, shard.id.generation)
        while start < end and (run := self._log.read(VECTORS_TOPIC, shard.id.slot, start, bytes_max=POLL_BYTES)):
            for stored in run:
                if stored.offset < end and parse_rows_key(stored.record.key or b"") == name:
                    shard.apply(decode_rows(stored.record.value or b"").batch, stored.offset)
            start = run[-1].offset + 1
        shard.advance(end)

    def _look_for_manifests(self) -> None:
        """Adopt what the indexer has published; let go of generations that are gone."""
        now = self._clock.monotonic()
        if now - self._looked < self._settings.adopt_s:
            return
        self._looked = now
        try:
            self._registry.refresh()
            self._change, changed = self._manifests.changed_since(self._change, self.slots)
            serving = self._serving()
        except Unavailable as away:
            _event.warning("the catalog is away", reason=str(away))
            return
        for shard in [s for s in self._shards if s not in serving]:
            del self._shards[shard]
        for shard in [s for s in self._failed if s not in serving]:
            del self._failed[shard]
        for shard in [s for s in serving if s not in self._shards and s not in self._failed]:
            self._try(shard, lambda shard=shard: self._load(shard, serving[shard]))
        for manifest in changed:
            held = self._shards.get(manifest.shard)
            if held is not None and manifest.version > held.snapshot.manifest.version:
                self._try(
                    manifest.shard,
                    lambda held=held, manifest=manifest: self._adopt(held, manifest, serving[manifest.shard]),
                )

    def _adopt(self, held: Shard, manifest: Manifest, generation: Generation) -> None:
        have = {s.ref.id: s for s in held.snapshot.segments}
        held.adopt(manifest, self._segments(manifest, generation, have))

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

    def _guard(self, work: Callable[[], None]) -> None:
        """The role's boundary: a thread that dies ends the role, loudly."""
        try:
            work()
        except BaseException as error:
            _event.exception("searcher thread died", thread=threading.current_thread().name)
            if self._on_failure is None:
                raise
            self._on_failure(error)


def _together(a: ShardQuery, b: ShardQuery) -> bool:
    return (a.shard, a.k, a.effort, a.exact, a.include, a.filter) == (
        b.shard,
        b.k,
        b.effort,
        b.exact,
        b.include,
        b.filter,
    )


def _refuse(future: Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


async def _within(future: Future[Any], deadline: Deadline, what: str) -> Any:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), deadline.left_s())
    except TimeoutError:
        raise DeadlineExceeded(f"{what} was not done in time", dependency="searcher") from None
