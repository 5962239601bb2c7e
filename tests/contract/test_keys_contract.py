"""The catalog's contract for keys and the audit chain, over SQLite and PostgreSQL."""

import pytest
from catalogs import Catalog, make, selects_of
from sqlalchemy import text, update

from tenants import tables
from tenants.audit import Audit
from tenants.keys import Keys
from vicinage.errors import Corrupt, Forbidden, NotFound, Refused, Unauthenticated


def test_a_key_proves_its_tenant_until_it_ends(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    key, secret = catalog.keys.create(
        "acme", {"read"}, expires_ms=catalog.clock.now_ms() + 10_000, actor="test"
    )
    assert catalog.keys.authenticate(secret, "read").tenant == "acme"
    with pytest.raises(Forbidden):
        catalog.keys.authenticate(secret, "write")
    for wrong in (None, "", "vk_", secret[:-1] + ("A" if secret[-1] != "A" else "B"), secret + "x"):
        with pytest.raises(Unauthenticated):
            catalog.keys.authenticate(wrong, "read")
    catalog.clock.advance(11)
    with pytest.raises(Unauthenticated, match="expired"):
        catalog.keys.authenticate(secret, "read")
    assert catalog.keys.list("acme") == (key,)


def test_a_revoked_key_dies_within_a_second_elsewhere(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    key, secret = catalog.keys.create("acme", {"read"}, actor="test")
    elsewhere = Keys(catalog.engine, catalog.clock)
    elsewhere.authenticate(secret, "read")
    catalog.keys.revoke(key.id, actor="test")
    catalog.clock.advance(1)
    for keys in (catalog.keys, elsewhere):
        with pytest.raises(Unauthenticated, match="revoked"):
            keys.authenticate(secret, "read")


def test_a_secret_is_nowhere_in_the_catalog(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    _, secret = catalog.keys.create("acme", {"read"}, actor="test")
    with catalog.engine.connect() as c:
        rows = [
            str(row)
            for name in ("keys", "audit")
            for row in c.execute(text(f"SELECT * FROM {name}"))
        ]
    random_part = secret.split("_", 2)[2]  # it may itself contain "_"
    assert len(random_part) == 43
    assert rows and not any(random_part in row for row in rows)


def test_a_suspended_tenants_keys_are_refused_until_resumed(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    _, secret = catalog.keys.create("acme", {"read"}, actor="test")
    catalog.registry.suspend_tenant("acme", actor="test")
    with pytest.raises(Forbidden, match="suspended"):
        catalog.keys.authenticate(secret, "read")
    catalog.registry.resume_tenant("acme", actor="test")
    catalog.clock.advance(1)
    catalog.keys.authenticate(secret, "read")


def test_scopes_of_tenants_and_operators_do_not_mix(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    for tenant, scopes in (
        ("acme", {"operate"}),
        (None, {"read"}),
        ("acme", {"read", "operate"}),
        ("acme", set()),
        ("acme", {"root"}),
    ):
        with pytest.raises(Refused):
            catalog.keys.create(tenant, scopes, actor="test")
    with pytest.raises(NotFound):
        catalog.keys.create("unknown", {"read"}, actor="test")


def test_every_change_is_in_the_audit_chain_and_tampering_breaks_it(catalog: Catalog) -> None:
    make(catalog)
    audit = Audit(catalog.engine)
    assert [r.action for r in audit.records()] == ["tenant.create", "collection.create"]
    assert audit.verify().seq == 2
    with catalog.engine.begin() as c:
        c.execute(update(tables.audit).where(tables.audit.c.seq == 1).values(actor="another"))
    with pytest.raises(Corrupt, match="record 1"):
        audit.verify()


def test_a_remembered_key_costs_no_statement(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    _, secret = catalog.keys.create("acme", {"read"}, actor="test")
    catalog.keys.authenticate(secret, "read")
    selects = selects_of(catalog.engine)
    for _ in range(100):
        assert catalog.keys.remembers(secret)
        catalog.keys.authenticate(secret, "read")
    assert selects == []
    catalog.clock.advance(1)
    assert not catalog.keys.remembers(secret)
    catalog.keys.authenticate(secret, "read")
    assert len(selects) == 1


def test_a_deleted_tenants_key_is_as_unknown_as_one_that_never_was(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    _, secret = catalog.keys.create("acme", {"read"}, actor="test")
    catalog.registry.delete_tenant("acme", actor="test")
    words = set()
    for text_ in (secret, "vk_" + "0" * 16 + "_" + "A" * 43):
        with pytest.raises(Unauthenticated) as refused:
            Keys(catalog.engine, catalog.clock).authenticate(text_, "read")
        words.add(refused.value.detail)
    assert len(words) == 1


@pytest.mark.parametrize(
    ("tamper", "where"),
    [
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE seq = 2", "record 2"),
        ("UPDATE audit SET after = NULL WHERE seq = 3", "record 3"),
        ("DELETE FROM audit WHERE seq = 2", "record 3"),
        ("DELETE FROM audit WHERE seq = 1", "record 2"),
        ("UPDATE audit SET seq = 9 WHERE seq = 2", "record 3"),
    ],
)
def test_whatever_is_done_to_the_chain_verifying_says_where(
    catalog: Catalog, tamper: str, where: str
) -> None:
    for name in ("a", "b", "c", "d"):
        catalog.registry.create_tenant(name, actor="test")
    assert Audit(catalog.engine).verify().seq == 4
    with catalog.engine.begin() as c:
        c.execute(text(tamper))
    with pytest.raises(Corrupt, match=where):
        Audit(catalog.engine).verify()
