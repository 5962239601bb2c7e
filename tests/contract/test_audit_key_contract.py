"""The audit chain under a key, against writers of the catalog without it.

Over SQLite and PostgreSQL.
"""

import re

import pytest
from catalogs import Catalog, another
from sqlalchemy import select, text, update

from tenants import tables
from tenants.audit import GENESIS, Audit, AuditKey, _hash, newest, use_key
from tenants.registry import Registry
from vicinage.errors import Corrupt, Refused

KEY = AuditKey(b"k" * 32)


def keyed(catalog: Catalog, key: AuditKey | None = KEY) -> Audit:
    use_key(catalog.engine, key)
    return Audit(catalog.engine)


def recompute(catalog: Catalog, key: AuditKey | None) -> None:
    """Forges the chain as a writer of the catalog can: changes record 2 and all later hashes."""
    with catalog.engine.begin() as c:
        previous = GENESIS
        for row in c.execute(select(tables.audit).order_by(tables.audit.c.seq)).mappings().all():
            facts = {k: v for k, v in row.items() if k not in ("hash", "mac")}
            facts |= {"previous": previous, "actor": "mallory" if row["seq"] == 2 else row["actor"]}
            previous = _hash(facts)
            values = {**facts, "hash": previous, "mac": key.mac(previous) if key else row["mac"]}
            c.execute(update(tables.audit).where(tables.audit.c.seq == row["seq"]).values(**values))


def test_with_the_key_a_recomputed_chain_is_seen_and_without_it_is_said_to_be_unverified(
    catalog: Catalog,
) -> None:
    audit = keyed(catalog)
    for name in ("a", "b", "c"):
        catalog.registry.create_tenant(name, actor="test")
    found = audit.verify()
    assert (found.seq, found.keyed_from) == (3, 1) and found.checked.startswith("intact")
    recompute(catalog, None)
    with pytest.raises(Corrupt, match="record 2 has a MAC of another key"):
        audit.verify()
    recompute(catalog, AuditKey(b"x" * 32))
    with pytest.raises(Corrupt, match="record 1 has a MAC of another key"):
        audit.verify()
    with another(catalog) as engine:
        without = Audit(engine).verify()
    assert (
        without.keyed_from is None
        and "not verified" in without.checked
        and "intact" not in without.checked
    )


@pytest.mark.parametrize(
    ("tamper", "where"),
    [
        ("UPDATE audit SET mac = NULL WHERE seq = 3", "record 3 has no MAC"),
        ("UPDATE audit SET mac = NULL", "record 1 has no MAC"),
        ("UPDATE audit SET mac = '{mac}' WHERE seq = 3", "record 3 has a MAC of another"),
    ],
)
def test_macs_cannot_be_removed_or_moved(catalog: Catalog, tamper: str, where: str) -> None:
    audit = keyed(catalog)
    for name in ("a", "b", "c"):
        catalog.registry.create_tenant(name, actor="test")
    with catalog.engine.begin() as c:
        c.execute(text(tamper.format(mac=audit.records()[1].mac)))
    with pytest.raises(Corrupt, match=where):
        audit.verify()


def test_records_from_before_the_key_are_verified_as_a_chain_that_ends_where_the_key_was_made(
    catalog: Catalog,
) -> None:
    for name in ("a", "b", "c"):
        catalog.registry.create_tenant(name, actor="test")
    with catalog.engine.connect() as c:
        seq, digest, has_mac = newest(c)
    assert not has_mac
    audit = keyed(catalog, AuditKey(b"k" * 32, seq, digest))
    assert audit.verify().keyed_from is None, "no record has been written under the key"
    catalog.registry.create_tenant("d", actor="test")
    found = audit.verify()
    assert (found.seq, found.keyed_from) == (
        4,
        4,
    ) and "records 1 to 3: as they were" in found.checked
    with catalog.engine.begin() as c:
        c.execute(text("DELETE FROM audit WHERE seq = 4"))
    recompute(catalog, None)
    with pytest.raises(Corrupt, match="record 3 is not the one that was there"):
        audit.verify()
    with catalog.engine.begin() as c:
        c.execute(text("DELETE FROM audit WHERE seq > 1"))
    with pytest.raises(Corrupt, match=re.escape("ends at record 1, and record 3 was there before")):
        audit.verify()


def test_a_process_without_the_key_changes_nothing_once_records_have_macs(catalog: Catalog) -> None:
    keyed(catalog)
    catalog.registry.create_tenant("a", actor="test")
    with another(catalog) as engine:
        with pytest.raises(Refused, match="audit key"):
            Registry(engine, catalog.clock).create_tenant("b", actor="test")
        assert [t.name for t in Registry(engine, catalog.clock).tenants()] == ["a"]
