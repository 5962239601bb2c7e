"""A bounded queue that serves tenants by weight.

Its algorithm is deficit round robin (Shreedhar and Varghese, 1995).

Guarantee 7: over any period in which two tenants both wait, each is served in proportion to its
weight, within one quantum. No tenant can fill the queue: it may hold at most `weight` times the
free space (dynamic thresholds, Choudhury and Hahne, 1998). So a tenant of weight 1 alone gets half
of the queue, and space for another tenant always remains. Not thread-safe: the owner holds a lock.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vicinage.errors import Overloaded

T = TypeVar("T")


def has_room(more: int, *, held: int, free: int, weight: int) -> bool:
    """Returns whether a tenant that holds `held` may take `more` of the free space `free`.

    The tenant may hold at most `weight` times the free space.
    """
    return more <= free and held + more <= weight * free


@dataclass(slots=True)
class _TenantQueue(Generic[T]):
    """One tenant's waiting items, oldest first, and its deficit counter.

    `deficit` is the cost that the tenant may still take in this round; below 0, it owes that cost.
    """

    weight: int
    deficit: int = 0
    cost: int = 0
    held: int = 0
    """The tenant's part of the queue's bound."""
    items: deque[tuple[T, int]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """Items with a cost, per tenant, bounded by total cost (`cost_max`) or by number (`items_max`).

    `cost` is the total cost of waiting items. `cost_per_s` is the service rate that the owner
    measured; it determines `retry_after_s` of Overloaded.
    """

    def __init__(self, *, cost_max: int = 0, items_max: int = 0, quantum: int) -> None:
        assert bool(cost_max) != bool(items_max), "one bound, of one kind"
        self._held_max = cost_max or items_max
        self._by_cost = bool(cost_max)
        self._quantum = quantum
        self._queues: dict[str, _TenantQueue[T]] = {}
        self._held = 0
        self.cost = 0
        self.cost_per_s = 0.0

    def __len__(self) -> int:
        return sum(len(queue.items) for queue in self._queues.values())

    def put(self, tenant: str, items: list[tuple[T, int]], *, weight: int = 1) -> None:
        """Queues (item, cost) pairs after the tenant's others, all or none.

        Raises Overloaded if they do not fit. An empty queue accepts any cost, so that every request
        can be served eventually.
        """
        if not items:
            return
        cost = items[0][1] if len(items) == 1 else sum(c for _, c in items)
        held = cost if self._by_cost else len(items)
        queue = self._queues.get(tenant)
        if self._held and not self._has_room(queue, held, weight):
            raise self._full(cost + (queue.cost if queue else 0))
        queue = queue or self._queue_of(tenant, weight)
        queue.weight = weight
        queue.items.extend(items)
        self._count(queue, cost, held)

    def put_back(self, tenant: str, items: list[tuple[T, int]], *, weight: int = 1) -> None:
        """Requeues taken items at the head of the tenant's queue and refunds their cost.

        Always fits.
        """
        queue = self._queue_of(tenant, weight)
        for item in reversed(items):
            queue.items.appendleft(item)
            queue.deficit += item[1]
            self._count(queue, item[1], item[1] if self._by_cost else 1)

    def _queue_of(self, tenant: str, weight: int) -> _TenantQueue[T]:
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = _TenantQueue(weight)
        queue.weight = weight
        return queue

    def _count(self, queue: _TenantQueue[T], cost: int, held: int) -> None:
        """Adds cost and held space to the totals; negative values subtract."""
        queue.cost += cost
        queue.held += held
        self.cost += cost
        self._held += held

    def _has_room(self, queue: _TenantQueue[T] | None, more: int, weight: int) -> bool:
        return has_room(
            more, held=queue.held if queue else 0, free=self._held_max - self._held, weight=weight
        )

    def _full(self, own: int) -> Overloaded:
        wait_s = max(0.1, min(30.0, own / self.cost_per_s)) if self.cost_per_s else 1.0
        return Overloaded(
            f"the queue is full: {self._held} of {self._held_max} wait",
            retry_after_s=round(wait_s, 1),
        )

    def take(self, budget: int) -> list[T]:
        """Takes items with a total cost of at most `budget`, by deficit round robin.

        Returns at least one item if any waits, whatever its cost.
        """
        taken: list[T] = []
        left = budget
        while self._queues:
            tenant, queue = next(iter(self._queues.items()))
            queue.deficit += self._quantum * queue.weight
            while queue.items and queue.items[0][1] <= queue.deficit:
                item, cost = queue.items[0]
                if taken and cost > left:
                    # its turn is not over: it is first next time
                    queue.deficit -= self._quantum * queue.weight
                    return taken
                queue.items.popleft()
                queue.deficit -= cost
                left -= cost
                self._count(queue, -cost, -cost if self._by_cost else -1)
                taken.append(item)
            del self._queues[tenant]
            if queue.items or queue.deficit < 0:  # a tenant that owes stays until it is paid back
                self._queues[tenant] = queue  # to the end of the round
            if left <= 0:
                break
        return taken

    def take_along(self, tenant: str, fits: Callable[[T], bool], n_max: int) -> list[T]:
        """Takes at most `n_max` more items of the tenant that fit, oldest first, to fill a batch.

        Their cost is charged to the tenant: cost beyond its turn makes the deficit negative, and
        its next turns pay it back.
        """
        queue = self._queues.get(tenant)
        if queue is None or not queue.items:
            return []
        taken: list[T] = []
        others: list[tuple[T, int]] = []
        total, items = 0, queue.items
        while items and len(taken) < n_max:
            item, cost = items.popleft()
            if fits(item):
                total += cost
                taken.append(item)
            else:
                others.append((item, cost))
        items.extendleft(reversed(others))
        queue.deficit -= total
        self._count(queue, -total, -total if self._by_cost else -len(taken))
        return taken
