"""The cache of search texts' vectors: isolation, sharing and eviction (guarantees 1, 6, 7)."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from resources import hash_vector

from query.embedding_cache import CachingEmbedder, EmbeddingCache, _cost
from tenants.entities import DEFAULT_MODEL
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Overloaded, Unavailable
from vicinage.records import Floats
from vicinage.tenant_context import TenantContext

D = 8
MODELS = [
    DEFAULT_MODEL,
    replace(DEFAULT_MODEL, location="package:other"),
    replace(DEFAULT_MODEL, name="another"),
]
TENANTS = ["a", "b", "c"]
WEIGHT = {"a": 1, "b": 2, "c": 4}
COST = _cost("t00", np.zeros(D, np.float32))


def vector_of(tenant: str, model: Any, text: str) -> Floats:
    """Returns a vector that differs between tenants, so that its owner can be told."""
    return hash_vector(f"{tenant} {model.name} {model.location} {text}", D)


class CacheMachine(RuleBasedStateMachine):
    """The cache against a dict that evicts nothing."""

    @initialize(entries=st.integers(0, 12), odd=st.integers(0, COST - 1))
    def begin(self, entries: int, odd: int) -> None:
        self.bytes_max = entries * COST + odd
        self.cache = EmbeddingCache(self.bytes_max)
        self.put: dict[tuple[str, Any, str], Floats] = {}

    @rule(tenant=st.sampled_from(TENANTS), model=st.sampled_from(MODELS), n=st.integers(0, 20))
    def ask(self, tenant: str, model: Any, n: int) -> None:
        text = f"t{n:02}"
        found = self.cache.get(tenant, model, text)
        if found is not None:
            assert np.array_equal(found, self.put[tenant, model, text])
            return
        before = self._held()
        vector = vector_of(tenant, model, text)
        self.cache.put(TenantContext(tenant, WEIGHT[tenant]), model, text, vector)
        self.put[tenant, model, text] = vector
        self._only_the_largest_holders_paid(before)

    @precondition(lambda self: self.bytes_max >= COST)
    @rule(tenant=st.sampled_from(TENANTS), model=st.sampled_from(MODELS))
    def the_newest_is_remembered(self, tenant: str, model: Any) -> None:
        self.cache.put(
            TenantContext(tenant, WEIGHT[tenant]), model, "new", vector_of(tenant, model, "new")
        )
        self.put[tenant, model, "new"] = vector_of(tenant, model, "new")
        assert self.cache.get(tenant, model, "new") is not None

    def _held(self) -> dict[str, float]:
        return {tenant: held.bytes / held.weight for tenant, held in self.cache._tenants.items()}

    def _only_the_largest_holders_paid(self, before: dict[str, float]) -> None:
        """A tenant that lost a vector held the most for its weight, within one vector."""
        after = self._held()
        for tenant, was in before.items():
            if after.get(tenant, 0) < was:
                assert was >= max(held - COST / WEIGHT[other] for other, held in after.items())

    @invariant()
    def it_is_bounded_and_counts_right(self) -> None:
        held = [
            (t, key, v) for t, one in self.cache._tenants.items() for key, v in one.vectors.items()
        ]
        assert (
            self.cache.bytes
            == sum(_cost(text, vector) for _, (_, text), vector in held)
            <= self.bytes_max
        )
        assert self.cache.bytes == sum(one.bytes for one in self.cache._tenants.values())
        assert all(one.vectors for one in self.cache._tenants.values())


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_the_least_recently_used_entry_of_a_tenant_is_evicted_first() -> None:
    cache = EmbeddingCache(3 * COST)
    vector = np.ones(D, np.float32)
    for text in ("t01", "t02", "t03"):
        cache.put(TenantContext("a"), DEFAULT_MODEL, text, vector)
    cache.get("a", DEFAULT_MODEL, "t01")
    cache.put(TenantContext("a"), DEFAULT_MODEL, "t04", vector)
    assert [cache.get("a", DEFAULT_MODEL, t) is not None for t in ("t01", "t02", "t03", "t04")] == [
        True,
        False,
        True,
        True,
    ]


def test_a_tenant_with_many_texts_evicts_nothing_of_a_small_one() -> None:
    cache = EmbeddingCache(100 * COST)
    vector = np.ones(D, np.float32)
    for n in range(30):
        cache.put(TenantContext("small"), DEFAULT_MODEL, f"s{n:02}", vector)
    for n in range(5_000):
        cache.put(TenantContext("crowd"), DEFAULT_MODEL, f"{n:03}", vector)
    assert all(cache.get("small", DEFAULT_MODEL, f"s{n:02}") is not None for n in range(30))


def test_the_cache_keeps_an_immutable_copy() -> None:
    cache, batch = EmbeddingCache(10 * COST), np.ones((64, D), np.float32)
    cache.put(TenantContext("a"), DEFAULT_MODEL, "t01", batch[3])
    batch[3] = 0
    kept = cache.get("a", DEFAULT_MODEL, "t01")
    assert kept is not None
    assert kept.base is None
    assert kept.tolist() == [1.0] * D
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2


class Model:
    """An embedder that counts its calls, and answers or fails when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.let = asyncio.Event()
        self.error: Exception | None = None
        self.given_up = 0

    async def embed_query(self, text: str, *, tenant: TenantContext, deadline: Deadline) -> Floats:
        self.asked.append((tenant.name, text))
        try:
            async with asyncio.timeout(deadline.left_s()):
                await self.let.wait()
        except TimeoutError:
            raise DeadlineExceeded("late", dependency="embedder") from None
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.error is not None:
            raise self.error
        return hash_vector(text, D)


Ask = Callable[..., Coroutine[Any, Any, Floats]]


def run(
    test: Callable[[Model, Ask, CachingEmbedder], Coroutine[Any, Any, None]],
    *,
    bytes_max: int = 1 << 20,
) -> None:
    async def within() -> None:
        model = Model()
        caching = CachingEmbedder(model, DEFAULT_MODEL, EmbeddingCache(bytes_max))

        def ask(
            text: str = "why?", tenant: str = "a", wait_s: float = 30
        ) -> Coroutine[Any, Any, Floats]:
            return caching.embed_query(
                text, tenant=TenantContext(tenant), deadline=Deadline.after(wait_s)
            )

        await test(model, ask, caching)
        await asyncio.sleep(0)
        assert caching._calls == {}, "nothing is left behind"

    asyncio.run(within())


async def begun(*asked: Coroutine[Any, Any, Floats]) -> list["asyncio.Task[Floats]"]:
    """Returns the searches as tasks that all wait by now."""
    tasks = [asyncio.create_task(each) for each in asked]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def test_a_repeated_text_calls_no_model() -> None:
    async def test(model: Model, ask: Ask, _: CachingEmbedder) -> None:
        model.let.set()
        first, second = await ask(), await ask()
        assert np.array_equal(first, second)
        assert model.asked == [("a", "why?")]

    run(test)


def test_another_text_and_another_tenant_call_the_model() -> None:
    async def test(model: Model, ask: Ask, _: CachingEmbedder) -> None:
        model.let.set()
        for tenant, text in (("a", "why?"), ("b", "why?"), ("a", "Why?"), ("a", "why? ")):
            await ask(text, tenant)
        assert len(model.asked) == 4

    run(test)


def test_the_models_entry_is_part_of_the_key() -> None:
    async def test() -> None:
        cache = EmbeddingCache(1 << 20)
        for entry in MODELS:
            model = Model()
            model.let.set()
            caching = CachingEmbedder(model, entry, cache)
            await caching.embed_query(
                "why?", tenant=TenantContext("a"), deadline=Deadline.after(30)
            )
            assert model.asked == [("a", "why?")]

    asyncio.run(test())


def test_concurrent_searches_share_a_call_within_a_tenant_alone() -> None:
    async def test(model: Model, ask: Ask, _: CachingEmbedder) -> None:
        tasks = await begun(ask(), ask(), ask(tenant="b"), ask())
        assert sorted(model.asked) == [("a", "why?"), ("b", "why?")]
        model.let.set()
        assert len({v.tobytes() for v in await asyncio.gather(*tasks)}) == 1

    run(test)


def test_the_first_request_giving_up_fails_no_other() -> None:
    async def test(model: Model, ask: Ask, _: CachingEmbedder) -> None:
        first, second = await begun(ask(), ask())
        first.cancel()
        await asyncio.wait([first])
        model.let.set()
        assert (await second).shape == (D,)
        assert len(model.asked) == 1

    run(test)


def test_the_first_requests_deadline_fails_no_other() -> None:
    async def test(model: Model, ask: Ask, _: CachingEmbedder) -> None:
        first, *others = await begun(ask(wait_s=0.05), *(ask() for _ in range(5)))
        with pytest.raises(DeadlineExceeded):
            await first
        await asyncio.sleep(0.01)
        model.let.set()
        await asyncio.gather(*others)
        assert len(model.asked) == 2, "the others called once more, together"

    run(test)


def test_a_requests_deadline_ends_its_own_wait() -> None:
    async def test(model: Model, ask: Ask, _: CachingEmbedder) -> None:
        first, late = await begun(ask(), ask(wait_s=0.02))
        with pytest.raises(DeadlineExceeded):
            await late
        model.let.set()
        assert (await first).shape == (D,)

    run(test)


def test_when_every_request_gave_up_the_call_ends_and_the_next_starts_again() -> None:
    async def test(model: Model, ask: Ask, caching: CachingEmbedder) -> None:
        tasks = await begun(ask(), ask())
        call = next(iter(caching._calls.values()))
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
        assert call.ended()
        assert not call.task.done(), "requested again at the moment in which the call ends"
        model.let.set()
        assert (await ask()).shape == (D,)
        assert len(model.asked) == 2
        assert model.given_up == 1

    run(test)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("away", dependency="embedder"),
        Overloaded("full", retry_after_s=1.0),
        ValueError("ours"),
    ],
)
def test_a_failure_reaches_every_waiting_request_and_is_not_cached(error: Exception) -> None:
    async def test(model: Model, ask: Ask, _: CachingEmbedder) -> None:
        model.error = error
        tasks = await begun(ask(), ask())
        model.let.set()
        assert await asyncio.gather(*tasks, return_exceptions=True) == [error, error]
        model.error = None
        assert (await ask()).shape == (D,)
        assert len(model.asked) == 2

    run(test)


def test_an_embedder_that_reports_a_timeout_is_not_called_forever() -> None:
    async def test(model: Model, ask: Ask, _: CachingEmbedder) -> None:
        model.let.set()
        model.error = DeadlineExceeded("504", dependency="embedder")
        tasks = await begun(ask(), ask(), ask())
        assert await asyncio.gather(*tasks, return_exceptions=True) == [model.error] * 3
        assert len(model.asked) <= 3

    run(test)


def test_without_room_nothing_is_cached_and_calls_are_still_shared() -> None:
    async def test(model: Model, ask: Ask, caching: CachingEmbedder) -> None:
        tasks = await begun(ask(), ask())
        model.let.set()
        await asyncio.gather(*tasks)
        await ask()
        assert len(model.asked) == 2
        assert caching._cache.bytes == 0

    run(test, bytes_max=0)
