"""Facts about the use of a collection's index by its searches. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vicinage.stats import ShardStats


def search_facts(shards: Sequence[ShardStats], proof: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what searches scan, what effort curves reach, and what live recall proves.

    `scanned_passages`: passages that every search scans; null while a shard is not in memory.
    `curve`: the end of the effort curve with the least recall; null without an index.
    `below_objective`: the proof that the index misses the objective at its greatest effort, and
    searches since by scan outcome; null without a proof.
    """
    ends = [s.curve for s in shards if s.curve is not None]
    least = min(ends, key=lambda end: end.recall, default=None)
    scans: Counter[str] = Counter()
    for s in shards:
        scans.update(s.scans)
    return {
        "scanned_passages": sum(s.scanned_passages for s in shards)
        if all(s.resident for s in shards)
        else None,
        "curve": asdict(least) if least is not None else None,
        "below_objective": {**proof, "searches": dict(scans)} if proof is not None else None,
    }
