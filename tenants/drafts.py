"""Drafts: segments in progress, recorded before their objects are written: no sweep deletes them.

A draft belongs to the epoch of a lease. It ends when a manifest names its segment
(`Manifests.swap`, in the same transaction), when its writer abandons it, or when the lease passes
to another holder: its writer can then publish nothing more (guarantee 8).
"""

from collections.abc import Iterable

from sqlalchemy import Connection, Engine, delete, insert, select

from tenants import tables
from tenants.entities import Lease
from vicinage.catalog import change, look
from vicinage.clock import Clock
from vicinage.errors import Conflict

_D, _L = tables.drafts, tables.leases


class Drafts:
    """Drafts of all indexers, by the folder of their objects. Safe for many processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def begin(self, folder: str, lease: Lease) -> None:
        """Records a segment's folder; durable on return.

        Raises Conflict if the lease has passed to another holder.
        """
        with change(self._engine) as connection:
            epoch = connection.execute(
                select(_L.c.epoch).where(_L.c.resource == lease.resource)
            ).scalar()
            if epoch != lease.epoch:
                raise Conflict(
                    f"the lease on {lease.resource} has passed to another holder",
                    expected=lease.epoch,
                    found=epoch,
                )
            row = {"folder": folder, "resource": lease.resource, "epoch": lease.epoch}
            connection.execute(insert(_D).values(**row, begun_ms=self._clock.now_ms()))

    def end(self, folders: Iterable[str]) -> None:
        """Deletes drafts that their writer has abandoned. Idempotent."""
        with change(self._engine) as connection:
            forget(connection, folders)

    def pinned(self) -> frozenset[str]:
        """Returns the folders that a future manifest may name."""
        same = (_D.c.resource == _L.c.resource) & (_D.c.epoch == _L.c.epoch)
        with look(self._engine) as connection:
            return frozenset(connection.execute(select(_D.c.folder).join(_L, same)).scalars())

    def forget_stale(self) -> None:
        """Deletes drafts of leases that have passed to another holder."""
        current = select(_L.c.epoch).where(_L.c.resource == _D.c.resource).scalar_subquery()
        with look(self._engine) as connection:
            stale = (
                connection.execute(select(_D.c.folder).where(_D.c.epoch != current)).scalars().all()
            )
        if stale:
            self.end(stale)


def forget(connection: Connection, folders: Iterable[str]) -> None:
    """Deletes drafts within an open transaction."""
    for folder in folders:
        connection.execute(delete(_D).where(_D.c.folder == folder))
