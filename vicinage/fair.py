"""A bounded queue that serves tenants by weight: deficit round robin (Shreedhar and Varghese, 1995).

Law 7: over any span in which two tenants both wait, each gets work in proportion to its weight, within one quantum; and
no tenant can fill the queue for the others: it may hold at most `weight` times what is still free (dynamic thresholds,
Choudhury and Hahne, 1998), so alone a tenant of weight 1 gets half of the queue, and room for a newcomer always remains.
Not thread-safe: whoever owns it holds a lock.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vicinage.errors import Overloaded

T = TypeVar("T")


@dataclass(slots=True)
class _Line(Generic[T]):
    """One tenant's waiting items, oldest first, and what it may still take in this round."""

    weight: int
    deficit: int = 0
    cost: int = 0
    items: deque[tuple[T, int]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """Items with a cost, per tenant; at most `cost_max` in all.

    `cost` is what waits. `cost_per_s` is how fast it is worked off, as its owner measured it: it makes the refusals'
    retry_after_s true.
    """

    def __init__(self, *, cost_max: int, quantum: int) -> None:
        self._cost_max = cost_max
        self._quantum = quantum
        self._lines: dict[str, _Line[T]] = {}
        self.cost = 0
        self.cost_per_s = 0.0

    def __len__(self) -> int:
        return sum(len(line.items) for line in self._lines.values())

    def put(self, tenant: str, items: list[tuple[T, int]], *, weight: int = 1) -> None:
        """Queue (item, cost) pairs behind the tenant's others, all or none. Raises Overloaded when they do not fit.

        An empty queue takes anything, so that no request is too large for ever.
        """
        if not items:
            return
        cost = sum(c for _, c in items)
        if self.cost:
            self._check_room(tenant, cost, weight)
        line = self._lines.setdefault(tenant, _Line(weight))
        line.weight = weight
        line.items.extend(items)
        line.cost += cost
        self.cost += cost

    def _check_room(self, tenant: str, cost: int, weight: int) -> None:
        line = self._lines.get(tenant)
        own = cost + (line.cost if line else 0)
        free = self._cost_max - self.cost
        if cost <= free and own <= weight * free:
            return
        wait_s = max(0.1, min(30.0, own / self.cost_per_s)) if self.cost_per_s else 1.0
        raise Overloaded(f"the queue is full: {self.cost} of {self._cost_max} wait", retry_after_s=round(wait_s, 1))

    def take(self, budget: int) -> list[T]:
        """Items worth at most `budget`, shared fairly; one at least if any waits, whatever its cost."""
        taken: list[T] = []
        left = budget
        while self._lines:
            tenant, line = next(iter(self._lines.items()))
            line.deficit += self._quantum * line.weight
            while line.items and line.items[0][1] <= line.deficit:
                item, cost = line.items[0]
                if taken and cost > left:
                    line.deficit -= self._quantum * line.weight  # its turn is not over: it goes first next time
                    return taken
                line.items.popleft()
                line.deficit -= cost
                left -= cost
                line.cost -= cost
                self.cost -= cost
                taken.append(item)
            del self._lines[tenant]
            if line.items:
                self._lines[tenant] = line  # to the end of the round
            if left <= 0:
                break
        return taken
