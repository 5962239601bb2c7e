"""Metric names as types, each with its help text, and structured events.

Law 5: a metric is set only from a measurement. The label `tenant` is bounded: see
`docs/reference/metrics.md`.
"""

import logging
import sys
import threading
import time
from typing import Any, Final, Literal, TextIO, get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CounterName = Literal[
    "vicinage_query_searches_total",  # searches answered, by outcome
    "vicinage_query_errors_total",  # requests refused or failed, by kind
    # parser processes that were ended because a body exceeded a bound, by reason: time, memory
    "vicinage_query_parsers_killed_total",
    # lookups of search texts in the cache of vectors, by outcome
    "vicinage_query_embedding_cache_total",
    "vicinage_ingest_documents_total",  # documents read from the documents log
    "vicinage_ingest_passages_total",  # passages written to the vectors log
    "vicinage_ingest_rejected_total",  # documents sent to dead letters
    # deletions written to an earlier collection of the same name, without effect
    "vicinage_ingest_skipped_total",
    "vicinage_ingest_embed_tokens_total",  # tokens embedded, by lane
    # pairs of search text and passage that the cross-encoder scored
    "vicinage_ingest_rerank_pairs_total",
    "vicinage_indexer_seals_total",  # segments sealed
    "vicinage_indexer_sealed_passages_total",  # passages written to a segment for the first time
    # passages written to segments, including rewrites by compaction, reindex and repair
    "vicinage_indexer_written_passages_total",
    "vicinage_indexer_compactions_total",  # compactions finished
    "vicinage_indexer_trimmed_messages_total",  # messages trimmed from the vectors log
    "vicinage_indexer_trimmed_documents_total",  # records of documents logs deleted after their use
    # objects of segments that this process was first to find damaged
    "vicinage_indexer_quarantined_total",
    "vicinage_indexer_rebuilt_total",  # segments that had a damaged object, and were rebuilt
    "vicinage_indexer_scrubbed_total",  # objects of segments that the scrub verified
    "vicinage_indexer_swap_conflicts_total",  # manifest swaps refused by compare-and-set or fencing
    # records of the vectors log that are not valid messages and were skipped
    "vicinage_vectors_records_quarantined_total",
    "vicinage_log_producers_replaced_total",  # Kafka producers replaced, by reason
    # appends to Kafka that were refused or failed, by kind of error
    "vicinage_log_appends_refused_total",
    # passages made searchable; not those replayed at a start
    "vicinage_searcher_applied_passages_total",
    "vicinage_searcher_shards_loaded_total",  # shards loaded into memory
    "vicinage_searcher_shards_evicted_total",  # shards evicted from memory
    # lexical indexes that were corrupt or missing and were rebuilt from their texts
    "vicinage_searcher_lexical_rebuilt_total",
    # searches of a shard whose index misses the recall objective, by outcome: scanned (instead of
    # the index), or rows, cpu (the index was used because that bound was reached)
    "vicinage_searcher_index_scans_total",
    # searches for which an index returned fewer than k passages, and that scanned the segment
    "vicinage_searcher_index_short_total",
    "vicinage_events_lost_total",  # events that could not be written because the disk was full
    # GPU work that the CPU did instead, by reason: memory, busy, failed
    "vicinage_searcher_device_fallbacks_total",
]
GaugeName = Literal[
    "vicinage_query_in_flight",  # requests being served
    "vicinage_query_embedding_cache_bytes",  # bytes of the cache of search texts' vectors
    "vicinage_ingest_embed_queue_tokens",  # tokens waiting at the embedder
    # partitions of documents topics that ingest does not read: `vicinage freshness` says why
    "vicinage_ingest_halted_partitions",
    "vicinage_searcher_halted_slots",  # slots of the vectors log that this searcher does not read
    # slots of the vectors log that this indexer holds and does not read
    "vicinage_indexer_halted_slots",
    # generations that are written in a lane, because their model is away, slow or new
    "vicinage_ingest_lanes",
    "vicinage_searcher_resident_bytes",  # bytes of vectors and indexes held in memory
    # damaged objects of segments in the slots held here, by state (noted: waits to be rebuilt;
    # stuck: needs an operator)
    "vicinage_indexer_damaged_objects",
    "vicinage_searcher_device_bytes",  # estimated bytes of indexes on each GPU
    # shards that serve an older manifest because a segment of the newest is corrupt
    "vicinage_searcher_stale_shards",
    # recall@k measured on sampled live searches, mean over collections; by collection: `vicinage
    # recall`
    "vicinage_query_recall",
    # collections whose index misses the recall objective at its greatest effort, as live searches
    # prove
    "vicinage_query_below_objective_collections",
    # greatest freshness lag of all tenants, measured at vicinage_query_freshness_measured_seconds
    "vicinage_query_freshness_lag_ms",
    # Unix time at which the freshness lag of all tenants was last measured; old while the log is
    # away
    "vicinage_query_freshness_measured_seconds",
]
HistogramName = Literal[
    "vicinage_query_search_seconds",  # time from request to answer
    "vicinage_ingest_step_seconds",  # one step of ingest: read to commit
    "vicinage_ingest_embed_seconds",  # one model call
    "vicinage_ingest_rerank_seconds",  # one call of the cross-encoder
    # searchable time minus event time, per message that came after the searcher's start
    "vicinage_searcher_index_lag_seconds",
    "vicinage_indexer_seal_seconds",  # building and publishing one segment
]
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REGISTRY = CollectorRegistry()


def counter(name: CounterName, meaning: str, labels: tuple[str, ...] = ()) -> Counter:
    """Creates the counter of that name, once, at import of the module that owns it."""
    assert name in get_args(CounterName), name
    return Counter(name.removesuffix("_total"), meaning, labels, registry=REGISTRY)


def gauge(name: GaugeName, meaning: str, labels: tuple[str, ...] = ()) -> Gauge:
    """Creates the gauge of that name, once, at import of the module that owns it."""
    assert name in get_args(GaugeName), name
    return Gauge(name, meaning, labels, registry=REGISTRY)


def histogram(name: HistogramName, meaning: str, labels: tuple[str, ...] = ()) -> Histogram:
    """Creates the histogram of that name, in seconds, once, at import of the module that owns it."""
    assert name in get_args(HistogramName), name
    return Histogram(name, meaning, labels, buckets=LATENCY_BUCKETS_S, registry=REGISTRY)


_lost: Final = counter(
    "vicinage_events_lost_total", "events that could not be written because the disk was full"
)


def configure_events(role: str, *, level: int = logging.INFO) -> None:
    """Sends structured events of this process to stderr, one JSON object per line, with the role."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: EventWriter(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)


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


class EventWriter:
    """Writes events to a stream, one per line. Counts and drops an event that cannot be written.

    It never raises: threads that serve and recover write events, and a full disk must not end them.
    """

    _lock = threading.Lock()

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        """Writes the line."""
        try:
            with self._lock:
                self._stream.write(message + "\n")
                self._stream.flush()
        except (OSError, ValueError):  # the disk is full, or the stream is closed at process exit
            _lost.inc()

    log = debug = info = warning = error = critical = exception = fatal = msg


def events(room: str) -> Any:
    """Returns the event writer of a component (field `room`): `events("ingest").info("step.done")`."""
    return structlog.get_logger(
        room=room
    )  # bound lazily: made at import, before `configure_events`
