"""Who may come in: a bounded number of requests, and bytes of their bodies and answers, of which every tenant leaves some to the others.

Laws 6 and 7: a tenant holds at most its weight times what is still free (the rule of vicinage/fair.py). Alone, one of weight 1
gets half of the places, one of weight 4 four fifths; a newcomer always finds one. A place is taken before the body is read: a
body that is slow or large takes from its own tenant's share.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from vicinage.errors import Overloaded, Unavailable
from vicinage.fair import has_room


class Admission:
    """Requests in flight, in all and per tenant. Belongs to one event loop."""

    def __init__(self, *, in_flight_max: int, bodies_bytes_max: int, answers_bytes_max: int) -> None:
        self._places = _Shared(in_flight_max)
        self._bodies = _Shared(bodies_bytes_max)
        self._answers = _Shared(answers_bytes_max)
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Requests being served."""
        return self._places.total

    @property
    def bodies_bytes(self) -> int:
        """Bytes of the bodies that they brought."""
        return self._bodies.total

    @property
    def answers_bytes(self) -> int:
        """Bytes of large answers that are not read yet."""
        return self._answers.total

    def drain(self) -> None:
        """Let nobody in any more; those inside finish."""
        self._draining = True

    @contextmanager
    def enter(self, tenant: str, weight: int) -> "Iterator[Place]":
        """Hold one place, and what is held with it, while the block runs. Raises Overloaded, or Unavailable while draining."""
        if self._draining:
            raise Unavailable("this gateway is shutting down", dependency="gateway", retry_after_s=1.0)
        if not self._places.take(tenant, 1, weight):
            raise Overloaded("too many requests are being served; this tenant has its share", retry_after_s=0.5)
        place = Place(self._places, self._bodies, self._answers, tenant, weight)
        try:
            yield place
        finally:
            place.leave()
            self._bodies.give_back(tenant, place.bytes)
            self._answers.give_back(tenant, place.answer_bytes)


class Place:
    """One request inside, and the bytes of its body and of its answer."""

    __slots__ = ("_answers", "_bodies", "_inside", "_places", "_tenant", "_weight", "answer_bytes", "bytes")

    def __init__(self, places: "_Shared", bodies: "_Shared", answers: "_Shared", tenant: str, weight: int) -> None:
        self._places, self._bodies, self._answers = places, bodies, answers
        self._tenant, self._weight = tenant, weight
        self._inside = True
        self.bytes = self.answer_bytes = 0

    def hold(self, n_bytes: int) -> None:
        """Hold so many bytes more until the request is over. Raises Overloaded."""
        if not self._bodies.take(self._tenant, n_bytes, self._weight):
            raise Overloaded("too many bytes of bodies are held; this tenant has its share", retry_after_s=0.5)
        self.bytes += n_bytes

    def hold_answer(self, n_bytes: int) -> None:
        """Holds the bytes of an answer until it is read or its reader is gone. Raises Overloaded."""
        if not self._answers.take(self._tenant, n_bytes, self._weight):
            raise Overloaded("too many bytes of answers are not read yet; this tenant has its share", retry_after_s=0.5)
        self.answer_bytes += n_bytes

    def leave(self) -> None:
        """Give the place to others now; the bytes stay on account. Idempotent."""
        if self._inside:
            self._inside = False
            self._places.give_back(self._tenant, 1)


class _Shared:
    """A bounded amount of something, and who holds how much of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()
        self.total = 0

    def take(self, tenant: str, n: int, weight: int) -> bool:
        """Hold `n` more; False where that is beyond the tenant's share. Of a whole that nobody holds, one may take all."""
        held = self._held[tenant]
        if self.total and not has_room(n, held=held, free=self._most - self.total, weight=weight):
            return False
        self._held[tenant] = held + n
        self.total += n
        return True

    def give_back(self, tenant: str, n: int) -> None:
        """Hold `n` less."""
        self.total -= n
        self._held[tenant] -= n
        if not self._held[tenant]:
            del self._held[tenant]
