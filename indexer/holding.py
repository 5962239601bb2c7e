"""What a searcher holds: the shards of its slots, as the catalog has them.

Seeing the catalog and fetching segments are different threads' work. A question that was planned on a newer catalog waits for a
look, which is two small SELECTs; for the store waits only who asks for the very shard that is being fetched (law 7).
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from indexer.backends import Backend
from indexer.segment import Segment, load
from indexer.serving import serving
from indexer.shard import Shard
from indexer.tail import Tail
from tenants.entities import Generation, Manifest
from tenants.manifests import Manifests
from tenants.registry import Registry
from vicinage.catalog import unreachable
from vicinage.clock import Clock, Deadline
from vicinage.errors import Corrupt, NotFound, Overloaded, Unavailable, VicinageError
from vicinage.records import ShardId
from vicinage.settings import SearcherSettings
from vicinage.store import Store
from vicinage.telemetry import events, gauge

RETRY_S: Final = 0.5
NEWEST: Final = 1 << 62
"""No catalog has this version: whoever asks for it waits for the next look."""
CORRUPT_RETRY_S: Final = (1.0, 300.0)
"""A corrupt manifest is tried again after the first, then after twice as long each time, up to the second: every try reads it whole."""

_event = events("searcher")
_stale = gauge(
    "vicinage_searcher_stale_shards",
    "shards searched as of an older manifest, since a segment of the newest is corrupt",
)


@dataclass(frozen=True, slots=True)
class Stale:
    """A manifest that was found corrupt while an older one serves: why, and how long it is let be."""

    reason: str
    wait_s: float


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
        """The catalog version seen; every manifest as of it is adopted, or in `_behind`."""
        self._change = 0
        self._away = False
        """Whether the catalog could not be reached at the last look."""
        self._serving: dict[ShardId, Generation] = {}
        """Every shard that lies in these slots and may be searched."""
        self._behind: dict[ShardId, Manifest] = {}
        """Manifests that are still to be adopted."""
        self._to_fetch: dict[ShardId, float] = {}
        """Shards to be loaded, or brought up to their manifest, and when (monotonic), oldest first."""
        self._in_hand: set[ShardId] = set()
        """Those that a thread is fetching."""
        self._whole: set[ShardId] = set()
        """Shards that had all of their manifest once their generation was live: what came since is in the log, and so here.

        What a reindex copies before the cut-over is in its segments alone, so no other shard ever answers.
        """
        self.failed: dict[ShardId, str] = {}
        """Shards with rows that cannot be read, and why: refused until their manifest names others."""
        self.stale: dict[ShardId, Stale] = {}
        """Of `_behind`, those that are corrupt: the shard is searched as it was meanwhile."""
        self._waits: list[_Wait] = []

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
            self._known.notify_all()
        self._looked_for.set()
        return wait.future

    def _may_answer(self, shard: ShardId, catalog: int) -> bool:
        """While the catalog is away, a whole shard that was live at the last look answers: its rows are here, sealed or not."""
        return shard in self._whole and (catalog <= self._catalog or self._away)

    # seeing the catalog: one thread

    def look_all(self) -> None:
        """See the catalog every `adopt_s`, and whenever somebody waits for it, until stopped."""
        while not self._stop.is_set():
            self._looked_for.wait(self._settings.adopt_s)
            self._looked_for.clear()
            if not self._stop.is_set():
                self._look_for_those_who_wait()

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
            every = serving(self._registry)
            change, changed = self._manifests.changed_since(self._change, self._slots)
        except Unavailable as error:
            self._away = unreachable(error)
            raise
        with self._known:
            self._change, self._away = change, False
            news = catalog != self._catalog
            if news:
                self._see(every)
            for manifest in changed:
                if manifest.shard in self._serving:
                    self._see_manifest(manifest)
            if news:
                self._whole.update(s for s, g in self._serving.items() if self._has_all(s, g))
            self._catalog = catalog
            _stale.set(len(self.stale))
            self._known.notify_all()

    def _see(self, every: dict[ShardId, Generation]) -> None:
        self._serving = {shard: g for shard, g in every.items() if shard.slot in self._slots}
        for held in (self._behind, self._to_fetch, self.failed, self.stale, dict(self._tail.shards)):
            for shard in [s for s in held if s not in self._serving]:
                self._forget(shard)
        for shard in self._serving:
            if shard not in self._tail.shards and shard not in self.failed:
                self._to_fetch.setdefault(shard, 0.0)

    def _see_manifest(self, manifest: Manifest) -> None:
        """It has other segments now: they may be whole."""
        self.stale.pop(manifest.shard, None)
        self.failed.pop(manifest.shard, None)
        self._behind[manifest.shard] = manifest
        self._to_fetch[manifest.shard] = 0.0

    def _has_all(self, shard: ShardId, generation: Generation) -> bool:
        return generation.state == "live" and shard in self._tail.shards and shard not in self._behind

    def _forget(self, shard: ShardId) -> None:
        self._tail.leave(shard)
        self._whole.discard(shard)
        for held in (self._behind, self._to_fetch, self.failed, self.stale):
            held.pop(shard, None)

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
                generation, manifest = self._serving[shard], self._behind.get(shard)
            self._fetched(shard, manifest, self._tried(shard, generation, manifest))

    def fetch_first(self) -> None:
        """Bring in, once, everything that the first look found. Before the tail has begun there is no log to catch up with."""
        for shard in list(self._to_fetch):
            manifest = self._behind.get(shard)
            self._fetched(shard, manifest, self._tried(shard, self._serving[shard], manifest))

    def _next(self) -> ShardId | None:
        now = self._clock.monotonic()
        wanted = [w.shard for w in self._waits if w.shard in self._to_fetch and w.shard not in self.stale]
        due = (s for s, at in self._to_fetch.items() if at <= now)
        return next((s for s in (*wanted, *due) if s not in self._in_hand), None)

    def _tried(self, shard: ShardId, generation: Generation, manifest: Manifest | None) -> VicinageError | None:
        """What went wrong; None when the shard is here as its manifest says."""
        held = self._tail.shards.get(shard)
        try:
            if held is None:
                self._load(shard, generation)
            elif manifest is not None and manifest.version > held.snapshot.manifest.version:
                have = {s.ref.id: s for s in held.snapshot.segments}
                held.adopt(manifest, self._segments(manifest, generation, have))
        except NotFound as lost:  # a segment is gone: to whoever asks, its collection is there all the same
            return Unavailable(lost.detail, dependency="store", retry_after_s=RETRY_S)
        except VicinageError as error:
            return error
        return None

    def _load(self, shard: ShardId, generation: Generation) -> None:
        """Segments from the store, then the log from `sealed` on."""
        manifest = self._manifests.of(shard, start=generation.starts[generation.slots.index(shard.slot)])
        made = Shard(
            shard,
            dimension=generation.dimension,
            metric=generation.metric,
            recall=self._registry.collection(shard.tenant, shard.collection).objectives.recall,
            backend=self._backend,
            manifest=manifest,
        )
        made.adopt(manifest, self._segments(manifest, generation, {}))
        self._tail.join(made, manifest.sealed)

    def _segments(self, manifest: Manifest, generation: Generation, have: dict[str, Segment]) -> list[Segment]:
        return [
            have.get(ref.id) or load(ref, self._store, self._backend, generation.metric) for ref in manifest.segments
        ]

    def _fetched(self, shard: ShardId, tried: Manifest | None, error: VicinageError | None) -> None:
        with self._known:
            self._in_hand.discard(shard)
            if shard not in self._serving:
                self._forget(shard)  # let go of meanwhile
            elif error is None:
                self._note_here(shard)
            elif self._behind.get(shard) is not tried:
                self._to_fetch[shard] = 0.0  # it has other segments by now
            else:
                self._note_failed(shard, error)
            _stale.set(len(self.stale))
        self._settle(lambda w: self._refusal(w, error) if w.shard == shard else None)

    def _note_here(self, shard: ShardId) -> None:
        held, wanted = self._tail.shards.get(shard), self._behind.get(shard)
        if held is None:
            return  # the tail has given it up meanwhile
        self.stale.pop(shard, None)
        if wanted is None or wanted.version <= held.snapshot.manifest.version:
            self._behind.pop(shard, None)
            self._to_fetch.pop(shard, None)
        if self._has_all(shard, self._serving[shard]):
            self._whole.add(shard)

    def _note_failed(self, shard: ShardId, error: VicinageError) -> None:
        """What is corrupt is never served; anything else is tried again soon."""
        if not isinstance(error, Corrupt):
            self._to_fetch[shard] = self._clock.monotonic() + RETRY_S
            _event.error("shard not brought in", shard=str(shard), error=str(error), kind=error.kind)
        elif shard in self._whole and shard in self._tail.shards:
            self._let_be(shard, error)
        else:
            self._fail(shard, error)

    def _let_be(self, shard: ShardId, corrupt: Corrupt) -> None:
        """Serve on from what is held, and try the manifest again later and later."""
        least, most = CORRUPT_RETRY_S
        before = self.stale.get(shard)
        wait_s = min(2 * before.wait_s, most) if before else least
        self.stale[shard] = Stale(corrupt.detail, wait_s)
        self._to_fetch[shard] = self._clock.monotonic() + wait_s
        _event.error("manifest not adopted", shard=str(shard), error=corrupt.detail, path=corrupt.path, retry_s=wait_s)

    def _fail(self, shard: ShardId, corrupt: Corrupt) -> None:
        self._forget(shard)
        self.failed[shard] = corrupt.detail
        _event.error("shard failed", shard=str(shard), error=corrupt.detail)

    def give_up(self, shard: ShardId, corrupt: Corrupt) -> None:
        """The shard's rows in the log cannot be read: refuse it until its manifest names others."""
        with self._known:
            self._fail(shard, corrupt)

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
