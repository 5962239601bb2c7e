"""How searches of a collection use its index, as the collection's facts state it. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vicinage.stats import ShardStats


def search_facts(shards: Sequence[ShardStats], proof: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is compared one by one, what the effort curves reach, and what live searches prove of the index.

    `scanned_passages`: passages that every search is compared with one by one; null while a shard is not in memory.
    `curve`: recall at the greatest measured effort, of the segment with the least; null without an index.
    `below_objective`: the proof that the index misses the objective at that effort, and how many searches were
    since scanned in its place, or were not because of a bound; null without one.
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
