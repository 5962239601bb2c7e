"""The capacity report as JSON, each figure with how it was measured. Pure."""

from dataclasses import asdict
from typing import Any

from capacity.accounting import holdings, total
from capacity.headroom import host_memory
from capacity.snapshot import Rate, Snapshot

METHODS = {
    "documents": "living documents in the searchers' snapshots",
    "passages": "living passages in the searchers' snapshots",
    "host_bytes": "accounted: delta arrays, and segments as if every page were touched",
    "store_bytes": "sizes of the objects that the manifests name",
    "records": "records kept in the tenant's documents log",
    "used_bytes": "resident sets of the searchers' processes on that host",
    "left_bytes": "available memory as that host's operating system says",
    "passages_left": "left_bytes / bytes_per_passage, the mean over n passages held",
    "per_s": "difference of counters over window_s",
}


def report(snapshot: Snapshot) -> dict[str, Any]:
    """Everything that `vicinage capacity` shows."""
    rows = holdings(snapshot)
    return {
        "at_ms": snapshot.at_ms,
        "collections": [asdict(row) for row in rows],
        "tenants": [
            {
                **{k: v for k, v in asdict(total(r for r in rows if r.tenant == t.name)).items() if k != "collection"},
                "tenant": t.name,
                "class": t.priority,
                "records": snapshot.documents_logged.get(t.name, 0),
            }
            for t in snapshot.tenants
        ],
        "headroom": [asdict(row) for row in host_memory(snapshot)],
        "rates": {"searches": _rate(snapshot.searches), "applied_passages": _rate(snapshot.applied)},
        "methods": METHODS,
    }


def _rate(rate: Rate) -> dict[str, float]:
    return {"per_s": round(rate.per_s, 2), "window_s": round(rate.window_s, 1)}
