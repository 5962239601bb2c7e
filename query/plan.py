"""Which shards are asked what. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenants.entities import Collection, Generation
from vicinage.records import Floats, ShardQuery, Token


@dataclass(frozen=True, slots=True)
class Question:
    """One question, as parsed and checked. Exactly one of `text` and `vector` (float32 [d]) is set."""

    collection: str
    k: int
    text: str | None = None
    vector: Floats | None = None
    filter: Mapping[str, Any] | None = None
    include: frozenset[str] = frozenset({"text", "metadata"})
    exact: bool = False
    wait_for: Token | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One query per shard of one generation (law 4)."""

    collection: Collection
    generation: Generation
    queries: tuple[ShardQuery, ...]


def make_plan(
    question: Question, collection: Collection, vector: Floats, catalog: int, recall: float | None = None
) -> Plan:
    """Ask every shard of the live generation for the best k.

    `catalog` is the version that `collection` was read at; `recall`, what to ask of effort curves instead of the objective.
    """
    live = collection.generation()
    queries = tuple(
        ShardQuery(
            shard,
            vector[None],
            question.k,
            filter=question.filter,
            exact=question.exact,
            include=question.include,
            catalog=catalog,
            recall=recall,
        )
        for shard in live.shards()
    )
    return Plan(collection, live, queries)
