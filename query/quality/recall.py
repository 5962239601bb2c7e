"""Recall measured on live traffic: sampled searches are done again exactly, and compared.

Off the request's path, in a bounded queue that drops rather than waits, within a stated share of time.
Law 5: every figure comes with its sample count and an interval that is valid at every time
(`interval.py`), of a stated window (`windows.py`). The unit of the sample is the search, since the hits
of one search are correlated.
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
from vicinage.records import Floats, Hit, ShardResult
from vicinage.telemetry import events, gauge

QUEUE_MAX: Final = 256
KS_MAX: Final = 4
"""Values of k whose recall is judged in each collection; the least used gives way to a new one."""
DEADLINE_S: Final = 5.0
WORKED_S: Final = 1.0
"""Of the time that a sample took, what is believed to be work: the rest was waiting in its tenant's own line, for which others do not pay."""
HALF_ERROR: Final = 0.01
SAMPLES_MAX: Final = 4_096
"""Collections that are remembered, at most 0.1 MB each beside their questions."""
KEEP_S: Final = 600.0
"""How often the questions of a collection are kept anew, once there are RECENT_QUERIES_MAX."""
FORMAT: Final = 2
"""Of what is kept of a sample."""
KEEP_HISTORY_S: Final = 30.0
GAUGES_S: Final = 1.0
"""How often the gauges follow the samples, at most."""
KEEP_AT_ONCE: Final = 100
"""Collections that are kept in one transaction."""
Keep = Callable[[Generation, Floats], None]


class History(Protocol):
    """Where what was measured is kept over a restart. Both calls block, and raise Unavailable."""

    def keep(self, rows: Sequence[RecallRecord]) -> None:
        """Keep these. Durable on return."""
        ...

    def newest(self) -> list[RecallRecord]:
        """What was kept last."""
        ...


_event = events("query")
_recall = gauge(
    "vicinage_query_recall",
    "recall@k measured on sampled live searches, mean over collections; by collection: `vicinage recall`",
)
_below = gauge(
    "vicinage_query_below_objective_collections",
    "collections whose index live searches prove to miss the recall objective at its greatest effort",
)


@dataclass(slots=True)
class Sample:
    """What is known of one collection's recall at one generation."""

    windows: dict[int, Windows] = field(default_factory=dict)
    """Of each k that is asked, the recall@k of what was served."""
    questions: deque[Floats] = field(default_factory=lambda: deque(maxlen=RECENT_QUERIES_MAX))
    """Vectors float16 [d] of the newest, where effort has a choice."""
    kept: int = 0
    """How many of them were last kept, and when (monotonic)."""
    kept_s: float = 0.0
    taken: int = 0
    """Searches that were taken for samples, whatever came of them."""
    discarded: int = 0
    dropped: int = 0
    correction: Correction = field(default_factory=Correction)
    kept_samples: int = 0
    """How many samples the catalog has."""

    def samples(self) -> int:
        """Samples of all windows of all k."""
        return sum(w.total for w in self.windows.values())

    def usual(self) -> tuple[int, Windows] | None:
        """The k that is asked most often, and recall at it: recall at different k has no mean."""
        return max(self.windows.items(), key=lambda each: each[1].total, default=None)

    def of_k(self, k: int, now_ms: int) -> Windows:
        """The windows of a k; the least used of the others gives way."""
        if k not in self.windows and len(self.windows) >= KS_MAX:
            del self.windows[min(self.windows, key=lambda other: self.windows[other].total)]
        return self.windows.setdefault(k, Windows(now_ms))

    def state(self) -> str:
        """What survives a restart, as JSON: all but the questions, which the catalog keeps by themselves."""
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
        """The sample that `state` was taken of. Raises KeyError, TypeError, ValueError for anything else."""
        state = json.loads(text)
        if state["format"] != FORMAT:
            raise ValueError("another format")
        windows = {int(k): Windows.of_state(each) for k, each in state["windows"].items()}
        correction = Correction.of_state(state["correction"])
        made = cls(
            windows, taken=state["taken"], discarded=state["discarded"], dropped=state["dropped"], correction=correction
        )
        made.kept_samples = made.samples()
        return made


@dataclass(frozen=True, slots=True)
class _Chose:
    """What the segments with an index chose: effort, questions that every curve was measured on, and whether no effort is greater."""

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
    """One sample: the exact hits, those served, and those that the index finds, which differ where it was scanned instead."""

    exact: tuple[Hit, ...]
    served: tuple[Hit, ...]
    by_index: tuple[Hit, ...]
    chose: _Chose


class RecallMonitor:
    """Belongs to one event loop. `cpu_share` bounds the time spent on exact searches.

    `keep` hears now and then of the newest questions [n, d] of a collection whose segments have efforts; it may block, and raise Unavailable.
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
        """In turns, tenant by tenant: who waits long in its own line does not make the others wait behind all that it asked."""
        self._some: asyncio.Queue[None] = asyncio.Queue()
        """One for each offer in the queue: what `run` and `settled` wait for."""
        self._samples: dict[tuple[str, str, int], Sample] = {}
        self._gauges_s = -math.inf
        self._random = random.Random()  # noqa: S311  (sampling, not secrets)

    def offer(self, plan: Plan, hits: tuple[Hit, ...], shard_results: Sequence[ShardResult]) -> None:
        """Perhaps take this search as a sample. Never waits."""
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
        """Work off the samples, resting in proportion, until cancelled."""
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
        """Take in what was measured before the restart, then keep what is measured, until canceled."""
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
        """What the catalog has takes the place of the few samples since the start."""
        loop = asyncio.get_running_loop()
        for kept in await loop.run_in_executor(None, history.newest):
            name = (kept.tenant, kept.collection, kept.generation)
            if name in self._samples and self._samples[name].samples() >= kept.samples:
                continue
            try:
                self._samples[name] = Sample.of_state(kept.state)
            except (KeyError, TypeError, ValueError) as error:
                _event.warning("recall.not_restored", tenant=kept.tenant, collection=kept.collection, reason=str(error))
        self._set_gauges()

    async def save(self) -> None:
        """Keep what was measured since it was last kept. Durable on return. Raises Unavailable."""
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
        """Return once every sample offered so far is worked off."""
        await self._some.join()

    async def _measure(self, offer: _Offer) -> _Chose:
        """Note what a sample says; what the index chose."""
        sample = self._sample(offer.plan)
        measured = await self._measured(offer)
        if measured is None or not self._is_current(offer.plan):
            sample.discarded += 1
            return offer.chose
        if measured.exact:  # where there is nothing to find, nothing is said about finding
            self._note(sample, offer.plan, measured)
        return measured.chose

    async def _measured(self, offer: _Offer) -> _Measured | None:
        """The exact hits beside those served; None where both cannot be had of the same passages."""
        plan, deadline = _without_content(offer.plan), Deadline.after(DEADLINE_S)
        k = plan.queries[0].k
        try:
            exact = await self._searchers.scatter(_exactly(plan), deadline)
            served, chose, changes = offer.hits, offer.chose, offer.changes
            if _changes(exact.shard_results) != changes:  # documents came in between: serve it once more
                again = await self._searchers.scatter(plan, deadline)
                served, chose, changes = (
                    merge(again.shard_results, k),
                    _chosen(again.shard_results),
                    _changes(again.shard_results),
                )
            by_index, seen = served, changes
            if plan.queries[0].scan:  # it was served without the index, which is what is judged
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
        """Note the search's vector, and have the newest kept: once they are enough to say something, whenever they have doubled, then every KEEP_S."""
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
            await asyncio.get_running_loop().run_in_executor(None, self._keep, offer.plan.generation, vectors)
        except Unavailable as away:
            _event.warning("questions not kept", reason=str(away))

    def _note(self, sample: Sample, plan: Plan, measured: _Measured) -> None:
        now_ms = time.time_ns() // 1_000_000
        sample.of_k(plan.queries[0].k, now_ms).add(recall_of(measured.served, measured.exact), now_ms)
        if measured.chose.effort:
            self._correct(sample, plan, measured, now_ms)
        if time.monotonic() - self._gauges_s > GAUGES_S:
            self._set_gauges()

    def _correct(self, sample: Sample, plan: Plan, measured: _Measured, now_ms: int) -> None:
        """Have the effort follow what the index found."""
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
        """Set them from all collections: some milliseconds with thousands."""
        self._gauges_s = time.monotonic()
        usual = [each for each in (s.usual() for s in self._samples.values()) if each is not None]
        if usual:
            _recall.set(fmean(windows.judged().mean for _, windows in usual))
        _below.set(sum(s.correction.proven for s in self._samples.values()))

    def _say(self, plan: Plan, proof: Proof | None) -> None:
        g, objective = plan.generation, plan.collection.objectives.recall
        names = {"tenant": g.tenant, "collection": g.collection, "generation": g.number, "objective": objective}
        if proof is None:
            _event.info("index.objective_met", **names)
        else:
            _event.warning("index.objective_missed", **names, **below(proof))

    def aim(self, collection: Collection) -> float:
        """The recall to ask of the effort curves, so that the objective is what live searches have."""
        sample = self._samples.get((collection.tenant, collection.name, collection.live))
        return collection.objectives.recall + (sample.correction.added if sample else 0.0)

    def misses(self, collection: Collection) -> bool:
        """Whether live searches prove that the index misses the objective at its greatest effort."""
        sample = self._samples.get((collection.tenant, collection.name, collection.live))
        return sample is not None and sample.correction.proven

    def proof(self, collection: Collection) -> dict[str, Any] | None:
        """That proof, as the collection's facts state it; None without one."""
        sample = self._samples.get((collection.tenant, collection.name, collection.live))
        return below(sample.correction.proof) if sample and sample.correction.proof else None

    def _is_current(self, plan: Plan) -> bool:
        """Whether the plan asks for what would be asked for now: else its recall is that of another effort."""
        query = plan.queries[0]
        aim, misses = self.aim(plan.collection), self.misses(plan.collection)
        return query.recall is None or (query.recall == aim and query.scan == misses)

    def _sample(self, plan: Plan) -> Sample:
        """That of the plan's generation; beyond SAMPLES_MAX the one that was asked for longest ago is forgotten."""
        g = plan.generation
        name = (g.tenant, g.collection, g.number)
        sample = self._samples.pop(name) if name in self._samples else Sample()
        self._samples[name] = sample
        if len(self._samples) > SAMPLES_MAX:
            del self._samples[next(iter(self._samples))]
        return sample

    def of(self, collection: Collection) -> dict[str, Any] | None:
        """The row of the live generation, as `report` has it; None where nothing was measured."""
        name = (collection.tenant, collection.name, collection.live)
        sample = self._samples.get(name)
        return row(name, sample, collection.objectives.recall) if sample and sample.windows else None

    def report(
        self, targets: dict[tuple[str, str], float], tenant: str | None = None, collection: str | None = None
    ) -> list[dict[str, Any]]:
        """One row per collection of `targets` that was measured: recall, interval, n, and the verdict against its target."""
        named = [
            name
            for name, sample in self._samples.items()
            if name[:2] in targets and tenant in (None, name[0]) and collection in (None, name[1]) and sample.windows
        ]
        return [row(name, self._samples[name], targets[name[:2]]) for name in sorted(named)]


def _offer(plan: Plan, hits: tuple[Hit, ...], shard_results: Sequence[ShardResult]) -> _Offer:
    bare = tuple(h._replace(text=None, metadata=None, vector=None) for h in hits)  # it may wait for minutes
    return _Offer(plan, bare, _changes(shard_results), _chosen(shard_results))


def _chosen(shard_results: Sequence[ShardResult]) -> _Chose:
    chose = [p for p in shard_results if p.effort]
    return _Chose(
        max((p.effort for p in chose), default=0),
        min((p.n_calibration_queries for p in chose), default=0),
        all(p.greatest for p in chose),
    )


def _fits_half(vector: Floats) -> bool:
    """Whether float16 holds it within a hundredth: of long or tiny vectors it holds nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        off = float(np.linalg.norm(vector.astype(np.float16).astype(np.float32) - vector))
    return off <= HALF_ERROR * float(np.linalg.norm(vector))


def recall_of(served: Sequence[Hit], exact: Sequence[Hit]) -> float:
    """Share of the exact hits (at least one) that were served; one as near as the last exact hit counts: ties have no order."""
    truth = {(h.document_id, h.passage) for h in exact}
    worst = min(h.score for h in exact)
    found = sum((h.document_id, h.passage) in truth or h.score >= worst for h in served)
    return min(1.0, found / len(exact))


def row(name: tuple[str, str, int], sample: Sample, target: float) -> dict[str, Any]:
    """The report of one collection: a window of the k that is asked most often."""
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
    """What live searches prove of an index at its greatest effort."""
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
