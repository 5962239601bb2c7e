"""Fair queueing: shares follow weights, order within a tenant is kept, the bound holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.embedding import Lane
from ingest.embedding.batcher import Batcher, Item
from vicinage.errors import Overloaded
from vicinage.fair import FairQueue
from vicinage.tenant_context import TenantContext


@given(weights=st.lists(st.integers(1, 5), min_size=2, max_size=4), cost=st.integers(1, 20))
def test_while_all_wait_each_gets_its_share_within_a_quantum(weights: list[int], cost: int) -> None:
    queue: FairQueue[int] = FairQueue(cost_max=10**9, quantum=20)
    for t, weight in enumerate(weights):
        queue.put(f"t{t}", [(t, cost)] * 2_000, weight=weight)
    served = [0] * len(weights)
    while all(n * cost < 2_000 * cost - 200 for n in served):
        for t in queue.take(50):
            served[t] += 1
    whole = sum(served) * cost
    for t, weight in enumerate(weights):
        share = whole * weight / sum(weights)
        assert abs(served[t] * cost - share) <= 20 * weight + 20 * sum(weights) + cost


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=40),
    st.integers(1, 100),
)
def test_nothing_is_lost_and_a_tenants_order_is_kept(
    items: list[tuple[str, int]], budget: int
) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(cost_max=10**9, quantum=10)
    for number, (tenant, cost) in enumerate(items):
        queue.put(tenant, [((tenant, number), cost)])
    taken = []
    while len(queue):
        part = queue.take(budget)
        assert part, "something waits, so something is served"
        taken.extend(part)
    assert queue.cost == 0 and len(taken) == len(items)
    for tenant in "abc":
        assert [n for t, n in taken if t == tenant] == [
            n for n, (t, _) in enumerate(items) if t == tenant
        ]


def test_the_bound_holds_and_all_or_none_is_taken() -> None:
    queue: FairQueue[str] = FairQueue(cost_max=10, quantum=5)
    queue.put("a", [("x", 6)])
    with pytest.raises(Overloaded):
        queue.put("b", [("y", 3), ("z", 3)])
    assert (len(queue), queue.cost) == (1, 6)
    assert queue.take(1) == ["x"], "one at least, whatever its cost"


def test_no_tenant_can_fill_the_queue_for_the_others() -> None:
    queue: FairQueue[int] = FairQueue(cost_max=100, quantum=5)
    held = {"loud": 0, "late": 0}
    for tenant in ("loud", "late"):
        with pytest.raises(Overloaded):
            for i in range(100):
                queue.put(tenant, [(i, 1)])
                held[tenant] += 1
    assert held == {"loud": 50, "late": 25}, "each may hold what it leaves free"


def test_a_heavier_tenant_may_hold_more() -> None:
    queue: FairQueue[int] = FairQueue(cost_max=100, quantum=5)
    with pytest.raises(Overloaded):
        for i in range(100):
            queue.put("gold", [(i, 1)], weight=4)
    assert queue.cost == 80


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.integers(1, 60), st.integers(1, 4), st.integers(0, 30)
        ),
        max_size=60,
    )
)
def test_the_bound_holds_whatever_comes_and_goes(steps: list[tuple[str, int, int, int]]) -> None:
    queue: FairQueue[int] = FairQueue(cost_max=100, quantum=8)
    inside = 0
    for tenant, cost, weight, taken in steps:
        was_empty = queue.cost == 0
        try:
            queue.put(tenant, [(cost, cost)], weight=weight)
            inside += cost
        except Overloaded:
            assert not was_empty, "an empty queue takes anything"
        inside -= sum(queue.take(taken)) if taken else 0
        assert queue.cost == inside <= 100


def test_a_refusal_says_when_there_will_be_room() -> None:
    queue: FairQueue[int] = FairQueue(cost_max=100, quantum=5)
    queue.put("a", [(0, 90)])
    queue.cost_per_s = 20.0
    with pytest.raises(Overloaded) as full:
        queue.put("a", [(0, 10)])
    assert full.value.retry_after_s == 5.0


def test_an_idle_tenant_accumulates_no_deficit() -> None:
    queue: FairQueue[str] = FairQueue(cost_max=10**6, quantum=10)
    for _ in range(50):
        queue.put("a", [("a", 1)])
        queue.take(1)
    queue.put("a", [("a", 5)] * 20)
    queue.put("b", [("b", 5)] * 20)
    assert sorted(queue.take(40)) == ["a"] * 4 + ["b"] * 4


def items(n: int, length: int = 10) -> list[Item]:
    return [Item([0] * length, None, i) for i in range(n)]


def test_queries_go_first_and_documents_do_not_starve() -> None:
    batcher = Batcher(queue_tokens=10**6, batch_tokens=100)
    batcher.put(TenantContext("a"), Lane.DOCUMENT, items(100, 7))
    kinds = []
    for _ in range(20):
        batcher.put(TenantContext("b"), Lane.QUERY, items(3, 5))
        kinds.append(len(batcher.take()[0].tokens))
    assert kinds[:8] == [5] * 8 and kinds.count(7) == 2


def test_a_call_holds_texts_of_like_length() -> None:
    batcher = Batcher(queue_tokens=10**6, batch_tokens=60)
    batcher.put(
        TenantContext("a"), Lane.DOCUMENT, [Item([0] * n, None, 0) for n in (30, 5, 20, 5, 10)]
    )
    lengths = [len(i.tokens) for i in batcher.take()]
    assert lengths == sorted(lengths) and sum(lengths) <= 60


def test_while_queries_come_documents_go_in_shorter_calls() -> None:
    batcher = Batcher(queue_tokens=10**6, batch_tokens=10_000)
    batcher.aim(10_000, 0.1)
    batcher.put(TenantContext("a"), Lane.DOCUMENT, items(1_000))
    assert len(batcher.take()) == 100, "a tenth of a second's worth"
    batcher.put(TenantContext("b"), Lane.QUERY, items(1))
    assert [len(batcher.take()), len(batcher.take()), len(batcher.take())] == [1, 50, 100]


def test_many_queries_are_split_too() -> None:
    batcher = Batcher(queue_tokens=10**6, batch_tokens=10_000)
    batcher.aim(10_000, 0.1)
    batcher.put(TenantContext("crowd"), Lane.QUERY, items(500))
    batcher.put(TenantContext("quiet"), Lane.QUERY, [Item([0] * 11, None, 0)])
    taken = batcher.take()
    assert sum(len(i.tokens) for i in taken) <= 1_000
    assert any(len(i.tokens) == 11 for i in taken), "the quiet one need not wait for the crowd"


def test_the_bound_may_be_on_how_many_wait_whatever_they_cost() -> None:
    queue: FairQueue[int] = FairQueue(items_max=10, quantum=5)
    for i in range(5):
        queue.put("a", [(i, 1_000)])
    with pytest.raises(Overloaded):
        queue.put("a", [(5, 1)])
    queue.put("b", [(6, 1)])
    assert (len(queue), queue.cost) == (6, 5_001)


def test_what_went_along_is_paid_back_in_later_turns() -> None:
    queue: FairQueue[str] = FairQueue(items_max=1_000, quantum=4)
    for tenant in ("a", "b"):
        queue.put(tenant, [(tenant, 1)] * 100)
    assert queue.take(1) == ["a"]
    assert queue.take_along("a", lambda _: True, 31) == ["a"] * 31
    assert [queue.take(1)[0] for _ in range(28)] == ["b"] * 28
    assert "a" in [queue.take(1)[0] for _ in range(5)]


def test_a_debt_outlives_an_empty_queue_and_ends_when_no_tenant_waits() -> None:
    queue: FairQueue[str] = FairQueue(items_max=1_000, quantum=4)
    for forgiven in (False, True):
        queue.put("a", [("a", 1)] * 20)
        queue.take(1)
        assert len(queue.take_along("a", lambda _: True, 100)) == 19
        assert not forgiven or queue.take(1) == []
        queue.put("b", [("b", 1)] * 12)
        queue.put("a", [("a", 1)] * 12)
        served = "".join(queue.take(1)[0] for _ in range(24))
        assert served.startswith("b" * 12 if not forgiven else "bbbbaaaabbbb")


def test_only_what_fits_goes_along_and_order_is_kept() -> None:
    queue: FairQueue[int] = FairQueue(items_max=100, quantum=100)
    queue.put("a", [(i, 1) for i in range(10)])
    assert queue.take_along("a", lambda i: i % 2 == 0, 3) == [0, 2, 4]
    assert queue.take_along("unknown", lambda _: True, 3) == []
    assert (queue.take(100), queue.cost, len(queue)) == ([1, 3, 5, 6, 7, 8, 9], 0, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(1, 30),
            st.sampled_from(["put", "take", "along", "back"]),
        )
    )
)
def test_nothing_is_lost_however_it_is_taken(steps: list[tuple[str, int, str]]) -> None:
    queue: FairQueue[tuple[str, int, int]] = FairQueue(items_max=10**6, quantum=8)
    waiting = {tenant: [] for tenant in "abc"}
    for number, (tenant, cost, act) in enumerate(steps):
        if act == "put":
            queue.put(tenant, [((tenant, cost, number), cost)])
            waiting[tenant].append((tenant, cost, number))
            continue
        taken = queue.take_along(tenant, lambda _: True, cost) if act == "along" else queue.take(1)
        assert bool(taken) == (bool(waiting[tenant]) if act == "along" else any(waiting.values()))
        if act == "back" and taken:
            queue.put_back(taken[0][0], [(taken[0], taken[0][1])])
        else:
            for item in taken:
                assert waiting[item[0]].pop(0) == item
        assert queue.cost == sum(c for line in waiting.values() for _, c, _ in line)
        assert len(queue) == sum(map(len, waiting.values()))
