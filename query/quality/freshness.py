"""The freshness of answers: waits until a write is searchable, and the lag that an answer states.

Ingest passes a write's position first (`ingest_wait.py`). Once the searchers' watermarks reach the
end that the vectors log has then, the write is searchable.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from query.quality.ingest_wait import IngestWait, naming
from query.quality.lag_cache import LagCache
from query.quality.lag_reader import LagReader
from query.scatter import Searchers
from tenants.entities import Generation, Tenant
from tenants.registry import Registry
from vicinage.clock import Clock, Deadline
from vicinage.errors import Overloaded, Unavailable
from vicinage.log import Log
from vicinage.records import Token

WAITS_MAX: Final = 64
"""Maximum threads that wait for ingest."""
WAITS_OF_TENANT_MAX: Final = 24
"""Maximum of one tenant (bulkhead), so that others can wait while it is slow (guarantee 7)."""


class Freshness:
    """Belongs to one event loop; reads the log on threads of its own."""

    def __init__(self, log: Log, registry: Registry, searchers: Searchers, clock: Clock) -> None:
        self._log = log
        self._registry = registry
        self._searchers = searchers
        self._lags = LagCache(LagReader(log, registry, clock))
        self._threads = ThreadPoolExecutor(WAITS_MAX, thread_name_prefix="wait-for")
        self._reaching: set[asyncio.Future[None]] = set()
        self._draining = False
        self._waits: Counter[str] = Counter()
        """Tenant → its threads that wait."""
        self._lock = threading.Lock()

    async def reach(
        self, token: Token, tenant: Tenant, generation: Generation, deadline: Deadline
    ) -> None:
        """Returns when everything up to `token` is searchable in this generation.

        Raises DeadlineExceeded, Overloaded, Unavailable once drained, and Refused for a position
        that the log never assigned.
        """
        reaching = asyncio.ensure_future(self._reach(token, tenant, generation, deadline))
        self._reaching.add(reaching)
        try:
            await reaching
        except asyncio.CancelledError:
            if self._draining:
                raise Unavailable("this gateway is shutting down", dependency="gateway") from None
            raise
        finally:
            self._reaching.discard(reaching)

    async def _reach(
        self, token: Token, tenant: Tenant, generation: Generation, deadline: Deadline
    ) -> None:
        self._count(tenant)
        abandoned = threading.Event()
        wait = IngestWait(self._log, self._registry, tenant, generation, deadline, abandoned)
        waiting = self._threads.submit(wait.run, token)
        # Counted until its thread is free, even if the request is canceled before.
        waiting.add_done_callback(partial(self._count_ended, tenant))
        try:
            resolved, ends = await asyncio.wrap_future(waiting)
        finally:
            abandoned.set()
        with naming(resolved):
            await self._searchers.reach(ends, deadline)

    def _count(self, tenant: Tenant) -> None:
        with self._lock:
            own = self._waits[tenant.name]
            if self._waits.total() >= WAITS_MAX or own >= WAITS_OF_TENANT_MAX:
                raise Overloaded("too many searches wait for writes", retry_after_s=0.5)
            self._waits[tenant.name] += 1

    def _count_ended(self, tenant: Tenant, _wait: object) -> None:
        with self._lock:
            self._waits -= Counter([tenant.name])

    def drain(self) -> None:
        """Ends all waits: every running `reach` raises Unavailable. Idempotent."""
        self._draining = True
        for reaching in self._reaching:
            reaching.cancel()

    def waits(self) -> int:
        """Returns the number of threads that wait for ingest."""
        return self._waits.total()

    async def lag_ms(
        self, tenant: Tenant, generation: Generation, watermarks: Mapping[int, int]
    ) -> int | None:
        """Returns the tenant's freshness lag in this collection (`LagCache.lag_ms`)."""
        return await self._lags.lag_ms(tenant, generation, watermarks)

    async def lags_ms(
        self, tenant: Tenant, generations: Sequence[Generation], watermarks: Mapping[int, int]
    ) -> list[int | None]:
        """Returns the lag in each of the tenant's collections; reads the log once for all."""
        return await self._lags.lags_ms(tenant, generations, watermarks)

    def close(self) -> None:
        """Ends the threads. The log is not read any more on return. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._lags.close()
