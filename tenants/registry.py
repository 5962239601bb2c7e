"""Tenants, collections, generations and models: read from memory, changed in the catalog.

Every change bumps the catalog's version, stamps the rows it touched with it, and writes its audit
record, in one transaction (law 10). `refresh` is one small SELECT; it loads only rows stamped
since.
"""

import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any, Final

from sqlalchemy import Engine, insert, select, update

from tenants import partitions, tables
from tenants.changes import Change, changing
from tenants.collections import end_collection
from tenants.entities import (
    DEFAULT_MODEL,
    Class,
    Collection,
    EmbeddingModel,
    Generation,
    GenerationState,
    Metric,
    Objectives,
    Tenant,
    TenantState,
)
from tenants.generations import check_build, check_number, insert_generation, set_state
from tenants.ingest_lanes import IngestLanes
from tenants.models import check_entry
from tenants.positions import Positions
from tenants.view import SERVING, View, load_view
from vicinage.catalog import look
from vicinage.clock import Clock
from vicinage.errors import Conflict, NotFound, Refused
from vicinage.partition_maps import PartitionMap
from vicinage.records import ShardId

TENANT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
COLLECTION_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


class Registry:
    """Tenants, collections, generations and models. Reads do no I/O. Safe for many threads."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._view = View()
        self.lanes = IngestLanes(engine, clock)
        """Positions of generations that ingest writes separately from their partition."""
        self.positions = Positions(engine, clock)
        """Ingest's position and state in each partition."""
        self.refresh()

    def refresh(self) -> int:
        """Loads every change committed before this call; returns the catalog's version."""
        with self._lock, look(self._engine) as connection:
            version: int = connection.execute(select(tables.catalog_version.c.version)).scalar_one()
            if version != self._view.version:
                # A lower version means a catalog restored from a backup: discard all that is
                # cached.
                known = self._view if version > self._view.version else View()
                self._view = load_view(connection, known, version)
            return version

    # reading

    @property
    def version(self) -> int:
        """The catalog version that reads return."""
        return self._view.version

    def tenant(self, name: str) -> Tenant:
        """Returns the tenant, unless deleted. Raises NotFound."""
        found = self._view.tenants.get(name)
        if found is None or found.state == "deleted":
            raise NotFound(f"there is no tenant {name!r}")
        return found

    def tenants(self) -> tuple[Tenant, ...]:
        """Returns all tenants that are not deleted, by name."""
        return self._view.tenants_now

    def collection(self, tenant: str, name: str) -> Collection:
        """Returns the tenant's collection, unless deleted. Raises NotFound."""
        found = self._view.collections.get((tenant, name))
        if found is None or found.state == "deleted":
            raise NotFound(f"there is no collection {name!r}")
        return found

    def is_over(self, shard: ShardId) -> bool:
        """Returns whether the shard's generation is known to have ended.

        Numbers are never reused.
        """
        found = self._view.collections.get((shard.tenant, shard.collection))
        if found is None or shard.generation > found.live:
            return False
        return found.state == "deleted" or all(
            g.number != shard.generation for g in found.generations
        )

    def collections(self, tenant: str | None = None) -> tuple[Collection, ...]:
        """Returns all collections that are not deleted, of one tenant or of all."""
        return (
            self._view.collections_now
            if tenant is None
            else self._view.collections_of.get(tenant, ())
        )

    def model(self, name: str) -> EmbeddingModel:
        """Returns the model's entry. Raises NotFound."""
        if name not in self._view.models:
            raise NotFound(f"there is no model {name!r}")
        return self._view.models[name]

    def models(self) -> tuple[EmbeddingModel, ...]:
        """Returns all models, by name."""
        return tuple(m for _, m in sorted(self._view.models.items()))

    def partition_maps(self, tenant: str) -> tuple[PartitionMap, ...]:
        """Returns the partition maps of the tenant's documents topic by epoch; () if there are none."""
        return self._view.maps.get(tenant, ())

    # changing

    def change(self, actor: str) -> AbstractContextManager[Change]:
        """Returns an open change of the catalog; call `refresh` after it."""
        return changing(self._engine, self._clock, actor)

    def append_partition_map(
        self, tenant: str, made: PartitionMap, *, epoch: int, actor: str
    ) -> None:
        """Records the tenant's next partition map.

        Raises Conflict if `epoch` is already recorded.
        """
        with changing(self._engine, self._clock, actor) as at:
            _tenant_now(at, tenant)
            stamp = {"created_ms": at.now_ms, "row_version": at.version}
            partitions.append(at.connection, stamp, tenant, made, epoch=epoch)
            if epoch:
                at.note("tenant.partitions", tenant, after={"epoch": epoch, **asdict(made)})
        self.refresh()

    def create_tenant(self, name: str, *, priority: Class = "silver", actor: str) -> Tenant:
        """Creates a tenant.

        Names are never reused, so that no tenant inherits another's remains.
        """
        if not TENANT_NAME.fullmatch(name):
            raise Refused(
                "a tenant's name is 1 to 63 of a-z, 0-9 and '-', and does not begin with '-'",
                field="name",
                limit=63,
            )
        if priority not in ("gold", "silver", "bronze"):
            raise Refused("class is one of gold, silver, bronze", field="class")
        with changing(self._engine, self._clock, actor) as at:
            taken = at.connection.execute(
                select(tables.tenants.c.state).where(tables.tenants.c.name == name)
            ).first()
            if taken:
                raise Conflict(
                    f"tenant {name!r} exists already"
                    if taken.state != "deleted"
                    else f"{name!r} belonged to a deleted tenant; names are not reused"
                )
            made = Tenant(name, priority, "active", at.now_ms)
            at.connection.execute(
                insert(tables.tenants).values(**asdict(made), row_version=at.version)
            )
            at.note("tenant.create", name, after=asdict(made))
        self.refresh()
        return made

    def suspend_tenant(self, name: str, *, actor: str) -> Tenant:
        """Refuses the tenant's keys and stops reading its topic, until resumed. Nothing is lost."""
        return self._move_tenant(name, "suspended", "tenant.suspend", actor)

    def resume_tenant(self, name: str, *, actor: str) -> Tenant:
        """Ends the suspension of a tenant."""
        return self._move_tenant(name, "active", "tenant.resume", actor)

    def set_tenant_class(self, name: str, priority: Class, *, actor: str) -> Tenant:
        """Changes a tenant's class; every role applies it within about 1 s.

        Raises Refused, NotFound.
        """
        if priority not in ("gold", "silver", "bronze"):
            raise Refused("class is one of gold, silver, bronze", field="class")
        with changing(self._engine, self._clock, actor) as at:
            before = _tenant_now(at, name)
            t = tables.tenants
            at.connection.execute(
                update(t).where(t.c.name == name).values(priority=priority, row_version=at.version)
            )
            at.note(
                "tenant.class", name, before={"class": before.priority}, after={"class": priority}
            )
        self.refresh()
        return self.tenant(name)

    def delete_tenant(self, name: str, *, actor: str) -> Tenant:
        """Deletes the tenant with its collections, and revokes its keys.

        Its name is never reused.
        """
        c = tables.collections
        with changing(self._engine, self._clock, actor) as at:
            _tenant_now(at, name)
            held = (
                select(c.c.name).where(c.c.tenant == name, c.c.state == "active").order_by(c.c.name)
            )
            for collection in at.connection.execute(held).scalars().all():
                end_collection(at, name, collection)
            p = tables.ingest_partitions
            at.connection.execute(p.delete().where(p.c.tenant == name))
            k = tables.keys
            alive = (k.c.tenant == name) & k.c.revoked_ms.is_(None)
            at.connection.execute(k.update().where(alive).values(revoked_ms=at.now_ms))
            after = _set_tenant(at, name, "deleted", "tenant.delete")
        self.refresh()
        return after

    def note(self, action: str, subject: str, after: Mapping[str, Any], actor: str) -> None:
        """Writes an audit record of an action that does not change the catalog."""
        with changing(self._engine, self._clock, actor) as at:
            at.note(action, subject, after=after)

    def deleted_tenant(self, name: str) -> Tenant | None:
        """Returns the deleted tenant of this name, or None."""
        found = self._view.tenants.get(name)
        return found if found and found.state == "deleted" else None

    def _move_tenant(self, name: str, state: TenantState, action: str, actor: str) -> Tenant:
        with changing(self._engine, self._clock, actor) as at:
            after = _set_tenant(at, name, state, action)
        self.refresh()
        return after

    def create_collection(
        self,
        tenant: str,
        name: str,
        *,
        model: str | None = None,
        dimension: int | None = None,
        metric: Metric = "cosine",
        index: str = "auto",
        place: Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]],
        first_offsets: Callable[[], tuple[int, ...]] = tuple,
        objectives: Objectives | None = None,
        actor: str,
    ) -> Collection:
        """Creates a collection with a live first generation. Raises Conflict if the name is taken.

        `place(generation)` returns the slots and starts of that generation; `first_offsets()`
        returns the ends of the documents topic. Both are called before the change starts, because
        all other changes wait for it.
        """
        self.refresh()
        if not COLLECTION_NAME.fullmatch(name):
            raise Refused(
                "a collection's name is 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-', and begins with a letter or digit",
                field="name",
                limit=63,
            )
        model, dimension = self._embedding(model, dimension)
        check_build(dimension, metric, index)
        number = self._next_generation(tenant, name)
        slots, starts = place(number)
        offsets = first_offsets()
        with changing(self._engine, self._clock, actor) as at:
            _tenant_now(at, tenant)
            where = (tables.collections.c.tenant == tenant) & (tables.collections.c.name == name)
            old = at.connection.execute(select(tables.collections).where(where)).first()
            if old and old.state == "active":
                raise Conflict(f"collection {name!r} exists already")
            check_number(number, old.next_generation if old else 1)
            row = {
                "state": "active",
                "live": number,
                "next_generation": number + 1,
                "objectives": json.dumps(asdict(objectives or Objectives())),
                "uid": secrets.token_hex(8),
                "first_offsets": json.dumps(offsets),
                "created_ms": at.now_ms,
                "row_version": at.version,
            }
            statement = (
                update(tables.collections).where(where) if old else insert(tables.collections)
            )
            at.connection.execute(statement.values(tenant=tenant, name=name, **row))
            made = Generation(
                tenant,
                name,
                number,
                "live",
                model,
                dimension,
                metric,
                index,
                slots,
                starts,
                at.now_ms,
            )
            insert_generation(at, made)
            at.note("collection.create", f"{tenant}/{name}", after=asdict(made))
        self.refresh()
        return self.collection(tenant, name)

    def delete_collection(self, tenant: str, name: str, *, actor: str) -> None:
        """Deletes the collection; maintenance then deletes its rows and objects."""
        with changing(self._engine, self._clock, actor) as at:
            end_collection(at, tenant, name)
        self.refresh()

    def set_objectives(
        self, tenant: str, name: str, objectives: Objectives, *, actor: str
    ) -> Collection:
        """Changes a collection's objectives; searches apply them within about 1 s.

        Raises NotFound.
        """
        c = tables.collections
        where = (c.c.tenant == tenant) & (c.c.name == name) & (c.c.state == "active")
        with changing(self._engine, self._clock, actor) as at:
            before = at.connection.execute(select(c.c.objectives).where(where)).scalar()
            if before is None:
                raise NotFound(f"there is no collection {name!r}")
            after = asdict(objectives)
            changed = (
                update(c).where(where).values(objectives=json.dumps(after), row_version=at.version)
            )
            at.connection.execute(changed)
            at.note(
                "collection.objectives", f"{tenant}/{name}", before=json.loads(before), after=after
            )
        self.refresh()
        return self.collection(tenant, name)

    def add_generation(
        self,
        tenant: str,
        collection: str,
        *,
        index: str,
        model: str | None,
        dimension: int,
        place: Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]],
        uid: str = "",
        actor: str,
    ) -> Generation:
        """Adds the collection's next generation, `building`; from then on it receives every write, too.

        `place` is as for `create_collection`. `uid` is the uid of the intended collection; "" accepts
        any collection of that name. Raises NotFound if it is gone.
        """
        self.refresh()
        live = self.collection(tenant, collection).generation()
        check_build(dimension, live.metric, index)
        number = self._next_generation(tenant, collection)
        slots, starts = place(number)
        c = tables.collections
        with changing(self._engine, self._clock, actor) as at:
            take = update(c).where(
                c.c.tenant == tenant, c.c.name == collection, c.c.state == "active"
            )
            take = take.where(c.c.uid == uid) if uid else take
            take = take.values(next_generation=c.c.next_generation + 1, row_version=at.version)
            taken = at.connection.execute(take.returning(c.c.next_generation)).first()
            if taken is None:
                raise NotFound(f"there is no collection {collection!r}")
            check_number(number, taken.next_generation - 1)
            made = Generation(
                tenant,
                collection,
                number,
                "building",
                model,
                dimension,
                live.metric,
                index,
                slots,
                starts,
                at.now_ms,
            )
            insert_generation(at, made)
            at.note("generation.add", f"{tenant}/{collection}/{number}", after=asdict(made))
        self.refresh()
        return made

    def set_generation_state(
        self, tenant: str, collection: str, number: int, state: GenerationState, *, actor: str
    ) -> None:
        """Sets a generation's state (building → ready or failed; ready → failed).

        Raises Conflict if the generation is neither building nor ready.
        """
        assert state in ("ready", "failed"), "only cut_over makes a generation live"
        with changing(self._engine, self._clock, actor) as at:
            before = set_state(at, (tenant, collection, number), state)
            if before not in ("building", "ready"):
                raise Conflict(
                    f"generation {number} is {before}: its state is final",
                    expected="building",
                    found=before,
                )
            at.note(
                "generation.state",
                f"{tenant}/{collection}/{number}",
                before={"state": before},
                after={"state": state},
            )
        self.refresh()

    def cut_over(self, tenant: str, collection: str, number: int, *, actor: str) -> Collection:
        """Makes a ready generation live and retires the old one, in one transaction.

        Raises Conflict if the generation is not ready.
        """
        c = tables.collections
        with changing(self._engine, self._clock, actor) as at:
            where = (c.c.tenant == tenant) & (c.c.name == collection) & (c.c.state == "active")
            row = at.connection.execute(select(c.c.live).where(where)).first()
            if row is None:
                raise NotFound(f"there is no collection {collection!r}")
            before = set_state(at, (tenant, collection, number), "live")
            if before != "ready":
                raise Conflict(
                    f"generation {number} is {before}, not ready", expected="ready", found=before
                )
            set_state(at, (tenant, collection, row.live), "retired")
            at.connection.execute(
                update(c).where(where).values(live=number, row_version=at.version)
            )
            at.note(
                "collection.cut_over",
                f"{tenant}/{collection}",
                before={"live": row.live},
                after={"live": number},
            )
        self.refresh()
        return self.collection(tenant, collection)

    def register_model(self, model: EmbeddingModel, *, actor: str) -> EmbeddingModel:
        """Adds an entry to the model registry; entries never change.

        The caller has tested the model.
        """
        check_entry(model)
        with changing(self._engine, self._clock, actor) as at:
            if at.connection.execute(
                select(tables.models.c.name).where(tables.models.c.name == model.name)
            ).first():
                raise Conflict(f"model {model.name!r} exists already; entries never change")
            at.connection.execute(
                insert(tables.models).values(**asdict(model), row_version=at.version)
            )
            at.note("model.register", model.name, after=asdict(model))
        self.refresh()
        return model

    def retire_model(self, name: str, *, actor: str) -> EmbeddingModel:
        """Retires a model: no new collection or generation may use it. Idempotent.

        Raises NotFound, and Conflict while a live, ready or building generation uses it.
        """
        with changing(self._engine, self._clock, actor) as at:
            g, m = tables.generations.c, tables.models.c
            if not at.connection.execute(select(m.name).where(m.name == name)).first():
                raise NotFound(f"there is no model {name!r}")
            used = (
                select(g.tenant, g.collection)
                .where(g.model == name, g.state.in_(SERVING))
                .distinct()
            )
            users = [f"{r.tenant}/{r.collection}" for r in at.connection.execute(used.limit(5))]
            if users:
                raise Conflict(
                    f"model {name!r} is used by {', '.join(users)}: reindex or delete them first",
                    found=users,
                )
            at.connection.execute(
                update(tables.models)
                .where(m.name == name)
                .values(retired=True, row_version=at.version)
            )
            at.note("model.retire", name, before={"retired": False}, after={"retired": True})
        self.refresh()
        return self.model(name)

    def _next_generation(self, tenant: str, collection: str) -> int:
        """Returns the next generation's number.

        Numbers are never reused: old rows stay in the log.
        """
        c = tables.collections
        with look(self._engine) as connection:
            query = select(c.c.next_generation).where(c.c.tenant == tenant, c.c.name == collection)
            return connection.execute(query).scalar() or 1

    def _embedding(self, model: str | None, dimension: int | None) -> tuple[str | None, int]:
        if model is None and dimension is not None:
            return None, dimension
        entry = self.model(model or DEFAULT_MODEL.name)
        if dimension not in (None, entry.dimension):
            raise Refused(
                f"model {entry.name} has dimension {entry.dimension}, not {dimension}: name one of the two",
                field="dimension",
            )
        return entry.name, entry.dimension


def _tenant_now(at: Change, name: str) -> Tenant:
    """Returns the tenant as of the open change. Raises NotFound if it is deleted or unknown."""
    t = tables.tenants
    row = (
        at.connection.execute(select(t).where(t.c.name == name, t.c.state != "deleted"))
        .mappings()
        .first()
    )
    if row is None:
        raise NotFound(f"there is no tenant {name!r}")
    return Tenant(row["name"], row["priority"], row["state"], row["created_ms"])


def _set_tenant(at: Change, name: str, state: TenantState, action: str) -> Tenant:
    before = _tenant_now(at, name)
    after = replace(before, state=state)
    t = tables.tenants
    at.connection.execute(
        update(t).where(t.c.name == name).values(state=state, row_version=at.version)
    )
    at.note(action, name, before=asdict(before), after=asdict(after))
    return after
