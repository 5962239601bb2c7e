"""Statistics of shards that are not in memory, from their manifests and counts."""

from query.searcher.catalog_view import CatalogView
from query.searcher.counting import Counted
from query.searcher.load_failures import LoadFailures
from query.searcher.tail import Tail
from vicinage.records import ShardId
from vicinage.stats import ShardStats


class UnloadedShards:
    """Determines which counts a manifest gives, and which must be counted. Any thread."""

    def __init__(self, view: CatalogView, tail: Tail, failures: LoadFailures) -> None:
        self._view = view
        self._tail = tail
        self._failures = failures

    def stats(self, shard: ShardId, watermark: int, counted: Counted | None) -> ShardStats | None:
        """Returns the statistics of a shard; None if failed or not served.

        The counts are exact or lower bounds (`ShardStats.exact`).
        """
        if shard not in self._view.serving or shard in self._failures.failed:
            return None
        stored, exact = self._view.stored(shard), not self._must_count(shard)
        documents, passages, log_bytes = stored.documents, stored.passages, 0
        if counted is not None:
            documents, passages, log_bytes = counted.documents, counted.passages, counted.log_bytes
        elif not exact:
            has_rows_in_log = self._tail.skipped(shard).n_rows > 0
            documents = passages = 0 if has_rows_in_log else max(0, stored.at_least)
        return ShardStats(
            shard,
            documents,
            passages,
            0,
            stored.segments,
            stored.kinds,
            0,
            stored.bytes,
            watermark,
            stored.version,
            resident=False,
            exact=exact or counted is not None,
            segment_passages=stored.passages,
            log_bytes=log_bytes,
        )

    def to_count(self, tenant: str | None) -> list[ShardId]:
        """Returns shards of one or all tenants whose manifest does not determine their counts.

        Takes about 1.5 µs per shard.
        """
        return [
            shard
            for shard in self._view.of_tenant(tenant)
            if shard not in self._failures.failed and self._must_count(shard)
        ]

    def _must_count(self, shard: ShardId) -> bool:
        """Returns whether the manifest alone does not determine the shard's counts.

        Segments may replace each other's documents, and the log may have rows.
        """
        generation = self._view.serving.get(shard)
        if generation is None:
            return False
        sealed, segments = self._view.sealed(shard, generation), self._view.stored(shard).segments
        return (
            segments > 1
            or self._tail.skipped(shard).n_rows > 0
            or not self._tail.has_all_skipped(shard, sealed)
        )
