"""The audit chain: who changed what, when, from what to what.

Law 10: a record is written in the transaction of the change itself, and holds the hash of the one before it. `verify` says
where the chain breaks; against the hash of an earlier newest record, kept outside the catalog, it also shows that a whole
chain was recomputed or cut off.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from tenants import tables
from vicinage.catalog import look
from vicinage.errors import Corrupt

GENESIS = "0" * 64
Facts = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change. `before` and `after` are JSON objects or None."""

    seq: int
    at_ms: int
    actor: str
    action: str
    subject: str
    before: str | None
    after: str | None
    previous: str
    hash: str


def record(
    connection: Connection, *, actor: str, action: str, subject: str, before: Facts, after: Facts, now_ms: int
) -> None:
    """Append one record within the caller's transaction, which must hold the catalog's version row."""
    last = connection.execute(
        select(tables.audit.c.seq, tables.audit.c.hash).order_by(tables.audit.c.seq.desc()).limit(1)
    ).first()
    seq, previous = (last.seq + 1, last.hash) if last else (1, GENESIS)
    row = {
        "seq": seq,
        "at_ms": now_ms,
        "actor": actor[:128],
        "action": action,
        "subject": subject[:256],
        "before": _json(before),
        "after": _json(after),
        "previous": previous,
    }
    connection.execute(insert(tables.audit).values(**row, hash=_hash(row)))


class Audit:
    """Reading the chain."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def records(self, *, after: int = 0, limit: int = 100) -> list[AuditRecord]:
        """The records beyond `after`, oldest first."""
        query = select(tables.audit).where(tables.audit.c.seq > after).order_by(tables.audit.c.seq).limit(limit)
        with look(self._engine) as connection:
            return [AuditRecord(**row._mapping) for row in connection.execute(query)]  # noqa: SLF001  (SQLAlchemy's public name)

    def verify(self, kept: tuple[int, str] | None = None) -> tuple[int, str]:
        """Returns number and hash of the newest record, each of which follows from the one before.

        `kept`: number and hash of an earlier newest record, kept outside the catalog. Whoever can write to the catalog can
        recompute a chain, but not one that still has the kept hash. Raises Corrupt naming the first record that is wrong.
        """
        seq, previous = 0, GENESIS
        while batch := self.records(after=seq, limit=1_000):
            for r in batch:
                facts = {k: v for k, v in asdict(r).items() if k != "hash"}
                if (r.seq, r.previous, r.hash) != (seq + 1, previous, _hash(facts)):
                    raise Corrupt(f"the audit chain breaks at record {r.seq}", path=f"audit/{r.seq}")
                if kept is not None and r.seq == kept[0] and r.hash != kept[1]:
                    raise Corrupt(f"audit record {r.seq} is not the one whose hash was kept", path=f"audit/{r.seq}")
                seq, previous = r.seq, r.hash
        if kept is not None and seq < kept[0]:
            raise Corrupt(f"the audit chain ends at record {seq}, before {kept[0]}, which was kept", path="audit")
        return seq, previous


def _json(facts: Facts) -> str | None:
    return None if facts is None else json.dumps(facts, sort_keys=True, default=str)


def _hash(row: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
