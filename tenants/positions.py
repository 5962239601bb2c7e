"""The catalog's copy of ingest's position and state in each partition of the documents topics.

Kafka forgets a group's position that was not committed for `offsets.retention.minutes`; the catalog
does not. Rows are written in the background, so a position here may be a few seconds behind the
log's: guarantee 3 makes that harmless.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from sqlalchemy import Engine, select, update

from tenants import tables
from vicinage.catalog import change, look
from vicinage.clock import Clock
from vicinage.log import HaltKind, TopicPartition

State = Literal["reading", "waiting", "halted", "resuming"]
"""waiting: records read are not written yet, so no more are read. resuming: an operator has set the
position to continue from."""
PREFIX: Final = "vicinage.docs."
_P: Final = tables.ingest_partitions


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One partition of a tenant's documents topic.

    `position` is the next offset that is not ingested.
    """

    tenant: str
    partition: int
    topic_id: str
    position: int
    state: State
    since_ms: int
    kind: HaltKind | None = None
    reason: str | None = None

    def topic_partition(self) -> TopicPartition:
        """Returns the partition as the log names it."""
        return PREFIX + self.tenant, self.partition


class Positions:
    """The catalog's copy. Safe for many threads and processes."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def save(self, states: Sequence[PartitionState]) -> None:
        """Writes the states, durably and all together, except over `resuming`.

        Raises Unavailable.
        """
        if not states:
            return
        rows = [{**asdict(s), "updated_ms": self._clock.now_ms()} for s in states]
        with change(self._engine) as connection:
            connection.execute(upsert(self._engine.dialect.name), rows)

    def of(self, tenant: str | None = None) -> list[PartitionState]:
        """Returns the partitions of one tenant or of all, by tenant and partition.

        Raises Unavailable.
        """
        return self._select(*(() if tenant is None else (_P.c.tenant == tenant,)))

    def not_reading(self, tenant: str | None = None) -> list[PartitionState]:
        """Returns the partitions that are halted, resuming or waiting. Raises Unavailable."""
        of = () if tenant is None else (_P.c.tenant == tenant,)
        return self._select(_P.c.state != "reading", *of)

    def halted(self, tenants: Collection[str]) -> list[PartitionState]:
        """Returns the halted partitions of these tenants. Raises Unavailable."""
        return [s for s in self._select(_P.c.state == "halted") if s.tenant in tenants]

    def resuming(self) -> list[PartitionState]:
        """Returns the partitions with a new position that ingest has not adopted yet.

        Raises Unavailable.
        """
        return self._select(_P.c.state == "resuming")

    def resumed(self, taken: PartitionState) -> None:
        """Records that ingest reads from the position it was given. A no-op if that has changed."""
        where = (
            (_P.c.tenant == taken.tenant)
            & (_P.c.partition == taken.partition)
            & (_P.c.state == "resuming")
        )
        facts = {"state": "reading", "kind": None, "reason": None, "since_ms": self._clock.now_ms()}
        with change(self._engine) as connection:
            connection.execute(
                update(_P).where(where, _P.c.position == taken.position).values(**facts)
            )

    def _select(self, *where: Any) -> list[PartitionState]:
        columns = [_P.c[name] for name in PartitionState.__dataclass_fields__]
        query = select(*columns).where(*where).order_by(_P.c.tenant, _P.c.partition)
        with look(self._engine) as connection:
            return [PartitionState(**row) for row in connection.execute(query).mappings()]


def upsert(dialect: str) -> Any:
    """Returns the statement that inserts rows of ingest_partitions.

    It replaces existing rows unless they are `resuming`.
    """
    from sqlalchemy.dialects import postgresql, sqlite

    insert = postgresql.insert(_P) if dialect == "postgresql" else sqlite.insert(_P)
    changed = {c.name: insert.excluded[c.name] for c in _P.c if not c.primary_key}
    keys = [c for c in _P.c if c.primary_key]
    return insert.on_conflict_do_update(
        index_elements=keys, set_=changed, where=_P.c.state != "resuming"
    )
