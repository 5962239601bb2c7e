"""The catalog's engine: its URLs, and its errors without a database."""

import sqlite3
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from tenants.registry import Registry
from tenants.tables import migrate
from vicinage import catalog
from vicinage.catalog import change, look, open_catalog
from vicinage.clock import ManualClock
from vicinage.errors import Corrupt, Refused, Unavailable


@pytest.mark.parametrize(
    "url", ["", "secret", "mysql://u:secret@h/db", "sqlite://", "sqlite:///:memory:", "://secret"]
)
def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Refused) as refused:
        open_catalog(url)
    assert refused.value.field == "catalog_url"
    assert "secret" not in refused.value.detail


def test_a_change_is_whole_or_nothing_and_a_look_changes_nothing(tmp_path: Path) -> None:
    engine = open_catalog(f"sqlite:///{tmp_path}/c.db")
    with change(engine) as c:
        c.execute(text("CREATE TABLE t (x INTEGER)"))
    with pytest.raises(ZeroDivisionError), change(engine) as c:
        c.execute(text("INSERT INTO t VALUES (1)"))
        _ = 1 / 0
    with look(engine) as c:
        c.execute(text("INSERT INTO t VALUES (2)"))
    with look(engine) as c:
        assert c.execute(text("SELECT count(*) FROM t")).scalar() == 0
        assert c.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert (
            c.execute(text("PRAGMA synchronous")).scalar() == 2
        )  # FULL: a change that returned survives a power cut
    engine.dispose()


def test_a_change_waits_for_its_turn_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "BUSY_S", 0.2)
    engine = open_catalog(f"sqlite:///{tmp_path}/c.db")
    migrate(engine)
    registry = Registry(engine, ManualClock())
    other = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(Unavailable) as away:
        registry.create_tenant("acme", actor="test")
    assert time.monotonic() - began < 5
    assert away.value.dependency == "catalog"
    assert registry.refresh() == registry.version, "reading goes on while another changes"
    other.execute("ROLLBACK")
    other.close()
    registry.create_tenant("acme", actor="test")
    engine.dispose()


def test_a_file_that_is_no_catalog_is_corrupt_and_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "c.db"
    file.write_bytes(b"something else entirely, long enough to look at" * 100)
    before = file.read_bytes()
    with pytest.raises(Corrupt):
        migrate(open_catalog(f"sqlite:///{file}"))
    assert file.read_bytes() == before


def test_a_database_that_is_not_there_is_unavailable_at_once() -> None:
    engine = open_catalog("postgresql+psycopg://vicinage:secret@127.0.0.1:9/vicinage")
    began = time.monotonic()
    with pytest.raises(Unavailable) as away:
        Registry(engine, ManualClock())
    assert time.monotonic() - began < 5
    assert away.value.dependency == "catalog"
    assert "secret" not in away.value.detail
    engine.dispose()
