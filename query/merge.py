"""The best k of what the shards found. Pure."""

from collections.abc import Sequence
from heapq import merge as merge_sorted
from itertools import islice

from vicinage.records import Hit, Partial


def merge(partials: Sequence[Partial], k: int) -> tuple[Hit, ...]:
    """The k best hits of the first question, best first; a shard's own order is kept among equals."""
    if len(partials) == 1:
        return partials[0].hits[0][:k]
    return tuple(islice(merge_sorted(*(p.hits[0] for p in partials), key=lambda hit: -hit.score), k))
