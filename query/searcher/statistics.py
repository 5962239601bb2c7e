"""The statistics of a searcher, of all tenants or of one."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from query.searcher.futures import result_within
from query.searcher.host import measure_host
from query.searcher.reads import ShardReads
from query.searcher.shards import ShardTable
from query.searcher.tail import Tail
from tenants.registry import Registry
from tenants.serving import serving
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, VicinageError
from vicinage.metrics import gauge
from vicinage.stats import SearcherStats, ShardStats
from vicinage.telemetry import events

COUNT_WAIT_S: Final = 1.0
"""Bound on the wait for a collection to be loaded, or for a tenant's shards to be counted."""

_event = events("searcher")
_resident = gauge("vicinage_searcher_resident_bytes")


class Statistics:
    """Collects statistics from the shard table and the tail. Any event loop may call `collect`."""

    def __init__(
        self, tail: Tail, shards: ShardTable, reads: ShardReads, registry: Registry
    ) -> None:
        self._tail = tail
        self._shards = shards
        self._reads = reads
        self._registry = registry
        self._resident_bytes = 0
        self._counter = ThreadPoolExecutor(1, thread_name_prefix="searcher-counts")
        """Counts one tenant's shards; after COUNT_WAIT_S, their counts are lower bounds."""

    async def collect(
        self, tenant: str | None, collection: str | None, *, searches: int
    ) -> SearcherStats:
        """Returns the statistics of all tenants, of one tenant, or of one tenant's collection.

        Loads the collection's shards first, each within COUNT_WAIT_S. Shards that are not in memory
        are counted: for one tenant within COUNT_WAIT_S, for all tenants in the background. Counts
        that are not known yet are lower bounds (`ShardStats.exact`). `searches` is the number of
        searches so far.
        """
        if tenant is not None and collection is not None:
            await self._load(tenant, collection)
        elif tenant is not None and self._shards.counting.is_missing(tenant):
            await self._count(tenant)
        watermarks = self._tail.watermarks()
        if tenant is None:
            self._resident_bytes = self._shards.budget.resident_bytes()
            _resident.set(self._resident_bytes)
        failures = self._shards.failures
        return SearcherStats(
            shards=tuple(self._shard_stats(tenant, watermarks)),
            watermarks=watermarks,
            searches=searches,
            applied=self._tail.applied(),
            index_lag_ms=self._tail.lags_ms(tenant),
            replayed=self._tail.replayed(tenant),
            failed=dict(failures.failed),
            stale=failures.stale_reasons(tenant),
            host=measure_host(),
            resident_bytes=self._resident_bytes,
            resident_bytes_max=self._shards.budget.bytes_max,
        )

    def _shard_stats(
        self, tenant: str | None, watermarks: Mapping[int, int]
    ) -> Iterator[ShardStats]:
        for shard in serving(self._registry, tenant):
            resident, watermark = self._tail.shards.get(shard), watermarks.get(shard.slot, 0)
            if resident is not None:
                stats = resident.stats()
                yield replace(stats, watermark=max(stats.watermark, watermark))
            elif (unloaded := self._shards.stats_unloaded(shard, watermark)) is not None:
                yield unloaded

    async def _load(self, tenant: str, collection: str) -> None:
        """Loads the shards of the collection's live generation, each within COUNT_WAIT_S.

        Stops at the first error; the shards not loaded are counted by their segments.
        """
        try:
            live = self._registry.collection(tenant, collection).generation()
            for shard in live.shards():
                if shard.slot in self._shards.view.slots:
                    await self._reads.load(shard, Deadline.after(COUNT_WAIT_S))
        except VicinageError as error:
            _event.info(
                "collection.not_loaded", tenant=tenant, collection=collection, reason=str(error)
            )

    async def _count(self, tenant: str) -> None:
        """Counts the tenant's shards, as far as possible within COUNT_WAIT_S."""
        deadline = Deadline.after(COUNT_WAIT_S)
        count = self._counter.submit(self._shards.counting.count_tenant, tenant, deadline)
        try:
            await result_within(count, deadline, "counting")
        except DeadlineExceeded:
            _event.info("shards.not_counted_in_time", tenant=tenant)

    def close(self) -> None:
        """Cancels a queued count and waits for the running one."""
        self._counter.shutdown(wait=True, cancel_futures=True)
