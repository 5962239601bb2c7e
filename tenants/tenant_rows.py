"""Rows of tenants, within an open change."""

import re
from dataclasses import asdict, replace
from typing import Final

from sqlalchemy import insert, select, update

from tenants import tables
from tenants.changes import Change
from tenants.collection_rows import delete_collection
from tenants.entities import Class, Tenant, TenantState
from vicinage.errors import Conflict, NotFound, Refused

TENANT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
CLASSES: Final = ("gold", "silver", "bronze")
_T = tables.tenants


def check_name(name: str) -> None:
    """Raises Refused for a name that no tenant may have."""
    if not TENANT_NAME.fullmatch(name):
        raise Refused(
            "a tenant's name is 1 to 63 of a-z, 0-9 and '-', and does not begin with '-'",
            field="name",
            limit=63,
        )


def check_class(priority: str) -> None:
    """Raises Refused for an unknown class."""
    if priority not in CLASSES:
        raise Refused(f"class is one of {', '.join(CLASSES)}", field="class")


def current_tenant(at: Change, name: str) -> Tenant:
    """Returns the tenant as of the open change. Raises NotFound if it is deleted or unknown."""
    query = select(_T).where(_T.c.name == name, _T.c.state != "deleted")
    row = at.connection.execute(query).mappings().first()
    if row is None:
        raise NotFound(f"there is no tenant {name!r}")
    return Tenant(row["name"], row["priority"], row["state"], row["created_ms"])


def insert_tenant(at: Change, name: str, priority: Class) -> Tenant:
    """Creates the tenant. Raises Conflict if the name is or was taken."""
    taken = at.connection.execute(select(_T.c.state).where(_T.c.name == name)).first()
    if taken:
        raise Conflict(
            f"tenant {name!r} exists already"
            if taken.state != "deleted"
            else f"{name!r} belonged to a deleted tenant; names are not reused"
        )
    made = Tenant(name, priority, "active", at.now_ms)
    at.connection.execute(insert(_T).values(**asdict(made), row_version=at.version))
    at.note("tenant.create", name, after=asdict(made))
    return made


def set_class(at: Change, name: str, priority: Class) -> None:
    """Changes the tenant's class. Raises NotFound."""
    before = current_tenant(at, name)
    values = {"priority": priority, "row_version": at.version}
    at.connection.execute(update(_T).where(_T.c.name == name).values(**values))
    at.note("tenant.class", name, before={"class": before.priority}, after={"class": priority})


def set_state(at: Change, name: str, state: TenantState, action: str) -> Tenant:
    """Sets the tenant's state; returns the tenant. Raises NotFound."""
    before = current_tenant(at, name)
    after = replace(before, state=state)
    values = {"state": state, "row_version": at.version}
    at.connection.execute(update(_T).where(_T.c.name == name).values(**values))
    at.note(action, name, before=asdict(before), after=asdict(after))
    return after


def delete_tenant(at: Change, name: str) -> Tenant:
    """Deletes the tenant with its collections, and revokes its keys. Raises NotFound."""
    current_tenant(at, name)
    c, p, k = tables.collections, tables.ingest_partitions, tables.keys
    active = select(c.c.name).where(c.c.tenant == name, c.c.state == "active").order_by(c.c.name)
    for collection in at.connection.execute(active).scalars().all():
        delete_collection(at, name, collection)
    at.connection.execute(p.delete().where(p.c.tenant == name))
    valid = (k.c.tenant == name) & k.c.revoked_ms.is_(None)
    at.connection.execute(k.update().where(valid).values(revoked_ms=at.now_ms))
    return set_state(at, name, "deleted", "tenant.delete")
