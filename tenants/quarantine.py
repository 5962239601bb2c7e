"""Damaged objects of segments: any role records them, and maintenance repairs them.

Guarantee 8: no process loads an object recorded as corrupt until it is rebuilt or found intact.
Guarantee 10: each step writes an audit record.
"""

import json
from collections.abc import Collection as Container
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, delete, insert, select, update

from tenants import audit, tables
from tenants.entities import Damage, DamageState
from vicinage.catalog import change, look
from vicinage.clock import Clock
from vicinage.records import ShardId

_Q = tables.quarantine
OPEN: Final = ("noted", "stuck")
"""States of objects that a manifest still names."""


class Quarantine:
    """The damaged objects. Safe for many threads and processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def note(self, damage: Damage, *, actor: str) -> bool:
        """Records the damage; returns True if it is new. Raises Unavailable.

        Ignores objects that the shard's manifest does not name.
        """
        with look(self._engine) as connection:  # repeated reports of known damage write nothing
            if _is_known(connection, damage):
                return False
        with change(self._engine) as connection:
            _serialize(connection)
            if _is_known(connection, damage) or not _named(connection, damage):
                return False
            # it was lost, and now exists but is corrupt
            connection.execute(delete(_Q).where(_Q.c.path == damage.path))
            self._first(connection, damage, actor)
        return True

    def _first(self, connection: Connection, damage: Damage, actor: str) -> None:
        s = damage.shard
        where = {
            "tenant": s.tenant,
            "collection": s.collection,
            "generation": s.generation,
            "slot": s.slot,
        }
        facts = {
            "path": damage.path,
            "segment": damage.segment,
            "role": damage.role,
            "fault": damage.fault,
            "reason": damage.reason,
            "seen_ms": self._clock.now_ms(),
            "state": "noted",
        }
        connection.execute(insert(_Q).values(**where, **facts))
        self._audit(connection, "segment.quarantine", damage, actor, before=None, after=facts)

    def barred(self, shard: ShardId) -> frozenset[str]:
        """Returns the shard's corrupt objects, which must not be loaded."""
        query = select(_Q.c.path).where(_of(shard), _Q.c.fault == "corrupt", _Q.c.state.in_(OPEN))
        with look(self._engine) as connection:
            return frozenset(connection.execute(query).scalars())

    def open(self, slots: Container[int] | None = None) -> list[Damage]:
        """Returns the damage that manifests still name, in these slots or in all, oldest first."""
        query = select(_Q).where(_Q.c.state.in_(OPEN)).order_by(_Q.c.seen_ms, _Q.c.path)
        with look(self._engine) as connection:
            found = [_damage(row) for row in connection.execute(query).mappings()]
        return [d for d in found if slots is None or d.shard.slot in slots]

    def is_stuck(self, path: str) -> bool:
        """Returns whether the object cannot be rebuilt without an operator."""
        query = select(_Q.c.path).where(_Q.c.path == path, _Q.c.state == "stuck")
        with look(self._engine) as connection:
            return connection.execute(query).first() is not None

    def every(self) -> list[Damage]:
        """Returns all recorded damage, oldest first."""
        with look(self._engine) as connection:
            rows = connection.execute(select(_Q).order_by(_Q.c.seen_ms, _Q.c.path)).mappings()
            return [_damage(row) for row in rows]

    def move(
        self, damage: Damage, state: DamageState, *, actor: str, reason: str | None = None
    ) -> None:
        """Sets the state of recorded damage. A no-op if it has that state or is not recorded."""
        facts = {"state": state, "reason": damage.reason if reason is None else reason}
        before = {"state": damage.state, "reason": damage.reason}
        with change(self._engine) as connection:
            _serialize(connection)
            where = (_Q.c.path == damage.path) & (_Q.c.state != state)
            if connection.execute(update(_Q).where(where).values(**facts)).rowcount:
                self._audit(
                    connection, f"segment.{state}", damage, actor, before=before, after=facts
                )

    def forget(self, damage: Damage, *, actor: str, why: str) -> None:
        """Deletes the record: the object was found intact, or its bytes are gone. Idempotent."""
        with change(self._engine) as connection:
            _serialize(connection)
            if connection.execute(delete(_Q).where(_Q.c.path == damage.path)).rowcount:
                before = {"state": damage.state, "reason": damage.reason}
                self._audit(
                    connection, "segment.released", damage, actor, before=before, after={"why": why}
                )

    def _audit(
        self,
        connection: Connection,
        action: str,
        damage: Damage,
        actor: str,
        *,
        before: Any,
        after: Any,
    ) -> None:
        audit.record(
            connection,
            actor=actor,
            action=action,
            subject=str(damage.shard),
            before=before,
            after={"path": damage.path, **after},
            now_ms=self._clock.now_ms(),
        )


def _serialize(connection: Connection) -> None:
    """Locks the catalog's version row, which serializes the writers of the audit chain."""
    connection.execute(select(tables.catalog_version.c.id).with_for_update())


def _is_known(connection: Connection, damage: Damage) -> bool:
    row = connection.execute(select(_Q.c.fault, _Q.c.state).where(_Q.c.path == damage.path)).first()
    return row is not None and (
        row.state == "replaced" or row.fault == damage.fault or damage.fault != "corrupt"
    )


def _named(connection: Connection, damage: Damage) -> bool:
    m, s = tables.manifests, damage.shard
    same = (m.c.tenant == s.tenant) & (m.c.collection == s.collection)
    query = select(m.c.segments).where(same, m.c.generation == s.generation, m.c.slot == s.slot)
    segments = connection.execute(query).scalar()
    return segments is not None and json.dumps(damage.path) in segments


def _of(shard: ShardId) -> Any:
    return (
        (_Q.c.tenant == shard.tenant)
        & (_Q.c.collection == shard.collection)
        & (_Q.c.generation == shard.generation)
        & (_Q.c.slot == shard.slot)
    )


def _damage(row: RowMapping) -> Damage:
    shard = ShardId(row["tenant"], row["collection"], row["generation"], row["slot"])
    facts = {
        name: row[name]
        for name in ("path", "segment", "role", "fault", "reason", "seen_ms", "state")
    }
    return Damage(shard=shard, **facts)
