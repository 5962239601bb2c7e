"""The best k of what the shards found. Pure."""

from collections.abc import Mapping, Sequence
from heapq import merge as merge_sorted
from itertools import islice
from typing import Final

from query.plan import Fusion, Question
from vicinage.records import Hit, Partial

RANK_CONSTANT: Final = 60
"""Of reciprocal rank fusion, by Cormack, Clarke and Büttcher (SIGIR 2009)."""

_Key = tuple[str, int]
_Scores = Mapping[_Key, float]


def answered(partials: Sequence[Partial], question: Question) -> tuple[Hit, ...]:
    """The hits of the first question of each partial, as many as the question's depth: of one kind, or fused from both."""
    k = question.depth()
    if question.mode == "dense":
        return merge(partials, k)
    lexical = [p.lexical[0] for p in partials]
    if question.mode == "lexical":
        return _merged(lexical, k)
    every = sum(len(p.hits[0]) for p in partials), sum(map(len, lexical))
    return fused(merge(partials, every[0]), _merged(lexical, every[1]), question.fusion, k)


def merge(partials: Sequence[Partial], k: int) -> tuple[Hit, ...]:
    """The k best hits of the first question, best first; a shard's own order is kept among equals."""
    return _merged([p.hits[0] for p in partials], k)


def _merged(lists: Sequence[tuple[Hit, ...]], k: int) -> tuple[Hit, ...]:
    if len(lists) == 1:
        return lists[0][:k]
    return tuple(islice(merge_sorted(*lists, key=lambda hit: -hit.score), k))


def fused(dense: Sequence[Hit], lexical: Sequence[Hit], fusion: Fusion, k: int) -> tuple[Hit, ...]:
    """One list of two, each best first: the k best by the fused score, of equal ones by document and passage.

    Each hit has its score of either list beside the fused one.
    """
    by_key = {_key(hit): hit for hit in (*lexical, *dense)}
    own = {_key(hit): hit.score for hit in dense}, {_key(hit): hit.score for hit in lexical}
    if fusion.method == "rrf":
        parts, weights = (_reciprocal(own[0]), _reciprocal(own[1])), (1.0, 1.0)
    else:
        parts, weights = (_stretched(own[0]), _stretched(own[1])), (fusion.dense_weight, 1 - fusion.dense_weight)
    scores = {key: sum(w * part.get(key, 0.0) for w, part in zip(weights, parts, strict=True)) for key in by_key}
    best = sorted(scores, key=lambda key: (-scores[key], key))[:k]
    return tuple(
        by_key[key]._replace(score=scores[key], dense_score=own[0].get(key), lexical_score=own[1].get(key))
        for key in best
    )


def _key(hit: Hit) -> _Key:
    return hit.document_id, hit.passage


def _reciprocal(scores: _Scores) -> _Scores:
    """1 / (60 + rank), the first rank being 1; equal scores have the rank of the first of them, whatever their order."""
    ranks: dict[_Key, float] = {}
    before, rank = None, 0
    for n, (key, score) in enumerate(scores.items(), start=1):
        rank = rank if score == before else n
        before = score
        ranks[key] = 1 / (RANK_CONSTANT + rank)
    return ranks


def _stretched(scores: _Scores) -> _Scores:
    """The scores from 0, the least found, to 1, the greatest; all 1 where they are equal."""
    if not scores:
        return scores
    least, span = min(scores.values()), max(scores.values()) - min(scores.values())
    return {key: (score - least) / span if span else 1.0 for key, score in scores.items()}
