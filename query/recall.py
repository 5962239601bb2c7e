"""Recall measured on live traffic: sampled searches are done again exactly, and compared.

Off the request's path, in a bounded queue that drops rather than waits, within a stated share of time. Law 5: every figure
comes with its sample count and a 95 % interval; the unit of the sample is the question, since the hits of one are correlated.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Final

import numpy as np

from query.correction import Correction
from query.interval import ENOUGH, interval
from query.merge import merge
from query.plan import Plan
from query.scatter import Searchers
from tenants.entities import Collection, Generation
from tenants.questions import QUESTIONS_MAX
from vicinage.clock import Deadline
from vicinage.errors import Overloaded, Unavailable, VicinageError
from vicinage.fair import FairQueue
from vicinage.records import Floats, Hit, Partial
from vicinage.telemetry import events, gauge

QUEUE_MAX: Final = 256
WINDOW: Final = 2_000
"""Samples kept of each collection."""
DEADLINE_S: Final = 5.0
WORKED_S: Final = 1.0
"""Of the time that a sample took, what is believed to be work: the rest was waiting in its tenant's own line, for which others do not pay."""
HALF_ERROR: Final = 0.01
SAMPLES_MAX: Final = 4_096
"""Collections that are remembered, at most 0.2 MB each."""
KEEP_S: Final = 600.0
"""How often the questions of a collection are kept anew, once there are QUESTIONS_MAX."""
Keep = Callable[[Generation, Floats], None]
_event = events("query")
_recall = gauge(
    "vicinage_query_recall",
    "recall@k measured on sampled live searches, mean over collections; by collection: `vicinage recall`",
)


@dataclass(slots=True)
class Sample:
    """What is known of one collection's recall at one generation."""

    measured: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """(k, recall@k) of each sampled search, oldest first."""
    mean: float = 1.0
    """Of those at the usual k."""
    questions: deque[Floats] = field(default_factory=lambda: deque(maxlen=QUESTIONS_MAX))
    """Vectors float16 [d] of the newest, where effort has a choice."""
    kept: int = 0
    """How many of them were last kept, and when (monotonic)."""
    kept_s: float = 0.0
    taken: int = 0
    """Searches that were taken for samples, whatever came of them."""
    discarded: int = 0
    dropped: int = 0
    correction: Correction = field(default_factory=Correction)

    def at_usual_k(self) -> tuple[int, list[float]]:
        """The k asked most often, and recall at it: recall at different k has no mean."""
        usual = Counter(k for k, _ in self.measured).most_common(1)[0][0]
        return usual, [value for k, value in self.measured if k == usual]


@dataclass(frozen=True, slots=True)
class _Offer:
    plan: Plan
    hits: tuple[Hit, ...]
    changes: tuple[int, ...]
    effort: int
    asked: int
    """Questions that every curve was measured on that chose an effort."""


class RecallMonitor:
    """Belongs to one event loop. `cpu_share` bounds the time spent on exact searches.

    `keep` hears now and then of the newest questions [n, d] of a collection whose segments have efforts; it may block, and raise Unavailable.
    """

    def __init__(
        self, searchers: Searchers, *, share: float, samples_min: int, cpu_share: float, keep: Keep | None = None
    ) -> None:
        self._searchers = searchers
        self._keep = keep
        self._share = share
        self._samples_min = samples_min
        self._cpu_share = cpu_share
        self._queue: FairQueue[_Offer] = FairQueue(items_max=QUEUE_MAX, quantum=1)
        """In turns, tenant by tenant: who waits long in its own line does not make the others wait behind all that it asked."""
        self._some: asyncio.Queue[None] = asyncio.Queue()
        """One for each offer in the queue: what `run` and `settled` wait for."""
        self._samples: dict[tuple[str, str, int], Sample] = {}
        self._random = random.Random()  # noqa: S311  (sampling, not secrets)

    def offer(self, plan: Plan, hits: tuple[Hit, ...], partials: Sequence[Partial]) -> None:
        """Perhaps take this search as a sample. Never waits."""
        if plan.queries[0].exact:
            return
        sample = self._sample(plan)
        if sample.taken >= self._samples_min and self._random.random() >= self._share:
            return
        try:
            self._queue.put(plan.generation.tenant, [(_offer(plan, hits, partials), 1)])
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
            await self._measure(offer)
            await self._remember(offer)
            self._some.task_done()
            worked = min(time.perf_counter() - start, WORKED_S)
            await asyncio.sleep(worked * (1 / self._cpu_share - 1))

    async def settled(self) -> None:
        """Return once every sample offered so far is worked off."""
        await self._some.join()

    async def _measure(self, offer: _Offer) -> None:
        sample = self._sample(offer.plan)
        deadline = Deadline.after(DEADLINE_S)
        plan = _without_content(offer.plan)
        try:
            exact = await self._searchers.scatter(_exactly(plan), deadline)
            hits, changes = offer.hits, offer.changes
            if _changes(exact.partials) != changes:  # documents came in between: serve it once more
                again = await self._searchers.scatter(plan, deadline)
                hits, changes = merge(again.partials, plan.queries[0].k), _changes(again.partials)
        except VicinageError:
            sample.discarded += 1
            return
        if _changes(exact.partials) != changes:
            sample.discarded += 1
            return
        self._note(sample, offer, hits, merge(exact.partials, plan.queries[0].k))

    async def _remember(self, offer: _Offer) -> None:
        """Note the question, and have the newest kept: once they are enough to say something, whenever they have doubled, then every KEEP_S."""
        if self._keep is None or not offer.effort:
            return
        sample, now = self._sample(offer.plan), time.monotonic()
        vector = offer.plan.queries[0].vectors[0]
        if not _fits_half(vector):
            return
        sample.questions.append(vector.astype(np.float16))
        if len(sample.questions) < min(QUESTIONS_MAX, max(ENOUGH, 2 * sample.kept)):
            return
        if sample.kept == QUESTIONS_MAX and now - sample.kept_s < KEEP_S:
            return
        sample.kept, sample.kept_s = len(sample.questions), now
        vectors = np.array(sample.questions, np.float32)
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._keep, offer.plan.generation, vectors)
        except Unavailable as away:
            _event.warning("questions not kept", reason=str(away))

    def _note(self, sample: Sample, offer: _Offer, served: Sequence[Hit], exact: Sequence[Hit]) -> None:
        if not exact:
            return  # where there is nothing to find, nothing is said about finding
        found = recall_of(served, exact)
        sample.measured.append((offer.plan.queries[0].k, found))
        sample.correction.note(found, offer.plan.collection.objectives.recall, offer.asked)
        sample.mean = fmean(sample.at_usual_k()[1])
        _recall.set(fmean(s.mean for s in self._samples.values() if s.measured))

    def aim(self, collection: Collection) -> float:
        """The recall to ask of the effort curves, so that the objective is what live searches have."""
        sample = self._samples.get((collection.tenant, collection.name, collection.live))
        return collection.objectives.recall + (sample.correction.added if sample else 0.0)

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
        return row(name, sample, collection.objectives.recall) if sample and sample.measured else None

    def report(
        self, targets: dict[tuple[str, str], float], tenant: str | None = None, collection: str | None = None
    ) -> list[dict[str, Any]]:
        """One row per collection of `targets` that was measured: recall, interval, n, and the verdict against its target."""
        named = [
            name
            for name, sample in self._samples.items()
            if name[:2] in targets and tenant in (None, name[0]) and collection in (None, name[1]) and sample.measured
        ]
        return [row(name, self._samples[name], targets[name[:2]]) for name in sorted(named)]


def _offer(plan: Plan, hits: tuple[Hit, ...], partials: Sequence[Partial]) -> _Offer:
    chose = [p for p in partials if p.effort]
    effort, asked = max((p.effort for p in chose), default=0), min((p.asked for p in chose), default=0)
    bare = tuple(h._replace(text=None, metadata=None, vector=None) for h in hits)  # it may wait for minutes
    return _Offer(plan, bare, _changes(partials), effort, asked)


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
    """The report of one collection."""
    k, values = sample.at_usual_k()
    low, high = interval(values)
    verdict = "not_enough_samples" if len(values) < ENOUGH else "breach" if high < target else "ok"
    return {
        "tenant": name[0],
        "collection": name[1],
        "generation": name[2],
        "k": k,
        "recall": round(fmean(values), 4),
        "interval": [round(low, 4), round(high, 4)],
        "n": len(values),
        "target": target,
        "verdict": verdict,
        "correction": sample.correction.added,
        "discarded": sample.discarded,
        "dropped": sample.dropped,
    }


def _changes(partials: Sequence[Partial]) -> tuple[int, ...]:
    return tuple(p.changes for p in partials)


def _exactly(plan: Plan) -> Plan:
    return replace(plan, queries=tuple(replace(q, exact=True) for q in plan.queries))


def _without_content(plan: Plan) -> Plan:
    return replace(plan, queries=tuple(replace(q, include=frozenset()) for q in plan.queries))
