"""A catalog of each kind, with its readers and writers, for the contract suites."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from tenants.entities import Generation, ObjectRef, SegmentRef
from tenants.jobs import Jobs
from tenants.keys import Keys
from tenants.leases import Leases
from tenants.manifests import Manifests
from tenants.registry import Registry
from tenants.tables import migrate
from vicinage.catalog import open_catalog
from vicinage.clock import ManualClock
from vicinage.errors import VicinageError


@dataclass
class Catalog:
    engine: Engine
    clock: ManualClock
    registry: Registry
    keys: Keys
    manifests: Manifests
    leases: Leases
    jobs: Jobs


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    url = (
        f"sqlite:///{tmp_path}/catalog.db"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    engine, clock = open_catalog(url), ManualClock()
    migrate(engine)
    parts = (
        Registry(engine, clock),
        Keys(engine, clock),
        Manifests(engine, clock),
        Leases(engine, clock),
        Jobs(engine, clock),
    )
    yield Catalog(engine, clock, *parts)
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Yields a catalog that is not migrated yet."""
    return (
        f"sqlite:///{tmp_path}/new/catalog.db"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )


def place_on_two_slots(_generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (0, 1), (0, 0)


def make(catalog: Catalog, name: str = "docs", tenant: str = "acme") -> Generation:
    if tenant not in {t.name for t in catalog.registry.tenants()}:
        catalog.registry.create_tenant(tenant, actor="test")
    return catalog.registry.create_collection(
        tenant, name, dimension=4, place=place_on_two_slots, actor="test"
    ).generation()


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


@contextmanager
def another(catalog: Catalog) -> Iterator[Engine]:
    """Opens the same catalog as another process does."""
    engine = open_catalog(url_of(catalog.engine))
    yield engine
    engine.dispose()


def once_after(engine: Engine, fragment: str, act: Callable[[], object]) -> list[str]:
    """Runs an action once, right after the first statement on `engine` that contains `fragment`.

    Yields a list that gets that statement.
    """
    came: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def executed(_connection, _cursor, statement, *_rest):
        if fragment in statement and not came:
            came.append(statement)
            act()

    return came


def selects_of(engine: Engine) -> list[str]:
    """Yields a list that gets every SELECT from here on."""
    asked: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def executed(_connection, _cursor, statement, *_rest):
        if statement.startswith("SELECT"):
            asked.append(statement)

    return asked


def at_once(n: int, act: Callable[[int], object]) -> list[object]:
    """Returns the result of `act(i)` in each of n threads, or the error that it raised."""
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
