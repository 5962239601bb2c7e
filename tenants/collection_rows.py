"""Rows of collections, within an open change."""

import json
import re
import secrets
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import ColumnElement, insert, select, update

from tenants import tables
from tenants.changes import Change
from tenants.entities import Generation, Objectives
from tenants.generation_rows import check_number, insert_generation, set_state
from tenants.view import SERVING
from vicinage.errors import Conflict, NotFound, Refused

COLLECTION_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")
_C = tables.collections


def check_name(name: str) -> None:
    """Raises Refused for a name that no collection may have."""
    if not COLLECTION_NAME.fullmatch(name):
        raise Refused(
            "a collection's name is 1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-', and begins with a"
            " letter or digit",
            field="name",
            limit=63,
        )


def insert_collection(
    at: Change, first: Generation, *, first_offsets: tuple[int, ...], objectives: Objectives
) -> None:
    """Creates the collection of its `first` generation, which is live.

    Raises Conflict if the name is taken, or if another process created a generation meanwhile.
    """
    where = (_C.c.tenant == first.tenant) & (_C.c.name == first.collection)
    old = at.connection.execute(select(_C).where(where)).first()
    if old and old.state == "active":
        raise Conflict(f"collection {first.collection!r} exists already")
    check_number(first.number, old.next_generation if old else 1)
    row = {
        "tenant": first.tenant,
        "name": first.collection,
        "state": "active",
        "live": first.number,
        "next_generation": first.number + 1,
        "objectives": json.dumps(asdict(objectives)),
        "uid": secrets.token_hex(8),
        "first_offsets": json.dumps(first_offsets),
        "created_ms": at.now_ms,
        "row_version": at.version,
    }
    statement = update(_C).where(where) if old else insert(_C)
    at.connection.execute(statement.values(**row))
    insert_generation(at, first)
    at.note("collection.create", f"{first.tenant}/{first.collection}", after=asdict(first))


def set_objectives(at: Change, tenant: str, name: str, objectives: Objectives) -> None:
    """Changes the collection's objectives. Raises NotFound."""
    where = _is_active(tenant, name)
    before = at.connection.execute(select(_C.c.objectives).where(where)).scalar()
    if before is None:
        raise NotFound(f"there is no collection {name!r}")
    after = asdict(objectives)
    values = {"objectives": json.dumps(after), "row_version": at.version}
    at.connection.execute(update(_C).where(where).values(**values))
    at.note("collection.objectives", f"{tenant}/{name}", before=json.loads(before), after=after)


def cut_over(at: Change, tenant: str, name: str, number: int) -> None:
    """Makes a ready generation live, and retires the live one.

    Raises NotFound, and Conflict if the generation is not ready.
    """
    where = _is_active(tenant, name)
    row = at.connection.execute(select(_C.c.live).where(where)).first()
    if row is None:
        raise NotFound(f"there is no collection {name!r}")
    before = set_state(at, (tenant, name, number), "live")
    if before != "ready":
        raise Conflict(
            f"generation {number} is {before}, not ready", expected="ready", found=before
        )
    set_state(at, (tenant, name, row.live), "retired")
    at.connection.execute(update(_C).where(where).values(live=number, row_version=at.version))
    at.note(
        "collection.cut_over",
        f"{tenant}/{name}",
        before={"live": row.live},
        after={"live": number},
    )


def delete_collection(at: Change, tenant: str, name: str) -> None:
    """Deletes the collection, retires its generations, and fails its open jobs. Raises NotFound."""
    g, m = tables.generations, tables.manifests
    end = update(_C).where(_is_active(tenant, name))
    end = end.values(state="deleted", row_version=at.version)
    row = at.connection.execute(end.returning(_C.c.live)).first()
    if row is None:
        raise NotFound(f"there is no collection {name!r}")
    of_it = (g.c.tenant == tenant, g.c.collection == name, g.c.state.in_(SERVING))
    at.connection.execute(update(g).where(*of_it).values(state="retired", row_version=at.version))
    at.connection.execute(m.delete().where(m.c.tenant == tenant, m.c.collection == name))
    for measured in (tables.recent_queries, tables.recall_history):
        at.connection.execute(
            measured.delete().where(measured.c.tenant == tenant, measured.c.collection == name)
        )
    _fail_jobs(at, tenant, name)
    at.note("collection.delete", f"{tenant}/{name}", before={"live": row.live})


def _fail_jobs(at: Change, tenant: str, collection: str) -> None:
    """Fails the collection's open jobs, even if another collection gets its name later."""
    j = tables.jobs
    of_it = select(j).where(
        j.c.tenant == tenant, j.c.collection == collection, j.c.state.not_in(tables.JOBS_ENDED)
    )
    for row in at.connection.execute(of_it).mappings().all():
        progress = json.dumps(
            {**json.loads(row["progress"]), "error": "the collection was deleted"}
        )
        values: dict[str, Any] = {"state": "failed", "progress": progress}
        values["version"] = row["version"] + 1
        at.connection.execute(update(j).where(j.c.id == row["id"]).values(**values))


def _is_active(tenant: str, name: str) -> ColumnElement[bool]:
    return (_C.c.tenant == tenant) & (_C.c.name == name) & (_C.c.state == "active")
