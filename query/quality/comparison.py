"""Compares the hits of a served search with those of an exact search of the same passages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from query.merge import merge
from query.plan import Plan
from query.scatter import Searchers
from vicinage.clock import Deadline
from vicinage.errors import VicinageError
from vicinage.records import Hit, ShardResult

DEADLINE_S: Final = 5.0
"""Deadline of all searches of one comparison."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice of the segments with an index.

    `n_calibration_queries`: of every curve, at least. `greatest`: no greater effort was measured.
    """

    effort: int
    n_calibration_queries: int
    greatest: bool


@dataclass(frozen=True, slots=True)
class ServedSearch:
    """A served search: its plan, and its hits without content, because it may wait for minutes."""

    plan: Plan
    hits: tuple[Hit, ...]
    changes: tuple[int, ...]
    """Each shard's count of changes; equal counts mean equal documents."""
    choice: Choice


@dataclass(frozen=True, slots=True)
class Comparison:
    """A search's hits: exact, served, and by index, which differ if a scan replaced the index."""

    exact: tuple[Hit, ...]
    served: tuple[Hit, ...]
    by_index: tuple[Hit, ...]
    choice: Choice


def served_search(
    plan: Plan, hits: tuple[Hit, ...], shard_results: Sequence[ShardResult]
) -> ServedSearch:
    """Returns the search that these shard results answered with `hits`."""
    bare = tuple(hit._replace(text=None, metadata=None, vector=None) for hit in hits)
    return ServedSearch(plan, bare, _changes(shard_results), _choice(shard_results))


async def compare(search: ServedSearch, searchers: Searchers) -> Comparison | None:
    """Repeats the search exactly; returns None if that fails or the documents keep changing."""
    plan, deadline = _without_content(search.plan), Deadline.after(DEADLINE_S)
    try:
        exact = await _repeat(_exact(plan), searchers, deadline)
        served = search
        if exact.changes != search.changes:  # documents changed: search again
            served = await _repeat(plan, searchers, deadline)
        by_index = served
        if plan.queries[0].scan:  # served without the index, which is to be judged
            by_index = await _repeat(_by_index(plan), searchers, deadline)
    except VicinageError:
        return None
    if not exact.changes == served.changes == by_index.changes:
        return None
    return Comparison(exact.hits, served.hits, by_index.hits, by_index.choice)


async def _repeat(plan: Plan, searchers: Searchers, deadline: Deadline) -> ServedSearch:
    shard_results = (await searchers.scatter(plan, deadline)).shard_results
    return served_search(plan, merge(shard_results, plan.queries[0].k), shard_results)


def recall_of(served: Sequence[Hit], exact: Sequence[Hit]) -> float:
    """Returns the share of the exact hits (at least one) that were served.

    A hit as near as the last exact hit counts, because ties have no order.
    """
    truth = {(h.document_id, h.passage) for h in exact}
    worst = min(h.score for h in exact)
    found = sum((h.document_id, h.passage) in truth or h.score >= worst for h in served)
    return min(1.0, found / len(exact))


def _choice(shard_results: Sequence[ShardResult]) -> Choice:
    chose = [result for result in shard_results if result.effort]
    return Choice(
        max((result.effort for result in chose), default=0),
        min((result.n_calibration_queries for result in chose), default=0),
        all(result.greatest for result in chose),
    )


def _changes(shard_results: Sequence[ShardResult]) -> tuple[int, ...]:
    return tuple(result.changes for result in shard_results)


def _exact(plan: Plan) -> Plan:
    return replace(plan, queries=tuple(replace(q, exact=True) for q in plan.queries))


def _by_index(plan: Plan) -> Plan:
    return replace(plan, queries=tuple(replace(q, scan=False) for q in plan.queries))


def _without_content(plan: Plan) -> Plan:
    return replace(plan, queries=tuple(replace(q, include=frozenset()) for q in plan.queries))
