"""A sample of each collection's recent query vectors, on which effort curves are measured.

Only vectors are stored, never texts, of at most RECENT_QUERIES_MAX queries per collection. They are
deleted with the collection.
"""

from typing import Final

import numpy as np
from sqlalchemy import ColumnElement, Engine, delete, insert, select

from tenants import tables
from vicinage.catalog import change, look
from vicinage.clock import Clock
from vicinage.records import Floats

RECENT_QUERIES_MAX: Final = 256
_Q, _C = tables.recent_queries, tables.collections


class RecentQueries:
    """Recent queries of all collections. Safe for many threads and processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def keep(self, tenant: str, collection: str, model: str | None, vectors: Floats) -> None:
        """Replaces the stored queries by the newest RECENT_QUERIES_MAX of `vectors` [n, d].

        Durable on return. A no-op if the collection is gone, or if more queries of the same model
        are stored: a gateway that has just started knows few.
        """
        newest = np.ascontiguousarray(vectors[-RECENT_QUERIES_MAX:], np.float16)
        active = select(_C.c.name).where(
            _C.c.tenant == tenant, _C.c.name == collection, _C.c.state == "active"
        )
        with change(self._engine) as connection:
            # The row lock makes a concurrent `keep`, or a deletion of the collection, wait.
            if connection.execute(active.with_for_update()).first() is None:
                return
            kept = select(_Q.c.vectors).where(*_made_by(tenant, collection, model, newest.shape[1]))
            if len(connection.execute(kept).scalar() or b"") > newest.nbytes:
                return
            connection.execute(
                delete(_Q).where(_Q.c.tenant == tenant, _Q.c.collection == collection)
            )
            connection.execute(
                insert(_Q).values(
                    tenant=tenant,
                    collection=collection,
                    model=model or "",
                    dimension=newest.shape[1],
                    vectors=newest.tobytes(),
                    kept_ms=self._clock.now_ms(),
                )
            )

    def of(self, tenant: str, collection: str, model: str | None, dimension: int) -> Floats | None:
        """Returns the queries that the model embedded, float32 [n, dimension], or None.

        Raises Unavailable.
        """
        query = select(_Q.c.vectors).where(*_made_by(tenant, collection, model, dimension))
        with look(self._engine) as connection:
            stored = connection.execute(query).scalar()
        return (
            None
            if stored is None
            else np.frombuffer(stored, np.float16).reshape(-1, dimension).astype(np.float32)
        )


def _made_by(
    tenant: str, collection: str, model: str | None, dimension: int
) -> tuple[ColumnElement[bool], ...]:
    return (
        _Q.c.tenant == tenant,
        _Q.c.collection == collection,
        _Q.c.model == (model or ""),
        _Q.c.dimension == dimension,
    )
