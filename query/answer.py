"""★ Answers a search.

Find the tenant and the collection → admit → wait for a token → embed → plan → scatter → merge →
rerank if requested → answer.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

import numpy as np

from query.admission import Admission, Permit
from query.degraded import reason_of
from query.merge import best_hits
from query.plan import Plan, SearchRequest, make_plan
from query.quality.freshness import Freshness
from query.quality.recall import RecallMonitor
from query.rerank import Reranker, reranked
from query.scatter import ScatterResult, Searchers
from tenants.entities import Collection, Generation, Principal, Tenant
from tenants.registry import Registry
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, NotFound, Overloaded, Refused, Unavailable
from vicinage.records import Floats, Hit, Token
from vicinage.tenant_context import TenantContext

T = TypeVar("T")
EMBED_SHARE: Final = 0.5
"""Share of a hybrid search's remaining time that its model gets.

The rest is for lexical search if the model is late.
"""
FIND_S: Final = 5.0
"""Longest wait for the catalog before a request names its tenant and collection."""
ORDINARY: Final = (1e-24, 1e24)
"""Between these bounds, a squared length is accurate enough in float32."""
SQUARE_MAX: Final = float(np.finfo(np.float32).max) / 4
"""Maximum squared length; documents have the same bound (ingest/validation.py)."""


class QueryEmbedder(Protocol):
    """Embeds the text of a search."""

    async def embed_query(self, text: str, *, tenant: TenantContext, deadline: Deadline) -> Floats:
        """Returns the vector of the text: float32 [d], L2-normalized."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The best passages, with the search's watermark, lag, generation, effort and missing share."""

    hits: tuple[Hit, ...]
    watermark: str
    """`slot-offset` of every shard that answered, joined by dots."""
    lag_ms: int | None
    """Freshness lag in milliseconds; None while it cannot be measured."""
    generation: int
    effort: int
    missing_share: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class SearchPipeline:
    """The search pipeline and its dependencies."""

    registry: Registry
    searchers: Searchers
    embedder_for: Callable[[str], QueryEmbedder]
    freshness: Freshness
    recall: RecallMonitor
    admission: Admission
    reranker: Reranker | None = None

    def admitted(self, tenant: Tenant) -> AbstractContextManager[Permit]:
        """Returns a permit for one request of the tenant. Raises Overloaded, Unavailable."""
        return self.admission.enter(tenant.context)

    async def answer(self, search: SearchRequest, tenant: Tenant, collection: Collection) -> Answer:
        """Returns the answer to a search. Raises what the steps raise.

        The caller looks up the tenant and the collection (`find`) and holds a permit (`admitted`).
        """
        if search.rerank and self.reranker is None:
            raise Refused(
                "this platform has no reranker (its operator sets rerank.model or rerank.url)",
                field="rerank",
            )
        deadline = Deadline.after(search.timeout_s)
        answering = partial(self._answer, search, tenant, deadline)
        return await self.with_live_generation(collection, answering, deadline)

    async def with_live_generation(
        self,
        collection: Collection,
        run: Callable[[Collection], Awaitable[T]],
        deadline: Deadline,
    ) -> T:
        """Returns the result of `run` for the collection.

        Runs it once more if it raises NotFound and another generation has become live.
        """
        try:
            return await run(collection)
        except NotFound:
            await self._refresh(deadline)
            now = self.registry.collection(collection.tenant, collection.name)
            if now.live == collection.live:
                raise
            return await run(now)

    async def _answer(
        self, search: SearchRequest, tenant: Tenant, deadline: Deadline, collection: Collection
    ) -> Answer:
        if search.wait_for is not None:
            collection = await self.reach(search.wait_for, tenant, collection, deadline)
        search, vector, lexical_reason = await self._embedded(
            search, tenant, collection.generation(), deadline
        )
        target = self.recall.target_recall(collection)
        misses = self.recall.misses_objective(collection)
        plan = make_plan(search, collection, vector, self.registry.version, target, scan=misses)
        scattered = await self.searchers.scatter(plan, deadline)
        hits = best_hits(scattered.shard_results, search)
        if not scattered.failures and search.mode == "dense":
            self.recall.offer(plan, hits, scattered.shard_results)
        answer = await self._answer_of(tenant, plan, scattered, hits)
        if lexical_reason is not None:
            hits = tuple(hit._replace(lexical_score=hit.score) for hit in answer.hits)
            reasons = (answer.reason, lexical_reason)
            answer = replace(answer, hits=hits, reason="; ".join(filter(None, reasons)))
        return await self._rerank(search, tenant, answer, deadline) if search.rerank else answer

    async def _rerank(
        self, search: SearchRequest, tenant: Tenant, answer: Answer, deadline: Deadline
    ) -> Answer:
        """Returns the k best hits in the cross-encoder's order.

        If the reranker is unavailable, busy or late, keeps the order of the hits and adds the
        reason to the answer.
        """
        assert self.reranker is not None, "else the search was refused"
        assert search.text is not None, "a reranked search has a text"
        hits, reason = answer.hits, answer.reason
        try:
            passages = [hit.text for hit in hits if hit.text is not None]
            scores = await self.reranker.scores(
                search.text, passages, tenant=tenant.context, deadline=deadline
            )
            hits = reranked(hits, scores, search.mode)
        except (Unavailable, Overloaded) as error:
            reason = "; ".join(filter(None, (reason, f"not reranked: {error.detail}")))
        hits = hits[: search.k]
        if "text" not in search.include:
            hits = tuple(hit._replace(text=None, start=None, end=None) for hit in hits)
        return replace(answer, hits=hits, reason=reason)

    async def reach(
        self, token: Token, tenant: Tenant, collection: Collection, deadline: Deadline
    ) -> Collection:
        """Returns the current collection once everything up to `token` is searchable in it.

        NOTE: the registry in memory may be behind a cut-over. The generation that it names as live
        then gets no more writes. Ingest knew of the cut-over before it committed the token. So a
        catalog read after the commit was seen names a generation that has the token's writes.
        """
        await self.freshness.reach(token, tenant, collection.generation(), deadline)
        await self._refresh(deadline)
        now = self.registry.collection(collection.tenant, collection.name)
        if now.live != collection.live:
            await self.freshness.reach(token, tenant, now.generation(), deadline)
        return now

    async def newest(self, collection: Collection, deadline: Deadline) -> Collection:
        """Returns the collection as the catalog has it now.

        Raises NotFound, Unavailable, DeadlineExceeded.
        """
        await self._refresh(deadline)
        return self.registry.collection(collection.tenant, collection.name)

    async def _refresh(self, deadline: Deadline) -> None:
        """Refreshes the registry from the catalog. Raises Unavailable, DeadlineExceeded.

        The thread of the event loop's own executor goes on after the deadline: a request that waits
        on a thread of Starlette's pool could not leave before the catalog answers.
        """
        try:
            async with asyncio.timeout(deadline.left_s()):
                await asyncio.get_running_loop().run_in_executor(None, self.registry.refresh)
        except TimeoutError:
            raise DeadlineExceeded(
                "the catalog did not answer in time", dependency="catalog"
            ) from None

    async def find(self, principal: Principal, name: str) -> tuple[Tenant, Collection]:
        """Returns the principal's tenant (guarantee 1) and its collection. Raises NotFound.

        If either is not in memory, refreshes the registry and retries once: it may be new. Waits
        for the catalog at most FIND_S, because the request's own deadline is not parsed yet.
        """
        if principal.tenant is None:
            raise NotFound("an operator's key has no collections; use a tenant's key")
        try:
            return self.registry.tenant(principal.tenant), self.registry.collection(
                principal.tenant, name
            )
        except NotFound:
            await self._refresh(Deadline.after(FIND_S))
            return self.registry.tenant(principal.tenant), self.registry.collection(
                principal.tenant, name
            )

    async def _embedded(
        self, search: SearchRequest, tenant: Tenant, live: Generation, deadline: Deadline
    ) -> tuple[SearchRequest, Floats | None, str | None]:
        """Returns the search, its vector, and the reason if it has no vector.

        The model of a hybrid search gets half of the time that is left (EMBED_SHARE). If the model
        is unavailable, busy or late, the search becomes lexical.
        """
        if search.mode != "hybrid" or search.vector is not None or live.model is None:
            return search, await self._vector(search, tenant, live, deadline), None
        try:
            within = Deadline.after(deadline.left_s() * EMBED_SHARE)
            return search, await self._vector(search, tenant, live, within), None
        except (Unavailable, Overloaded) as error:
            return replace(search, mode="lexical"), None, f"lexical search only: {error.detail}"

    async def _vector(
        self, search: SearchRequest, tenant: Tenant, live: Generation, deadline: Deadline
    ) -> Floats | None:
        if search.mode == "lexical":
            return None  # a lexical search needs no model
        if search.vector is not None:
            return checked_vector(search.vector, live)
        if live.model is None:
            raise Refused(
                "this collection has no embedding model: search with a vector", field="text"
            )
        assert search.text is not None, "a search has a text or a vector"
        embedder = self.embedder_for(live.model)
        vector = await embedder.embed_query(
            search.text,
            tenant=tenant.context,
            deadline=deadline,
        )
        return checked_vector(vector, live)

    async def _answer_of(
        self, tenant: Tenant, plan: Plan, scattered: ScatterResult, hits: tuple[Hit, ...]
    ) -> Answer:
        shard_results = scattered.shard_results
        watermarks = {p.shard.slot: p.watermark for p in shard_results}
        return Answer(
            hits=hits,
            watermark=".".join(f"{slot}-{offset}" for slot, offset in watermarks.items()),
            lag_ms=await self.freshness.lag_ms(tenant, plan.generation, watermarks),
            generation=plan.generation.number,
            effort=max(p.effort for p in shard_results),
            missing_share=scattered.missing_share(),
            reason=reason_of(plan, scattered),
        )


def checked_vector(vector: Floats, live: Generation) -> Floats:
    """Returns a valid query vector: float32 [d], L2-normalized under cosine. Raises Refused."""
    if vector.shape != (live.dimension,):
        raise Refused(
            f"vector has {vector.size} numbers; the collection's dimension is {live.dimension}",
            field="vector",
            limit=live.dimension,
        )
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(vector @ vector)
    if not ORDINARY[0] < square < ORDINARY[1]:  # its squares may overflow or underflow float32
        return _checked_exactly(vector, live)
    unit: Floats = vector if live.metric != "cosine" else vector * np.float32(1 / math.sqrt(square))
    return unit


def _checked_exactly(vector: Floats, live: Generation) -> Floats:
    exact = vector.astype(np.float64)
    square = float(exact @ exact)
    if not math.isfinite(square):
        raise Refused("vector holds NaN, infinity, or a number beyond float32", field="vector")
    if live.metric != "cosine":
        if square > SQUARE_MAX:
            raise Refused("vector is so long that its products overflow float32", field="vector")
        return vector
    if square == 0:
        raise Refused("vector is zero, and the cosine of zero is not defined", field="vector")
    unit: Floats = (exact / math.sqrt(square)).astype(np.float32)
    return unit
