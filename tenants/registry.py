"""Tenants, collections, generations and models: read from memory, changed in the catalog.

Every change bumps the catalog's version, stamps the rows it touched with it, and writes its audit
record, in one transaction (guarantee 10). `refresh` is one small SELECT; it loads only rows stamped
since. The statements of each entity are in `tenant_rows.py`, `collection_rows.py`,
`generation_rows.py` and `model_rows.py`.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import Engine, select

from tenants import collection_rows, generation_rows, model_rows, partitions, tables, tenant_rows
from tenants.changes import Change, changing
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
)
from tenants.ingest_lanes import IngestLanes
from tenants.models import check_entry
from tenants.positions import Positions
from tenants.view import View, load_view
from vicinage.catalog import look
from vicinage.clock import Clock
from vicinage.errors import NotFound, Refused
from vicinage.partition_maps import PartitionMap
from vicinage.records import ShardId

Place = Callable[[int], tuple[tuple[int, ...], tuple[int, ...]]]
"""Returns the slots of a generation of that number, and the starts of its rows there."""


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

    def deleted_tenant(self, name: str) -> Tenant | None:
        """Returns the deleted tenant of this name, or None."""
        found = self._view.tenants.get(name)
        return found if found and found.state == "deleted" else None

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
        """Returns the partition maps of the tenant's documents topic by epoch, or ()."""
        return self._view.maps.get(tenant, ())

    # changing

    def change(self, actor: str) -> AbstractContextManager[Change]:
        """Returns an open change of the catalog; call `refresh` after it."""
        return changing(self._engine, self._clock, actor)

    @contextmanager
    def _changing(self, actor: str) -> Iterator[Change]:
        """Opens a change of the catalog, and refreshes once it is committed."""
        with changing(self._engine, self._clock, actor) as at:
            yield at
        self.refresh()

    def note(self, action: str, subject: str, after: Mapping[str, Any], actor: str) -> None:
        """Writes an audit record of an action that does not change the catalog."""
        with changing(self._engine, self._clock, actor) as at:
            at.note(action, subject, after=after)

    # tenants

    def create_tenant(self, name: str, *, priority: Class = "silver", actor: str) -> Tenant:
        """Creates a tenant.

        Names are never reused, so that no tenant inherits another's remains.
        """
        tenant_rows.check_name(name)
        tenant_rows.check_class(priority)
        with self._changing(actor) as at:
            return tenant_rows.insert_tenant(at, name, priority)

    def suspend_tenant(self, name: str, *, actor: str) -> Tenant:
        """Refuses the tenant's keys and stops reading its topic, until resumed. Nothing is lost."""
        with self._changing(actor) as at:
            return tenant_rows.set_state(at, name, "suspended", "tenant.suspend")

    def resume_tenant(self, name: str, *, actor: str) -> Tenant:
        """Ends the suspension of a tenant."""
        with self._changing(actor) as at:
            return tenant_rows.set_state(at, name, "active", "tenant.resume")

    def set_tenant_class(self, name: str, priority: Class, *, actor: str) -> Tenant:
        """Changes a tenant's class; every role applies it within about 1 s.

        Raises Refused, NotFound.
        """
        tenant_rows.check_class(priority)
        with self._changing(actor) as at:
            tenant_rows.set_class(at, name, priority)
        return self.tenant(name)

    def delete_tenant(self, name: str, *, actor: str) -> Tenant:
        """Deletes the tenant with its collections, and revokes its keys.

        Its name is never reused.
        """
        with self._changing(actor) as at:
            return tenant_rows.delete_tenant(at, name)

    def append_partition_map(
        self, tenant: str, made: PartitionMap, *, epoch: int, actor: str
    ) -> None:
        """Records the tenant's next partition map.

        Raises Conflict if `epoch` is already recorded.
        """
        with self._changing(actor) as at:
            tenant_rows.current_tenant(at, tenant)
            stamp = {"created_ms": at.now_ms, "row_version": at.version}
            partitions.append(at.connection, stamp, tenant, made, epoch=epoch)
            if epoch:
                at.note("tenant.partitions", tenant, after={"epoch": epoch, **asdict(made)})

    # collections and generations

    def create_collection(
        self,
        tenant: str,
        name: str,
        *,
        model: str | None = None,
        dimension: int | None = None,
        metric: Metric = "cosine",
        index: str = "auto",
        place: Place,
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
        collection_rows.check_name(name)
        model, dimension = self._embedding(model, dimension)
        generation_rows.check_build(dimension, metric, index)
        number = self._next_generation(tenant, name)
        slots, starts = place(number)
        offsets = first_offsets()
        with self._changing(actor) as at:
            tenant_rows.current_tenant(at, tenant)
            made = Generation(
                tenant, name, number, "live", model, dimension, metric, index, slots, starts,
                at.now_ms,
            )  # fmt: skip
            collection_rows.insert_collection(
                at, made, first_offsets=offsets, objectives=objectives or Objectives()
            )
        return self.collection(tenant, name)

    def set_objectives(
        self, tenant: str, name: str, objectives: Objectives, *, actor: str
    ) -> Collection:
        """Changes a collection's objectives; searches apply them within about 1 s.

        Raises NotFound.
        """
        with self._changing(actor) as at:
            collection_rows.set_objectives(at, tenant, name, objectives)
        return self.collection(tenant, name)

    def delete_collection(self, tenant: str, name: str, *, actor: str) -> None:
        """Deletes the collection; maintenance then deletes its rows and objects."""
        with self._changing(actor) as at:
            collection_rows.delete_collection(at, tenant, name)

    def add_generation(
        self,
        tenant: str,
        collection: str,
        *,
        index: str,
        model: str | None,
        dimension: int,
        place: Place,
        uid: str = "",
        actor: str,
    ) -> Generation:
        """Adds the collection's next generation, `building`; it receives every write from then on.

        `place` is as for `create_collection`. `uid` is the uid of the intended collection; ""
        accepts any collection of that name. Raises NotFound if it is gone.
        """
        self.refresh()
        metric = self.collection(tenant, collection).generation().metric
        generation_rows.check_build(dimension, metric, index)
        number = self._next_generation(tenant, collection)
        slots, starts = place(number)
        with self._changing(actor) as at:
            made = Generation(
                tenant, collection, number, "building", model, dimension, metric, index, slots,
                starts, at.now_ms,
            )  # fmt: skip
            generation_rows.add_generation(at, made, uid=uid)
        return made

    def set_generation_state(
        self, tenant: str, collection: str, number: int, state: GenerationState, *, actor: str
    ) -> None:
        """Sets a generation's state (building → ready or failed; ready → failed).

        Raises Conflict if the generation is neither building nor ready.
        """
        assert state in ("ready", "failed"), "only cut_over makes a generation live"
        with self._changing(actor) as at:
            generation_rows.end_build(at, (tenant, collection, number), state)

    def cut_over(self, tenant: str, collection: str, number: int, *, actor: str) -> Collection:
        """Makes a ready generation live and retires the old one, in one transaction.

        Raises Conflict if the generation is not ready.
        """
        with self._changing(actor) as at:
            collection_rows.cut_over(at, tenant, collection, number)
        return self.collection(tenant, collection)

    def _next_generation(self, tenant: str, collection: str) -> int:
        with look(self._engine) as connection:
            return generation_rows.next_number(connection, tenant, collection)

    def _embedding(self, model: str | None, dimension: int | None) -> tuple[str | None, int]:
        if model is None and dimension is not None:
            return None, dimension
        entry = self.model(model or DEFAULT_MODEL.name)
        if dimension not in (None, entry.dimension):
            raise Refused(
                f"model {entry.name} has dimension {entry.dimension}, not {dimension}: name one of"
                " the two",
                field="dimension",
            )
        return entry.name, entry.dimension

    # models

    def register_model(self, model: EmbeddingModel, *, actor: str) -> EmbeddingModel:
        """Adds an entry to the model registry; entries never change.

        The caller has tested the model.
        """
        check_entry(model)
        with self._changing(actor) as at:
            model_rows.insert_model(at, model)
        return model

    def retire_model(self, name: str, *, actor: str) -> EmbeddingModel:
        """Retires a model: no new collection or generation may use it. Idempotent.

        Raises NotFound, and Conflict while a live, ready or building generation uses it.
        """
        with self._changing(actor) as at:
            model_rows.retire_model(at, name)
        return self.model(name)
