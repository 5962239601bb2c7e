"""A change of the catalog: one transaction, one version, one audit record."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, update

from tenants import audit, tables
from vicinage.catalog import change
from vicinage.clock import Clock


@dataclass(frozen=True, slots=True)
class Change:
    """An open change: its connection, and the version that it stamps rows with."""

    connection: Connection
    version: int
    now_ms: int
    actor: str

    def note(
        self, action: str, subject: str, *, before: audit.Facts = None, after: audit.Facts = None
    ) -> None:
        """Writes the audit record."""
        audit.record(
            self.connection,
            actor=self.actor,
            action=action,
            subject=subject,
            before=before,
            after=after,
            now_ms=self.now_ms,
        )


@contextmanager
def changing(engine: Engine, clock: Clock, actor: str) -> Iterator[Change]:
    """Opens one change of the catalog; the lock of the version row serializes all changes."""
    bump = update(tables.catalog_version).values(version=tables.catalog_version.c.version + 1)
    with change(engine) as connection:
        version = connection.execute(bump.returning(tables.catalog_version.c.version)).scalar_one()
        yield Change(connection, version, clock.now_ms(), actor)
