"""Measures recall on live traffic: repeats sampled searches exactly, and compares the hits.

It runs off the request's path, in a bounded queue that drops samples instead of waiting, within a
configured share of time. Guarantee 5: every figure has its sample count, a stated window
(`windows.py`) and an interval that is valid at every time (`interval.py`). The unit of the sample
is the search, because the hits of one search are correlated.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Final

from query.plan import Plan
from query.quality.comparison import Comparison, ServedSearch, compare, recall_of, served_search
from query.quality.correction import Proof
from query.quality.recall_history import History, restore, save
from query.quality.samples import Sample, Samples, below, row
from query.scatter import Searchers
from tenants.entities import Collection, Generation
from vicinage.errors import Overloaded, Unavailable
from vicinage.fair import FairQueue
from vicinage.metrics import gauge
from vicinage.records import Floats, Hit, ShardResult
from vicinage.telemetry import events

QUEUE_MAX: Final = 256
WORKED_S: Final = 1.0
"""Maximum seconds of a sample that count as work.

The rest is taken as waiting in its tenant's own queue, which other tenants do not pay for.
"""
SAVE_S: Final = 30.0
"""Interval at which new measurements are stored."""
GAUGES_S: Final = 1.0
"""Minimum interval between updates of the gauges."""
KeepRecentQueries = Callable[[Generation, Floats], None]
"""Stores recent query vectors, on which the next segments' effort curves are measured."""

_event = events("query")
_recall = gauge("vicinage_query_recall_ratio")
_below = gauge("vicinage_query_below_objective_collections")


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
        keep: KeepRecentQueries | None = None,
        history: History | None = None,
    ) -> None:
        self._searchers = searchers
        self._history = history
        self._keep = keep
        self._share = share
        self._samples_min = samples_min
        self._cpu_share = cpu_share
        self._queue: FairQueue[ServedSearch] = FairQueue(items_max=QUEUE_MAX, quantum=1)
        """Serves tenants in turns: a tenant with slow samples does not delay the others."""
        self._queued: asyncio.Queue[None] = asyncio.Queue()
        """One item per search in the queue; `run` and `settled` wait for it."""
        self._samples = Samples()
        self._gauges_s = -math.inf
        self._random = random.Random()  # noqa: S311  (sampling, not secrets)

    # measuring

    def offer(
        self, plan: Plan, hits: tuple[Hit, ...], shard_results: Sequence[ShardResult]
    ) -> None:
        """Takes this search as a sample, or not. Never waits."""
        if plan.queries[0].exact:
            return
        sample = self._samples.touch(plan.generation)
        if sample.taken >= self._samples_min and self._random.random() >= self._share:
            return
        search = served_search(plan, hits, shard_results)
        try:
            self._queue.put(plan.generation.tenant, [(search, 1)])
        except Overloaded:
            sample.dropped += 1
            return
        sample.taken += 1
        self._queued.put_nowait(None)

    async def run(self) -> None:
        """Measures queued samples, with proportional rests, until canceled."""
        while True:
            await self._queued.get()
            [search] = self._queue.take(1)
            start = time.perf_counter()
            effort = await self._measure(search)
            await self._keep_query(search, effort)
            self._queued.task_done()
            worked = min(time.perf_counter() - start, WORKED_S)
            await asyncio.sleep(worked * (1 / self._cpu_share - 1))

    async def settled(self) -> None:
        """Waits until every sample offered so far is measured."""
        await self._queued.join()

    async def _measure(self, search: ServedSearch) -> int:
        """Records a sample; returns the effort that the index chose."""
        sample = self._samples.touch(search.plan.generation)
        comparison = await compare(search, self._searchers)
        if comparison is None or not self._is_current(search.plan):
            sample.discarded += 1
            return search.choice.effort
        if comparison.exact:  # without exact hits, recall is undefined
            self._note(sample, search.plan, comparison)
        return comparison.choice.effort

    def _is_current(self, plan: Plan) -> bool:
        """Returns whether a plan made now would be the same; else its effort is another one."""
        query = plan.queries[0]
        target, misses = self.target_recall(plan.collection), self.misses_objective(plan.collection)
        return query.recall is None or (query.recall == target and query.scan == misses)

    def _note(self, sample: Sample, plan: Plan, comparison: Comparison) -> None:
        now_ms, proven = time.time_ns() // 1_000_000, sample.correction.proven
        served = recall_of(comparison.served, comparison.exact)
        sample.windows_of(plan.queries[0].k, now_ms).add(served, now_ms)
        if comparison.choice.effort:
            by_index = recall_of(comparison.by_index, comparison.exact)
            objective = plan.collection.objectives.recall
            sample.correct(by_index, objective, comparison.choice, now_ms)
        if sample.correction.proven != proven:
            _log_verdict(plan, sample.correction.proof)
        if time.monotonic() - self._gauges_s > GAUGES_S:
            self._set_gauges()

    async def _keep_query(self, search: ServedSearch, effort: int) -> None:
        """Records the search's vector, and stores the newest ones when they are due."""
        if self._keep is None or not effort:
            return
        recent = self._samples.touch(search.plan.generation).recent
        if not recent.add(search.plan.queries[0].vectors[0]):
            return
        vectors = recent.take_due(time.monotonic())
        if vectors is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(
                None, self._keep, search.plan.generation, vectors
            )
        except Unavailable as error:
            _event.warning("recent_queries.not_stored", reason=str(error))

    def _set_gauges(self) -> None:
        """Sets the gauges from all collections. Takes some milliseconds with thousands."""
        self._gauges_s = time.monotonic()
        most_frequent = [
            each for each in (s.most_frequent() for _, s in self._samples) if each is not None
        ]
        if most_frequent:
            _recall.set(fmean(windows.judged().mean for _, windows in most_frequent))
        _below.set(sum(s.correction.proven for _, s in self._samples))

    # keeping measurements over restarts

    async def keep_history(self) -> None:
        """Restores earlier measurements, then stores new ones periodically, until canceled."""
        if self._history is None:
            return
        restored = False
        while True:
            try:
                if not restored:
                    await restore(self._samples, self._history)
                    restored = True
                    self._set_gauges()
                else:
                    self._set_gauges()
                    await self.save()
            except Unavailable as error:
                _event.warning("recall.not_kept", reason=str(error))
            await asyncio.sleep(SAVE_S)

    async def save(self) -> None:
        """Stores measurements since the last save. Durable on return. Raises Unavailable."""
        if self._history is not None:
            await save(self._samples, self._history)

    # results

    def target_recall(self, collection: Collection) -> float:
        """Returns the recall to look up in effort curves, so that searches meet the objective."""
        sample = self._samples.live(collection)
        return collection.objectives.recall + (sample.correction.added if sample else 0.0)

    def misses_objective(self, collection: Collection) -> bool:
        """Returns whether live searches prove a missed objective at the index's greatest effort."""
        sample = self._samples.live(collection)
        return sample is not None and sample.correction.proven

    def proof(self, collection: Collection) -> dict[str, Any] | None:
        """Returns that proof for the collection's facts; None without one."""
        sample = self._samples.live(collection)
        return below(sample.correction.proof) if sample and sample.correction.proof else None

    def of(self, collection: Collection) -> dict[str, Any] | None:
        """Returns the `report` row of the live generation; None without measurements."""
        name = (collection.tenant, collection.name, collection.live)
        sample = self._samples.get(name)
        if sample is None or not sample.windows:
            return None
        return row(name, sample, collection.objectives.recall)

    def report(
        self,
        targets: dict[tuple[str, str], float],
        tenant: str | None = None,
        collection: str | None = None,
    ) -> list[dict[str, Any]]:
        """Returns one row per measured collection of `targets`.

        A row has recall, interval, n, and the verdict against the target.
        """
        rows = [
            row(name, sample, targets[name[:2]])
            for name, sample in self._samples
            if name[:2] in targets
            and tenant in (None, name[0])
            and collection in (None, name[1])
            and sample.windows
        ]
        return sorted(rows, key=lambda r: (r["tenant"], r["collection"], r["generation"]))


def _log_verdict(plan: Plan, proof: Proof | None) -> None:
    names = {
        "tenant": plan.generation.tenant,
        "collection": plan.generation.collection,
        "generation": plan.generation.number,
        "objective": plan.collection.objectives.recall,
    }
    if proof is None:
        _event.info("index.objective_met", **names)
    else:
        _event.warning("index.objective_missed", **names, **below(proof))
