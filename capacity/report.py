"""The capacity report as JSON, with the method of each figure. Pure."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from capacity.accounting import collection_usage, total
from capacity.headroom import host_memory
from capacity.snapshot import Rate, Snapshot
from tenants.provisioning import DEAD_LETTERS_MS
from vicinage.settings import IndexerSettings

METHODS = {
    "documents": (
        "live documents in the searchers' snapshots; if not in memory: counted from segments and "
        "log"
    ),
    "passages": "live passages, counted like documents",
    "at_least": (
        "true: documents and passages are lower bounds, because a shard did not answer or was not "
        "counted yet"
    ),
    "host_bytes": (
        "accounted: delta arrays, and segments as if every page were touched; 0 if not in memory"
    ),
    "store_bytes": "sizes of the objects that the manifests name",
    "age_s": "how long data is kept after its last use, as this gateway is configured",
    "bytes_max": (
        "data beyond these bytes is deleted earlier, after a minute (documents) or two (vectors); "
        "null: no such bound, as on Kafka"
    ),
    "log_bytes": (
        "size of the log's file and write-ahead log; null on Kafka, where brokers store it"
    ),
    "bytes_per_passage": (
        "mean bytes of the collection's passages in memory; for shards not in memory, of passages "
        "in segments"
    ),
    "records": "records kept in the tenant's documents log",
    "used_bytes": "resident sets of the searchers' processes on that host",
    "available_bytes": "available memory that the host's operating system reports",
    "limit_bytes": "searcher.resident_bytes_max of the searchers on that host",
    "held_bytes": "accounted bytes in the memory of those searchers",
    "not_resident_bytes": (
        "bytes that their shards not in memory would take: objects, rows in the log, bookkeeping"
    ),
    "left_bytes": (
        "the lesser of limit_bytes - held_bytes and available_bytes, less not_resident_bytes; at "
        "least 0"
    ),
    "at_most": (
        "true: rows in the log of shards not in memory are not counted yet, so left_bytes may be "
        "less"
    ),
    "passages_left": (
        "left_bytes / bytes_per_passage of that dimension; for the host, the least of its "
        "dimensions"
    ),
    "per_s": (
        "difference of counters over window_s; passages replayed at a searcher's start are not "
        "counted"
    ),
}


def retention(snapshot: Snapshot, settings: IndexerSettings) -> list[dict[str, Any]]:
    """Returns the bounds of data retained beside live data: age and, on an embedded log, bytes."""
    of_slot: Counter[int] = Counter()
    for stats in snapshot.shards:
        of_slot[stats.shard.slot] += stats.store_bytes
    least, share = settings.keep_sealed_bytes, settings.keep_sealed_share
    sealed = sum(max(least, int(share * n)) for n in of_slot.values())
    here = snapshot.log_bytes is not None
    rows: list[tuple[str, float, int | None]] = [
        (
            "documents log, each partition",
            settings.keep_documents_s,
            settings.keep_documents_bytes if here else None,
        ),
        ("vectors log, sealed", settings.keep_sealed_s, sealed if here else None),
        ("dead letters", DEAD_LETTERS_MS / 1_000, None),
        ("superseded segments", settings.superseded_age_s, None),
    ]
    return [{"kept": name, "age_s": age_s, "bytes_max": most} for name, age_s, most in rows]


def report(snapshot: Snapshot, settings: IndexerSettings) -> dict[str, Any]:
    """Returns the report that `vicinage capacity` shows."""
    rows = collection_usage(snapshot)
    return {
        "at_ms": snapshot.at_ms,
        "collections": [asdict(row) for row in rows],
        "tenants": [
            {
                **{
                    k: v
                    for k, v in asdict(total(r for r in rows if r.tenant == t.name)).items()
                    if k not in ("collection", "bytes_per_passage")
                },
                "tenant": t.name,
                "class": t.priority,
                "records": snapshot.documents_logged.get(t.name, 0),
            }
            for t in snapshot.tenants
        ],
        "headroom": [asdict(row) for row in host_memory(snapshot)],
        "disk": [
            {"log_bytes": snapshot.log_bytes, "store_bytes": sum(row.store_bytes for row in rows)}
        ],
        "retention": retention(snapshot, settings),
        "rates": {
            "searches": _rate(snapshot.searches),
            "applied_passages": _rate(snapshot.applied),
        },
        "methods": METHODS,
    }


def _rate(rate: Rate) -> dict[str, float]:
    return {"per_s": round(rate.per_s, 2), "window_s": round(rate.window_s, 1)}
