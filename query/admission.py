"""Who may come in: a bounded number of requests at once, shared by weight when there is not room for all.

Laws 6 and 7: a tenant alone may use everything; once the house is half full, nobody holds more than its share.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from vicinage.errors import Overloaded, Unavailable


class Admission:
    """Requests in flight, in all and per tenant. Belongs to one event loop."""

    def __init__(self, *, in_flight_max: int) -> None:
        self._max = in_flight_max
        self._in_flight: Counter[str] = Counter()
        self._weights: dict[str, int] = {}
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Requests being served."""
        return self._in_flight.total()

    def drain(self) -> None:
        """Let nobody in any more; those inside finish."""
        self._draining = True

    @contextmanager
    def enter(self, tenant: str, weight: int) -> Iterator[None]:
        """Hold one place while the block runs. Raises Overloaded, or Unavailable while draining."""
        if self._draining:
            raise Unavailable("this gateway is shutting down", dependency="gateway", retry_after_s=1.0)
        self._weights[tenant] = weight
        if not self._has_room(tenant):
            raise Overloaded("too many requests are being served; this tenant has its share", retry_after_s=0.5)
        self._in_flight[tenant] += 1
        try:
            yield
        finally:
            self._in_flight[tenant] -= 1
            if not self._in_flight[tenant]:
                del self._in_flight[tenant]
                self._weights.pop(tenant, None)

    def _has_room(self, tenant: str) -> bool:
        total = self._in_flight.total()
        if total >= self._max:
            return False
        if total < self._max // 2:
            return True
        present = set(self._in_flight) | {tenant}
        share = self._max * self._weights[tenant] / sum(self._weights[t] for t in present)
        return self._in_flight[tenant] < max(1, share)
