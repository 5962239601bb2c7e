"""The leases on slots that one indexer holds: renewed early, acquired when they are free."""

from collections.abc import Iterator

from tenants.entities import Lease
from tenants.leases import Leases
from vicinage.clock import Clock
from vicinage.errors import Conflict
from vicinage.telemetry import events

_event = events("indexer")


class SlotLeases:
    """Leases by slot. One thread changes them; any thread may call `of`."""

    def __init__(
        self, leases: Leases, owner: str, slots_total: int, lease_s: float, clock: Clock
    ) -> None:
        self._leases = leases
        self._owner = owner
        self._slots_total = slots_total
        self._lease_s = lease_s
        self._clock = clock
        self.renewed_s = -1e9
        self.held: dict[int, Lease] = {}

    def of(self, slot: int) -> Lease:
        """Returns the lease held on a slot. Raises Conflict if this indexer does not hold it."""
        if slot not in self.held:
            raise Conflict(f"the lease on slot {slot} is not held here", found="none")
        return self.held[slot]

    def is_due(self) -> bool:
        """Returns whether to renew now: a third of a lease's duration after the last renewal."""
        return self._clock.monotonic() - self.renewed_s >= self._lease_s / 3

    def renewed(self) -> None:
        """Notes that all leases were renewed and the free slots acquired.

        After an error it is not called, so that the next step tries again.
        """
        self.renewed_s = self._clock.monotonic()

    def renew(self) -> Iterator[int]:
        """Renews the held leases; yields each slot whose lease is lost: the caller drops it."""
        for slot, lease in list(self.held.items()):
            try:
                self.held[slot] = self._leases.renew(lease, ttl_s=self._lease_s)
            except Conflict as lost:
                _event.error("lease.lost", slot=slot, reason=str(lost))
                yield slot

    def acquire(self) -> Iterator[int]:
        """Acquires free slots; yields each one, and holds its lease once the caller goes on."""
        for slot in range(self._slots_total):
            if slot not in self.held:
                lease = self._leases.acquire(f"slot/{slot}", self._owner, ttl_s=self._lease_s)
                if lease is not None:
                    yield slot
                    self.held[slot] = lease

    def release(self, slot: int) -> None:
        """Releases the lease in the catalog. The caller drops the slot."""
        self._leases.release(self.held[slot])

    def release_all(self) -> None:
        """Releases every lease, at the end of the role."""
        for slot in self.held:
            self.release(slot)
