"""Live recall: what is counted, its statistics, and that it never delays searches."""

import asyncio
from collections.abc import Collection as Slots
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from query.plan import Plan, SearchRequest, make_plan
from query.quality.comparison import served_search
from query.quality.interval import SAMPLES_MIN
from query.quality.recall import QUEUE_MAX, RecallMonitor
from query.quality.samples import fits_half
from query.scatter import Searchers
from tenants.entities import Collection, Generation, Objectives
from tenants.recent_queries import RECENT_QUERIES_MAX
from vicinage.clock import Deadline
from vicinage.errors import Unavailable
from vicinage.records import Hit, ShardId, ShardQuery, ShardResult

TARGETS = {("t", "c"): 0.95}


class Drawer:
    """A searcher of one slot with a given recall, whose documents come and go."""

    slots = frozenset({0})

    def __init__(self) -> None:
        self.exact = hits("abcdefghij")
        self.served = self.exact
        self.changes = iter(())
        self.asked: list[ShardQuery] = []
        self.away = False

    def ready(self) -> bool:
        return True

    async def search(self, query: ShardQuery, deadline: Deadline) -> ShardResult:
        self.asked.append(query)
        if self.away:
            raise Unavailable("away", dependency="searcher")
        found = self.exact if query.exact else self.served
        return ShardResult(query.shard, (found[: query.k],), 7, 16, changes=next(self.changes, 0))

    async def reach(self, positions: Mapping[int, int], deadline: Deadline) -> dict[int, int]:
        return dict(positions)

    async def document(self, shard: ShardId, document_id: str, deadline: Deadline) -> None:
        return None

    async def matching(
        self, shard: ShardId, condition: Mapping[str, Any], deadline: Deadline, *, limit: int
    ) -> Any:
        return ()

    async def stats(self, tenant: str | None = None, *, slots: Slots[int] | None = None) -> Any:
        raise NotImplementedError


def hits(names: str, first: float = 1.0) -> tuple[Hit, ...]:
    return tuple(Hit(name, 0, first - i / 100, 1) for i, name in enumerate(names))


def plan(k: int = 10, generation: int = 1, *, exact: bool = False) -> Plan:
    made = Generation("t", "c", generation, "live", None, 2, "cosine", "auto", (0,), (0,))
    collection = Collection("t", "c", "active", generation, (made,), Objectives())
    return make_plan(
        SearchRequest("c", k, exact=exact), collection, np.array([1, 0], np.float32), 1
    )


def monitor(searcher: Drawer, **given: Any) -> RecallMonitor:
    return RecallMonitor(
        Searchers([searcher]), **{"share": 1.0, "samples_min": 1, "cpu_share": 1.0, **given}
    )


def measure(
    searcher: Drawer, offers: list[tuple[Plan, tuple[Hit, ...]]], **given: Any
) -> list[dict[str, Any]]:
    """Offers these served searches, lets the monitor measure them, and reports."""

    async def work() -> list[dict[str, Any]]:
        recall = monitor(searcher, **given)
        task = asyncio.create_task(recall.run())
        for i, (made, served) in enumerate(offers):
            if i % (QUEUE_MAX // 4) == 0:  # more searches of one tenant do not wait at once
                await recall.settled()
            recall.offer(made, served, [ShardResult(ShardId("t", "c", 1, 0), (served,), 7, 16)])
        await recall.settled()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return recall.report(TARGETS)

    return asyncio.run(work())


def test_the_report_has_mean_interval_n_target_and_verdict() -> None:
    searcher = Drawer()
    (row,) = measure(searcher, [(plan(), searcher.exact)] * SAMPLES_MIN)
    assert (row["recall"], row["n"], row["k"], row["target"], row["verdict"]) == (
        1.0,
        SAMPLES_MIN,
        10,
        0.95,
        "ok",
    )
    assert row["interval"][0] < 1.0 == row["interval"][1]


def test_a_served_search_that_missed_half_is_a_breach() -> None:
    searcher = Drawer()
    (row,) = measure(searcher, [(plan(), hits("abcdeVWXYZ", 0.5))] * SAMPLES_MIN)
    assert (row["recall"], row["verdict"]) == (0.5, "breach")


def test_few_samples_give_no_verdict() -> None:
    searcher = Drawer()
    (row,) = measure(searcher, [(plan(), hits("abcdeVWXYZ", 0.5))] * (SAMPLES_MIN - 1))
    assert (row["n"], row["verdict"]) == (SAMPLES_MIN - 1, "not_enough_samples")


def test_a_search_that_missed_every_hit_has_recall_0() -> None:
    (row,) = measure(Drawer(), [(plan(), ())] * SAMPLES_MIN)
    assert (row["recall"], row["verdict"]) == (0.0, "breach")


def test_a_search_with_nothing_to_find_says_nothing_about_recall() -> None:
    searcher = Drawer()
    searcher.exact = ()
    assert measure(searcher, [(plan(), ())] * SAMPLES_MIN) == []


def test_recall_at_different_k_is_never_averaged_together() -> None:
    searcher = Drawer()
    few, many = (plan(k=2), hits("aZ", 0.5)), (plan(k=10), searcher.exact)
    (row,) = measure(searcher, [many] * 40 + [few] * 35)
    assert (row["k"], row["n"], row["recall"]) == (10, 40, 1.0)


def test_after_writes_between_both_searches_the_sample_is_repeated_or_discarded() -> None:
    searcher = Drawer()
    searcher.served = hits("abcdefghiZ", 0.5)
    searcher.changes = iter(
        [8, 8, 9, 10]
    )  # first sample: exact at 8, served again at 8; second: never the same
    (row,) = measure(searcher, [(plan(), searcher.exact)] * 2)
    assert (row["n"], row["discarded"], row["recall"]) == (1, 1, 0.9)


def test_a_searcher_that_is_away_costs_the_sample_and_not_the_monitor() -> None:
    searcher = Drawer()
    searcher.away = True
    assert measure(searcher, [(plan(), searcher.exact)] * 3) == []
    assert len(searcher.asked) == 3


def test_an_exact_search_is_not_a_sample() -> None:
    searcher = Drawer()
    assert measure(searcher, [(plan(exact=True), searcher.exact)]) == []
    assert searcher.asked == []


def test_the_exact_search_reads_no_texts() -> None:
    searcher = Drawer()
    measure(searcher, [(plan(), searcher.exact)])
    assert [(q.exact, q.include) for q in searcher.asked] == [(True, frozenset())]


def test_generations_are_measured_separately() -> None:
    searcher = Drawer()
    rows = measure(
        searcher, [(plan(), searcher.exact), (plan(generation=2), hits("abcdeVWXYZ", 0.5))]
    )
    assert [(r["generation"], r["recall"]) for r in rows] == [(1, 1.0), (2, 0.5)]


def test_beyond_the_minimum_only_the_share_is_sampled() -> None:
    async def work() -> int:
        recall = monitor(Drawer(), share=0.0, samples_min=5)
        task = asyncio.create_task(recall.run())
        for _ in range(200):
            recall.offer(
                plan(), hits("a"), [ShardResult(ShardId("t", "c", 1, 0), (hits("a"),), 7, 16)]
            )
            await recall.settled()
        task.cancel()
        return int(recall.report(TARGETS)[0]["n"])

    assert 5 <= asyncio.run(work()) <= 8


def test_a_full_queue_drops_samples_with_a_count_and_never_waits() -> None:
    async def work() -> RecallMonitor:
        recall = monitor(Drawer(), samples_min=10_000)
        for _ in range(QUEUE_MAX // 2 + 5):
            recall.offer(
                plan(), hits("a"), [ShardResult(ShardId("t", "c", 1, 0), (hits("a"),), 7, 16)]
            )
        task = asyncio.create_task(recall.run())
        await recall.settled()
        task.cancel()
        return recall

    assert asyncio.run(work()).report(TARGETS)[0]["dropped"] == 5


def test_searches_without_hits_are_samples_and_are_not_all_repeated() -> None:
    async def work() -> tuple[int, int]:
        searcher = Drawer()
        searcher.exact = ()
        recall = monitor(searcher, share=0.0, samples_min=5)
        task = asyncio.create_task(recall.run())
        for _ in range(50):
            recall.offer(plan(), (), [ShardResult(ShardId("t", "c", 1, 0), ((),), 7, 16)])
            await recall.settled()
        task.cancel()
        return len(searcher.asked), len(recall.report(TARGETS))

    assert asyncio.run(work()) == (5, 0)


def test_one_tenant_leaves_room_in_the_queue_for_others() -> None:
    async def work() -> tuple[int, int]:
        recall = monitor(Drawer(), samples_min=10_000)
        loud, quiet = plan(), plan()
        quiet = replace(quiet, generation=replace(quiet.generation, tenant="quiet"))
        for made in [loud] * QUEUE_MAX + [quiet] * 5:
            recall.offer(made, hits("a"), [ShardResult(made.queries[0].shard, (hits("a"),), 7, 16)])
        task = asyncio.create_task(recall.run())
        await recall.settled()
        found = recall.report({("t", "c"): 0.9, ("quiet", "c"): 0.9})
        recall.offer(loud, hits("a"), [ShardResult(loud.queries[0].shard, (hits("a"),), 7, 16)])
        await recall.settled()
        task.cancel()
        dropped = {
            r["tenant"]: r["dropped"] for r in recall.report({("t", "c"): 0.9, ("quiet", "c"): 0.9})
        }
        assert dropped == {r["tenant"]: r["dropped"] for r in found}, "the queue has room again"
        return dropped["t"], dropped["quiet"]

    dropped = asyncio.run(work())
    assert dropped == (QUEUE_MAX - QUEUE_MAX // 2, 0)


def offered(recall: RecallMonitor, tenant: str, n: int = 1) -> None:
    """Offers searches of a tenant, served with one hit."""
    made = plan()
    generation = replace(made.generation, tenant=tenant)
    shard = generation.shards()[0]
    made = replace(made, generation=generation, queries=(replace(made.queries[0], shard=shard),))
    for _ in range(n):
        recall.offer(made, hits("a"), [ShardResult(shard, (hits("a"),), 7, 16)])


def test_a_new_tenant_finds_room_and_a_turn_in_a_busy_queue() -> None:
    async def work() -> list[str]:
        searcher = Drawer()
        recall = monitor(searcher, samples_min=10_000)
        for loud in range(6):
            offered(recall, f"loud {loud}", QUEUE_MAX)
        offered(recall, "quiet")
        task = asyncio.create_task(recall.run())
        await recall.settled()
        task.cancel()
        return [query.shard.tenant for query in searcher.asked]

    asked = asyncio.run(work())
    assert asked.index("quiet") <= 6, "behind one of each tenant, not behind all earlier ones"
    assert len(asked) < QUEUE_MAX, "the queue has room for the next"


def test_the_rest_of_the_monitor_does_not_count_waits_in_a_searchers_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("query.quality.recall.WORKED_S", 0.001)

    class Congested(Drawer):
        async def search(self, query: ShardQuery, deadline: Deadline) -> ShardResult:
            if query.shard.tenant == "congested":
                await asyncio.sleep(0.1)
            return await super().search(query, deadline)

    async def work() -> None:
        recall = monitor(Congested(), cpu_share=0.01)
        for tenant in ("congested", "quiet"):
            offered(recall, tenant)
        task = asyncio.create_task(recall.run())
        async with asyncio.timeout(3):  # it would be 9.9 seconds
            await recall.settled()
        task.cancel()

    asyncio.run(work())


def test_a_deleted_collection_is_not_reported() -> None:
    searcher = Drawer()

    async def work() -> RecallMonitor:
        recall = monitor(searcher)
        recall.offer(
            plan(), searcher.exact, [ShardResult(ShardId("t", "c", 1, 0), (searcher.exact,), 7, 16)]
        )
        task = asyncio.create_task(recall.run())
        await recall.settled()
        task.cancel()
        return recall

    recall = asyncio.run(work())
    assert len(recall.report(TARGETS)) == 1
    assert recall.report({}) == []


def test_live_recall_below_the_objective_raises_the_target_of_the_curves() -> None:
    searcher = Drawer()
    searcher.served = searcher.exact[:8] + hits("yz", 0.5)
    made = plan()

    async def work() -> tuple[float, float]:
        recall = monitor(searcher)
        before = recall.target_recall(made.collection)
        running = asyncio.create_task(recall.run())
        for _ in range(SAMPLES_MIN):
            recall.offer(
                made,
                searcher.served,
                [ShardResult(ShardId("t", "c", 1, 0), (searcher.served,), 7, 16)],
            )
        await recall.settled()
        running.cancel()
        assert recall.report(TARGETS)[0]["correction"] > 0
        after = recall.target_recall(made.collection)
        known = ShardResult(
            ShardId("t", "c", 1, 0), (searcher.served,), 7, 16, n_calibration_queries=30
        )
        recall.offer(made, searcher.served, [known])
        running = asyncio.create_task(recall.run())
        await recall.settled()
        running.cancel()
        assert recall.target_recall(made.collection) == before, (
            "curves measured on the collection's own searches restart it"
        )
        return before, after

    before, after = asyncio.run(work())
    assert before == made.collection.objectives.recall < after


def test_the_shard_with_the_fewest_calibration_queries_counts() -> None:
    known = [
        ShardResult(
            ShardId("t", "c", 1, slot), ((),), 7, 16, n_calibration_queries=n, greatest=n == 30
        )
        for slot, n in ((0, 30), (1, 60))
    ]
    exact_by_nature = ShardResult(ShardId("t", "c", 1, 2), ((),), 7, 0)
    choice = served_search(plan(), (), [*known, exact_by_nature]).choice
    assert (choice.effort, choice.n_calibration_queries, choice.greatest) == (16, 30, False)
    assert served_search(plan(), (), [known[0], exact_by_nature]).choice.greatest


def test_searches_are_kept_if_effort_can_vary_at_30_and_whenever_they_have_doubled() -> None:
    kept: list[tuple[Generation, np.ndarray]] = []
    offers = [(plan(), hits("abc"))] * QUEUE_MAX
    measure(Drawer(), offers, keep=lambda of, vectors: kept.append((of, vectors)))
    of, vectors = kept[0]
    assert (of.tenant, of.collection, of.number) == ("t", "c", 1)
    np.testing.assert_array_equal(vectors, np.tile(np.array([1, 0], np.float32), (SAMPLES_MIN, 1)))
    assert [len(v) for _, v in kept] == [
        SAMPLES_MIN,
        2 * SAMPLES_MIN,
        4 * SAMPLES_MIN,
        8 * SAMPLES_MIN,
        RECENT_QUERIES_MAX,
    ]


def test_measuring_continues_while_the_catalog_is_away() -> None:
    def away(_of: Generation, _vectors: np.ndarray) -> None:
        raise Unavailable("the catalog is away", dependency="catalog")

    offers = [(plan(), Drawer().exact)] * (SAMPLES_MIN + 5)
    [row] = measure(Drawer(), offers, keep=away)
    assert row["n"] == SAMPLES_MIN + 5


def test_a_query_vector_outside_half_precision_is_not_kept() -> None:
    assert fits_half(np.array([0.6, 0.8], np.float32))
    assert not fits_half(np.array([1e5, 0], np.float32))
    assert not fits_half(np.array([1e-9, 1e-9], np.float32))


def test_waiting_samples_hold_no_texts() -> None:
    found = tuple(
        Hit(h.document_id, h.passage, h.score, h.version, text="long " * 1_000, metadata={})
        for h in hits("ab")
    )
    offered = served_search(plan(), found, [ShardResult(ShardId("t", "c", 1, 0), (found,), 7, 16)])
    assert [(h.document_id, h.text, h.metadata) for h in offered.hits] == [
        ("a", None, None),
        ("b", None, None),
    ]


class Weak(Drawer):
    """A searcher whose index misses half at its greatest effort, and that scans where it may."""

    async def search(self, query: ShardQuery, deadline: Deadline) -> ShardResult:
        self.asked.append(query)
        if query.exact or query.scan:
            return ShardResult(
                query.shard, (self.exact[: query.k],), 7, 0, scanned=100 * query.scan
            )
        return ShardResult(query.shard, (self.served[: query.k],), 7, 512, greatest=True)


async def served_by(
    recall: RecallMonitor, searcher: Drawer, collection: Collection, n: int
) -> ShardResult:
    """Runs searches as a gateway does, and returns the last answer.

    They are planned by live recall, answered, and offered to the monitor.
    """
    for _ in range(n):
        vector = np.array([1, 0], np.float32)
        aim, misses = recall.target_recall(collection), recall.misses_objective(collection)
        made = make_plan(SearchRequest("c", 10), collection, vector, 1, aim, scan=misses)
        found = await searcher.search(made.queries[0], Deadline.after(1))
        recall.offer(made, found.hits[0], [found])
        await recall.settled()
    return found


def test_an_index_is_scanned_only_while_live_searches_prove_that_it_misses() -> None:
    searcher, collection = Weak(), plan().collection
    searcher.served = hits("abcdeVWXYZ", 0.5)

    async def work() -> None:
        recall = monitor(searcher)
        task = asyncio.create_task(recall.run())
        before = await served_by(recall, searcher, collection, SAMPLES_MIN - 1)
        assert (before.scanned, recall.misses_objective(collection), recall.proof(collection)) == (
            0,
            False,
            None,
        )
        await served_by(recall, searcher, collection, 1)
        assert recall.misses_objective(collection)
        proof = recall.proof(collection)
        assert proof is not None
        assert (proof["n"], proof["recall"], proof["interval"][1] < 0.95) == (
            SAMPLES_MIN,
            0.5,
            True,
        )
        after = await served_by(recall, searcher, collection, SAMPLES_MIN)
        assert after.scanned
        (row,) = recall.report(TARGETS)
        assert (row["recall"], row["verdict"], row["below_objective"]) == (1.0, "ok", proof), (
            "what was served"
        )
        assert row["window"]["began_because"] == "effort_corrected"
        assert (row["n"], row["samples"]) == (SAMPLES_MIN, 2 * SAMPLES_MIN)
        searcher.served = searcher.exact  # another index, which finds everything
        await served_by(recall, searcher, collection, 400)
        assert not recall.misses_objective(collection)
        task.cancel()

    asyncio.run(work())


def test_a_sample_that_was_served_at_another_effort_than_now_is_discarded() -> None:
    searcher, made = Drawer(), plan()
    made = replace(made, queries=tuple(replace(q, recall=0.99) for q in made.queries))
    (row,) = measure(searcher, [(plan(), searcher.exact), (made, ())])
    assert (row["n"], row["discarded"], row["recall"]) == (1, 1, 1.0)


def test_searches_that_are_always_exact_change_no_effort() -> None:
    class Flat(Drawer):
        async def search(self, query: ShardQuery, deadline: Deadline) -> ShardResult:
            return ShardResult(query.shard, (self.exact[: query.k],), 7, 0)

    async def work() -> float:
        recall, searcher = monitor(Flat()), Flat()
        task = asyncio.create_task(recall.run())
        await served_by(recall, searcher, plan().collection, 500)
        task.cancel()
        return recall.target_recall(plan().collection)

    assert asyncio.run(work()) == 0.95
