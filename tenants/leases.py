"""Leases: the right to write a resource for a limited time, with a fencing epoch per holder."""

from sqlalchemy import Connection, Engine, insert, select, update

from tenants import tables
from tenants.entities import Lease
from vicinage.catalog import change
from vicinage.clock import Clock
from vicinage.errors import Conflict

_L = tables.leases


class Leases:
    """Leases of all resources ("slot/3", "reindex/<job>"). Safe for many processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def acquire(self, resource: str, owner: str, *, ttl_s: float) -> Lease | None:
        """Returns the lease if it is free, expired or the owner's, else None.

        The epoch is one higher than the last.
        """
        now = self._clock.now_ms()
        expires = now + int(ttl_s * 1000)
        with change(self._engine) as connection:
            self._serialize(connection)
            row = connection.execute(select(_L).where(_L.c.resource == resource)).first()
            if row is None:
                connection.execute(
                    insert(_L).values(resource=resource, owner=owner, epoch=1, expires_ms=expires)
                )
                return Lease(resource, owner, 1, expires)
            if row.expires_ms > now and row.owner != owner:
                return None
            values = {"owner": owner, "epoch": row.epoch + 1, "expires_ms": expires}
            connection.execute(update(_L).where(_L.c.resource == resource).values(**values))
            return Lease(resource, owner, row.epoch + 1, expires)

    def renew(self, lease: Lease, *, ttl_s: float) -> Lease:
        """Extends the lease; returns it. Raises Conflict if it has passed to another holder."""
        expires = self._clock.now_ms() + int(ttl_s * 1000)
        where = (_L.c.resource == lease.resource) & (_L.c.epoch == lease.epoch)
        with change(self._engine) as connection:
            if connection.execute(update(_L).where(where).values(expires_ms=expires)).rowcount != 1:
                raise Conflict(
                    f"the lease on {lease.resource} has passed to another holder",
                    expected=lease.epoch,
                )
        return Lease(lease.resource, lease.owner, lease.epoch, expires)

    def release(self, lease: Lease) -> None:
        """Releases the lease early; a no-op if it has passed to another holder."""
        where = (_L.c.resource == lease.resource) & (_L.c.epoch == lease.epoch)
        with change(self._engine) as connection:
            connection.execute(update(_L).where(where).values(expires_ms=0))

    def _serialize(self, connection: Connection) -> None:
        """Locks the catalog's version row, so that concurrent acquisitions are serialized."""
        v = tables.catalog_version
        connection.execute(select(v.c.id).with_for_update())
