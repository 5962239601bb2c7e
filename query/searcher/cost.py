"""The estimated cost of a search request; 1 is one graph search. Pure."""

from typing import Final

from indexer.index.shard import Shard
from vicinage.records import ShardQuery

GRAPH_NUMBERS: Final = 1 << 20
"""Numbers compared in a scan (4,096 rows × 256) that cost about as much as one graph search."""
GRAPH_PAIRS: Final = 1 << 18
"""Pairs of a word and a row that cost at most about as much as one graph search.

Ranking 6 words in 100,000 rows took 0.7 ms; 128 words took 3 ms.
"""
MANY_HITS: Final = 100
"""Additional hits that cost about as much as another graph search."""
FILTERED: Final = 4
"""Maximum factor by which a filter raises the cost: wider walks, and the mask of every row."""


def search_cost(query: ShardQuery, shard: Shard | None) -> int:
    """Returns the cost, at least 1. A shard that is not in memory (None) counts as a small one."""
    n_vectors = len(query.vectors) or 1
    if shard is None:
        return n_vectors
    lexical = sum(1 + shard.lexical_cost(text) // GRAPH_PAIRS for text in query.texts)
    if query.mode == "lexical":
        return lexical
    per_graph_search = (1 + query.k // MANY_HITS) * (FILTERED if query.filter else 1)
    numbers = shard.vector_cost(exact=query.exact, scan=query.scan)
    return lexical + n_vectors * per_graph_search * (1 + numbers // GRAPH_NUMBERS)
