"""The audit key's file: created once, private to its owner, required to write records."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.audit_key import FILE, path_of
from cluster.cli import main
from cluster.configuration import ConfigurationError
from cluster.wiring import open_resources
from tenants.audit import Audit
from vicinage.settings import AuditSettings, Settings


def settings(folder: Path, **audit: str) -> Settings:
    return Settings(data=folder, audit=AuditSettings(**audit))


def verified(of: Settings) -> tuple[int, int | None]:
    base = open_resources(of, audit_key_optional=True)
    try:
        found = Audit(base.engine).verify()
        return found.seq, found.keyed_from
    finally:
        base.close()


def test_the_first_start_makes_the_key_for_its_owner_alone_and_the_next_uses_it(
    tmp_path: Path,
) -> None:
    here = settings(tmp_path / "data")
    assert verified(here) == (1, 1)
    path = tmp_path / "data" / FILE
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_text()
    assert verified(here) == (1, 1)
    assert path.read_text() == before
    assert sorted(p.name for p in path.parent.iterdir() if p.name.startswith(".")) == []


def test_the_key_can_lie_elsewhere(tmp_path: Path) -> None:
    here = settings(tmp_path / "data", key_file=str(tmp_path / "secrets" / "audit.json"))
    assert verified(here) == (1, 1)
    assert path_of(here).exists() and not (tmp_path / "data" / FILE).exists()


def test_a_node_without_the_file_does_not_start_and_makes_no_second_key(tmp_path: Path) -> None:
    here = settings(tmp_path / "data")
    verified(here)
    path = tmp_path / "data" / FILE
    kept = path.rename(tmp_path / "kept")
    with pytest.raises(ConfigurationError, match="copy it from the node that has it"):
        open_resources(here)
    assert not path.exists()
    kept.rename(path)
    assert verified(here) == (1, 1)


def test_a_file_that_is_no_key_is_said_in_one_line(tmp_path: Path) -> None:
    here = settings(tmp_path / "data")
    verified(here)
    (tmp_path / "data" / FILE).write_text('{"key": "zz"}')
    with pytest.raises(ConfigurationError, match="is not an audit key"):
        open_resources(here)


def test_verify_says_intact_with_the_key_alone_and_exits_otherwise_without(tmp_path: Path) -> None:
    data = tmp_path / "data"
    run = CliRunner().invoke
    assert run(main, ["tenant", "create", "acme", "--data", str(data)]).exit_code == 0
    done = run(main, ["audit", "verify", "--data", str(data)])
    assert done.exit_code == 0 and "intact" in done.output
    (data / FILE).rename(tmp_path / "lost")
    done = run(main, ["audit", "verify", "--data", str(data)])
    assert done.exit_code == 4 and "not verified" in done.output and "intact" not in done.output
    assert run(main, ["tenant", "create", "other", "--data", str(data)]).exit_code == 1
    doctor = run(main, ["doctor", "--json", "--data", str(data)])
    assert f"{FILE} is missing" in doctor.output

    done = run(main, ["audit", "new-key", "--yes", "--data", str(data)])
    assert done.exit_code == 0, done.output
    done = run(main, ["audit", "verify", "--data", str(data)])
    assert done.exit_code == 0 and "as they were when the key was made" in done.output
    assert run(main, ["tenant", "create", "other", "--data", str(data)]).exit_code == 0
    assert (data / FILE).exists()
