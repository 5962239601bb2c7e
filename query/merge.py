"""Merges shard results into the best k hits. Pure."""

from collections.abc import Mapping, Sequence
from heapq import merge as merge_sorted
from itertools import islice
from statistics import pstdev
from typing import Final

from query.plan import DEPTH_MIN, Fusion, SearchRequest
from vicinage.records import Hit, ShardResult

RANK_CONSTANT: Final = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)."""

_Key = tuple[str, int]
_Scores = Mapping[_Key, float]


def best_hits(shard_results: Sequence[ShardResult], search: SearchRequest) -> tuple[Hit, ...]:
    """Returns the best hits of the first search of each shard result, at most the request's depth.

    The hits are dense, lexical, or fused from both, by the request's mode.
    """
    k = search.depth()
    if search.mode == "dense":
        return merge(shard_results, k)
    lexical = [p.lexical[0] for p in shard_results]
    if search.mode == "lexical":
        return _merged(lexical, k)
    every = sum(len(p.hits[0]) for p in shard_results), sum(map(len, lexical))
    return fused(merge(shard_results, every[0]), _merged(lexical, every[1]), search.fusion, k)


def merge(shard_results: Sequence[ShardResult], k: int) -> tuple[Hit, ...]:
    """Returns the k best hits of the first search, best first.

    Orders hits of equal score by document id and passage.
    """
    return _merged([p.hits[0] for p in shard_results], k)


def _merged(lists: Sequence[tuple[Hit, ...]], k: int) -> tuple[Hit, ...]:
    if len(lists) == 1:
        return lists[0][:k]
    return tuple(islice(merge_sorted(*lists, key=lambda hit: (-hit.score, *_key(hit))), k))


def fused(dense: Sequence[Hit], lexical: Sequence[Hit], fusion: Fusion, k: int) -> tuple[Hit, ...]:
    """Returns the k best hits of two lists, best first; equal scores by document id and passage.

    Each list is best first. A hit keeps its score in either list beside the fused one. The order
    does not depend on how many hits beyond the best DEPTH_MIN the lists have. So a longer answer
    begins with the hits of a shorter one.
    """
    by_key = {_key(hit): hit for hit in (*lexical, *dense)}
    own = {_key(hit): hit.score for hit in dense}, {_key(hit): hit.score for hit in lexical}
    scores = _by_rank(*own) if fusion.method == "rrf" else _by_score(*own, fusion.dense_weight)
    best = sorted(scores, key=lambda key: (-scores[key], key))[:k]
    return tuple(
        by_key[key]._replace(
            score=scores[key], dense_score=own[0].get(key), lexical_score=own[1].get(key)
        )
        for key in best
    )


def _by_rank(dense: _Scores, lexical: _Scores) -> _Scores:
    parts = _reciprocal(dense), _reciprocal(lexical)
    return {key: sum(part.get(key, 0.0) for part in parts) for key in dense.keys() | lexical.keys()}


def _by_score(dense: _Scores, lexical: _Scores, dense_weight: float) -> _Scores:
    """Returns weighted sums of standardized scores.

    The sum is below 0 for a hit that is not among the best of either list.
    """
    parts = (
        (dense_weight, _standardized(dense, [])),
        (1 - dense_weight, _standardized(lexical, [0.0] * DEPTH_MIN)),
    )
    lasts = [min(0.0, *part.values(), 0.0) for _, part in parts]
    fused_scores: dict[_Key, float] = {}
    for key in dense.keys() | lexical.keys():
        if any(part.get(key, -1.0) >= 0 for _, part in parts):
            fused_scores[key] = sum(weight * max(0.0, part.get(key, 0.0)) for weight, part in parts)
        else:
            fused_scores[key] = sum(
                w * part.get(key, last) for (w, part), last in zip(parts, lasts, strict=True)
            )
    return fused_scores


def _key(hit: Hit) -> _Key:
    return hit.document_id, hit.passage


def _reciprocal(scores: _Scores) -> _Scores:
    """Returns 1 / (60 + rank) of each hit; the first rank is 1.

    Equal scores have the rank of the first of them, whatever their order.
    """
    ranks: dict[_Key, float] = {}
    before, rank = None, 0
    for n, (key, score) in enumerate(scores.items(), start=1):
        rank = rank if score == before else n
        before = score
        ranks[key] = 1 / (RANK_CONSTANT + rank)
    return ranks


def _standardized(scores: _Scores, rest: Sequence[float]) -> _Scores:
    """Returns each score as standard deviations above the last of the best DEPTH_MIN scores.

    If those are all equal, each of them becomes 1. `rest` holds the scores of passages that are not
    in the list: a passage without the words of the text has a lexical score of 0.
    """
    best = [*islice(scores.values(), DEPTH_MIN), *rest][:DEPTH_MIN]
    if not scores:
        return scores
    last, deviation = best[-1], pstdev(best)
    return {
        key: (score - last) / deviation if deviation else 1.0 if score == last else score - last
        for key, score in scores.items()
    }
