"""The catalog's contract for tenants, collections and models, over SQLite and PostgreSQL."""

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from catalogs import Catalog, another, at_once, make, once_after, place_on_two_slots, selects_of
from sqlalchemy import delete, text, update

from tenants import tables
from tenants.audit import Audit
from tenants.entities import EmbeddingModel
from tenants.registry import Registry
from tenants.tables import migrate
from vicinage.catalog import open_catalog
from vicinage.clock import ManualClock
from vicinage.errors import Conflict, NotFound, Refused, Unavailable


def test_migrating_again_and_at_once_changes_nothing(catalog: Catalog) -> None:
    assert at_once(4, lambda _: migrate(catalog.engine)) == [None] * 4
    assert [m.name for m in catalog.registry.models()] == ["all-minilm-l6-v2"]


def test_another_registry_sees_every_change_after_a_refresh(catalog: Catalog) -> None:
    other = Registry(catalog.engine, catalog.clock)
    make(catalog)
    with pytest.raises(NotFound):
        other.collection("acme", "docs")
    other.refresh()
    assert other.collection("acme", "docs") == catalog.registry.collection("acme", "docs")
    catalog.registry.delete_collection("acme", "docs", actor="test")
    other.refresh()
    assert other.collections() == ()


def test_names_keep_to_their_rules_and_are_given_once(catalog: Catalog) -> None:
    for bad in ("", "-a", "A", "a" * 64, "a/b", "a b", "ü"):
        with pytest.raises(Refused, match="name"):
            catalog.registry.create_tenant(bad, actor="test")
    catalog.registry.create_tenant("acme", actor="test")
    with pytest.raises(Conflict):
        catalog.registry.create_tenant("acme", actor="test")
    catalog.registry.delete_tenant("acme", actor="test")
    with pytest.raises(Conflict, match="not reused"):
        catalog.registry.create_tenant("acme", actor="test")


def test_a_collection_made_again_gets_a_higher_generation(catalog: Catalog) -> None:
    assert make(catalog).number == 1
    catalog.registry.delete_collection("acme", "docs", actor="test")
    assert make(catalog).number == 2


def test_each_creation_of_a_collection_has_an_identity_of_its_own(catalog: Catalog) -> None:
    make(catalog)
    first = catalog.registry.collection("acme", "docs")
    catalog.registry.delete_collection("acme", "docs", actor="test")
    catalog.registry.create_collection(
        "acme",
        "docs",
        dimension=4,
        place=place_on_two_slots,
        first_offsets=lambda: (7, 0),
        actor="test",
    )
    again = Registry(catalog.engine, catalog.clock).collection("acme", "docs")
    assert first.uid
    assert again.uid not in ("", first.uid)
    assert (first.first_offsets, again.first_offsets) == ((), (7, 0))


def test_the_default_model_gives_the_dimension_and_disagreement_is_refused(
    catalog: Catalog,
) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    made = catalog.registry.create_collection(
        "acme", "docs", place=place_on_two_slots, actor="test"
    ).generation()
    assert (made.model, made.dimension) == ("all-minilm-l6-v2", 384)
    with pytest.raises(Refused, match="384"):
        catalog.registry.create_collection(
            "acme",
            "x",
            model="all-minilm-l6-v2",
            dimension=5,
            place=place_on_two_slots,
            actor="test",
        )


def test_cutting_over_is_one_step_and_only_for_a_ready_generation(catalog: Catalog) -> None:
    make(catalog)
    new = catalog.registry.add_generation(
        "acme",
        "docs",
        index="flat",
        model=None,
        dimension=4,
        place=place_on_two_slots,
        actor="test",
    )
    assert [g.state for g in catalog.registry.collection("acme", "docs").generations] == [
        "live",
        "building",
    ]
    with pytest.raises(Conflict):
        catalog.registry.cut_over("acme", "docs", new.number, actor="test")
    assert catalog.registry.collection("acme", "docs").live == 1
    catalog.registry.set_generation_state("acme", "docs", new.number, "ready", actor="test")
    after = catalog.registry.cut_over("acme", "docs", new.number, actor="test")
    assert (after.live, [g.number for g in after.generations]) == (2, [2])


def test_changes_made_at_once_all_happen_and_are_chained(catalog: Catalog) -> None:
    made = at_once(8, lambda i: catalog.registry.create_tenant(f"t{i}", actor="test").name)
    catalog.registry.refresh()
    assert sorted(t.name for t in catalog.registry.tenants()) == made
    assert Audit(catalog.engine).verify().seq == 8


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


def test_the_migrations_make_the_tables_that_the_code_reads(catalog: Catalog) -> None:
    with catalog.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_a_refresh_sees_one_moment_while_changes_go_on(catalog: Catalog) -> None:
    make(catalog)
    with another(catalog) as engine:
        reader = Registry(engine, catalog.clock)
        catalog.registry.suspend_tenant("acme", actor="test")
        came = once_after(engine, "FROM generations", lambda: make(catalog, "late"))
        reader.refresh()
        assert came
        assert [c.generation().number for c in reader.collections()] == [1]
        reader.refresh()
        assert [(c.name, c.generation().number) for c in reader.collections()] == [
            ("docs", 1),
            ("late", 1),
        ]


def test_a_refresh_loads_only_what_changed(catalog: Catalog) -> None:
    for name in ("a", "b", "c"):
        make(catalog, name)
    with another(catalog) as engine:
        reader = Registry(engine, catalog.clock)
        before = {c.name: c for c in reader.collections()}
        selects = selects_of(engine)
        reader.refresh()
        assert len(selects) == 1
        catalog.registry.add_generation(
            "acme",
            "b",
            index="flat",
            model=None,
            dimension=4,
            place=place_on_two_slots,
            actor="test",
        )
        reader.refresh()
        after = {c.name: c for c in reader.collections()}
        assert [name for name in after if after[name] is not before[name]] == ["b"]


def test_a_catalog_restored_from_a_backup_is_read_again(catalog: Catalog) -> None:
    shard = make(catalog).shards()[0]
    lease = catalog.leases.acquire("slot/0", "one", ttl_s=10)
    catalog.manifests.swap(catalog.manifests.of(shard, start=0), segments=(), sealed=1, lease=lease)
    seen, _ = catalog.manifests.changed_since(0, {0})
    catalog.registry.create_tenant("made-after-the-backup", actor="test")
    with catalog.engine.begin() as c:
        c.execute(delete(tables.tenants).where(tables.tenants.c.name == "made-after-the-backup"))
        v = tables.catalog_version.c
        c.execute(update(tables.catalog_version).values(version=v.version - 1, manifests=0))
        c.execute(update(tables.manifests).values(change=0))
    catalog.registry.refresh()
    assert [t.name for t in catalog.registry.tenants()] == ["acme"]
    assert [m.shard for m in catalog.manifests.changed_since(seen, {0})[1]] == [shard]


def test_a_tenant_that_is_deleted_stays_deleted_whatever_others_still_believe(
    catalog: Catalog,
) -> None:
    make(catalog)
    with another(catalog) as engine:
        behind = Registry(engine, catalog.clock)
        came = once_after(
            engine,
            "FROM catalog_version",
            lambda: catalog.registry.delete_tenant("acme", actor="test"),
        )
        with pytest.raises(NotFound):
            behind.create_collection(
                "acme", "late", dimension=4, place=place_on_two_slots, actor="test"
            )
        assert came
        for change in (behind.resume_tenant, behind.suspend_tenant, behind.delete_tenant):
            with pytest.raises(NotFound):
                change("acme", actor="test")
        with pytest.raises(NotFound):
            behind.delete_collection("acme", "docs", actor="test")
        assert catalog.keys.list("acme") == ()
        behind.refresh()
        assert (behind.tenants(), behind.collections()) == ((), ())


def test_deleting_a_tenant_takes_its_collections_with_it_also_those_just_made(
    catalog: Catalog,
) -> None:
    make(catalog)
    with another(catalog) as engine:
        Registry(engine, catalog.clock).create_collection(
            "acme", "new", dimension=4, place=place_on_two_slots, actor="test"
        )
        catalog.registry.delete_tenant("acme", actor="test")
    assert catalog.registry.collections() == ()
    assert [r.action for r in Audit(catalog.engine).records(after=3)] == [
        "collection.delete",
        "collection.delete",
        "tenant.delete",
    ]


def test_a_change_that_fails_leaves_no_row_and_no_record(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
    version, n = catalog.registry.version, Audit(catalog.engine).verify()

    def unreachable(_generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        raise Unavailable("the log is unreachable", dependency="log")

    with pytest.raises(Unavailable):
        catalog.registry.create_collection(
            "acme", "docs", dimension=4, place=unreachable, actor="test"
        )
    assert (catalog.registry.refresh(), Audit(catalog.engine).verify()) == (version, n)
    assert catalog.registry.collections() == ()


def test_no_change_waits_for_the_log_that_places_a_new_generation(catalog: Catalog) -> None:
    """The log, which may be slow, is read before a change that all other changes wait for."""
    catalog.registry.create_tenant("acme", actor="test")
    others: list[str] = []

    def slow(generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        others.append(f"other-{len(others)}")
        Registry(engine, catalog.clock).create_tenant(
            others[-1], actor="test"
        )  # stuck if this change is open already
        return (generation,), (7,)

    with another(catalog) as engine:
        made = catalog.registry.create_collection(
            "acme", "docs", dimension=4, place=slow, actor="test"
        ).generation()
        assert (made.number, made.slots, made.starts) == (1, (1,), (7,))
        more = {"index": "flat", "model": None, "dimension": 4, "actor": "test"}
        added = catalog.registry.add_generation("acme", "docs", place=slow, **more)
        assert (added.number, added.slots, added.starts) == (2, (2,), (7,))
    catalog.registry.refresh()
    assert {t.name for t in catalog.registry.tenants()} == {"acme", *others}


def test_a_generation_placed_under_a_number_that_was_taken_meanwhile_is_not_made(
    catalog: Catalog,
) -> None:
    make(catalog)
    more = {"index": "flat", "model": None, "dimension": 4, "actor": "test"}

    def overtaken(_generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        Registry(catalog.engine, catalog.clock).add_generation(
            "acme", "docs", place=place_on_two_slots, **more
        )
        return place_on_two_slots(_generation)

    def made_and_gone(_generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        other = Registry(catalog.engine, catalog.clock)
        other.create_collection("acme", "new", dimension=4, place=place_on_two_slots, actor="test")
        other.delete_collection("acme", "new", actor="test")
        return place_on_two_slots(_generation)

    with pytest.raises(Conflict, match="meanwhile"):
        catalog.registry.add_generation("acme", "docs", place=overtaken, **more)
    with pytest.raises(Conflict, match="meanwhile"):
        catalog.registry.create_collection(
            "acme", "new", dimension=4, place=made_and_gone, actor="test"
        )
    catalog.registry.refresh()
    [docs] = catalog.registry.collections()
    assert [g.number for g in docs.generations] == [1, 2]


def test_what_cannot_be_built_is_refused_and_the_rule_named(catalog: Catalog) -> None:
    catalog.registry.create_tenant("acme", actor="test")
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
            catalog.registry.create_collection(
                "acme",
                **{
                    "name": "x",
                    "dimension": 4,
                    "place": place_on_two_slots,
                    "actor": "test",
                    **given,
                },
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
        made = catalog.registry.create_collection(
            "acme", name, dimension=4, index=index, place=place_on_two_slots, actor="test"
        )
        assert made.generation().index == index
    with pytest.raises(NotFound, match="model"):
        catalog.registry.create_collection(
            "acme", "y", model="unknown", place=place_on_two_slots, actor="test"
        )


def test_a_models_entry_never_changes(catalog: Catalog) -> None:
    entry = EmbeddingModel("BAAI/bge-small", "openai", "http://127.0.0.1:1/v1", 384, 512)
    catalog.registry.register_model(entry, actor="test")
    assert catalog.registry.model(entry.name) == entry
    with pytest.raises(Conflict):
        catalog.registry.register_model(entry, actor="test")
    for name in ("", "x" * 64, "a b"):
        with pytest.raises(Refused, match="name"):
            catalog.registry.register_model(
                EmbeddingModel(name, "openai", "http://x", 4, 8), actor="test"
            )


@pytest.mark.postgres
def test_a_database_that_cut_its_connections_is_used_again_without_help(postgres_url: str) -> None:
    engine = open_catalog(postgres_url)
    migrate(engine)
    registry = Registry(engine, ManualClock())
    other = open_catalog(postgres_url)
    with other.connect() as c:
        cut = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
            "current_database() AND pid <> pg_backend_pid()"
        )
        assert c.execute(text(cut)).all()
    registry.create_tenant("acme", actor="test")
    assert [t.name for t in registry.tenants()] == ["acme"]
    engine.dispose()
    other.dispose()
