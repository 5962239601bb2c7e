"""The queue of search requests: fair between tenants (guarantee 7), emptied in batches."""

import threading
from collections.abc import Callable, Sequence
from typing import Final

from query.searcher.batch import QueuedSearch, batch_size_max
from vicinage.fair import FairQueue

QUANTUM: Final = 8
"""Cost that a tenant of weight 1 may use in a turn of the queue, in graph searches."""


class SearchQueue:
    """At most `items_max` requests, by their tenant's weight and estimated cost. Thread-safe.

    A batch is charged to the tenant that sent it. `weight` returns a tenant's weight.
    """

    def __init__(self, *, items_max: int, batch_max: int, weight: Callable[[str], int]) -> None:
        self._batch_max = batch_max
        self._weight = weight
        self._queue: FairQueue[QueuedSearch] = FairQueue(items_max=items_max, quantum=QUANTUM)
        self._changed = threading.Condition()
        self._closed = False

    def put(self, search: QueuedSearch) -> None:
        """Queues a request. Raises Overloaded if the queue is full."""
        tenant = search.query.shard.tenant
        weight = self._weight(tenant)
        with self._changed:
            self._queue.put(tenant, [(search, search.cost)], weight=weight)
            self._changed.notify()

    def requeue(self, batch: Sequence[QueuedSearch]) -> None:
        """Puts a taken batch at the head of its tenant's requests, and refunds its cost."""
        tenant = batch[0].query.shard.tenant
        weight = self._weight(tenant)
        with self._changed:
            self._queue.put_back(tenant, [(each, each.cost) for each in batch], weight=weight)
            self._changed.notify()

    def take_batch(self) -> list[QueuedSearch]:
        """Waits for a request; returns it with others of its batch key. Empty once closed."""
        with self._changed:
            while not (batch := self._take()) and not self._closed:
                self._changed.wait()
        return batch

    def _take(self) -> list[QueuedSearch]:
        batch = self._queue.take(1)
        if batch and self._queue.cost:
            first = batch[0]
            batch += self._queue.take_along(
                first.query.shard.tenant,
                lambda other: other.batch_key == first.batch_key,
                batch_size_max(first, self._batch_max) - 1,
            )
        return batch

    def close(self) -> None:
        """Wakes all threads that wait in `take_batch`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self) -> list[QueuedSearch]:
        """Removes and returns all requests."""
        with self._changed:
            return self._queue.take(self._queue.cost)
