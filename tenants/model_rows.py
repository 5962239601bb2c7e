"""Rows of the model registry, within an open change."""

from dataclasses import asdict

from sqlalchemy import insert, select, update

from tenants import tables
from tenants.changes import Change
from tenants.entities import EmbeddingModel
from tenants.view import SERVING
from vicinage.errors import Conflict, NotFound

_M = tables.models
USERS_SHOWN = 5
"""Collections that the error for a model in use names."""


def insert_model(at: Change, model: EmbeddingModel) -> None:
    """Adds the entry. Raises Conflict if the name is taken."""
    if at.connection.execute(select(_M.c.name).where(_M.c.name == model.name)).first():
        raise Conflict(f"model {model.name!r} exists already; entries never change")
    at.connection.execute(insert(_M).values(**asdict(model), row_version=at.version))
    at.note("model.register", model.name, after=asdict(model))


def retire_model(at: Change, name: str) -> None:
    """Retires the model. Idempotent. Raises NotFound, and Conflict if a generation uses it."""
    if not at.connection.execute(select(_M.c.name).where(_M.c.name == name)).first():
        raise NotFound(f"there is no model {name!r}")
    if users := _users(at, name):
        raise Conflict(
            f"model {name!r} is used by {', '.join(users)}: reindex or delete them first",
            found=users,
        )
    values = {"retired": True, "row_version": at.version}
    at.connection.execute(update(_M).where(_M.c.name == name).values(**values))
    at.note("model.retire", name, before={"retired": False}, after={"retired": True})


def _users(at: Change, name: str) -> list[str]:
    """Returns the first collections whose live, ready or building generation uses the model."""
    g = tables.generations.c
    used = select(g.tenant, g.collection).where(g.model == name, g.state.in_(SERVING)).distinct()
    return [f"{r.tenant}/{r.collection}" for r in at.connection.execute(used.limit(USERS_SHOWN))]
