"""Every metric: its name, help text and labels, in one place.

Guarantee 5: a metric is set only from a measurement, so a process exports the metrics that its
modules create, and no others. The label `tenant` is bounded: see `docs/reference/metrics.md`.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1, 2.5, 5, 10, 30),
)
REGISTRY: Final = CollectorRegistry()


@dataclass(frozen=True, slots=True)
class Definition:
    """The help text and the label names of a metric."""

    help: str
    labels: tuple[str, ...] = ()


COUNTERS: Final[Mapping[str, Definition]] = {
    "vicinage_query_searches_total": Definition("searches answered, by outcome", ("outcome",)),
    "vicinage_query_errors_total": Definition("requests refused or failed, by kind", ("kind",)),
    "vicinage_query_parsers_killed_total": Definition(
        "parser processes that were ended because a body exceeded a bound, by reason: time, memory",
        ("reason",),
    ),
    "vicinage_query_embedding_cache_total": Definition(
        "lookups of search texts in the cache of vectors, by outcome", ("outcome",)
    ),
    "vicinage_ingest_documents_total": Definition("documents read from the documents log"),
    "vicinage_ingest_passages_total": Definition("passages written to the vectors log"),
    "vicinage_ingest_rejected_total": Definition("documents sent to dead letters"),
    "vicinage_ingest_skipped_total": Definition(
        "deletions written to an earlier collection of the same name, without effect"
    ),
    "vicinage_ingest_embed_tokens_total": Definition("tokens embedded, by lane"),
    "vicinage_ingest_rerank_pairs_total": Definition(
        "pairs of search text and passage that the cross-encoder scored"
    ),
    "vicinage_indexer_seals_total": Definition("segments sealed"),
    "vicinage_indexer_sealed_passages_total": Definition(
        "passages written to a segment for the first time"
    ),
    "vicinage_indexer_written_passages_total": Definition(
        "passages written to segments, including rewrites by compaction, reindex and repair"
    ),
    "vicinage_indexer_compactions_total": Definition("compactions finished"),
    "vicinage_indexer_trimmed_messages_total": Definition("messages trimmed from the vectors log"),
    "vicinage_indexer_trimmed_documents_total": Definition(
        "records of documents logs deleted after their use"
    ),
    "vicinage_indexer_quarantined_total": Definition(
        "objects of segments that this process was first to find damaged"
    ),
    "vicinage_indexer_rebuilt_total": Definition(
        "segments that had a damaged object, and were rebuilt"
    ),
    "vicinage_indexer_scrubbed_total": Definition("objects of segments that the scrub verified"),
    "vicinage_indexer_swap_conflicts_total": Definition(
        "manifest swaps refused by compare-and-set or fencing"
    ),
    "vicinage_vectors_records_quarantined_total": Definition(
        "records of the vectors log that are not valid messages and were skipped"
    ),
    "vicinage_log_producers_replaced_total": Definition(
        "Kafka producers replaced, by reason", ("reason",)
    ),
    "vicinage_log_appends_refused_total": Definition(
        "appends to Kafka that were refused or failed, by kind of error", ("kind",)
    ),
    "vicinage_searcher_applied_passages_total": Definition(
        "passages made searchable; not those replayed at a start"
    ),
    "vicinage_searcher_shards_loaded_total": Definition("shards loaded into memory"),
    "vicinage_searcher_shards_evicted_total": Definition("shards evicted from memory"),
    "vicinage_searcher_lexical_rebuilt_total": Definition(
        "lexical indexes that were corrupt or missing and were rebuilt from their texts"
    ),
    "vicinage_searcher_index_scans_total": Definition(
        "searches of a shard whose index misses the recall objective, by outcome: scanned (instead "
        "of the index), or rows, cpu (the index was used because that bound was reached)",
        ("outcome",),
    ),
    "vicinage_searcher_index_short_total": Definition(
        "searches for which an index returned fewer than k passages, and that scanned the segment"
    ),
    "vicinage_events_lost_total": Definition(
        "events that could not be written because the disk was full"
    ),
    "vicinage_searcher_device_fallbacks_total": Definition(
        "GPU work that the CPU did instead, by reason: memory, busy, failed", ("reason",)
    ),
}
"""Counters: they only grow, and start at 0 with the process."""
GAUGES: Final[Mapping[str, Definition]] = {
    "vicinage_query_in_flight": Definition("requests being served"),
    "vicinage_query_embedding_cache_bytes": Definition(
        "bytes of the cache of search texts' vectors"
    ),
    "vicinage_ingest_embed_queue_tokens": Definition("tokens waiting at the embedder"),
    "vicinage_ingest_halted_partitions": Definition(
        "partitions of documents topics that ingest does not read: `vicinage freshness` says why"
    ),
    "vicinage_searcher_halted_slots": Definition(
        "slots of the vectors log that this searcher does not read"
    ),
    "vicinage_indexer_halted_slots": Definition(
        "slots of the vectors log that this indexer holds and does not read"
    ),
    "vicinage_ingest_lanes": Definition(
        "generations that are written in a lane, because their model is away, slow or new"
    ),
    "vicinage_searcher_resident_bytes": Definition("bytes of vectors and indexes held in memory"),
    "vicinage_indexer_damaged_objects": Definition(
        "damaged objects of segments in the slots held here, by state (noted: waits to be rebuilt; "
        "stuck: needs an operator)",
        ("state",),
    ),
    "vicinage_searcher_device_bytes": Definition(
        "estimated bytes of indexes on each GPU", ("device",)
    ),
    "vicinage_searcher_stale_shards": Definition(
        "shards that serve an older manifest because a segment of the newest is corrupt"
    ),
    "vicinage_query_recall_ratio": Definition(
        "recall@k measured on sampled live searches, mean over collections; "
        "by collection: `vicinage recall`"
    ),
    "vicinage_query_below_objective_collections": Definition(
        "collections whose index misses the recall objective at its greatest effort, "
        "as live searches prove"
    ),
    "vicinage_query_freshness_lag_seconds": Definition(
        "greatest freshness lag of all tenants, measured at "
        "vicinage_query_freshness_measured_timestamp_seconds"
    ),
    "vicinage_query_freshness_measured_timestamp_seconds": Definition(
        "Unix time at which the freshness lag of all tenants was last measured; "
        "old while the log is unreachable"
    ),
}
"""Gauges: the last measured value."""
HISTOGRAMS: Final[Mapping[str, Definition]] = {
    "vicinage_query_search_seconds": Definition("time from request to answer"),
    "vicinage_ingest_step_seconds": Definition("one step of ingest: read to commit"),
    "vicinage_ingest_embed_seconds": Definition("one model call"),
    "vicinage_ingest_rerank_seconds": Definition("one call of the cross-encoder"),
    "vicinage_searcher_index_lag_seconds": Definition(
        "searchable time minus event time, per message that came after the searcher's start"
    ),
    "vicinage_indexer_seal_seconds": Definition("building and publishing one segment"),
}
"""Histograms, in seconds."""


def counter(name: str) -> Counter:
    """Creates the counter that COUNTERS defines, once, at import of the module that owns it."""
    known = COUNTERS[name]
    return Counter(name.removesuffix("_total"), known.help, known.labels, registry=REGISTRY)


def gauge(name: str) -> Gauge:
    """Creates the gauge that GAUGES defines, once, at import of the module that owns it."""
    known = GAUGES[name]
    return Gauge(name, known.help, known.labels, registry=REGISTRY)


def histogram(name: str) -> Histogram:
    """Creates the histogram that HISTOGRAMS defines, once, at import of the module that owns it."""
    known = HISTOGRAMS[name]
    return Histogram(name, known.help, known.labels, buckets=LATENCY_BUCKETS_S, registry=REGISTRY)


METRICS_FRESH_S: Final = 1.0
_metrics_lock = threading.Lock()
_metrics: tuple[float, bytes] = (-1e9, b"")


def metrics_text() -> bytes:
    """Returns the process's metrics as Prometheus text, cached for METRICS_FRESH_S."""
    global _metrics  # noqa: PLW0603  (the text of the one registry)
    with _metrics_lock:
        if time.monotonic() - _metrics[0] >= METRICS_FRESH_S:
            _metrics = time.monotonic(), generate_latest(REGISTRY)
        return _metrics[1]
