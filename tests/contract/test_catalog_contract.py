"""What the catalog promises, over SQLite and a real PostgreSQL."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text, update

from tenants import tables
from tenants.audit import Audit
from tenants.entities import Generation, ObjectRef, SegmentRef
from tenants.jobs import Jobs
from tenants.keys import Keys
from tenants.leases import Leases
from tenants.manifests import Manifests
from tenants.registry import Registry
from tenants.tables import migrate
from vicinage.catalog import open_catalog
from vicinage.clock import ManualClock
from vicinage.errors import Conflict, Corrupt, Forbidden, NotFound, Refused, Unauthenticated


@dataclass
class House:
    engine: Engine
    clock: ManualClock
    registry: Registry
    keys: Keys
    manifests: Manifests
    leases: Leases
    jobs: Jobs


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    url = f"sqlite:///{tmp_path}/catalog.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    engine, clock = open_catalog(url), ManualClock()
    migrate(engine)
    parts = (
        Registry(engine, clock),
        Keys(engine, clock),
        Manifests(engine, clock),
        Leases(engine, clock),
        Jobs(engine, clock),
    )
    yield House(engine, clock, *parts)
    engine.dispose()


def nowhere(_generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (0, 1), (0, 0)


def make(house: House, name: str = "docs", tenant: str = "acme") -> Generation:
    if tenant not in {t.name for t in house.registry.tenants()}:
        house.registry.create_tenant(tenant, actor="test")
    return house.registry.create_collection(tenant, name, dimension=4, place=nowhere, actor="test").generation()


def segment(name: str) -> SegmentRef:
    return SegmentRef(name, {"passages": ObjectRef(f"{name}/passages", 1, "00")}, "flat", 1, 1, 0)


def test_migrating_again_and_at_once_changes_nothing(house: House) -> None:
    workers = [threading.Thread(target=migrate, args=(house.engine,)) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [m.name for m in house.registry.models()] == ["all-minilm-l6-v2"]


def test_another_registry_sees_every_change_after_a_refresh(house: House) -> None:
    other = Registry(house.engine, house.clock)
    make(house)
    with pytest.raises(NotFound):
        other.collection("acme", "docs")
    other.refresh()
    assert other.collection("acme", "docs") == house.registry.collection("acme", "docs")
    house.registry.delete_collection("acme", "docs", actor="test")
    other.refresh()
    assert other.collections() == ()


def test_names_keep_to_their_rules_and_are_given_once(house: House) -> None:
    for bad in ("", "-a", "A", "a" * 64, "a/b", "a b", "ü"):
        with pytest.raises(Refused, match="name"):
            house.registry.create_tenant(bad, actor="test")
    house.registry.create_tenant("acme", actor="test")
    with pytest.raises(Conflict):
        house.registry.create_tenant("acme", actor="test")
    house.registry.delete_tenant("acme", actor="test")
    with pytest.raises(Conflict, match="not reused"):
        house.registry.create_tenant("acme", actor="test")


def test_a_collection_made_again_gets_a_higher_generation(house: House) -> None:
    assert make(house).number == 1
    house.registry.delete_collection("acme", "docs", actor="test")
    assert make(house).number == 2


def test_the_default_model_gives_the_dimension_and_disagreement_is_refused(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    made = house.registry.create_collection("acme", "docs", place=nowhere, actor="test").generation()
    assert (made.model, made.dimension) == ("all-minilm-l6-v2", 384)
    with pytest.raises(Refused, match="384"):
        house.registry.create_collection(
            "acme", "x", model="all-minilm-l6-v2", dimension=5, place=nowhere, actor="test"
        )


def test_cutting_over_is_one_step_and_only_for_a_ready_generation(house: House) -> None:
    make(house)
    new = house.registry.add_generation(
        "acme", "docs", index="flat", model=None, dimension=4, place=nowhere, actor="test"
    )
    assert [g.state for g in house.registry.collection("acme", "docs").generations] == ["live", "building"]
    with pytest.raises(Conflict):
        house.registry.cut_over("acme", "docs", new.number, actor="test")
    assert house.registry.collection("acme", "docs").live == 1
    house.registry.set_generation_state("acme", "docs", new.number, "ready", actor="test")
    after = house.registry.cut_over("acme", "docs", new.number, actor="test")
    assert (after.live, [g.number for g in after.generations]) == (2, [2])


def test_a_key_proves_its_tenant_until_it_ends(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    key, secret = house.keys.create("acme", {"read"}, expires_ms=house.clock.now_ms() + 10_000, actor="test")
    assert house.keys.authenticate(secret, "read").tenant == "acme"
    with pytest.raises(Forbidden):
        house.keys.authenticate(secret, "write")
    for wrong in (None, "", "vk_", secret[:-1] + ("A" if secret[-1] != "A" else "B"), secret + "x"):
        with pytest.raises(Unauthenticated):
            house.keys.authenticate(wrong, "read")
    house.clock.advance(11)
    with pytest.raises(Unauthenticated, match="expired"):
        house.keys.authenticate(secret, "read")
    assert house.keys.list("acme") == (key,)


def test_a_revoked_key_dies_within_a_second_elsewhere(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    key, secret = house.keys.create("acme", {"read"}, actor="test")
    elsewhere = Keys(house.engine, house.clock)
    elsewhere.authenticate(secret, "read")
    house.keys.revoke(key.id, actor="test")
    house.clock.advance(1)
    for keys in (house.keys, elsewhere):
        with pytest.raises(Unauthenticated, match="revoked"):
            keys.authenticate(secret, "read")


def test_a_secret_is_nowhere_in_the_catalog(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    _, secret = house.keys.create("acme", {"read"}, actor="test")
    with house.engine.connect() as c:
        rows = [str(row) for name in ("keys", "audit") for row in c.execute(text(f"SELECT * FROM {name}"))]
    assert rows and not any(secret.rpartition("_")[2] in row for row in rows)


def test_a_suspended_tenants_keys_are_refused_until_resumed(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    _, secret = house.keys.create("acme", {"read"}, actor="test")
    house.registry.suspend_tenant("acme", actor="test")
    with pytest.raises(Forbidden, match="suspended"):
        house.keys.authenticate(secret, "read")
    house.registry.resume_tenant("acme", actor="test")
    house.clock.advance(1)
    house.keys.authenticate(secret, "read")


def test_scopes_of_tenants_and_operators_do_not_mix(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    for tenant, scopes in (
        ("acme", {"operate"}),
        (None, {"read"}),
        ("acme", {"read", "operate"}),
        ("acme", set()),
        ("acme", {"root"}),
    ):
        with pytest.raises(Refused):
            house.keys.create(tenant, scopes, actor="test")
    with pytest.raises(NotFound):
        house.keys.create("nobody", {"read"}, actor="test")


def test_a_manifest_is_swapped_only_from_what_it_was(house: House) -> None:
    shard = make(house).shards()[0]
    lease = house.leases.acquire("slot/0", "one", ttl_s=10)
    first = house.manifests.of(shard, start=7)
    assert (first.version, first.sealed, first.segments) == (0, 7, ())
    second = house.manifests.swap(first, segments=(segment("a"),), sealed=9, lease=lease)
    assert house.manifests.of(shard, start=7) == second
    for stale in (first, house.manifests.of(shard, start=7).__class__(shard, 5, 1, 9, ())):
        with pytest.raises(Conflict):
            house.manifests.swap(stale, segments=(), sealed=10, lease=lease)
    assert house.manifests.of(shard, start=7) == second


def test_of_two_indexers_that_swap_at_once_exactly_one_wins(house: House) -> None:
    shard = make(house).shards()[0]
    lease = house.leases.acquire("slot/0", "one", ttl_s=10)
    old, outcomes = house.manifests.of(shard, start=0), []

    def swap(name: str) -> None:
        try:
            house.manifests.swap(old, segments=(segment(name),), sealed=1, lease=lease)
            outcomes.append(name)
        except Conflict:
            outcomes.append(None)

    racers = [threading.Thread(target=swap, args=(f"s{i}",)) for i in range(6)]
    for r in racers:
        r.start()
    for r in racers:
        r.join()
    [winner] = [o for o in outcomes if o]
    assert [s.id for s in house.manifests.of(shard, start=0).segments] == [winner]


def test_a_lease_passes_on_when_it_runs_out_and_its_old_holder_is_fenced_off(house: House) -> None:
    shard = make(house).shards()[0]
    mine = house.leases.acquire("slot/0", "one", ttl_s=10)
    assert house.leases.acquire("slot/0", "two", ttl_s=10) is None
    mine = house.leases.renew(mine, ttl_s=10)
    house.clock.advance(11)
    theirs = house.leases.acquire("slot/0", "two", ttl_s=10)
    assert theirs.epoch > mine.epoch
    with pytest.raises(Conflict):
        house.leases.renew(mine, ttl_s=10)
    with pytest.raises(Conflict, match="lease"):
        house.manifests.swap(house.manifests.of(shard, start=0), segments=(), sealed=1, lease=mine)
    house.manifests.swap(house.manifests.of(shard, start=0), segments=(), sealed=1, lease=theirs)
    house.leases.release(theirs)
    assert house.leases.acquire("slot/0", "one", ttl_s=10).epoch > theirs.epoch


def test_the_change_feed_names_each_changed_manifest_once(house: House) -> None:
    generation = make(house)
    leases = {s: house.leases.acquire(f"slot/{s}", "one", ttl_s=10) for s in (0, 1)}
    seen, none = house.manifests.changed_since(0, {0, 1})
    assert none == []
    for shard in generation.shards():
        for sealed in (1, 2):
            house.manifests.swap(
                house.manifests.of(shard, start=0), segments=(), sealed=sealed, lease=leases[shard.slot]
            )
    seen, changed = house.manifests.changed_since(seen, {0, 1})
    assert [(m.shard.slot, m.sealed) for m in changed] == [(0, 2), (1, 2)]
    assert house.manifests.changed_since(seen, {0, 1}) == (seen, [])


def test_objects_of_a_collection_that_is_gone_are_named_no_more(house: House) -> None:
    shard = make(house).shards()[0]
    lease = house.leases.acquire("slot/0", "one", ttl_s=10)
    house.manifests.swap(house.manifests.of(shard, start=0), segments=(segment("a"),), sealed=1, lease=lease)
    assert house.manifests.paths() == {"a/passages"}
    house.registry.delete_collection("acme", "docs", actor="test")
    assert house.manifests.paths() == set()


def test_a_job_moves_forward_once(house: House) -> None:
    make(house)
    job = house.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    with pytest.raises(Conflict, match="under way"):
        house.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    moved = house.jobs.advance(job, state="waiting", barrier={"documents": {"0": 3}}, done=1)
    assert house.jobs.get(job.id) == moved
    with pytest.raises(Conflict):
        house.jobs.advance(job, state="building")
    house.jobs.advance(moved, state="done")
    house.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")


def test_every_change_is_in_the_audit_chain_and_tampering_breaks_it(house: House) -> None:
    make(house)
    audit = Audit(house.engine)
    assert [r.action for r in audit.records()] == ["tenant.create", "collection.create"]
    assert audit.verify() == 2
    with house.engine.begin() as c:
        c.execute(update(tables.audit).where(tables.audit.c.seq == 1).values(actor="somebody else"))
    with pytest.raises(Corrupt, match="record 1"):
        audit.verify()


def test_changes_made_at_once_all_happen_and_are_chained(house: House) -> None:
    workers = [
        threading.Thread(target=house.registry.create_tenant, args=(f"t{i}",), kwargs={"actor": "test"})
        for i in range(8)
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    house.registry.refresh()
    assert len(house.registry.tenants()) == 8
    assert Audit(house.engine).verify() == 8
