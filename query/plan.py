"""Plans the shard queries of a search. Pure."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from tenants.entities import Collection, Generation
from vicinage.errors import Refused
from vicinage.filters import Filter
from vicinage.records import Floats, Mode, ShardQuery, Token

NUMBERS_MAX: Final = 1 << 20
"""Maximum numbers in the vectors of one answer.

Numbers are written as text on the shared event loop, at 0.1 µs each.
"""
DEPTH_MIN: Final = 50
"""Minimum hits to request for each of two lists to fuse: a hit low in both may be the best.

Scores are standardized over this many hits, whatever `k` is.
"""


Method = Literal["rrf", "weighted"]


@dataclass(frozen=True, slots=True)
class Fusion:
    """Fuses the dense and the lexical list, by weighted scores or by reciprocal rank.

    Method weighted weights dense scores by `dense_weight` and lexical ones by 1 − `dense_weight`.
    docs/decisions/026-fusion.md has the measurements behind the defaults.
    """

    method: Method = "weighted"
    dense_weight: float = 0.75


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A search request, parsed and validated.

    In mode dense, exactly one of `text` and `vector` (float32 [d]) is set. In mode lexical, `text`
    is set. In mode hybrid, `text` is set, and `vector` may replace the vector of the text.
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
    """Number of the best hits, at least k, that a cross-encoder reranks; 0 means no reranking."""

    def depth(self) -> int:
        """Returns the number of hits to find."""
        return max(self.k, self.rerank)


@dataclass(frozen=True, slots=True)
class Plan:
    """One query for each shard of one generation (guarantee 4)."""

    collection: Collection
    generation: Generation
    queries: tuple[ShardQuery, ...]


def make_plan(
    search: SearchRequest,
    collection: Collection,
    vector: Floats | None,
    catalog: int,
    recall: float | None = None,
    *,
    scan: bool = False,
) -> Plan:
    """Returns a plan that queries every shard of the live generation for its best hits.

    `vector` is float32 [d], None in mode lexical. `catalog` is the catalog version at which
    `collection` was read. `recall` is the recall to look up in effort curves instead of the
    objective. `scan` says whether live searches prove that no effort reaches the objective. Raises
    Refused if the vectors of the answer would have more than NUMBERS_MAX numbers.
    """
    live = collection.generation()
    if "vector" in search.include and search.k * live.dimension > NUMBERS_MAX:
        most = max(1, NUMBERS_MAX // live.dimension)
        raise Refused(
            f"{search.k} vectors of {live.dimension} numbers are too many for one answer: "
            f"request k of at most {most}, or leave vector out of include",
            field="k",
            limit=most,
        )
    vectors = vector[None] if vector is not None else np.empty((1, 0), np.float32)
    texts = (search.text,) if search.mode != "dense" and search.text is not None else ()
    queries = tuple(
        ShardQuery(
            shard,
            vectors,
            max(search.depth(), DEPTH_MIN) if search.mode == "hybrid" else search.depth(),
            filter=search.filter,
            exact=search.exact,
            include=search.include | {"text"} if search.rerank else search.include,
            catalog=catalog,
            recall=recall,
            scan=scan,
            mode=search.mode,
            texts=texts,
        )
        for shard in live.shards()
    )
    return Plan(collection, live, queries)
