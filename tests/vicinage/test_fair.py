"""Fair queueing: shares follow weights, order within a tenant is kept, the bound holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.embedding import Lane
from ingest.embedding.batcher import Batcher, Item
from vicinage.errors import Overloaded
from vicinage.fair import FairQueue


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


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=40), st.integers(1, 100))
def test_nothing_is_lost_and_a_tenants_order_is_kept(items: list[tuple[str, int]], budget: int) -> None:
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
        assert [n for t, n in taken if t == tenant] == [n for n, (t, _) in enumerate(items) if t == tenant]


def test_the_bound_holds_and_all_or_none_is_taken() -> None:
    queue: FairQueue[str] = FairQueue(cost_max=10, quantum=5)
    queue.put("a", [("x", 6)])
    with pytest.raises(Overloaded):
        queue.put("b", [("y", 3), ("z", 3)])
    assert (len(queue), queue.cost) == (1, 6)
    assert queue.take(1) == ["x"], "one at least, whatever its cost"


def items(n: int, length: int = 10) -> list[Item]:
    return [Item([0] * length, None, i) for i in range(n)]


def test_questions_go_first_and_documents_do_not_starve() -> None:
    batcher = Batcher(queue_tokens=10**6, batch_tokens=100)
    batcher.put("a", Lane.DOCUMENT, items(100, 7), weight=1)
    kinds = []
    for _ in range(20):
        batcher.put("b", Lane.QUERY, items(3, 5), weight=1)
        kinds.append(len(batcher.take()[0].tokens))
    assert kinds[:8] == [5] * 8 and kinds.count(7) == 2


def test_a_call_holds_texts_of_like_length() -> None:
    batcher = Batcher(queue_tokens=10**6, batch_tokens=60)
    batcher.put("a", Lane.DOCUMENT, [Item([0] * n, None, 0) for n in (30, 5, 20, 5, 10)], weight=1)
    lengths = [len(i.tokens) for i in batcher.take()]
    assert lengths == sorted(lengths) and sum(lengths) <= 60
