"""Measures recall on live traffic: repeats sampled searches exactly, and compares the hits.

It runs off the request's path, in a bounded queue that drops samples instead of waiting, within a
configured share of time. Law 5: every figure has its sample count, a stated window (`windows.py`)
and an interval that is valid at every time (`interval.py`). The unit of the sample is the search,
because the hits of one search are correlated.
"""

import asyncio
import json
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Final, Protocol

import numpy as np

from query.merge import merge
from query.plan import Plan
from query.quality.correction import Correction, Proof
from query.quality.interval import ENOUGH
from query.quality.windows import Windows
from query.scatter import Searchers
from tenants.entities import Collection, Generation
from tenants.recall_history import RecallRecord
from tenants.recent_queries import RECENT_QUERIES_MAX
from vicinage.clock import Deadline
from vicinage.errors import Overloaded, Unavailable, VicinageError
from vicinage.fair import FairQueue
from vicinage.metrics import gauge
from vicinage.records import Floats, Hit, ShardResult
from vicinage.telemetry import events

QUEUE_MAX: Final = 256
KS_MAX: Final = 4
"""Maximum values of k judged per collection; a new one evicts the least used."""
DEADLINE_S: Final = 5.0
WORKED_S: Final = 1.0
"""Maximum seconds of a sample that count as work.

The rest is taken as waiting in its tenant's own queue, which other tenants do not pay for.
"""
HALF_ERROR: Final = 0.01
SAMPLES_MAX: Final = 4_096
"""Maximum number of collections kept, at most 0.1 MB each without their recent queries."""
KEEP_S: Final = 600.0
"""Interval at which a collection's recent queries are stored, once it has RECENT_QUERIES_MAX."""
FORMAT: Final = 2
"""Format version of a stored sample."""
KEEP_HISTORY_S: Final = 30.0
GAUGES_S: Final = 1.0
"""Minimum interval between updates of the gauges."""
KEEP_AT_ONCE: Final = 100
"""Number of collections stored in one transaction."""
Keep = Callable[[Generation, Floats], None]


class History(Protocol):
    """Storage of measurements across restarts. Both calls block, and raise Unavailable."""

    def keep(self, rows: Sequence[RecallRecord]) -> None:
        """Stores the rows. Durable on return."""
        ...

    def newest(self) -> list[RecallRecord]:
        """Returns the newest stored rows."""
        ...


_event = events("query")
_recall = gauge("vicinage_query_recall_ratio")
_below = gauge("vicinage_query_below_objective_collections")


@dataclass(slots=True)
class Sample:
    """Measurements of one collection's recall at one generation."""

    windows: dict[int, Windows] = field(default_factory=dict)
    """k → windows of the recall@k of served searches."""
    questions: deque[Floats] = field(default_factory=lambda: deque(maxlen=RECENT_QUERIES_MAX))
    """Newest query vectors, float16 [d], of searches that used an effort."""
    kept: int = 0
    """Number of queries last stored; `kept_s` is the time (monotonic)."""
    kept_s: float = 0.0
    taken: int = 0
    """Searches taken as samples, including discarded ones."""
    discarded: int = 0
    dropped: int = 0
    correction: Correction = field(default_factory=Correction)
    kept_samples: int = 0
    """Number of samples that the catalog has."""

    def samples(self) -> int:
        """Returns the number of samples of all windows of all k."""
        return sum(w.total for w in self.windows.values())

    def usual(self) -> tuple[int, Windows] | None:
        """Returns the most frequent k and its windows: recall at different k has no mean."""
        return max(self.windows.items(), key=lambda each: each[1].total, default=None)

    def of_k(self, k: int, now_ms: int) -> Windows:
        """Returns the windows of a k; beyond KS_MAX, evicts the least used k."""
        if k not in self.windows and len(self.windows) >= KS_MAX:
            del self.windows[min(self.windows, key=lambda other: self.windows[other].total)]
        return self.windows.setdefault(k, Windows(now_ms))

    def state(self) -> str:
        """Returns the state that survives a restart, as JSON, without the recent queries.

        The catalog stores those separately.
        """
        return json.dumps(
            {
                "format": FORMAT,
                "taken": self.taken,
                "discarded": self.discarded,
                "dropped": self.dropped,
                "correction": self.correction.state(),
                "windows": {str(k): w.state() for k, w in self.windows.items()},
            }
        )

    @classmethod
    def of_state(cls, text: str) -> "Sample":
        """Returns the sample of a `state`. Raises KeyError, TypeError, ValueError if invalid."""
        state = json.loads(text)
        if state["format"] != FORMAT:
            raise ValueError("another format")
        windows = {int(k): Windows.of_state(each) for k, each in state["windows"].items()}
        correction = Correction.of_state(state["correction"])
        made = cls(
            windows,
            taken=state["taken"],
            discarded=state["discarded"],
            dropped=state["dropped"],
            correction=correction,
        )
        made.kept_samples = made.samples()
        return made


@dataclass(frozen=True, slots=True)
class _Chose:
    """The choice of the segments with an index.

    `n_calibration_queries`: of every curve, at least. `greatest`: no greater effort was measured.
    """

    effort: int
    n_calibration_queries: int
    greatest: bool


@dataclass(frozen=True, slots=True)
class _Offer:
    plan: Plan
    hits: tuple[Hit, ...]
    changes: tuple[int, ...]
    chose: _Chose


@dataclass(frozen=True, slots=True)
class _Measured:
    """A sample's hits: exact, served, and by index, which differ if a scan replaced the index."""

    exact: tuple[Hit, ...]
    served: tuple[Hit, ...]
    by_index: tuple[Hit, ...]
    chose: _Chose


class RecallMonitor:
    """Belongs to one event loop. `cpu_share` bounds the time spent on exact searches.

    `keep` is called at intervals with the newest queries [n, d] of a collection whose segments have
    efforts; it may block, and raise Unavailable.
    """

    def __init__(
        self,
        searchers: Searchers,
        *,
        share: float,
        samples_min: int,
        cpu_share: float,
        keep: Keep | None = None,
        history: History | None = None,
    ) -> None:
        self._searchers = searchers
        self._history = history
        self._keep = keep
        self._share = share
        self._samples_min = samples_min
        self._cpu_share = cpu_share
        self._queue: FairQueue[_Offer] = FairQueue(items_max=QUEUE_MAX, quantum=1)
        """Serves tenants in turns: a tenant with slow samples does not delay the others."""
        self._some: asyncio.Queue[None] = asyncio.Queue()
        """One item per offer in the queue; `run` and `settled` wait for it."""
        self._samples: dict[tuple[str, str, int], Sample] = {}
        self._gauges_s = -math.inf
        self._random = random.Random()  # noqa: S311  (sampling, not secrets)

    def offer(
        self, plan: Plan, hits: tuple[Hit, ...], shard_results: Sequence[ShardResult]
    ) -> None:
        """Takes this search as a sample, or not. Never waits."""
        if plan.queries[0].exact:
            return
        sample = self._sample(plan)
        if sample.taken >= self._samples_min and self._random.random() >= self._share:
            return
        try:
            self._queue.put(plan.generation.tenant, [(_offer(plan, hits, shard_results), 1)])
        except Overloaded:
            sample.dropped += 1
            return
        sample.taken += 1
        self._some.put_nowait(None)

    async def run(self) -> None:
        """Measures queued samples, with proportional rests, until canceled."""
        while True:
            await self._some.get()
            [offer] = self._queue.take(1)
            start = time.perf_counter()
            chose = await self._measure(offer)
            await self._remember(offer, chose.effort)
            self._some.task_done()
            worked = min(time.perf_counter() - start, WORKED_S)
            await asyncio.sleep(worked * (1 / self._cpu_share - 1))

    async def keep_history(self) -> None:
        """Restores earlier measurements, then stores new ones periodically, until canceled."""
        if self._history is None:
            return
        restored = False
        while True:
            try:
                if not restored:
                    await self._restore(self._history)
                    restored = True
                else:
                    self._set_gauges()
                    await self.save()
            except Unavailable as away:
                _event.warning("recall.not_kept", reason=str(away))
            await asyncio.sleep(KEEP_HISTORY_S)

    async def _restore(self, history: History) -> None:
        """Replaces the samples since the start by the catalog's, if those are more."""
        loop = asyncio.get_running_loop()
        for kept in await loop.run_in_executor(None, history.newest):
            name = (kept.tenant, kept.collection, kept.generation)
            if name in self._samples and self._samples[name].samples() >= kept.samples:
                continue
            try:
                self._samples[name] = Sample.of_state(kept.state)
            except (KeyError, TypeError, ValueError) as error:
                _event.warning(
                    "recall.not_restored",
                    tenant=kept.tenant,
                    collection=kept.collection,
                    reason=str(error),
                )
        self._set_gauges()

    async def save(self) -> None:
        """Stores measurements since the last save. Durable on return. Raises Unavailable."""
        if self._history is None:
            return
        loop = asyncio.get_running_loop()
        changed = [(name, s) for name, s in self._samples.items() if s.samples() > s.kept_samples]
        for at in range(0, len(changed), KEEP_AT_ONCE):
            some = changed[at : at + KEEP_AT_ONCE]
            rows = [RecallRecord(*name, s.samples(), s.state()) for name, s in some]
            await loop.run_in_executor(None, self._history.keep, rows)
            for row, (_, sample) in zip(rows, some, strict=True):
                sample.kept_samples = row.samples

    async def settled(self) -> None:
        """Waits until every sample offered so far is measured."""
        await self._some.join()

    async def _measure(self, offer: _Offer) -> _Chose:
        """Records a sample; returns the choice of the index."""
        sample = self._sample(offer.plan)
        measured = await self._measured(offer)
        if measured is None or not self._is_current(offer.plan):
            sample.discarded += 1
            return offer.chose
        if measured.exact:  # without exact hits, recall is undefined
            self._note(sample, offer.plan, measured)
        return measured.chose

    async def _measured(self, offer: _Offer) -> _Measured | None:
        """Returns exact and served hits of the same passages; None if that fails."""
        plan, deadline = _without_content(offer.plan), Deadline.after(DEADLINE_S)
        k = plan.queries[0].k
        try:
            exact = await self._searchers.scatter(_exactly(plan), deadline)
            served, chose, changes = offer.hits, offer.chose, offer.changes
            if _changes(exact.shard_results) != changes:  # documents changed: search again
                again = await self._searchers.scatter(plan, deadline)
                served, chose, changes = (
                    merge(again.shard_results, k),
                    _chosen(again.shard_results),
                    _changes(again.shard_results),
                )
            by_index, seen = served, changes
            if plan.queries[0].scan:  # served without the index, which is what is judged
                index = await self._searchers.scatter(_by_index(plan), deadline)
                by_index, chose, seen = (
                    merge(index.shard_results, k),
                    _chosen(index.shard_results),
                    _changes(index.shard_results),
                )
        except VicinageError:
            return None
        if not _changes(exact.shard_results) == changes == seen:
            return None
        return _Measured(merge(exact.shard_results, k), served, by_index, chose)

    async def _remember(self, offer: _Offer, effort: int) -> None:
        """Records the search's vector, and stores the newest.

        Stores them at ENOUGH, at each doubling, and then every KEEP_S.
        """
        if self._keep is None or not effort:
            return
        sample, now = self._sample(offer.plan), time.monotonic()
        vector = offer.plan.queries[0].vectors[0]
        if not _fits_half(vector):
            return
        sample.questions.append(vector.astype(np.float16))
        if len(sample.questions) < min(RECENT_QUERIES_MAX, max(ENOUGH, 2 * sample.kept)):
            return
        if sample.kept == RECENT_QUERIES_MAX and now - sample.kept_s < KEEP_S:
            return
        sample.kept, sample.kept_s = len(sample.questions), now
        vectors = np.array(sample.questions, np.float32)
        try:
            await asyncio.get_running_loop().run_in_executor(
                None, self._keep, offer.plan.generation, vectors
            )
        except Unavailable as away:
            _event.warning("questions not kept", reason=str(away))

    def _note(self, sample: Sample, plan: Plan, measured: _Measured) -> None:
        now_ms = time.time_ns() // 1_000_000
        sample.of_k(plan.queries[0].k, now_ms).add(
            recall_of(measured.served, measured.exact), now_ms
        )
        if measured.chose.effort:
            self._correct(sample, plan, measured, now_ms)
        if time.monotonic() - self._gauges_s > GAUGES_S:
            self._set_gauges()

    def _correct(self, sample: Sample, plan: Plan, measured: _Measured, now_ms: int) -> None:
        """Corrects the effort by the hits that the index found."""
        objective, proven = plan.collection.objectives.recall, sample.correction.proven
        found = recall_of(measured.by_index, measured.exact)
        chose = measured.chose
        why = sample.correction.note(
            found, objective, chose.n_calibration_queries, greatest=chose.greatest, now_ms=now_ms
        )
        if why is not None:
            for windows in sample.windows.values():
                windows.restart(why, now_ms)
        if sample.correction.proven != proven:
            self._say(plan, sample.correction.proof)

    def _set_gauges(self) -> None:
        """Sets the gauges from all collections. Takes some milliseconds with thousands."""
        self._gauges_s = time.monotonic()
        usual = [each for each in (s.usual() for s in self._samples.values()) if each is not None]
        if usual:
            _recall.set(fmean(windows.judged().mean for _, windows in usual))
        _below.set(sum(s.correction.proven for s in self._samples.values()))

    def _say(self, plan: Plan, proof: Proof | None) -> None:
        g, objective = plan.generation, plan.collection.objectives.recall
        names = {
            "tenant": g.tenant,
            "collection": g.collection,
            "generation": g.number,
            "objective": objective,
        }
        if proof is None:
            _event.info("index.objective_met", **names)
        else:
            _event.warning("index.objective_missed", **names, **below(proof))

    def aim(self, collection: Collection) -> float:
        """Returns the recall to look up in effort curves for live searches to meet the objective."""
        sample = self._samples.get((collection.tenant, collection.name, collection.live))
        return collection.objectives.recall + (sample.correction.added if sample else 0.0)

    def misses(self, collection: Collection) -> bool:
        """Returns whether live searches prove a missed objective at the index's greatest effort."""
        sample = self._samples.get((collection.tenant, collection.name, collection.live))
        return sample is not None and sample.correction.proven

    def proof(self, collection: Collection) -> dict[str, Any] | None:
        """Returns that proof for the collection's facts; None without one."""
        sample = self._samples.get((collection.tenant, collection.name, collection.live))
        return below(sample.correction.proof) if sample and sample.correction.proof else None

    def _is_current(self, plan: Plan) -> bool:
        """Returns whether a plan made now would be the same; else its effort is another one."""
        query = plan.queries[0]
        aim, misses = self.aim(plan.collection), self.misses(plan.collection)
        return query.recall is None or (query.recall == aim and query.scan == misses)

    def _sample(self, plan: Plan) -> Sample:
        """Returns the sample of the plan's generation; evicts the LRU one beyond SAMPLES_MAX."""
        g = plan.generation
        name = (g.tenant, g.collection, g.number)
        sample = self._samples.pop(name) if name in self._samples else Sample()
        self._samples[name] = sample
        if len(self._samples) > SAMPLES_MAX:
            del self._samples[next(iter(self._samples))]
        return sample

    def of(self, collection: Collection) -> dict[str, Any] | None:
        """Returns the `report` row of the live generation; None without measurements."""
        name = (collection.tenant, collection.name, collection.live)
        sample = self._samples.get(name)
        return (
            row(name, sample, collection.objectives.recall) if sample and sample.windows else None
        )

    def report(
        self,
        targets: dict[tuple[str, str], float],
        tenant: str | None = None,
        collection: str | None = None,
    ) -> list[dict[str, Any]]:
        """Returns one row per measured collection of `targets`.

        A row has recall, interval, n, and the verdict against the target.
        """
        named = [
            name
            for name, sample in self._samples.items()
            if name[:2] in targets
            and tenant in (None, name[0])
            and collection in (None, name[1])
            and sample.windows
        ]
        return [row(name, self._samples[name], targets[name[:2]]) for name in sorted(named)]


def _offer(plan: Plan, hits: tuple[Hit, ...], shard_results: Sequence[ShardResult]) -> _Offer:
    bare = tuple(
        h._replace(text=None, metadata=None, vector=None) for h in hits
    )  # it may wait for minutes
    return _Offer(plan, bare, _changes(shard_results), _chosen(shard_results))


def _chosen(shard_results: Sequence[ShardResult]) -> _Chose:
    chose = [p for p in shard_results if p.effort]
    return _Chose(
        max((p.effort for p in chose), default=0),
        min((p.n_calibration_queries for p in chose), default=0),
        all(p.greatest for p in chose),
    )


def _fits_half(vector: Floats) -> bool:
    """Returns whether float16 is exact within HALF_ERROR; it fails for long or tiny vectors."""
    with np.errstate(over="ignore", invalid="ignore"):
        off = float(np.linalg.norm(vector.astype(np.float16).astype(np.float32) - vector))
    return off <= HALF_ERROR * float(np.linalg.norm(vector))


def recall_of(served: Sequence[Hit], exact: Sequence[Hit]) -> float:
    """Returns the share of the exact hits (at least one) that were served.

    A hit as near as the last exact hit counts, because ties have no order.
    """
    truth = {(h.document_id, h.passage) for h in exact}
    worst = min(h.score for h in exact)
    found = sum((h.document_id, h.passage) in truth or h.score >= worst for h in served)
    return min(1.0, found / len(exact))


def row(name: tuple[str, str, int], sample: Sample, target: float) -> dict[str, Any]:
    """Returns the report of one collection: a window of the most frequent k."""
    usual = sample.usual()
    assert usual is not None, "only what was measured is reported"
    k, judged = usual[0], usual[1].judged()
    return {
        "tenant": name[0],
        "collection": name[1],
        "generation": name[2],
        "k": k,
        "recall": round(judged.mean, 4),
        "interval": [judged.low, judged.high],
        "n": judged.n,
        "samples": usual[1].total,
        "target": target,
        "verdict": judged.verdict(target),
        "window": judged.window(),
        "correction": sample.correction.added,
        "below_objective": below(sample.correction.proof) if sample.correction.proof else None,
        "discarded": sample.discarded,
        "dropped": sample.dropped,
    }


def below(proof: Proof) -> dict[str, Any]:
    """Returns the report's form of the proof that an index misses its objective."""
    return {
        "since_ms": proof.since_ms,
        "recall": round(proof.recall, 4),
        "interval": [proof.low, proof.high],
        "n": proof.n,
    }


def _changes(shard_results: Sequence[ShardResult]) -> tuple[int, ...]:
    return tuple(p.changes for p in shard_results)


def _exactly(plan: Plan) -> Plan:
    return replace(plan, queries=tuple(replace(q, exact=True) for q in plan.queries))


def _by_index(plan: Plan) -> Plan:
    return replace(plan, queries=tuple(replace(q, scan=False) for q in plan.queries))


def _without_content(plan: Plan) -> Plan:
    return replace(plan, queries=tuple(replace(q, include=frozenset()) for q in plan.queries))
