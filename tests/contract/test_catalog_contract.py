"""What the catalog promises, over SQLite and a real PostgreSQL."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, delete, event, text, update

from tenants import tables
from tenants.audit import Audit
from tenants.entities import EmbeddingModel, Generation, ObjectRef, SegmentRef
from tenants.jobs import Jobs
from tenants.keys import Keys
from tenants.leases import Leases
from tenants.manifests import Manifests
from tenants.registry import Registry
from tenants.tables import migrate
from vicinage.catalog import open_catalog
from vicinage.clock import ManualClock
from vicinage.errors import Conflict, Corrupt, Forbidden, NotFound, Refused, Unauthenticated, Unavailable, VicinageError


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


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


@contextmanager
def another(house: House) -> Iterator[Engine]:
    """The same catalog, as another process has it open."""
    engine = open_catalog(url_of(house.engine))
    yield engine
    engine.dispose()


def once_after(engine: Engine, fragment: str, act: Callable[[], object]) -> list[str]:
    """Do something right after the first statement on `engine` that holds `fragment`; the statement, once it came."""
    came: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def executed(_connection, _cursor, statement, *_rest):
        if fragment in statement and not came:
            came.append(statement)
            act()

    return came


def questions_to(engine: Engine) -> list[str]:
    """Every SELECT from here on."""
    asked: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def executed(_connection, _cursor, statement, *_rest):
        if statement.startswith("SELECT"):
            asked.append(statement)

    return asked


def at_once(n: int, act: Callable[[int], object]) -> list[object]:
    """What `act(i)` gave in each of n threads, or the error it raised."""
    outcomes: list[object] = [None] * n
    start = threading.Barrier(n)

    def work(i: int) -> None:
        start.wait(10)
        try:
            outcomes[i] = act(i)
        except VicinageError as error:
            outcomes[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    return outcomes


def segment(name: str) -> SegmentRef:
    return SegmentRef(name, {"passages": ObjectRef(f"{name}/passages", 1, "00")}, "flat", 1, 1, 0)


def test_migrating_again_and_at_once_changes_nothing(house: House) -> None:
    assert at_once(4, lambda _: migrate(house.engine)) == [None] * 4
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
    for old in (house.manifests.of(shard, start=0), None):  # the first manifest of a shard, and a later one
        known = old or house.manifests.of(shard, start=0)
        outcomes = at_once(
            6, lambda i, known=known: house.manifests.swap(known, segments=(segment(f"s{i}"),), sealed=1, lease=lease)
        )
        [winner] = [o for o in outcomes if not isinstance(o, Conflict)]
        assert house.manifests.of(shard, start=0) == winner


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
    made = at_once(8, lambda i: house.registry.create_tenant(f"t{i}", actor="test").name)
    house.registry.refresh()
    assert sorted(t.name for t in house.registry.tenants()) == made
    assert Audit(house.engine).verify() == 8


PROCESS = """
import sys
from tenants.registry import Registry
from tenants.tables import migrate
from vicinage.catalog import open_catalog
from vicinage.clock import SystemClock

engine = open_catalog(sys.argv[1])
migrate(engine)
registry = Registry(engine, SystemClock())
for i in range(10):
    registry.create_tenant(f"{sys.argv[2]}-{i}", actor=sys.argv[2])
"""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A catalog that nobody has migrated yet."""
    return (
        f"sqlite:///{tmp_path}/new/catalog.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )


def test_processes_that_start_at_once_on_an_empty_catalog_all_get_through(fresh_url: str) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, fresh_url, name], stderr=subprocess.PIPE, text=True)
        for name in ("a", "b", "c")
    ]
    assert [(p.communicate(timeout=100)[1], p.returncode) for p in processes] == [("", 0)] * 3
    engine = open_catalog(fresh_url)
    assert len(Registry(engine, ManualClock()).tenants()) == 30
    assert Audit(engine).verify() == 30
    engine.dispose()


def test_the_migrations_make_the_tables_that_the_code_reads(house: House) -> None:
    with house.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_a_refresh_sees_one_moment_while_changes_go_on(house: House) -> None:
    make(house)
    with another(house) as engine:
        reader = Registry(engine, house.clock)
        house.registry.suspend_tenant("acme", actor="test")
        came = once_after(engine, "FROM generations", lambda: make(house, "late"))
        reader.refresh()
        assert came
        assert [c.generation().number for c in reader.collections()] == [1]
        reader.refresh()
        assert [(c.name, c.generation().number) for c in reader.collections()] == [("docs", 1), ("late", 1)]


def test_a_refresh_loads_only_what_changed(house: House) -> None:
    for name in ("a", "b", "c"):
        make(house, name)
    with another(house) as engine:
        reader = Registry(engine, house.clock)
        before = {c.name: c for c in reader.collections()}
        questions = questions_to(engine)
        reader.refresh()
        assert len(questions) == 1
        house.registry.add_generation("acme", "b", index="flat", model=None, dimension=4, place=nowhere, actor="test")
        reader.refresh()
        after = {c.name: c for c in reader.collections()}
        assert [name for name in after if after[name] is not before[name]] == ["b"]


def test_a_catalog_restored_from_a_backup_is_read_anew(house: House) -> None:
    shard = make(house).shards()[0]
    lease = house.leases.acquire("slot/0", "one", ttl_s=10)
    house.manifests.swap(house.manifests.of(shard, start=0), segments=(), sealed=1, lease=lease)
    seen, _ = house.manifests.changed_since(0, {0})
    house.registry.create_tenant("made-after-the-backup", actor="test")
    with house.engine.begin() as c:
        c.execute(delete(tables.tenants).where(tables.tenants.c.name == "made-after-the-backup"))
        v = tables.catalog_version.c
        c.execute(update(tables.catalog_version).values(version=v.version - 1, manifests=0))
        c.execute(update(tables.manifests).values(change=0))
    house.registry.refresh()
    assert [t.name for t in house.registry.tenants()] == ["acme"]
    assert [m.shard for m in house.manifests.changed_since(seen, {0})[1]] == [shard]


def test_a_tenant_that_is_deleted_stays_deleted_whatever_others_still_believe(house: House) -> None:
    make(house)
    with another(house) as engine:
        behind = Registry(engine, house.clock)
        came = once_after(engine, "FROM catalog_version", lambda: house.registry.delete_tenant("acme", actor="test"))
        with pytest.raises(NotFound):
            behind.create_collection("acme", "late", dimension=4, place=nowhere, actor="test")
        assert came
        for change in (behind.resume_tenant, behind.suspend_tenant, behind.delete_tenant):
            with pytest.raises(NotFound):
                change("acme", actor="test")
        with pytest.raises(NotFound):
            behind.delete_collection("acme", "docs", actor="test")
        assert house.keys.list("acme") == ()
        behind.refresh()
        assert (behind.tenants(), behind.collections()) == ((), ())


def test_deleting_a_tenant_takes_its_collections_with_it_also_those_just_made(house: House) -> None:
    make(house)
    with another(house) as engine:
        Registry(engine, house.clock).create_collection("acme", "new", dimension=4, place=nowhere, actor="test")
        house.registry.delete_tenant("acme", actor="test")
    assert house.registry.collections() == ()
    assert [r.action for r in Audit(house.engine).records(after=3)] == [
        "collection.delete",
        "collection.delete",
        "tenant.delete",
    ]


def test_a_change_that_fails_leaves_no_row_and_no_record(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    version, n = house.registry.version, Audit(house.engine).verify()

    def away(_generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        raise Unavailable("the log is away", dependency="log")

    with pytest.raises(Unavailable):
        house.registry.create_collection("acme", "docs", dimension=4, place=away, actor="test")
    assert (house.registry.refresh(), Audit(house.engine).verify()) == (version, n)
    assert house.registry.collections() == ()


def test_what_cannot_be_built_is_refused_and_the_rule_named(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    for given, rule in (
        ({"name": "-x"}, "letter or digit"),
        ({"name": "x" * 64}, "63"),
        ({"dimension": 0}, "4096"),
        ({"dimension": 4097}, "4096"),
        ({"metric": "hamming"}, "cosine"),
        ({"index": "ivf"}, "hnsw"),
        ({"index": "hnsw:M=2,efc=80"}, "M from 4"),
        ({"index": "flat:M=4"}, "hnsw"),
    ):
        with pytest.raises(Refused, match=rule):
            house.registry.create_collection(
                "acme", **{"name": "x", "dimension": 4, "place": nowhere, "actor": "test", **given}
            )
    for index in ("auto", "flat", "hnsw", "hnsw:M=16", "hnsw:M=16,efc=200"):
        name = index.translate(str.maketrans(":=,", "---"))
        made = house.registry.create_collection("acme", name, dimension=4, index=index, place=nowhere, actor="test")
        assert made.generation().index == index
    with pytest.raises(NotFound, match="model"):
        house.registry.create_collection("acme", "y", model="unknown", place=nowhere, actor="test")


def test_a_models_entry_never_changes(house: House) -> None:
    entry = EmbeddingModel("BAAI/bge-small", "openai", "http://127.0.0.1:1/v1", 384, 512)
    house.registry.register_model(entry, actor="test")
    assert house.registry.model(entry.name) == entry
    with pytest.raises(Conflict):
        house.registry.register_model(entry, actor="test")
    for name in ("", "x" * 64, "a b"):
        with pytest.raises(Refused, match="name"):
            house.registry.register_model(EmbeddingModel(name, "openai", "http://x", 4, 8), actor="test")


def test_a_remembered_key_costs_no_statement(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    _, secret = house.keys.create("acme", {"read"}, actor="test")
    house.keys.authenticate(secret, "read")
    questions = questions_to(house.engine)
    for _ in range(100):
        assert house.keys.remembers(secret)
        house.keys.authenticate(secret, "read")
    assert questions == []
    house.clock.advance(1)
    assert not house.keys.remembers(secret)
    house.keys.authenticate(secret, "read")
    assert len(questions) == 1


def test_a_deleted_tenants_key_is_as_unknown_as_one_that_never_was(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    _, secret = house.keys.create("acme", {"read"}, actor="test")
    house.registry.delete_tenant("acme", actor="test")
    words = set()
    for text_ in (secret, "vk_" + "0" * 16 + "_" + "A" * 43):
        with pytest.raises(Unauthenticated) as refused:
            Keys(house.engine, house.clock).authenticate(text_, "read")
        words.add(refused.value.detail)
    assert len(words) == 1


def test_of_many_that_ask_for_a_lease_at_once_one_gets_it(house: House) -> None:
    outcomes = at_once(6, lambda i: house.leases.acquire("slot/0", f"owner-{i}", ttl_s=10))
    [lease] = [o for o in outcomes if o is not None]
    assert (lease.epoch, house.leases.acquire("slot/0", lease.owner, ttl_s=10).epoch) == (1, 2)
    house.clock.advance(11)
    [second] = [
        o for o in at_once(6, lambda i: house.leases.acquire("slot/0", f"owner-{i}", ttl_s=10)) if o is not None
    ]
    assert second.epoch == 3


def test_of_two_workers_that_move_a_job_one_wins_and_a_cancelled_one_moves_no_more(house: House) -> None:
    make(house)
    job = house.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    outcomes = at_once(4, lambda i: house.jobs.advance(job, state="waiting", done=i))
    [moved] = [o for o in outcomes if not isinstance(o, Conflict)]
    assert house.jobs.get(job.id) == moved
    with pytest.raises(Conflict):
        house.jobs.cancel(job, actor="mallory")
    house.jobs.cancel(moved, actor="ann")
    with pytest.raises(Conflict):
        house.jobs.advance(moved, state="building")
    last = Audit(house.engine).records()[-1]
    assert (last.actor, last.action, last.subject) == ("ann", "reindex.cancel", "acme/docs")
    assert [j.state for j in house.jobs.list("acme")] == ["cancelled"]
    assert house.jobs.list(open_only=True) == ()


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
def test_whatever_is_done_to_the_chain_verifying_says_where(house: House, tamper: str, where: str) -> None:
    for name in ("a", "b", "c", "d"):
        house.registry.create_tenant(name, actor="test")
    assert Audit(house.engine).verify() == 4
    with house.engine.begin() as c:
        c.execute(text(tamper))
    with pytest.raises(Corrupt, match=where):
        Audit(house.engine).verify()


@pytest.mark.postgres
def test_a_database_that_cut_its_connections_is_used_again_without_help(postgres_url: str) -> None:
    engine = open_catalog(postgres_url)
    migrate(engine)
    registry = Registry(engine, ManualClock())
    other = open_catalog(postgres_url)
    with other.connect() as c:
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert c.execute(text(cut)).all()
    registry.create_tenant("acme", actor="test")
    assert [t.name for t in registry.tenants()] == ["acme"]
    engine.dispose()
    other.dispose()
