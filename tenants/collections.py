"""Deletes a collection, within an open change."""

import json

from sqlalchemy import select, update

from tenants import tables
from tenants.changes import Change
from tenants.view import SERVING
from vicinage.errors import NotFound


def end_collection(at: Change, tenant: str, name: str) -> None:
    """Deletes the collection, retires its generations, and fails its open jobs. Raises NotFound."""
    c, g, m = tables.collections, tables.generations, tables.manifests
    end = update(c).where(c.c.tenant == tenant, c.c.name == name, c.c.state == "active")
    end = end.values(state="deleted", row_version=at.version)
    row = at.connection.execute(end.returning(c.c.live)).first()
    if row is None:
        raise NotFound(f"there is no collection {name!r}")
    of_it = (g.c.tenant == tenant, g.c.collection == name, g.c.state.in_(SERVING))
    at.connection.execute(update(g).where(*of_it).values(state="retired", row_version=at.version))
    at.connection.execute(m.delete().where(m.c.tenant == tenant, m.c.collection == name))
    for measured in (tables.recent_queries, tables.recall_history):
        at.connection.execute(
            measured.delete().where(measured.c.tenant == tenant, measured.c.collection == name)
        )
    _end_jobs(at, tenant, name)
    at.note("collection.delete", f"{tenant}/{name}", before={"live": row.live})


def _end_jobs(at: Change, tenant: str, collection: str) -> None:
    """Fails the collection's open jobs, even if another collection gets its name later."""
    j = tables.jobs
    of_it = select(j).where(
        j.c.tenant == tenant, j.c.collection == collection, j.c.state.not_in(tables.JOBS_ENDED)
    )
    for row in at.connection.execute(of_it).mappings().all():
        progress = json.dumps(
            {**json.loads(row["progress"]), "error": "the collection was deleted"}
        )
        values = {"state": "failed", "progress": progress, "version": row["version"] + 1}
        at.connection.execute(update(j).where(j.c.id == row["id"]).values(**values))
