"""The measured recall of each collection's newest generation, stored to survive gateway restarts.

Each collection has one row of at most STATE_BYTES_MAX, deleted with the collection. Gateways
measure independently; the row is that of the gateway with the most samples.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import Connection, Engine, delete, insert, select

from tenants import tables
from vicinage.catalog import change, look
from vicinage.clock import Clock

STATE_BYTES_MAX: Final = 256 << 10
"""Larger states are not stored. Five sequences of a thousand candidates are smaller."""
ROWS_MAX: Final = 4_096
"""Largest number of rows that `newest` returns."""
_H, _C = tables.recall_history, tables.collections


@dataclass(frozen=True, slots=True)
class RecallRecord:
    """The measured recall of one generation, made from `samples` samples.

    `state` is JSON in a format private to its writer.
    """

    tenant: str
    collection: str
    generation: int
    samples: int
    state: str


class RecallHistory:
    """The recall history of all collections. Safe for many threads and processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def keep(self, rows: Sequence[RecallRecord]) -> None:
        """Replaces the row of each collection. Durable on return. Raises Unavailable.

        Skips a row if its collection is gone, or if the catalog has a row of a newer generation, or
        of the same generation with more samples.
        """
        with change(self._engine) as connection:
            for row in rows:
                if len(row.state) <= STATE_BYTES_MAX and self._is_wanted(connection, row):
                    of_it = (_H.c.tenant == row.tenant, _H.c.collection == row.collection)
                    connection.execute(delete(_H).where(*of_it))
                    connection.execute(
                        insert(_H).values(**asdict(row), kept_ms=self._clock.now_ms())
                    )

    def _is_wanted(self, connection: Connection, row: RecallRecord) -> bool:
        active = select(_C.c.name).where(
            _C.c.tenant == row.tenant, _C.c.name == row.collection, _C.c.state == "active"
        )
        # The row lock makes a concurrent `keep`, or a deletion of the collection, wait.
        if connection.execute(active.with_for_update()).first() is None:
            return False
        query = select(_H.c.generation, _H.c.samples)
        kept = connection.execute(
            query.where(_H.c.tenant == row.tenant, _H.c.collection == row.collection)
        ).first()
        return kept is None or (kept.generation, kept.samples) <= (row.generation, row.samples)

    def newest(self) -> list[RecallRecord]:
        """Returns the rows stored most recently, at most ROWS_MAX. Raises Unavailable."""
        columns = (_H.c.tenant, _H.c.collection, _H.c.generation, _H.c.samples, _H.c.state)
        with look(self._engine) as connection:
            found = connection.execute(
                select(*columns).order_by(_H.c.kept_ms.desc()).limit(ROWS_MAX)
            )
            return [RecallRecord(*row) for row in found]
