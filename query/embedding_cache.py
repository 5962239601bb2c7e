"""Caches the vectors of query texts, so that a repeated search costs no model call.

Guarantee 1: a vector is returned only to its own tenant, for the exact text and model registry
entry that it was made from. Calls in progress are shared within a tenant, never between tenants.
Guarantee 7: vectors are evicted from the tenant that holds most for its weight. So a tenant with
many searches does not evict the vectors of a small one. Both classes belong to one event loop.
"""

import asyncio
import heapq
import sys
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from query.answer import QueryEmbedder
from tenants.entities import EmbeddingModel
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded
from vicinage.metrics import counter, gauge
from vicinage.records import Floats
from vicinage.tenant_context import TenantContext

ENTRY_BYTES: Final = 400
"""Bytes of an entry beside the numbers of its vector and its text.

They are for the array, the key and the dictionary slot (measured: 270; more if the tenant has few).
"""
ROOM_SHARE: Final = 64
"""Eviction stops when 1 / ROOM_SHARE of the bound is free.

So the search for the tenant that holds most runs once in many searches, not at each.
"""

_lookups = counter("vicinage_query_embedding_cache_total")
_hit, _shared, _miss = (_lookups.labels(outcome) for outcome in ("hit", "shared", "miss"))
_bytes = gauge("vicinage_query_embedding_cache_bytes")

_Key = tuple[EmbeddingModel, str]


@dataclass(slots=True)
class _TenantVectors:
    """One tenant's vectors, the least recently used first (LRU)."""

    weight: int
    bytes: int = 0
    vectors: OrderedDict[_Key, Floats] = field(default_factory=OrderedDict)


class EmbeddingCache:
    """A cache of at most `bytes_max` of vectors, for all tenants and models together."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._tenants: dict[str, _TenantVectors] = {}
        self.bytes = 0

    def get(self, tenant: str, model: EmbeddingModel, text: str) -> Floats | None:
        """Returns the vector: float32 [d], read-only; None if this tenant has none for the text."""
        cached = self._tenants.get(tenant)
        vector = cached.vectors.get((model, text)) if cached else None
        if cached and vector is not None:
            cached.vectors.move_to_end((model, text))
        return vector

    def put(self, tenant: TenantContext, model: EmbeddingModel, text: str, vector: Floats) -> None:
        """Stores a copy of the vector, and evicts others if necessary.

        Does nothing if the vector alone exceeds the bound.
        """
        n_bytes = _cost(text, vector)
        if n_bytes > self._bytes_max:
            return
        if self.bytes + n_bytes > self._bytes_max:
            self._make_room(n_bytes)
        cached = self._tenants.setdefault(tenant.name, _TenantVectors(tenant.weight))
        cached.weight = tenant.weight
        if (model, text) not in cached.vectors:  # the same text has the same vector
            cached.vectors[model, text] = _copy(vector)
            self._count(cached, n_bytes)

    def _make_room(self, n_bytes: int) -> None:
        """Evicts until `n_bytes` fit and 1 / ROOM_SHARE of the bound is free.

        Evicts the LRU vector of the tenant that holds most for its weight, and repeats.
        """
        target = self._bytes_max - max(n_bytes, self._bytes_max // ROOM_SHARE)
        most = [(-cached.bytes / cached.weight, tenant) for tenant, cached in self._tenants.items()]
        heapq.heapify(most)
        while self.bytes > target:
            tenant = most[0][1]
            cached = self._tenants[tenant]
            (_, text), vector = cached.vectors.popitem(last=False)
            self._count(cached, -_cost(text, vector))
            if cached.vectors:
                heapq.heapreplace(most, (-cached.bytes / cached.weight, tenant))
            else:
                heapq.heappop(most)
                del self._tenants[tenant]

    def _count(self, cached: _TenantVectors, n_bytes: int) -> None:
        cached.bytes += n_bytes
        self.bytes += n_bytes
        _bytes.set(self.bytes)


def _copy(vector: Floats) -> Floats:
    """Returns a read-only copy. A row of a batch would keep the whole batch in memory."""
    kept = vector.copy()
    kept.setflags(write=False)
    return kept


def _cost(text: str, vector: Floats) -> int:
    return ENTRY_BYTES + sys.getsizeof(text) + vector.nbytes


class CachingEmbedder:
    """A query embedder behind the cache.

    Calls the model only for texts that the tenant has no vector for. Concurrent requests of one
    tenant for the same text share one call.
    """

    def __init__(
        self, embedder: QueryEmbedder, model: EmbeddingModel, cache: EmbeddingCache
    ) -> None:
        self._embedder = embedder
        self._model = model
        self._cache = cache
        self._calls: dict[tuple[str, str], _Call] = {}

    async def embed_query(self, text: str, *, tenant: TenantContext, deadline: Deadline) -> Floats:
        """Returns the vector of the text: float32 [d], L2-normalized, read-only.

        Raises as the embedder does; a failure is never cached.
        """
        known = self._cache.get(tenant.name, self._model, text)
        if known is not None:
            _hit.inc()
            return known
        while True:
            call = self._calls.get((tenant.name, text))
            ours = call is None or call.ended()
            if call is None or ours:
                call = self._begin(text, tenant, deadline)
            (_miss if ours else _shared).inc()
            try:
                return await call.answer(deadline)
            except DeadlineExceeded:
                if ours or deadline.passed():
                    raise
                # Only the deadline of the call's first request passed: this one retries.

    def _begin(self, text: str, tenant: TenantContext, deadline: Deadline) -> "_Call":
        call = self._calls[tenant.name, text] = _Call(self._embed(text, tenant, deadline))
        call.task.add_done_callback(lambda _: self._forget((tenant.name, text), call))
        return call

    async def _embed(self, text: str, tenant: TenantContext, deadline: Deadline) -> Floats:
        vector = await self._embedder.embed_query(text, tenant=tenant, deadline=deadline)
        self._cache.put(tenant, self._model, text, vector)
        return vector

    def _forget(self, key: tuple[str, str], call: "_Call") -> None:
        if self._calls.get(key) is call:
            del self._calls[key]


class _Call:
    """One model call in progress, in its own task, shared by the requests that wait for it.

    A request that stops waiting does not end the call for the others; the last one cancels it.
    """

    def __init__(self, work: Coroutine[Any, Any, Floats]) -> None:
        self.task = asyncio.create_task(work)
        self._waiting = 0

    def ended(self) -> bool:
        """Returns whether the call is done, or canceled because no request waits for it."""
        return self.task.done() or self.task.cancelling() > 0

    async def answer(self, deadline: Deadline) -> Floats:
        """Waits for the call until `deadline` and returns its vector.

        Raises what the call raises, or DeadlineExceeded.
        """
        self._waiting += 1
        try:
            async with asyncio.timeout(deadline.left_s()):
                return await asyncio.shield(self.task)
        except TimeoutError:
            raise DeadlineExceeded(
                "the text was not embedded in time", dependency="embedder"
            ) from None
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.task.cancel()
