"""The audit chain: actor, time, subject, and the states before and after each change.

Guarantee 10: a record is written in the transaction of its change, and contains the hash of the
record before it. Its MAC uses a key that is stored outside the catalog, so that write access to the
catalog does not suffice to forge a chain that verifies. Records removed from the end are detected
only by comparison with an earlier newest record. See docs/decisions/035-audit-key.md.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Engine, insert, select

from tenants import tables
from vicinage.catalog import look
from vicinage.errors import Corrupt, Refused

GENESIS = "0" * 64
KEYED_BY: Final = "vicinage_audit_key"
"""The execution option of the engine, and so of its connections, that has the key."""
NO_KEY: Final = (
    "the audit key is missing here, and the newest audit record has a MAC: copy the key's file from"
    " the node that has it"
)
Facts = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class AuditKey:
    """The secret of the MACs, and the newest record (number, hash) at the time the key was made.

    Each later record must have a MAC.
    """

    secret: bytes = field(repr=False)
    after: int = 0
    after_hash: str = GENESIS

    def mac(self, digest: str) -> str:
        """Returns the MAC of a record's hash, which covers the record and all earlier ones."""
        return hmac.new(
            self.secret, b"vicinage-audit" + digest.encode(), hashlib.sha256
        ).hexdigest()


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change.

    `before` and `after` are JSON objects or None; `mac` is None if there was no key.
    """

    seq: int
    at_ms: int
    actor: str
    action: str
    subject: str
    before: str | None
    after: str | None
    previous: str
    hash: str
    mac: str | None


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of `verify`: the newest record, and the first whose MAC was checked.

    `keyed_from` is None if there was no key, or no record with a MAC.
    """

    seq: int
    hash: str
    keyed_from: int | None

    @property
    def checked(self) -> str:
        """Returns a sentence that says what was checked and what was not."""
        if self.keyed_from is None:
            return (
                "consistent, not verified: no MAC was checked, so anyone with write access to the "
                "catalog may have recomputed it"
            )
        before = (
            f"; records 1 to {self.keyed_from - 1}: as they were when the key was made"
            if self.keyed_from > 1
            else ""
        )
        return (
            f"intact: records {self.keyed_from} to {self.seq} have the MAC of the audit key{before}"
        )


def use_key(engine: Engine, key: AuditKey | None) -> None:
    """Makes every record written through the engine carry a MAC under `key`."""
    engine.update_execution_options(**{KEYED_BY: key})


def key_of(engine: Engine) -> AuditKey | None:
    """Returns the key that `use_key` gave the engine."""
    found: AuditKey | None = engine.get_execution_options().get(KEYED_BY)
    return found


def newest(connection: Connection) -> tuple[int, str, bool]:
    """Returns number and hash of the newest record, and whether it has a MAC."""
    columns = tables.audit.c.seq, tables.audit.c.hash, tables.audit.c.mac
    last = connection.execute(select(*columns).order_by(tables.audit.c.seq.desc()).limit(1)).first()
    return (last.seq, last.hash, last.mac is not None) if last else (0, GENESIS, False)


def record(
    connection: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    before: Facts,
    after: Facts,
    now_ms: int,
) -> None:
    """Appends one record within the caller's transaction, which has locked the version row.

    Raises Refused if there is no key and the newest record has a MAC; the change is then rolled
    back.
    """
    key: AuditKey | None = connection.get_execution_options().get(KEYED_BY)
    seq, previous, keyed = newest(connection)
    if keyed and key is None:
        raise Refused(NO_KEY)
    row = {
        "seq": seq + 1,
        "at_ms": now_ms,
        "actor": actor[:128],
        "action": action,
        "subject": subject[:256],
        "before": _json(before),
        "after": _json(after),
        "previous": previous,
    }
    digest = _hash(row)
    connection.execute(
        insert(tables.audit).values(**row, hash=digest, mac=key.mac(digest) if key else None)
    )


class Audit:
    """Reads and verifies the chain."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def records(self, *, after: int = 0, limit: int = 100) -> list[AuditRecord]:
        """Returns the records after number `after`, oldest first."""
        query = (
            select(tables.audit)
            .where(tables.audit.c.seq > after)
            .order_by(tables.audit.c.seq)
            .limit(limit)
        )
        with look(self._engine) as connection:
            return [AuditRecord(**row._mapping) for row in connection.execute(query)]  # noqa: SLF001  (SQLAlchemy's public name)

    def verify(self, kept: tuple[int, str] | None = None) -> Verified:
        """Verifies that each record follows from the one before and, with a key, has its MAC.

        `kept`: number and hash of an earlier newest record, stored outside the catalog. A chain
        that was truncated before it, or recomputed without a key, does not contain it. Raises
        Corrupt, which names the first wrong record.
        """
        key = key_of(self._engine)
        seq, previous = 0, GENESIS
        while batch := self.records(after=seq, limit=1_000):
            for r in batch:
                _check(r, seq, previous, key, kept)
                seq, previous = r.seq, r.hash
        if kept is not None and seq < kept[0]:
            raise Corrupt(
                f"the audit chain ends at record {seq}, before {kept[0]}, which was kept",
                path="audit",
            )
        if key is not None and seq < key.after:
            raise Corrupt(
                f"the audit chain ends at record {seq}, and record {key.after} was there before",
                path="audit",
            )
        return Verified(
            seq, previous, key.after + 1 if key is not None and seq > key.after else None
        )


def _check(
    r: AuditRecord, seq: int, previous: str, key: AuditKey | None, kept: tuple[int, str] | None
) -> None:
    """Raises Corrupt if the record does not follow record `seq`, whose hash is `previous`.

    Raises it, too, if there is a key and the record's MAC is missing or wrong.
    """
    path = f"audit/{r.seq}"
    facts = {k: v for k, v in asdict(r).items() if k not in ("hash", "mac")}
    if (r.seq, r.previous, r.hash) != (seq + 1, previous, _hash(facts)):
        raise Corrupt(f"the audit chain breaks at record {r.seq}", path=path)
    if kept is not None and r.seq == kept[0] and r.hash != kept[1]:
        raise Corrupt(f"audit record {r.seq} is not the one whose hash was kept", path=path)
    if key is None:
        return
    if r.seq == key.after and r.hash != key.after_hash:
        raise Corrupt(
            f"audit record {r.seq} is not the one that was there when the audit key was made",
            path=path,
        )
    if r.seq > key.after and (r.mac is None or not hmac.compare_digest(r.mac, key.mac(r.hash))):
        what = "has no MAC" if r.mac is None else "has a MAC of another key"
        raise Corrupt(
            f"audit record {r.seq} {what}: it was not written with this platform's audit key",
            path=path,
        )


def _json(facts: Facts) -> str | None:
    return None if facts is None else json.dumps(facts, sort_keys=True, default=str)


def _hash(row: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
