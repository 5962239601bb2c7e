"""What the catalog promises of tenants, collections and models, over SQLite and a real PostgreSQL."""

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from catalogs import House, another, at_once, make, nowhere, once_after, questions_to
from sqlalchemy import delete, text, update

from tenants import tables
from tenants.audit import Audit
from tenants.entities import EmbeddingModel
from tenants.registry import Registry
from tenants.tables import migrate
from vicinage.catalog import open_catalog
from vicinage.clock import ManualClock
from vicinage.errors import Conflict, NotFound, Refused, Unavailable


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


def test_each_creation_of_a_collection_has_an_identity_of_its_own(house: House) -> None:
    make(house)
    first = house.registry.collection("acme", "docs")
    house.registry.delete_collection("acme", "docs", actor="test")
    house.registry.create_collection(
        "acme", "docs", dimension=4, place=nowhere, first_offsets=lambda: (7, 0), actor="test"
    )
    again = Registry(house.engine, house.clock).collection("acme", "docs")
    assert first.uid
    assert again.uid not in ("", first.uid)
    assert (first.first_offsets, again.first_offsets) == ((), (7, 0))


def test_the_default_model_gives_the_dimension_and_disagreement_is_refused(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    made = house.registry.create_collection(
        "acme", "docs", place=nowhere, actor="test"
    ).generation()
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
    assert [g.state for g in house.registry.collection("acme", "docs").generations] == [
        "live",
        "building",
    ]
    with pytest.raises(Conflict):
        house.registry.cut_over("acme", "docs", new.number, actor="test")
    assert house.registry.collection("acme", "docs").live == 1
    house.registry.set_generation_state("acme", "docs", new.number, "ready", actor="test")
    after = house.registry.cut_over("acme", "docs", new.number, actor="test")
    assert (after.live, [g.number for g in after.generations]) == (2, [2])


def test_changes_made_at_once_all_happen_and_are_chained(house: House) -> None:
    made = at_once(8, lambda i: house.registry.create_tenant(f"t{i}", actor="test").name)
    house.registry.refresh()
    assert sorted(t.name for t in house.registry.tenants()) == made
    assert Audit(house.engine).verify().seq == 8


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


def test_processes_that_start_at_once_on_an_empty_catalog_all_get_through(fresh_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, fresh_url, name], stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b", "c")
    ]
    assert [(p.communicate(timeout=100)[1], p.returncode) for p in processes] == [("", 0)] * 3
    engine = open_catalog(fresh_url)
    assert len(Registry(engine, ManualClock()).tenants()) == 30
    assert Audit(engine).verify().seq == 30
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
        assert [(c.name, c.generation().number) for c in reader.collections()] == [
            ("docs", 1),
            ("late", 1),
        ]


def test_a_refresh_loads_only_what_changed(house: House) -> None:
    for name in ("a", "b", "c"):
        make(house, name)
    with another(house) as engine:
        reader = Registry(engine, house.clock)
        before = {c.name: c for c in reader.collections()}
        questions = questions_to(engine)
        reader.refresh()
        assert len(questions) == 1
        house.registry.add_generation(
            "acme", "b", index="flat", model=None, dimension=4, place=nowhere, actor="test"
        )
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
        came = once_after(
            engine,
            "FROM catalog_version",
            lambda: house.registry.delete_tenant("acme", actor="test"),
        )
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
        Registry(engine, house.clock).create_collection(
            "acme", "new", dimension=4, place=nowhere, actor="test"
        )
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


def test_nobody_waits_for_the_log_that_places_a_new_generation(house: House) -> None:
    """Where a generation begins is asked of the log, which may be slow: not while everybody's changes wait."""
    house.registry.create_tenant("acme", actor="test")
    others: list[str] = []

    def slow(generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        others.append(f"other-{len(others)}")
        Registry(engine, house.clock).create_tenant(
            others[-1], actor="test"
        )  # stuck if this change is open already
        return (generation,), (7,)

    with another(house) as engine:
        made = house.registry.create_collection(
            "acme", "docs", dimension=4, place=slow, actor="test"
        ).generation()
        assert (made.number, made.slots, made.starts) == (1, (1,), (7,))
        more = {"index": "flat", "model": None, "dimension": 4, "actor": "test"}
        added = house.registry.add_generation("acme", "docs", place=slow, **more)
        assert (added.number, added.slots, added.starts) == (2, (2,), (7,))
    house.registry.refresh()
    assert {t.name for t in house.registry.tenants()} == {"acme", *others}


def test_a_generation_placed_under_a_number_that_was_taken_meanwhile_is_not_made(
    house: House,
) -> None:
    make(house)
    more = {"index": "flat", "model": None, "dimension": 4, "actor": "test"}

    def overtaken(_generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        Registry(house.engine, house.clock).add_generation("acme", "docs", place=nowhere, **more)
        return nowhere(_generation)

    def made_and_gone(_generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        other = Registry(house.engine, house.clock)
        other.create_collection("acme", "new", dimension=4, place=nowhere, actor="test")
        other.delete_collection("acme", "new", actor="test")
        return nowhere(_generation)

    with pytest.raises(Conflict, match="meanwhile"):
        house.registry.add_generation("acme", "docs", place=overtaken, **more)
    with pytest.raises(Conflict, match="meanwhile"):
        house.registry.create_collection(
            "acme", "new", dimension=4, place=made_and_gone, actor="test"
        )
    house.registry.refresh()
    [docs] = house.registry.collections()
    assert [g.number for g in docs.generations] == [1, 2]


def test_what_cannot_be_built_is_refused_and_the_rule_named(house: House) -> None:
    house.registry.create_tenant("acme", actor="test")
    for given, rule in (
        ({"name": "-x"}, "letter or digit"),
        ({"name": "x" * 64}, "63"),
        ({"dimension": 0}, "4096"),
        ({"dimension": 4097}, "4096"),
        ({"metric": "hamming"}, "cosine"),
        ({"index": "annoy"}, "hnsw"),
        ({"index": "hnsw:M=2,efc=80"}, "M is a whole number from 4"),
        ({"index": "flat:M=4"}, "no parameters"),
    ):
        with pytest.raises(Refused, match=rule):
            house.registry.create_collection(
                "acme", **{"name": "x", "dimension": 4, "place": nowhere, "actor": "test", **given}
            )
    for index in (
        "auto",
        "flat",
        "hnsw",
        "hnsw:M=16",
        "hnsw:M=16,efc=200",
        "hnsw:codes=sq8",
        "ivf",
        "ivfpq:lists=64",
        "rabitq",
    ):
        name = index.translate(str.maketrans(":=,", "---"))
        made = house.registry.create_collection(
            "acme", name, dimension=4, index=index, place=nowhere, actor="test"
        )
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
            house.registry.register_model(
                EmbeddingModel(name, "openai", "http://x", 4, 8), actor="test"
            )


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
