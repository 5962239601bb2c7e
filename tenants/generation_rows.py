"""Rows of generations, within an open change."""

import json
from dataclasses import asdict

from sqlalchemy import Connection, insert, select, update

from tenants import index_spec, tables
from tenants.changes import Change
from tenants.entities import Generation, GenerationState
from tenants.models import DIMENSION_MAX
from vicinage.errors import Conflict, NotFound, Refused


def check_number(placed: int, now: int) -> None:
    """Raises Conflict if another process created a generation since this one was placed."""
    if placed != now:
        raise Conflict(
            "another generation of the collection was created meanwhile; try again",
            expected=placed,
            found=now,
        )


def check_build(dimension: int, metric: str, index: str) -> None:
    """Raises Refused for an invalid dimension, metric or index."""
    if not 1 <= dimension <= DIMENSION_MAX:
        raise Refused(f"dimension is 1 to {DIMENSION_MAX}", field="dimension", limit=DIMENSION_MAX)
    if metric not in ("cosine", "dot", "euclidean"):
        raise Refused("metric is one of cosine, dot, euclidean", field="metric")
    index_spec.parse(index)


def next_number(connection: Connection, tenant: str, collection: str) -> int:
    """Returns the next generation's number.

    Numbers are never reused: old rows stay in the log.
    """
    c = tables.collections
    query = select(c.c.next_generation).where(c.c.tenant == tenant, c.c.name == collection)
    return connection.execute(query).scalar() or 1


def add_generation(at: Change, made: Generation, *, uid: str) -> None:
    """Adds a generation to its collection.

    `uid` is the uid of the intended collection; "" accepts any collection of that name. Raises
    NotFound if it is gone, and Conflict if another process created a generation meanwhile.
    """
    c = tables.collections
    take = update(c).where(
        c.c.tenant == made.tenant, c.c.name == made.collection, c.c.state == "active"
    )
    take = take.where(c.c.uid == uid) if uid else take
    take = take.values(next_generation=c.c.next_generation + 1, row_version=at.version)
    taken = at.connection.execute(take.returning(c.c.next_generation)).first()
    if taken is None:
        raise NotFound(f"there is no collection {made.collection!r}")
    check_number(made.number, taken.next_generation - 1)
    insert_generation(at, made)
    subject = f"{made.tenant}/{made.collection}/{made.number}"
    at.note("generation.add", subject, after=asdict(made))


def end_build(at: Change, which: tuple[str, str, int], state: GenerationState) -> None:
    """Sets the state of a generation that is building or ready. Raises NotFound, Conflict."""
    before = set_state(at, which, state)
    if before not in ("building", "ready"):
        raise Conflict(
            f"generation {which[2]} is {before}: its state is final",
            expected="building",
            found=before,
        )
    subject = "/".join(map(str, which))
    at.note("generation.state", subject, before={"state": before}, after={"state": state})


def insert_generation(at: Change, made: Generation) -> None:
    """Inserts the generation.

    Raises Refused for a model that is retired, in the same transaction.
    """
    m = tables.models.c
    if (
        made.model is not None
        and at.connection.execute(select(m.retired).where(m.name == made.model)).scalar()
    ):
        raise Refused(f"model {made.model} is retired: name another one", field="model")
    row = {
        **asdict(made),
        "slots": json.dumps(made.slots),
        "starts": json.dumps(made.starts),
        "row_version": at.version,
    }
    at.connection.execute(insert(tables.generations).values(**row))


def set_state(at: Change, which: tuple[str, str, int], state: GenerationState) -> str:
    """Sets the state of (tenant, collection, number); returns the one before. Raises NotFound."""
    g = tables.generations
    where = (g.c.tenant == which[0]) & (g.c.collection == which[1]) & (g.c.number == which[2])
    row = at.connection.execute(select(g.c.state).where(where)).first()
    if row is None:
        raise NotFound(f"there is no generation {which[2]}")
    at.connection.execute(update(g).where(where).values(state=state, row_version=at.version))
    # Stamp the collection's row, too: a collection and its generations are read together.
    c = tables.collections
    at.connection.execute(
        update(c).where(c.c.tenant == which[0], c.c.name == which[1]).values(row_version=at.version)
    )
    return str(row.state)
