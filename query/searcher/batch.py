"""Batches: search requests that agree in everything but their vectors and texts run as one call."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from query.searcher.futures import fail
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded
from vicinage.records import ShardQuery, ShardResult

COST_MAX: Final = 4_096
"""Maximum cost of one batch of several requests, so that it ends about a second later.

No other request is answered meanwhile.
"""
HITS_MAX: Final = 1_024
"""Maximum hits of one batch of several requests.

Making 1,000 hits takes about 5 ms, and other tenants wait for it.
"""


@dataclass(slots=True, eq=False)
class QueuedSearch:
    """A queued search request. `catalog`: the version it was planned on (0: already read here)."""

    query: ShardQuery
    deadline: Deadline
    catalog: int = 0
    cost: int = 1
    batch_key: tuple[object, ...] = ()
    """Equal for all requests of a batch. Computed once, outside every lock."""
    warmed_up: bool = False
    """True once its warm-up is done: the search itself then loads what is missing again."""
    future: Future[ShardResult] = field(default_factory=Future)


def batch_key(query: ShardQuery) -> tuple[object, ...]:
    """Returns the batch key: requests with equal keys may run in one call."""
    condition = None if query.filter is None else query.filter.text
    width = query.vectors.shape[1:]
    return (
        query.shard,
        query.mode,
        query.k,
        query.effort,
        query.recall,
        query.scan,
        query.exact,
        query.include,
        condition,
        width,
    )


def batch_size_max(first: QueuedSearch, batch_max: int) -> int:
    """Returns the maximum number of requests in a batch of requests like `first`, at least 1."""
    return max(1, min(batch_max, COST_MAX // first.cost, HITS_MAX // first.query.k))


def without_late(batch: Sequence[QueuedSearch]) -> list[QueuedSearch]:
    """Returns the requests that are in time, and fails the others with DeadlineExceeded."""
    late = [each for each in batch if each.deadline.passed()]
    for each in late:
        reason = "the deadline passed while waiting to search"
        fail(each.future, DeadlineExceeded(reason, dependency="searcher"))
    return [each for each in batch if each not in late]


def fail_all(batch: Sequence[QueuedSearch], error: BaseException) -> None:
    """Fails the requests that have no result yet."""
    for each in batch:
        fail(each.future, error)


def combine(batch: Sequence[QueuedSearch]) -> ShardQuery:
    """Returns one query with the vectors and texts of all requests, in their order."""
    query = batch[0].query
    if len(batch) == 1:
        return query
    return replace(
        query,
        vectors=np.concatenate([each.query.vectors for each in batch]),
        texts=tuple(text for each in batch for text in each.query.texts),
    )


def set_results(batch: Sequence[QueuedSearch], result: ShardResult, watermark: int) -> None:
    """Sets the result of each request: its part of the combined query's `result`."""
    watermark, start = max(result.watermark, watermark), 0
    for each in batch:
        own = slice(start, start + len(each.query.vectors))
        start = own.stop
        each.future.set_result(
            replace(result, hits=result.hits[own], lexical=result.lexical[own], watermark=watermark)
        )
