"""Admits requests within bounds on their number and on the bytes of their bodies and answers.

Guarantees 6 and 7: a tenant holds at most its weight times what is still free (the rule of
vicinage/fair.py). A tenant of weight 1 that is alone gets half of the permits, one of weight 4 gets
four fifths. A permit for another tenant always remains. A request takes its permit before its body
is read, so a slow or large body counts against its own tenant's share.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from vicinage.errors import Overloaded, Unavailable
from vicinage.fair import has_room
from vicinage.tenant_context import TenantContext


class Admission:
    """Requests in flight, in total and per tenant. Belongs to one event loop."""

    def __init__(
        self, *, in_flight_max: int, bodies_bytes_max: int, answers_bytes_max: int
    ) -> None:
        self._permits = _Shared(in_flight_max)
        self._bodies = _Shared(bodies_bytes_max)
        self._answers = _Shared(answers_bytes_max)
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Number of requests in flight."""
        return self._permits.total

    @property
    def bodies_bytes(self) -> int:
        """Bytes of the bodies of requests in flight."""
        return self._bodies.total

    @property
    def answers_bytes(self) -> int:
        """Bytes of large answers that their clients have not read yet."""
        return self._answers.total

    def drain(self) -> None:
        """Refuses new requests; requests in flight finish."""
        self._draining = True

    @contextmanager
    def enter(self, tenant: TenantContext) -> "Iterator[Permit]":
        """Holds a permit and the bytes charged to it while the block runs.

        Raises Overloaded, or Unavailable while draining.
        """
        if self._draining:
            raise Unavailable(
                "this gateway is shutting down", dependency="gateway", retry_after_s=1.0
            )
        if not self._permits.take(tenant.name, 1, tenant.weight):
            raise Overloaded(
                "too many requests are being served; this tenant uses its whole share",
                retry_after_s=0.5,
            )
        permit = Permit(self._permits, self._bodies, self._answers, tenant)
        try:
            yield permit
        finally:
            permit.leave()
            self._bodies.release(tenant.name, permit.bytes)
            self._answers.release(tenant.name, permit.answer_bytes)


class Permit:
    """A permit for one request, and the bytes of its body and its answer."""

    __slots__ = (
        "_answers",
        "_bodies",
        "_inside",
        "_permits",
        "_tenant",
        "answer_bytes",
        "bytes",
    )

    def __init__(
        self, permits: "_Shared", bodies: "_Shared", answers: "_Shared", tenant: TenantContext
    ) -> None:
        self._permits, self._bodies, self._answers = permits, bodies, answers
        self._tenant = tenant
        self._inside = True
        self.bytes = self.answer_bytes = 0

    def hold(self, n_bytes: int) -> None:
        """Holds `n_bytes` more for the body until the request is over. Raises Overloaded."""
        if not self._bodies.take(self._tenant.name, n_bytes, self._tenant.weight):
            raise Overloaded(
                "too many bytes of bodies are held; this tenant uses its whole share",
                retry_after_s=0.5,
            )
        self.bytes += n_bytes

    def hold_answer(self, n_bytes: int) -> None:
        """Holds an answer's bytes until the client reads it or disconnects. Raises Overloaded."""
        if not self._answers.take(self._tenant.name, n_bytes, self._tenant.weight):
            raise Overloaded(
                "too many bytes of answers are not read yet; this tenant uses its whole share",
                retry_after_s=0.5,
            )
        self.answer_bytes += n_bytes

    def leave(self) -> None:
        """Releases the permit now; the bytes stay held. Idempotent."""
        if self._inside:
            self._inside = False
            self._permits.release(self._tenant.name, 1)


class _Shared:
    """A bounded resource, and how much of it each tenant holds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()
        self.total = 0

    def take(self, tenant: str, n: int, weight: int) -> bool:
        """Takes `n` more for the tenant; returns False if that exceeds its share.

        While no tenant holds anything, one tenant may take all.
        """
        held = self._held[tenant]
        if self.total and not has_room(n, held=held, free=self._limit - self.total, weight=weight):
            return False
        self._held[tenant] = held + n
        self.total += n
        return True

    def release(self, tenant: str, n: int) -> None:
        """Returns `n` of what the tenant holds to the free part."""
        self.total -= n
        self._held[tenant] -= n
        if not self._held[tenant]:
            del self._held[tenant]
