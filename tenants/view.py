"""The catalog's entities in memory, as of one version, and their incremental refresh."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, Table, select

from tenants import partitions, tables
from tenants.entities import (
    Collection,
    EmbeddingModel,
    Generation,
    Objectives,
    Tenant,
)
from vicinage.partition_maps import PartitionMap

SERVING: Final = ("building", "ready", "live")
"""States of a generation that still receives writes."""


@dataclass(frozen=True)
class View:
    """All entities, as of one catalog version. Sorted tuples are made at first use."""

    version: int = 0
    tenants: dict[str, Tenant] = field(default_factory=dict)
    collections: dict[tuple[str, str], Collection] = field(default_factory=dict)
    models: dict[str, EmbeddingModel] = field(default_factory=dict)
    maps: dict[str, tuple[PartitionMap, ...]] = field(default_factory=dict)

    @cached_property
    def tenants_now(self) -> tuple[Tenant, ...]:
        """Tenants that are not deleted, by name."""
        return tuple(t for _, t in sorted(self.tenants.items()) if t.state != "deleted")

    @cached_property
    def collections_now(self) -> tuple[Collection, ...]:
        """Collections that are not deleted, by tenant and name."""
        return tuple(c for _, c in sorted(self.collections.items()) if c.state != "deleted")

    @cached_property
    def collections_of(self) -> dict[str, tuple[Collection, ...]]:
        """Collections that are not deleted, by tenant."""
        return {
            tenant: tuple(found)
            for tenant, found in groupby(self.collections_now, key=attrgetter("tenant"))
        }


def load_view(connection: Connection, view: View, version: int) -> View:
    """Returns the view, updated with every row stamped after `view.version`."""

    def since(table: Table) -> list[dict[str, Any]]:
        query = select(table).where(table.c.row_version > view.version)
        rows = [dict(r) for r in connection.execute(query).mappings()]
        for row in rows:
            del row["row_version"]
        return rows

    tenants = view.tenants | {r["name"]: Tenant(**r) for r in since(tables.tenants)}
    models = view.models | {r["name"]: EmbeddingModel(**r) for r in since(tables.models)}
    generations: dict[tuple[str, str], dict[int, Generation]] = {}
    for r in since(tables.generations):
        made = Generation(
            **{
                **r,
                "slots": tuple(json.loads(r["slots"])),
                "starts": tuple(json.loads(r["starts"])),
            }
        )
        generations.setdefault((made.tenant, made.collection), {})[made.number] = made
    collections = dict(view.collections)
    for r in since(tables.collections):
        at = (r["tenant"], r["name"])
        known = {g.number: g for g in collections[at].generations} if at in collections else {}
        every = known | generations.get(at, {})
        collections[at] = Collection(
            r["tenant"],
            r["name"],
            r["state"],
            r["live"],
            tuple(g for _, g in sorted(every.items()) if g.state in SERVING),
            Objectives(**json.loads(r["objectives"])),
            r["created_ms"],
            r["uid"],
            tuple(json.loads(r["first_offsets"])),
        )
    return View(
        version,
        tenants,
        collections,
        models,
        partitions.with_rows(view.maps, since(tables.partition_maps)),
    )
