"""Reads of one shard's documents: by id, and by filter."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from indexer.index.shard import Shard
from indexer.index.snapshot import StoredDocument
from query.searcher.futures import result_within
from query.searcher.shards import ShardTable
from vicinage.clock import Clock, Deadline
from vicinage.records import ShardId

READERS: Final = 4
"""Threads that read single documents."""


class ShardReads:
    """Reads documents on threads of its own, so that no search waits for them."""

    def __init__(self, shards: ShardTable, clock: Clock) -> None:
        self._shards = shards
        self._clock = clock
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="searcher-read")
        self._scanner = ThreadPoolExecutor(1, thread_name_prefix="searcher-scan")
        """Scans for deletions by filter, one at a time: no read or search waits for them."""

    async def document(
        self, shard: ShardId, document_id: str, deadline: Deadline
    ) -> StoredDocument | None:
        """Returns the document as it is searchable now; None if there is none."""
        resident = await self.load(shard, deadline)
        read = self._readers.submit(resident.document, document_id)
        found: StoredDocument | None = await result_within(read, deadline, "reading the document")
        return found

    async def matching(
        self, shard: ShardId, condition: Mapping[str, Any], deadline: Deadline, *, limit: int
    ) -> tuple[tuple[str, int], ...]:
        """Returns (id, version) of at most `limit` documents of the shard that pass the filter."""
        resident = await self.load(shard, deadline)
        scan = self._scanner.submit(resident.matching, condition, limit=limit)
        found: tuple[tuple[str, int], ...] = await result_within(scan, deadline, "the filter scan")
        return found

    async def load(self, shard: ShardId, deadline: Deadline) -> Shard:
        """Returns the shard; loads it if it is not in memory. Raises as `ShardTable.request`."""
        resident = self._shards.get(shard)
        if resident is None:
            request = self._shards.request(shard, deadline)
            resident = await result_within(request, deadline, "loading the shard")
        assert resident is not None, "the future gives a shard or raises"
        resident.last_access_s = self._clock.monotonic()
        return resident

    def close(self) -> None:
        """Cancels queued reads and waits for the running ones."""
        for pool in (self._readers, self._scanner):
            pool.shutdown(wait=True, cancel_futures=True)
