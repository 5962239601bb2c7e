"""Exact counts of shards that are not in memory, without reading their vectors.

A shard is counted from the `documents` objects of its segments (ids with versions) and from its
rows in the log that no segment has. One thread counts in the background, for at most a tenth of the
time. A request for one tenant's statistics counts what is missing at once, within a deadline. A
count is exact while the shard's manifest and its rows in the log are those that were counted.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from indexer.index.loader import Loading
from indexer.index.objects import Keys
from indexer.index.rows import document_runs
from indexer.vectors_log import readable_rows
from query.searcher.skipped_rows import Skipped
from query.searcher.tail import Tail
from tenants.entities import Generation
from tenants.manifests import Manifests
from vicinage.clock import Deadline
from vicinage.errors import VicinageError
from vicinage.records import ShardId
from vicinage.telemetry import events
from vicinage.wire import DELETED

REST_S: Final = 1.0
REST_TIMES: Final = 9
_event = events("searcher")


@dataclass(frozen=True, slots=True)
class Part:
    """Documents of one segment or message: `count` passages at `version`, 0 if deleted. int [n]."""

    keys: Keys
    version: NDArray[np.int64]
    count: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts of a shard as of a manifest version and its skipped rows.

    `log_bytes` counts its rows in the log alone.
    """

    version: int
    skipped: Skipped
    documents: int
    passages: int
    log_bytes: int


def live_counts(parts: Sequence[Part]) -> tuple[int, int]:
    """Returns the counts of documents and passages that no newer version replaces. Pure.

    Among equal versions, the later part counts. Takes O(n log n).
    """
    if not parts:
        return 0, 0
    high, low = (
        np.concatenate([p.keys.high for p in parts]),
        np.concatenate([p.keys.low for p in parts]),
    )
    version, count = (
        np.concatenate([p.version for p in parts]),
        np.concatenate([p.count for p in parts]),
    )
    order = np.lexsort((np.arange(len(high)), version, low, high))
    high, low, count = high[order], low[order], count[order]
    last = np.ones(len(high), np.bool_)
    last[:-1] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return int(np.count_nonzero(count[last])), int(count[last].sum())


class Counting:
    """Counts shards that are not in memory.

    A thread runs `run`; any thread may call `count_tenant`. `served` returns the shards of
    this searcher that may be searched.
    """

    def __init__(
        self,
        *,
        tail: Tail,
        manifests: Manifests,
        loading: Loading,
        served: Callable[[], Mapping[ShardId, Generation]],
        version_of: Callable[[ShardId], int],
        to_count: Callable[[str | None], Iterable[ShardId]],
    ) -> None:
        self._tail = tail
        self._manifests = manifests
        self._loading = loading
        self._served = served
        self._version_of = version_of
        self._to_count = to_count
        self._counted: dict[ShardId, Counted] = {}

    def known(self, shard: ShardId) -> Counted | None:
        """Returns the count if it is current; else None."""
        found = self._counted.get(shard)
        if (
            found is None
            or found.version != self._version_of(shard)
            or found.skipped != self._tail.skipped(shard)
        ):
            return None
        return found

    def run(self, stop: threading.Event) -> None:
        """Counts shards without a current count until stopped."""
        while not stop.is_set():
            started_s = time.monotonic()
            unknown = self._unknown(None)
            served = self._served()
            for shard in list(self._counted):  # a copy: `count_tenant` adds meanwhile
                if shard not in served:
                    del self._counted[shard]
            if stop.wait(max(REST_S, REST_TIMES * (time.monotonic() - started_s))):
                return
            for shard in unknown:
                started_s = time.monotonic()
                if self._is_unknown(shard):
                    self._try(shard)
                if stop.wait(REST_TIMES * (time.monotonic() - started_s)):
                    return

    def count_tenant(self, tenant: str, deadline: Deadline) -> None:
        """Counts the tenant's shards, as far as the deadline allows. Blocks."""
        for shard in self._unknown(tenant):
            if deadline.passed():
                return
            self._try(shard)

    def is_missing(self, tenant: str) -> bool:
        """Returns whether a current count of any of the tenant's shards is missing."""
        return bool(self._unknown(tenant))

    def _unknown(self, tenant: str | None) -> list[ShardId]:
        return [s for s in self._to_count(tenant) if self._is_unknown(s)]

    def _is_unknown(self, shard: ShardId) -> bool:
        return self.known(shard) is None and shard not in self._tail.shards

    def _try(self, shard: ShardId) -> None:
        try:
            found = self._count(shard)
        except VicinageError as error:  # its load reports the cause; meanwhile `stats` has a bound
            _event.info("shard.count_failed", shard=str(shard), reason=str(error))
            return
        if found is not None:
            self._counted[shard] = found

    def _count(self, shard: ShardId) -> Counted | None:
        """Returns the counts; None if the shard is no longer served."""
        generation = self._served().get(shard)
        if generation is None:
            return None
        skipped, watermark = self._tail.skipped_and_watermark(shard)
        manifest = self._manifests.of(shard, start=generation.start(shard.slot))
        parts = [
            Part(found.keys, found.version, found.count)
            for found in self._loading.documents(shard, manifest.segments)
        ]
        log_bytes = 0
        records = self._tail.read_skipped(shard, manifest.sealed, watermark)
        for batch in readable_rows(records, generation.dimension):
            log_bytes += batch.nbytes
            ids, versions = (
                batch.column("document_id").to_pylist(),
                batch.column("version").to_numpy(),
            )
            runs = document_runs(ids, versions)
            starts = [start for start, _ in runs]
            deleted = batch.column("passage").to_numpy()[starts] == DELETED
            count = np.where(deleted, 0, [end - start for start, end in runs]).astype(np.int32)
            parts.append(Part(Keys.of(ids[start] for start in starts), versions[starts], count))
        return Counted(manifest.version, skipped, *live_counts(parts), log_bytes)
