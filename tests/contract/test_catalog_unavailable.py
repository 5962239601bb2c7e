"""Behavior while the catalog is unreachable: a missing SQLite file, and a stopped PostgreSQL."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from catalogs import Catalog, place_on_two_slots, selects_of
from servers import free_port, postgres_starter
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from tenants.jobs import Jobs
from tenants.keys import FRESH_S, GRACE_S, Keys
from tenants.leases import Leases
from tenants.manifests import Manifests
from tenants.registry import Registry
from tenants.tables import migrate
from vicinage import catalog
from vicinage.catalog import look, open_catalog, unreachable
from vicinage.clock import ManualClock
from vicinage.errors import Unauthenticated, Unavailable


@dataclass
class Leaving(Catalog):
    """A catalog that can be made unreachable and reachable again."""

    leave: Callable[[], None]
    come_back: Callable[[], None]


def leaving_catalog(
    url: str, leave: Callable[[Engine], None], come_back: Callable[[], None]
) -> Leaving:
    engine, clock = open_catalog(url), ManualClock()
    migrate(engine)
    parts = [part(engine, clock) for part in (Registry, Keys, Manifests, Leases, Jobs)]
    return Leaving(engine, clock, *parts, leave=lambda: leave(engine), come_back=come_back)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def leaving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Leaving]:
    if request.param == "sqlite":
        here, there = tmp_path / "here", tmp_path / "there"

        def leave(engine: Engine) -> None:
            engine.dispose()
            here.rename(there)

        made = leaving_catalog(
            f"sqlite:///{here}/catalog.db", leave, lambda: shutil.move(there, here)
        )
        yield made
        made.engine.dispose()
        return
    starter = postgres_starter()
    port, runs = free_port(), [True]

    def stop(_engine: Engine | None = None) -> None:
        starter.stop(tmp_path)
        runs[0] = False

    def start() -> None:
        starter.start(tmp_path, port)
        runs[0] = True

    made = leaving_catalog(starter.start(tmp_path, port), stop, start)
    yield made
    made.engine.dispose()
    if runs[0]:
        stop()
    shutil.rmtree(starter.home_of(tmp_path), ignore_errors=True)


def test_a_key_just_known_reads_on_for_a_bounded_time_and_only_while_the_catalog_is_away(
    leaving: Leaving,
) -> None:
    leaving.registry.create_tenant("acme", actor="test")
    _, secret = leaving.keys.create("acme", {"read", "write"}, actor="test")
    revoked, dead = leaving.keys.create("acme", {"read"}, actor="test")
    soon = leaving.clock.now_ms() + 20_000
    _, brief = leaving.keys.create("acme", {"read"}, expires_ms=soon, actor="test")
    _, unused = leaving.keys.create("acme", {"read"}, actor="test")
    leaving.keys.revoke(revoked.id, actor="test")
    for key in (secret, brief):
        leaving.keys.authenticate(key, "read")
    with pytest.raises(Unauthenticated, match="revoked"):
        leaving.keys.authenticate(dead, "read")
    version = leaving.registry.version
    leaving.registry.create_collection(
        "acme", "docs", dimension=4, place=place_on_two_slots, actor="test"
    )

    leaving.leave()
    leaving.clock.advance(FRESH_S)
    for _ in range(2):  # one query, and no second one at once
        assert leaving.keys.authenticate(secret, "read").tenant == "acme"
        leaving.keys.authenticate(brief, "read")
    with pytest.raises(Unauthenticated, match="revoked"):  # never once more
        leaving.keys.authenticate(dead, "read")
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    with pytest.raises(Unauthenticated, match="not known"):
        leaving.keys.authenticate(wrong, "read")
    for key, scope in ((secret, "write"), (unused, "read")):
        with pytest.raises(Unavailable) as away:
            leaving.keys.authenticate(key, scope)
        assert away.value.dependency == "catalog"
    with pytest.raises(Unavailable):
        leaving.registry.refresh()
    assert leaving.registry.version > version
    assert leaving.registry.collection("acme", "docs"), (
        "what searches read of the registry is in memory"
    )
    leaving.clock.advance(20)
    with pytest.raises(Unauthenticated, match="expired"):
        leaving.keys.authenticate(brief, "read")
    leaving.clock.advance(GRACE_S - 20 - 2 * FRESH_S)
    leaving.keys.authenticate(secret, "read")
    leaving.clock.advance(FRESH_S)
    with pytest.raises(Unavailable):
        leaving.keys.authenticate(secret, "read")

    leaving.come_back()
    leaving.clock.advance(FRESH_S)
    leaving.keys.authenticate(secret, "write")


def test_what_the_catalog_says_when_it_is_back_holds_within_a_second(leaving: Leaving) -> None:
    leaving.registry.create_tenant("acme", actor="test")
    key, secret = leaving.keys.create("acme", {"read"}, actor="test")
    gone, forgotten = leaving.keys.create("acme", {"read"}, actor="test")
    for each in (secret, forgotten):
        leaving.keys.authenticate(each, "read")
    leaving.leave()
    leaving.clock.advance(FRESH_S)
    leaving.keys.authenticate(secret, "read")
    leaving.come_back()
    Keys(leaving.engine, leaving.clock).revoke(key.id, actor="test")
    with leaving.engine.begin() as c:
        c.execute(text(f"DELETE FROM keys WHERE id = '{gone.id}'"))
    leaving.clock.advance(FRESH_S)
    for each in (secret, forgotten):
        with pytest.raises(Unauthenticated):
            leaving.keys.authenticate(each, "read")
    leaving.leave()
    for _ in range(3):
        leaving.clock.advance(FRESH_S)
        with pytest.raises(Unauthenticated, match="revoked"):
            leaving.keys.authenticate(secret, "read")
        with pytest.raises(Unavailable):
            leaving.keys.authenticate(forgotten, "read")


def test_one_failed_attempt_is_no_outage_where_others_hear_from_the_catalog(
    leaving: Leaving,
) -> None:
    leaving.registry.create_tenant("acme", actor="test")
    key, secret = leaving.keys.create("acme", {"read"}, actor="test")
    _, other = leaving.keys.create("acme", {"read"}, actor="test")
    leaving.keys.authenticate(secret, "read")
    Keys(leaving.engine, leaving.clock).revoke(key.id, actor="test")
    leaving.clock.advance(FRESH_S)

    @event.listens_for(leaving.engine, "before_cursor_execute")
    def executed(
        _connection: object, _cursor: object, _statement: object, given: object, *_rest: object
    ) -> None:
        if key.id in str(given):  # only this key's lookup fails, while another's succeeds
            leaving.keys.authenticate(other, "read")
            raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    with pytest.raises(Unavailable):
        leaving.keys.authenticate(secret, "read")


def test_an_unreachable_catalog_is_queried_once_a_second_for_any_number_of_keys(
    leaving: Leaving,
) -> None:
    leaving.registry.create_tenant("acme", actor="test")
    _, secret = leaving.keys.create("acme", {"read"}, actor="test")
    leaving.keys.authenticate(secret, "read")
    leaving.leave()
    leaving.clock.advance(FRESH_S)
    assert not leaving.keys.remembers(secret)
    leaving.keys.authenticate(secret, "read")
    assert leaving.keys.remembers(secret), "no I/O, so no thread is needed"
    leaving.come_back()
    selects = selects_of(leaving.engine)
    for i in range(50):
        with pytest.raises(Unavailable):
            leaving.keys.authenticate(f"vk_{i:016x}_" + "A" * 43, "read")
    assert selects == []
    leaving.clock.advance(FRESH_S)
    leaving.keys.authenticate(secret, "read")
    assert len(selects) == 1


def test_a_catalog_that_is_busy_or_out_of_connections_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "BUSY_S", 0.1)
    engine = open_catalog(f"sqlite:///{tmp_path}/catalog.db")
    migrate(engine)
    with engine.connect() as held:
        held.execute(text("SELECT 1"))
        full = [engine.connect() for _ in range(31)]
        with pytest.raises(Unavailable) as away, look(engine):
            pass
        assert not unreachable(away.value), "our own pool is empty: others hold its connections"
        for each in full:
            each.close()
    engine.dispose()
    locked = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    locked.execute("PRAGMA locking_mode = EXCLUSIVE")
    locked.execute("BEGIN EXCLUSIVE")
    keys = Keys(engine, ManualClock())
    with pytest.raises(Unavailable) as away:
        keys.authenticate("vk_" + "0" * 16 + "_" + "A" * 43, "read")
    assert not unreachable(away.value)
    locked.close()
    engine.dispose()
