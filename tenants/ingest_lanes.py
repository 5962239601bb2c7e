"""Lanes of ingest in the catalog: positions of generations written separately from their partition.

The row of a lane is durable before the partition's committed position passes a record that the lane
has not written. It is deleted after the lane's effects are durable. So a reader that reads the
committed position first and the lanes second knows what is durable for a generation
(docs/decisions/029-ingest-lanes.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from sqlalchemy import Engine, RowMapping, delete, insert, select, update

from tenants import tables
from tenants.entities import IngestLane, LaneState
from vicinage.catalog import change, look
from vicinage.clock import Clock
from vicinage.errors import Conflict

_L = tables.ingest_lanes
REASON_MAX: Final = 500


class IngestLanes:
    """The lanes of all tenants. Safe for many threads and processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def open(self, lanes: Sequence[IngestLane]) -> list[IngestLane]:
        """Stores new lanes, all or none; durable on return.

        Raises Conflict if one already exists.
        """
        now_ms = self._clock.now_ms()
        made = [replace(lane, since_ms=now_ms, reason=lane.reason[:REASON_MAX]) for lane in lanes]
        with change(self._engine) as connection:
            for lane in made:
                if connection.execute(select(_L.c.position).where(_is(lane))).first() is not None:
                    raise Conflict(f"{_name(lane)} has a lane already: another ingest is running")
                connection.execute(insert(_L).values(**asdict(lane)))
        return made

    def move(
        self, lane: IngestLane, *, position: int, state: LaneState, reason: str = ""
    ) -> IngestLane:
        """Advances the lane to `position`; returns it. Durable on return.

        Raises Conflict if the lane is no longer at `lane.position`: another ingest moved or closed
        it.
        """
        since_ms = lane.since_ms if state == lane.state else self._clock.now_ms()
        moved = replace(
            lane, position=position, state=state, reason=reason[:REASON_MAX], since_ms=since_ms
        )
        values = {
            "position": position,
            "state": state,
            "reason": moved.reason,
            "since_ms": since_ms,
        }
        with change(self._engine) as connection:
            where = _is(lane) & (_L.c.position == lane.position)
            if connection.execute(update(_L).where(where).values(**values)).rowcount != 1:
                raise Conflict(
                    f"{_name(lane)} was moved on by another ingest", expected=lane.position
                )
        return moved

    def close(self, lane: IngestLane) -> None:
        """Deletes a lane that has caught up.

        Raises Conflict if it is no longer at `lane.position`.
        """
        with change(self._engine) as connection:
            where = _is(lane) & (_L.c.position == lane.position)
            if connection.execute(delete(_L).where(where)).rowcount != 1:
                raise Conflict(
                    f"{_name(lane)} was moved on by another ingest", expected=lane.position
                )

    def drop(self, lanes: Iterable[IngestLane]) -> None:
        """Deletes lanes at any position, because their generations have ended. Idempotent."""
        with change(self._engine) as connection:
            for lane in lanes:
                connection.execute(delete(_L).where(_is(lane)))

    def of(
        self, tenant: str, collection: str | None = None, generations: Iterable[int] | None = None
    ) -> list[IngestLane]:
        """Returns the lanes of a tenant, of one collection or of some of its generations.

        They are sorted by generation and partition.
        """
        query = select(_L).where(_L.c.tenant == tenant)
        if collection is not None:
            query = query.where(_L.c.collection == collection)
        if generations is not None:
            query = query.where(_L.c.generation.in_(sorted(generations)))
        return self._read(query)

    def every(self) -> list[IngestLane]:
        """Returns the lanes of all tenants."""
        return self._read(select(_L))

    def _read(self, query: Any) -> list[IngestLane]:
        ordered = query.order_by(_L.c.tenant, _L.c.collection, _L.c.generation, _L.c.partition)
        with look(self._engine) as connection:
            return [_lane(row) for row in connection.execute(ordered).mappings()]


def owed_from(lanes: Iterable[IngestLane], partition: int, committed: int) -> int:
    """Returns the offset below which everything is durable.

    It is the lowest of the partition and its lanes.
    """
    return min([committed, *(lane.position for lane in lanes if lane.partition == partition)])


def _is(lane: IngestLane) -> Any:
    return (
        (_L.c.tenant == lane.tenant)
        & (_L.c.collection == lane.collection)
        & (_L.c.generation == lane.generation)
        & (_L.c.partition == lane.partition)
    )


def _name(lane: IngestLane) -> str:
    return (
        f"generation {lane.generation} of {lane.tenant}/{lane.collection}, partition "
        f"{lane.partition},"
    )


def _lane(row: RowMapping) -> IngestLane:
    return IngestLane(**row)
