"""Manifests of shards. `swap` is the only way to change an index.

Guarantee 8: a swap is a compare-and-set on the manifest's version, under the epoch of the lease on
its slot, in one transaction. Of two indexers that try, at most one succeeds; an indexer whose lease
has passed to another never does.
"""

import json
from collections.abc import Collection as Container
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Engine, RowMapping, insert, select, update

from tenants import tables
from tenants.drafts import Drafts, forget
from tenants.entities import Lease, Manifest, SegmentRef
from tenants.quarantine import Quarantine
from tenants.recent_queries import RecentQueries
from tenants.view import SERVING
from vicinage.catalog import change, look
from vicinage.clock import Clock
from vicinage.errors import Conflict
from vicinage.records import ObjectRef, ShardId

_M = tables.manifests


class Manifests:
    """The segments of each shard. Safe for many threads and processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self.quarantine = Quarantine(engine, clock)
        """The damaged objects of their segments."""
        self.drafts = Drafts(engine, clock)
        self.recent_queries = RecentQueries(engine, clock)

    def of(self, shard: ShardId, *, start: int) -> Manifest:
        """Returns the shard's manifest, or an empty one of version 0 that is sealed to `start`."""
        with look(self._engine) as connection:
            row = connection.execute(select(_M).where(_is(shard))).mappings().first()
        return _manifest(row) if row else Manifest(shard, 0, 0, start, ())

    def of_generation(self, tenant: str, collection: str, number: int) -> list[Manifest]:
        """Returns the manifests that a generation has so far."""
        query = select(_M).where(
            _M.c.tenant == tenant, _M.c.collection == collection, _M.c.generation == number
        )
        with look(self._engine) as connection:
            return [_manifest(row) for row in connection.execute(query).mappings()]

    def changed_since(self, number: int, slots: Container[int]) -> tuple[int, list[Manifest]]:
        """Returns the change number, and the manifests in `slots` that changed after `number`."""
        with look(self._engine) as connection:
            now: int = connection.execute(select(tables.catalog_version.c.manifests)).scalar_one()
            if now == number:
                return now, []
            # A lower number means a catalog restored from a backup: return every manifest.
            since = number if number < now else -1
            query = (
                select(_M)
                .where(_M.c.change > since, _M.c.slot.in_(sorted(slots)))
                .order_by(_M.c.change)
            )
            return now, [_manifest(row) for row in connection.execute(query).mappings()]

    def swap(
        self, old: Manifest, *, segments: tuple[SegmentRef, ...], sealed: int, lease: Lease
    ) -> Manifest:
        """Replaces `old` by the new manifest.

        Raises Conflict if `old` is stale or the lease is lost.
        """
        new = Manifest(old.shard, old.version + 1, lease.epoch, sealed, segments)
        version = tables.catalog_version
        with change(self._engine) as connection:
            bump = update(version).values(manifests=version.c.manifests + 1)
            number = connection.execute(bump.returning(version.c.manifests)).scalar_one()
            current = connection.execute(
                select(tables.leases.c.epoch).where(tables.leases.c.resource == lease.resource)
            ).scalar()
            if current != lease.epoch:
                raise Conflict(
                    f"the lease on {lease.resource} has passed to another holder",
                    expected=lease.epoch,
                    found=current,
                )
            row = {
                "version": new.version,
                "epoch": new.epoch,
                "sealed": sealed,
                "segments": _dump(segments),
                "change": number,
            }
            forget(connection, (s.folder() for s in segments if s not in old.segments))
            if old.version == 0:
                self._first(connection, old, row)
                return new
            where = _is(old.shard) & (_M.c.version == old.version)
            if connection.execute(update(_M).where(where).values(**row)).rowcount != 1:
                raise Conflict(
                    f"the manifest of {old.shard} was swapped meanwhile", expected=old.version
                )
        return new

    def _first(self, connection: Any, old: Manifest, row: Mapping[str, object]) -> None:
        if connection.execute(select(_M.c.version).where(_is(old.shard))).first():
            raise Conflict(f"the manifest of {old.shard} was swapped meanwhile", expected=0)
        s = old.shard
        where = {
            "tenant": s.tenant,
            "collection": s.collection,
            "generation": s.generation,
            "slot": s.slot,
        }
        connection.execute(insert(_M).values(**where, **row))

    def paths(self) -> set[str]:
        """Returns the path of every object that the manifest of a serving generation names."""
        g = tables.generations
        same = (
            (g.c.tenant == _M.c.tenant)
            & (g.c.collection == _M.c.collection)
            & (g.c.number == _M.c.generation)
        )
        query = select(_M.c.segments).join(g, same).where(g.c.state.in_(SERVING))
        with look(self._engine) as connection:
            rows = connection.execute(query).scalars().all()
        return {o.path for row in rows for segment in _parse(row) for o in segment.objects.values()}

    def drop(self, shard: ShardId) -> None:
        """Deletes the shard's manifest; its objects become orphans."""
        with change(self._engine) as connection:
            connection.execute(_M.delete().where(_is(shard)))


def _is(shard: ShardId) -> Any:
    return (
        (_M.c.tenant == shard.tenant)
        & (_M.c.collection == shard.collection)
        & (_M.c.generation == shard.generation)
        & (_M.c.slot == shard.slot)
    )


def _manifest(row: RowMapping) -> Manifest:
    shard = ShardId(row["tenant"], row["collection"], row["generation"], row["slot"])
    return Manifest(shard, row["version"], row["epoch"], row["sealed"], _parse(row["segments"]))


_RENAMED: Final = {"asked": "n_calibration_queries", "first": "log_start", "end": "log_end"}
"""Fields of a stored segment by the name that 0.1 wrote."""


def _dump(segments: tuple[SegmentRef, ...]) -> str:
    return json.dumps([asdict(s) for s in segments])


def _parse(text: str) -> tuple[SegmentRef, ...]:
    return tuple(_segment(fields) for fields in json.loads(text))


def _segment(fields: dict[str, Any]) -> SegmentRef:
    """Returns a segment that any version wrote.

    Absent fields get defaults, and unknown ones are ignored.
    """
    fields = {_RENAMED.get(name, name): value for name, value in fields.items()}
    known = {
        name: value for name, value in fields.items() if name in SegmentRef.__dataclass_fields__
    }
    objects = {role: ObjectRef(**o) for role, o in fields["objects"].items()}
    curve = tuple((int(effort), float(recall)) for effort, recall in fields.get("curve", ()))
    return SegmentRef(**{**known, "objects": objects, "curve": curve})
