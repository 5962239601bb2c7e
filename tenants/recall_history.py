"""The measured recall of each collection's newest generation, so that it survives a restart of the gateway.

One row a collection, of at most STATE_BYTES_MAX; it goes with the collection. Gateways measure apart from
each other: the row is that of the gateway with the most samples.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import Connection, Engine, delete, insert, select

from tenants import tables
from vicinage.catalog import change, look
from vicinage.clock import Clock

STATE_BYTES_MAX: Final = 256 << 10
"""More is not kept: five sequences of a thousand candidates are less."""
ROWS_MAX: Final = 4_096
"""Rows that `newest` returns, at most."""
_H, _C = tables.recall_history, tables.collections


@dataclass(frozen=True, slots=True)
class RecallRecord:
    """What was measured of one generation. `state` is JSON that its writer alone understands; `samples` counts what it is made of."""

    tenant: str
    collection: str
    generation: int
    samples: int
    state: str


class RecallHistory:
    """Safe for many threads and processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def keep(self, rows: Sequence[RecallRecord]) -> None:
        """Puts each row in the place of the collection's earlier one. Durable on return. Raises Unavailable.

        A row is left out if its collection is gone, if the catalog has a newer generation's, or one of the same
        generation with more samples.
        """
        with change(self._engine) as connection:
            for row in rows:
                if len(row.state) <= STATE_BYTES_MAX and self._is_wanted(connection, row):
                    of_it = (_H.c.tenant == row.tenant, _H.c.collection == row.collection)
                    connection.execute(delete(_H).where(*of_it))
                    connection.execute(insert(_H).values(**asdict(row), kept_ms=self._clock.now_ms()))

    def _is_wanted(self, connection: Connection, row: RecallRecord) -> bool:
        active = select(_C.c.name).where(_C.c.tenant == row.tenant, _C.c.name == row.collection, _C.c.state == "active")
        # The row is held: of two gateways one waits, and so does a deletion of the collection.
        if connection.execute(active.with_for_update()).first() is None:
            return False
        query = select(_H.c.generation, _H.c.samples)
        kept = connection.execute(query.where(_H.c.tenant == row.tenant, _H.c.collection == row.collection)).first()
        return kept is None or (kept.generation, kept.samples) <= (row.generation, row.samples)

    def newest(self) -> list[RecallRecord]:
        """Returns the rows kept last, at most ROWS_MAX. Raises Unavailable."""
        columns = (_H.c.tenant, _H.c.collection, _H.c.generation, _H.c.samples, _H.c.state)
        with look(self._engine) as connection:
            found = connection.execute(select(*columns).order_by(_H.c.kept_ms.desc()).limit(ROWS_MAX))
            return [RecallRecord(*row) for row in found]
