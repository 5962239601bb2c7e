"""What a searcher holds: the shards of its slots, as the catalog has them; in memory those that are asked for.

Seeing the catalog and fetching segments are different threads' work. A question that was planned on a newer catalog waits for a
look, which is two small SELECTs; for the store waits only who asks for the very shard that is being fetched (law 7).

A shard is brought in by the first question for it, unless that would be a long wait (`EAGER_PASSAGES`), or the collection is in use and
this is its next generation: those come in by themselves. It lies in memory until others need the room (`memory.py`).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from indexer.backends import Backend
from indexer.index.loader import Loading
from indexer.index.objects import Damaged
from indexer.index.scans import ScanBudget
from indexer.index.segment import Segment, placed
from indexer.index.shard import Shard
from query.searcher.counting import Counting
from query.searcher.memory import Asker, Held, Residency, to_let_go
from query.searcher.tail import Tail
from tenants.entities import CLASS_WEIGHT, Generation, Manifest
from tenants.manifests import Manifests
from tenants.registry import Registry
from tenants.serving import serving
from vicinage.catalog import unreachable
from vicinage.clock import Clock, Deadline, longer
from vicinage.errors import Corrupt, NotFound, Overloaded, Unavailable, VicinageError
from vicinage.records import ShardId
from vicinage.settings import SearcherSettings
from vicinage.stats import SHARD_BYTES, ShardStats
from vicinage.store import Store
from vicinage.telemetry import counter, events, gauge

RETRY_S: Final = 0.5
NEWEST: Final = 1 << 62
"""No catalog has this version: whoever asks for it waits for the next look."""
SPARE_SHARE: Final = 64
"""Where others must let go, this part of the bound is made free beside: who goes is looked for once for many that come."""
EAGER_PASSAGES: Final = 10_000
"""A shard with more is brought in before anybody asks, as long as there is room: verifying its bytes takes longer than 100 ms."""
CORRUPT_RETRY_S: Final = (1.0, 300.0)
"""A corrupt manifest is tried again after the first, then after twice as long each time, up to the second: it may have been found whole."""

_event = events("searcher")
_let_go = counter("vicinage_searcher_let_go_total", "shards let go of from memory, since others needed the room")
_brought_in = counter("vicinage_searcher_brought_in_total", "shards brought into memory")
_stale = gauge(
    "vicinage_searcher_stale_shards",
    "shards searched as of an older manifest, since a segment of the newest is corrupt",
)


@dataclass(frozen=True, slots=True)
class Stale:
    """A manifest that was found corrupt while an older one serves: why, and how long it is let be."""

    reason: str
    wait_s: float


@dataclass(frozen=True, slots=True)
class Stored:
    """What the newest manifest seen says of a shard, in memory or not."""

    version: int
    sealed: int
    segments: int
    kinds: tuple[str, ...]
    documents: int
    passages: int
    bytes: int
    at_least: int = 0
    """Documents that are there in any case: those of one segment, but for what the others may delete."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Stored":
        """Counted over its segments."""
        refs = manifest.segments
        return cls(
            manifest.version,
            manifest.sealed,
            len(refs),
            tuple(ref.kind for ref in refs),
            sum(ref.n_documents for ref in refs),
            sum(ref.n_passages for ref in refs),
            sum(ref.bytes() for ref in refs),
            max((ref.n_documents - sum(r.n_deletes for r in refs if r is not ref) for ref in refs), default=0),
        )


_NOTHING: Final = Stored(0, 0, 0, (), 0, 0, 0)


class NoRoom(Unavailable):
    """Memory is in use by shards that are asked right now."""


@dataclass(slots=True)
class _Room:
    """Bytes that were promised, and are not brought in yet."""

    left: int


@dataclass(slots=True, eq=False)
class _Wait:
    """Somebody who needs a shard, once this version of the catalog has been seen (0: it has)."""

    shard: ShardId
    catalog: int
    deadline: Deadline
    future: Future[Shard] = field(default_factory=Future)

    def over(self) -> bool:
        return self.deadline.passed() or self.future.cancelled()


class Holding:
    """The shards held. `look_all` and any number of `fetch_all` are threads; the rest may be called from any."""

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
        self._slots = frozenset(slots)
        self._tail = tail
        self._registry = registry
        self._manifests = manifests
        self._store = store
        self._backend = backend
        self._settings = settings
        self._clock = clock
        self._stop = threading.Event()
        self._looked_for = threading.Event()
        """Set while somebody waits for a look."""
        self._known = threading.Condition()
        """Guards everything below; notified when there is something to fetch."""
        self._catalog = -1
        """The catalog version seen."""
        self._change = 0
        self._away = False
        """Whether the catalog could not be reached at the last look."""
        self._serving: dict[ShardId, Generation] = {}
        """Every shard that lies in these slots and may be searched."""
        self._stored: dict[ShardId, Stored] = {}
        """Of each that has segments: what its newest manifest says."""
        self._to_fetch: dict[ShardId, float] = {}
        """Shards to be loaded, or brought up to their manifest, and when (monotonic), oldest first."""
        self._turn = 0
        self._turns: dict[str, int] = {}
        """When each tenant that waits was last fetched for, as a number that rises."""
        self._in_hand: set[ShardId] = set()
        """Those that a thread is fetching."""
        self._whole: set[ShardId] = set()
        """Shards that had all of their manifest once their generation was live: what came since is in the log, and so here.

        What a reindex copies before the cut-over is in its segments alone, so no other shard ever answers.
        """
        self.failed: dict[ShardId, str] = {}
        """Shards with rows that cannot be read, and why: refused until their manifest names others."""
        self._again_s: dict[ShardId, float] = {}
        """Of those that failed because of a segment: how long they wait until they are tried again."""
        self.stale: dict[ShardId, Stale] = {}
        """Shards whose newest manifest is corrupt: they are searched as they were meanwhile."""
        self._waits: list[_Wait] = []
        self._residency = Residency(settings.resident_bytes_max)
        self.bytes_max = self._residency.bytes_max
        """Accounted bytes that may be in memory."""
        self._scans = ScanBudget(settings.scan_rows_max, settings.scan_cpu_share, threads=settings.threads)
        self.counting = Counting(
            tail=tail,
            manifests=manifests,
            loading=Loading(store, backend, manifests.quarantine, "searcher"),
            served=lambda: self._serving,
            version_of=lambda shard: self._stored.get(shard, _NOTHING).version,
            to_count=self._to_count,
        )
        self._making_room = threading.Lock()
        self._made = 0
        """Bytes of deltas and columns, when they were last counted."""
        self._promised = 0
        """Bytes for which room was made, and that are still being brought in."""

    # asking for a shard: any thread

    def at_once(self, shard: ShardId, catalog: int = 0) -> Shard | None:
        """The shard, if it can answer a question that was planned on that catalog version right now."""
        # NOTE: without the lock: each of these is replaced or changed in one step, and only ever becomes true after the facts.
        return self._tail.shards.get(shard) if self._may_answer(shard, catalog) else None

    def soon(self, shard: ShardId, deadline: Deadline, catalog: int = NEWEST) -> Future[Shard]:
        """The same, once it can; forgotten when the deadline has passed. Raises Unavailable, Corrupt, NotFound, Overloaded.

        At once or by the future. A tenant's waits are at most half of all, so that others find room.
        """
        if shard.slot not in self._slots:
            raise Unavailable(f"slot {shard.slot} is not held here", dependency="searcher")
        wait = _Wait(shard, catalog, deadline)
        with self._known:
            self._waits = [w for w in self._waits if not w.over()]
            own = sum(w.shard.tenant == shard.tenant for w in self._waits)
            if len(self._waits) >= self._settings.queue_max or own >= max(1, self._settings.queue_max // 2):
                raise Overloaded("too many questions wait for their shards to be loaded", retry_after_s=1.0)
            self._waits.append(wait)
            self._want(shard)
            self._known.notify_all()
        self._looked_for.set()
        return wait.future

    def _may_answer(self, shard: ShardId, catalog: int) -> bool:
        """While the catalog is away, a whole shard that was live at the last look answers: its rows are here, sealed or not."""
        return shard in self._whole and (catalog <= self._catalog or self._away)

    # seeing the catalog: one thread

    def look_all(self) -> None:
        """See the catalog every `adopt_s`, and whenever somebody waits for it, until stopped. What deltas grew is shed as often, no more: that asks all shards."""
        shed_at = self._clock.monotonic()
        while not self._stop.is_set():
            self._looked_for.wait(self._settings.adopt_s)
            self._looked_for.clear()
            if self._stop.is_set():
                return
            self._look_for_those_who_wait()
            if (now := self._clock.monotonic()) - shed_at >= self._settings.adopt_s:
                shed_at = now
                self._shed()

    def _look_for_those_who_wait(self) -> None:
        with self._known:
            asked = list(self._waits)
        try:
            self.look()
        except Unavailable as error:
            away = error
            _event.warning("the catalog is away", reason=str(away))
            self._settle(lambda w: away if w in asked and w.catalog > self._catalog else None)
        else:
            for wait in asked:
                wait.catalog = (
                    0  # seen, whatever its number: a catalog restored from a backup may count from a lower one
                )
            self._settle(self._refusal)

    def look(self) -> None:
        """Take in what the catalog has now: shards that are new or gone, and manifests that changed. Raises Unavailable."""
        try:
            # Before the manifests: those of a generation that is live here name all that was copied into it.
            catalog = self._registry.refresh()
            every = serving(self._registry) if catalog != self._catalog else None
            change, changed = self._manifests.changed_since(self._change, self._slots)
        except Unavailable as error:
            self._away = unreachable(error)
            raise
        with self._known:
            if change < self._change:
                self._tail.forget_what_passed()  # a catalog restored from a backup
            self._change, self._away = change, False
            if every is not None:
                self._see(every)
            for manifest in changed:
                self._see_manifest(manifest)
            if every is not None:
                self._whole.update(s for s in list(self._tail.shards) if self._has_all(s))
                self._aim()
            for wait in self._waits:
                self._want(wait.shard)
            self._catalog = catalog
            _stale.set(len(self.stale))
            self._known.notify_all()

    def _aim(self) -> None:
        """Gives each shard in memory its collection's recall objective.

        Meanwhile other threads load shards, and refresh the registry, which then may lack a collection of `_serving`.
        """
        for shard, held in list(self._tail.shards.items()):
            if shard in self._serving:
                with suppress(NotFound):
                    held.aim_at(self._registry.collection(shard.tenant, shard.collection).objectives.recall)

    def _see(self, every: dict[ShardId, Generation]) -> None:
        before = self._serving
        self._serving = {shard: g for shard, g in every.items() if shard.slot in self._slots}
        for shard in [s for s in (*before, *self._tail.shards) if s not in self._serving]:
            self._forget(shard)
        self._tail.forget_others(lambda s: s not in self._serving and self._registry.is_over(s))
        self._tail.forget_tenants({s.tenant for s in self._serving})
        for gone in [s for s in self._stored if s not in self._serving and self._registry.is_over(s)]:
            del self._stored[gone]
        for shard in self._serving.keys() - before.keys():
            if self._is_eager(shard):
                self._want(shard)

    def _see_manifest(self, manifest: Manifest) -> None:
        """It has other segments now: they may be whole."""
        shard = manifest.shard
        self._stored[shard] = Stored.of(manifest)
        self.stale.pop(shard, None)
        self._again_s.pop(shard, None)
        failed = self.failed.pop(shard, None)
        if shard in self._tail.shards:
            self._to_fetch[shard] = 0.0
            return
        if failed:
            self._to_fetch.pop(shard, None)  # now, not when it was to be tried again
        self._tail.sealed(shard, manifest.sealed)
        if failed or self._is_eager(shard):
            self._want(shard)

    def _want(self, shard: ShardId) -> None:
        """Have it brought in, if it may be and is not here."""
        if shard in self._serving and shard not in self._tail.shards and shard not in self.failed:
            self._to_fetch.setdefault(shard, 0.0)

    def _is_eager(self, shard: ShardId) -> bool:
        """Whether it is brought in before anybody asks."""
        return self._stored.get(shard, _NOTHING).passages > EAGER_PASSAGES or self._follows(shard)

    def _follows(self, shard: ShardId) -> bool:
        """Whether an older generation of the same collection is in memory: whoever asks for that will soon ask for this."""
        try:
            of = self._registry.collection(shard.tenant, shard.collection)
        except NotFound:
            return False
        return len(of.generations) > 1 and any(s in self._tail.shards for g in of.generations for s in g.shards())

    def _is_behind(self, shard: ShardId, held: Shard) -> bool:
        return held.snapshot.manifest.version < self._stored.get(shard, _NOTHING).version

    def _has_all(self, shard: ShardId) -> bool:
        held, generation = self._tail.shards.get(shard), self._serving.get(shard)
        return bool(held and generation and generation.state == "live" and not self._is_behind(shard, held))

    def _forget(self, shard: ShardId) -> None:
        """It is served no more, and never will be again."""
        self._tail.forget(shard)
        self._whole.discard(shard)
        for held in (self._stored, self._to_fetch, self.failed, self._again_s, self.stale):
            held.pop(shard, None)

    def serves(self, shard: ShardId) -> bool:
        """Whether the shard is one of those that may be asked here."""
        return shard in self._serving

    def replay_start(self, slot: int, end: int) -> int:
        """The lowest offset that some shard of the slot has not sealed; `end` if there is none."""
        with self._known:
            sealed = [self._sealed(s, g) for s, g in self._serving.items() if s.slot == slot]
        return min(sealed, default=end)

    def _sealed(self, shard: ShardId, generation: Generation) -> int:
        stored = self._stored.get(shard)
        return stored.sealed if stored else generation.start(shard.slot)

    def not_resident(self, shard: ShardId, watermark: int) -> ShardStats | None:
        """What is known of a shard that may be searched and is not in memory: counted exactly, or as a lower bound."""
        if shard not in self._serving or shard in self.failed:
            return None
        s, known = self._stored.get(shard, _NOTHING), self.counting.known(shard)
        whole = not self._is_to_count(shard)
        passed = bool(self._tail.noted(shard)[0])
        documents, passages = (s.documents, s.passages) if whole else (0, 0) if passed else (max(0, s.at_least),) * 2
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
        """Whether its manifest alone does not say what it holds: segments may replace each other's, and the log has rows."""
        generation = self._serving.get(shard)
        if generation is None:
            return False
        sealed, segments = self._sealed(shard, generation), self._stored.get(shard, _NOTHING).segments
        return segments > 1 or self._tail.noted(shard)[0] > 0 or not self._tail.knows_all(shard, sealed)

    def _to_count(self, tenant: str | None) -> list[ShardId]:
        """Shards of one tenant, or of all, whose manifest does not say what they hold. About 1.5 µs a shard."""
        every = list(self._serving) if tenant is None else list(serving(self._registry, tenant))
        return [s for s in every if s not in self.failed and self._is_to_count(s)]

    # fetching: any number of threads, a shard at a time each

    def fetch_all(self) -> None:
        """Bring shards in, or up to their manifests, until stopped; those that somebody waits for first."""
        while not self._stop.is_set():
            with self._known:
                shard = self._next()
                if shard is None:
                    self._known.wait(min(self._settings.adopt_s, RETRY_S))
                    continue
                self._in_hand.add(shard)
                generation, version = self._serving[shard], self._stored.get(shard, _NOTHING).version
            self._fetched(shard, version, self._tried(shard, generation))

    def fetch_first(self) -> None:
        """Bring in, once, what the first look found to be wanted. Before the tail has begun there is no log to catch up with."""
        for shard in list(self._to_fetch):
            version = self._stored.get(shard, _NOTHING).version
            self._fetched(shard, version, self._tried(shard, self._serving[shard]))

    def _next(self) -> ShardId | None:
        """Of those that somebody waits for, the one whose tenant has had its turn longest ago; else whoever is due."""
        unwell = self.stale.keys() | self.failed.keys() | self._in_hand
        wanted = [w.shard for w in self._waits if w.shard in self._to_fetch and w.shard not in unwell]
        if wanted:
            busy = {s.tenant for s in self._in_hand}
            found = min(wanted, key=lambda s: (s.tenant in busy, self._turns.get(s.tenant, 0)))
            self._turns[found.tenant] = self._turn = self._turn + 1
            return found
        self._turns.clear()
        now = self._clock.monotonic()
        return next((s for s, at in self._to_fetch.items() if at <= now and s not in self._in_hand), None)

    def _tried(self, shard: ShardId, generation: Generation) -> VicinageError | None:
        """What went wrong; None when the shard is here as its manifest says."""
        held = self._tail.shards.get(shard)
        try:
            manifest = self._manifests.of(shard, start=generation.start(shard.slot))
            if held is None:
                self._load(shard, generation, manifest)
            elif manifest.version > held.snapshot.manifest.version:
                self._adopt(held, generation, manifest)
        except Damaged as damaged:  # of a segment that is gone: to whoever asks, its collection is there all the same
            lost = damaged.fault == "lost"
            return Unavailable(damaged.detail, dependency="store", retry_after_s=RETRY_S) if lost else damaged
        except VicinageError as error:
            return error
        return None

    def _load(self, shard: ShardId, generation: Generation, manifest: Manifest) -> None:
        """Segments from the store, then the log from `sealed` on."""
        with self._room(shard, sum(ref.loaded_bytes() for ref in manifest.segments)) as room:
            made = Shard(
                shard,
                dimension=generation.dimension,
                metric=generation.metric,
                recall=self._registry.collection(shard.tenant, shard.collection).objectives.recall,
                backend=self._backend,
                manifest=manifest,
                scans=self._scans,
            )
            made.adopt(manifest, self._segments(manifest, generation, {}, room))
            made.asked_s = self._clock.monotonic()
            self._tail.join(made, manifest.sealed)
        _brought_in.inc()

    def _adopt(self, held: Shard, generation: Generation, manifest: Manifest) -> None:
        """The manifest's segments beside those that it replaces; where there is no room for both, the shard is brought in anew."""
        have = {s.ref.id: s for s in held.snapshot.segments}
        try:
            with self._room(
                held.id, sum(ref.loaded_bytes() for ref in manifest.segments if ref.id not in have)
            ) as room:
                held.adopt(manifest, self._segments(manifest, generation, have, room))
        except NoRoom:
            have.clear()
            self._set_down(held.id)
            raise

    def _segments(
        self, manifest: Manifest, generation: Generation, have: Mapping[str, Segment], room: "_Room"
    ) -> list[Segment]:
        loading = Loading(self._store, self._backend, self._manifests.quarantine, "searcher")
        barred = self._manifests.quarantine.barred(manifest.shard)
        found = []
        for ref in manifest.segments:
            segment = have.get(ref.id)
            if segment is None:
                loaded = loading.segment(manifest.shard, ref, generation.metric, barred)
                segment = placed(loaded, self._backend)
                self._count(segment, room)
            found.append(segment)
        return found

    # room: whoever fetches

    @contextmanager
    def _room(self, shard: ShardId, need: int) -> Iterator["_Room"]:
        """Room for so many bytes until they are brought in, and counted; others let go of theirs. Raises NoRoom."""
        room = _Room(need + SHARD_BYTES)
        with self._making_room:
            self._make_room(shard, room.left)
            self._promised += room.left
        try:
            yield room
        finally:
            with self._making_room:
                self._promised -= room.left

    def _count(self, segment: Segment, room: "_Room") -> None:
        """It is here: held from now on, and no more promised."""
        with self._making_room:
            self._residency.count(segment)
            self._promised -= segment.resident_bytes()
            room.left -= segment.resident_bytes()

    def _shed(self) -> None:
        """Deltas grow by themselves: let go of what is too much."""
        with self._making_room:
            over = self._resident_bytes() + self._promised - self._residency.bytes_max
            if over > 0:
                self._let_go(to_let_go(self._held(but=None), over, self._residency.bytes_max, partial=True))

    def _make_room(self, shard: ShardId, need: int) -> None:
        most = self._residency.bytes_max
        if need > most:
            raise NoRoom(
                f"the shard takes {need} bytes of memory, and searcher.resident_bytes_max is {most}: raise it, or give the "
                "collection more shards",
                dependency="searcher",
            )
        if self._about_resident() + self._promised + need <= most:
            return
        over = self._resident_bytes() + self._promised + need - most
        if over <= 0:
            return
        if self._is_asked(shard):  # nobody lets go for what nobody asked for
            asker = Asker(shard.tenant, self._weights().get(shard.tenant, 1))
            self._let_go(to_let_go(self._held(but=shard), over, most, asker=asker, spare=most // SPARE_SHARE))
        if self._resident_bytes() + self._promised + need > most:
            raise NoRoom(
                "memory is in use by collections that are asked right now", dependency="searcher", retry_after_s=1.0
            )

    def _is_asked(self, shard: ShardId) -> bool:
        """Whether somebody waits for it, or it is in memory already."""
        return shard in self._tail.shards or any(wait.shard == shard for wait in self._waits)

    def _weights(self) -> dict[str, int]:
        return {t.name: CLASS_WEIGHT[t.priority] for t in self._registry.tenants()}

    def resident_bytes(self) -> int:
        """Bytes of memory that are accounted for: segments, deltas, and what each shard takes."""
        with self._making_room:
            return self._resident_bytes()

    def _resident_bytes(self) -> int:
        self._made = sum(s.made_bytes() for s in list(self._tail.shards.values()))
        return self._about_resident()

    def _about_resident(self) -> int:
        """The same, with deltas and columns as last counted, at every look at least: to ask 10,000 shards takes longer than to bring one in."""
        return self._residency.bytes() + self._made + len(self._tail.shards) * SHARD_BYTES

    def _held(self, *, but: ShardId | None) -> list[Held]:
        """Those that may go; never one that could not be brought in again as it is."""
        now = self._clock.monotonic()
        weight = self._weights()
        with self._known:
            staying = {but, *self._in_hand, *self.stale}
        return [
            Held(shard, s.held_bytes() + SHARD_BYTES, now - s.asked_s, weight.get(shard.tenant, 1))
            for shard, s in list(self._tail.shards.items())
            if shard not in staying
        ]

    def _let_go(self, shards: Iterable[ShardId]) -> None:
        """Set these down, but for what is being brought up to its manifest by now."""
        for shard in shards:
            with self._known:
                if shard not in self._in_hand:
                    self._set_down(shard)

    def _set_down(self, shard: ShardId) -> None:
        """Let go of it; the next question brings it in again."""
        with self._known:
            self._whole.discard(shard)
            self._to_fetch.pop(shard, None)
            self._tail.set_down(shard)
        _let_go.inc()

    def _fetched(self, shard: ShardId, version: int, error: VicinageError | None) -> None:
        """`version`: of the manifest that was known when it was begun."""
        with self._known:
            self._in_hand.discard(shard)
            if shard not in self._serving:
                self._forget(shard)  # let go of meanwhile
            elif error is None:
                self._note_here(shard)
            elif self._stored.get(shard, _NOTHING).version != version:
                self._to_fetch[shard] = 0.0  # it has other segments by now
            else:
                self._note_failed(shard, error)
            _stale.set(len(self.stale))
        self._settle(lambda w: self._refusal(w, error) if w.shard == shard else None)

    def _note_here(self, shard: ShardId) -> None:
        held = self._tail.shards.get(shard)
        if held is None:
            return  # the tail has given it up meanwhile
        for unwell in (self.stale, self.failed, self._again_s):
            unwell.pop(shard, None)
        if self._is_behind(shard, held):
            self._to_fetch[shard] = 0.0  # it got other segments meanwhile
        else:
            self._to_fetch.pop(shard, None)
        if self._has_all(shard):
            self._whole.add(shard)

    def _note_failed(self, shard: ShardId, error: VicinageError) -> None:
        """What is corrupt is never served; anything else is tried again soon, as long as somebody waits or it is searched meanwhile."""
        if isinstance(error, NoRoom) and shard not in self._tail.shards:
            self._to_fetch.pop(shard, None)  # it stays where it is until the next question
        elif not isinstance(error, Corrupt):
            self._to_fetch[shard] = self._clock.monotonic() + RETRY_S
            _event.error("shard not brought in", shard=str(shard), error=str(error), kind=error.kind)
        elif shard in self._whole and shard in self._tail.shards:
            self._let_be(shard, error)
        else:
            self._fail(shard, error)
            if isinstance(error, Damaged):  # it may be put back, or found whole; rows in the log stay as they are
                self._again_s[shard] = wait_s = longer(self._again_s.get(shard), CORRUPT_RETRY_S)
                self._to_fetch[shard] = self._clock.monotonic() + wait_s

    def _let_be(self, shard: ShardId, corrupt: Corrupt) -> None:
        """Serve on from what is held, and try the manifest again later and later."""
        before = self.stale.get(shard)
        wait_s = longer(before.wait_s if before else None, CORRUPT_RETRY_S)
        self.stale[shard] = Stale(corrupt.detail, wait_s)
        self._to_fetch[shard] = self._clock.monotonic() + wait_s
        _event.error("manifest not adopted", shard=str(shard), error=corrupt.detail, path=corrupt.path, retry_s=wait_s)

    def _fail(self, shard: ShardId, corrupt: Corrupt) -> None:
        self._tail.set_down(shard)
        self._whole.discard(shard)
        self._to_fetch.pop(shard, None)
        self.stale.pop(shard, None)
        self.failed[shard] = corrupt.detail
        _event.error("shard failed", shard=str(shard), error=corrupt.detail)

    # telling those who wait

    def _refusal(self, wait: _Wait, error: VicinageError | None = None) -> VicinageError | None:
        """Why it cannot be had; None where waiting on helps. `error`: what its last fetching met."""
        if wait.catalog > self._catalog:
            return None  # the next look is for it
        if wait.shard in self.failed:
            return Corrupt(self.failed[wait.shard], path=str(wait.shard))
        if wait.shard not in self._serving:
            return NotFound(f"there is no generation {wait.shard.generation} of {wait.shard.collection!r}")
        if self._serving[wait.shard].state != "live":
            return Unavailable(
                "the generation is not seen to be live yet", dependency="searcher", retry_after_s=RETRY_S
            )
        return error

    def _settle(self, refusal: Callable[[_Wait], VicinageError | None]) -> None:
        """Hand over what can answer now, and refuse what never will; the others wait on."""
        settled: list[tuple[_Wait, Shard | VicinageError]] = []
        with self._known:
            for wait in self._waits:
                outcome = self.at_once(wait.shard, wait.catalog) or refusal(wait)
                if outcome is not None:
                    settled.append((wait, outcome))
            ended = {id(wait) for wait, _ in settled}
            self._waits = [w for w in self._waits if id(w) not in ended and not w.over()]
        for wait, outcome in settled:  # without the lock: whoever is told may ask again at once
            if wait.future.set_running_or_notify_cancel():
                if isinstance(outcome, Shard):
                    wait.future.set_result(outcome)
                else:
                    wait.future.set_exception(outcome)

    def stop(self) -> None:
        """End the threads; whoever waits hears Unavailable."""
        self._stop.set()
        self._looked_for.set()
        with self._known:
            self._known.notify_all()

    def refuse_all(self, error: VicinageError) -> None:
        """Tell whoever still waits."""
        self._settle(lambda _: error)
