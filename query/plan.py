"""Which shards are asked what. Pure."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from tenants.entities import Collection, Generation
from vicinage.errors import Refused
from vicinage.filters import Filter
from vicinage.records import Floats, Mode, ShardQuery, Token

NUMBERS_MAX: Final = 1 << 20
"""Of the vectors in one answer: they are written as text on the event loop that everybody shares, 0.1 µs each."""
DEPTH_MIN: Final = 50
"""Hits that each of two lists has at least when they are fused: a hit far down in both may be the best of all.

Scores are standardized over as many, whatever `k` is.
"""


Method = Literal["rrf", "weighted"]


@dataclass(frozen=True, slots=True)
class Fusion:
    """How two lists become one: by scores, weighted `dense_weight` to 1 − `dense_weight`, or by reciprocal rank.

    docs/decisions/026-fusion.md has the measurements behind the defaults.
    """

    method: Method = "weighted"
    dense_weight: float = 0.75


@dataclass(frozen=True, slots=True)
class Question:
    """One question, as parsed and checked. Of `text` and `vector` (float32 [d]) exactly one is set.

    But in mode lexical it is `text`, and in mode hybrid `text`, perhaps with a `vector` in the place of the text's own.
    """

    collection: str
    k: int
    text: str | None = None
    vector: Floats | None = None
    filter: Filter | None = None
    include: frozenset[str] = frozenset({"text", "metadata"})
    exact: bool = False
    wait_for: Token | None = None
    timeout_s: float = 10.0
    mode: Mode = "dense"
    fusion: Fusion = Fusion()
    rerank: int = 0
    """So many of the best, k at least, are read again by a cross-encoder; 0: none."""

    def depth(self) -> int:
        """Hits that are to be found."""
        return max(self.k, self.rerank)


@dataclass(frozen=True, slots=True)
class Plan:
    """One query per shard of one generation (law 4)."""

    collection: Collection
    generation: Generation
    queries: tuple[ShardQuery, ...]


def make_plan(
    question: Question,
    collection: Collection,
    vector: Floats | None,
    catalog: int,
    recall: float | None = None,
    *,
    scan: bool = False,
) -> Plan:
    """Ask every shard of the live generation for the best k.

    `vector` float32 [d]; None in mode lexical. `catalog` is the version that `collection` was read at; `recall`, what to ask of
    effort curves instead of the objective; `scan`, whether live searches prove that no effort reaches it. Raises Refused for an answer of too many numbers.
    """
    live = collection.generation()
    if "vector" in question.include and question.k * live.dimension > NUMBERS_MAX:
        most = max(1, NUMBERS_MAX // live.dimension)
        raise Refused(
            f"{question.k} vectors of {live.dimension} numbers are too many for one answer: ask for k of at most {most}, or leave vector out of include",
            field="k",
            limit=most,
        )
    vectors = vector[None] if vector is not None else np.empty((1, 0), np.float32)
    texts = (question.text,) if question.mode != "dense" and question.text is not None else ()
    queries = tuple(
        ShardQuery(
            shard,
            vectors,
            max(question.depth(), DEPTH_MIN) if question.mode == "hybrid" else question.depth(),
            filter=question.filter,
            exact=question.exact,
            include=question.include | {"text"} if question.rerank else question.include,
            catalog=catalog,
            recall=recall,
            scan=scan,
            mode=question.mode,
            texts=texts,
        )
        for shard in live.shards()
    )
    return Plan(collection, live, queries)
