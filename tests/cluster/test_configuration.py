"""Settings: each error is one line that names its source; a data directory has an identity."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import main
from cluster.configuration import (
    ConfigurationError,
    load,
    names,
    origins,
    unknown_variables,
    usable_data,
)
from cluster.identity import check_identity, identity_of, store_identity
from cluster.wiring import open_resources
from vicinage.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes to an empty working directory, without the platform's variables."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("VICINAGE_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gateway]\nprot = 1", ["vicinage.toml", "gateway.prot", "gateway.port"]),
        ("slotz = 1", ["vicinage.toml", "slotz", "slots"]),
        ('[gateway]\nport = "x"', ["vicinage.toml", "gateway.port", "integer"]),
        ("[gateway]\nport = 70000", ["vicinage.toml", "gateway.port", "70000", "65535"]),
        ("[gateway\nport = 1", ["vicinage.toml", "not TOML", "line 1"]),
        ("gateway = 3", ["vicinage.toml", "gateway"]),
    ],
)
def test_a_mistake_in_the_file_is_one_line(folder: Path, text: str, says: list[str]) -> None:
    (folder / "vicinage.toml").write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        load()
    assert "\n" not in str(raised.value)
    assert [word for word in says if word not in str(raised.value)] == []


def test_a_file_that_is_not_utf8_is_one_line(folder: Path) -> None:
    (folder / "vicinage.toml").write_bytes(b'data = "caf\xe9"')
    with pytest.raises(ConfigurationError, match=r"vicinage.toml is not UTF-8 \(its byte 11\)"):
        load()
    done = CliRunner().invoke(main, ["config", "show"])
    assert done.exit_code == 2
    assert "is not UTF-8" in done.output


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("VICINAGE_GATEWAY__PORT", "x", "environment VICINAGE_GATEWAY__PORT: gateway.port"),
        ("VICINAGE_GATEWAY__PROT", "1", "did you mean gateway.port?"),
        ("VICINAGE_EMBEDDER__MODEL_KEYS", "not json", "environment"),
    ],
)
def test_a_mistake_in_the_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        load()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_secret_is_not_shown_in_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICINAGE_EMBEDDER__MODEL_KEYS", '{"m": ["sk-secret"]}')
    with pytest.raises(ConfigurationError) as raised:
        load()
    assert "sk-secret" not in str(raised.value)


def test_a_variable_that_is_no_setting_is_a_warning() -> None:
    environment = {
        "VICINAGE_SLOTZ": "4",
        "VICINAGE_SLOTS": "4",
        "VICINAGE_KEY": "vk",
        "VICINAGE_GATEWAY__PORT": "1",
    }
    assert unknown_variables({**environment, "HOME": "/"}) == [
        "VICINAGE_SLOTZ is not a setting; did you mean VICINAGE_SLOTS?"
    ]


def test_a_file_is_named_and_must_be_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder / "other.toml"
    monkeypatch.setenv("VICINAGE_CONFIG", str(other))
    with pytest.raises(ConfigurationError, match=r"other\.toml: there is no such file"):
        load()
    other.write_text("slots = 3")
    assert load().slots == 3


def test_every_value_has_its_origin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "vicinage.toml").write_text('slots = 3\n[embedder]\nmodel_keys = {m = "sk-secret"}')
    monkeypatch.setenv("VICINAGE_GATEWAY__PORT", "9000")
    monkeypatch.setenv("VICINAGE_CATALOG_URL", "postgresql://u:secret@db/x")
    given = {"data": folder / "d"}
    found = {o.name: (o.value, o.origin) for o in origins(load(**given), os.environ, given)}
    assert found["data"] == (str(folder / "d"), "command line")
    assert found["slots"] == ("3", "file vicinage.toml")
    assert found["gateway.port"] == ("9000", "environment VICINAGE_GATEWAY__PORT")
    assert found["gateway.host"] == ("127.0.0.1", "default")
    assert "secret@" not in str(found)
    assert "sk-secret" not in str(found)
    assert set(found) == set(names())


def test_a_data_directory_is_for_its_owner_alone(folder: Path) -> None:
    data = folder / "data"
    data.mkdir(mode=0o755)
    assert stat.S_IMODE(usable_data(data).stat().st_mode) == 0o700


def test_what_others_could_read_in_a_directory_that_is_there_they_can_no_more(folder: Path) -> None:
    data = folder / "data"
    (data / "run").mkdir(mode=0o755, parents=True)
    (data / "store").mkdir(mode=0o777)
    for name in ("log.db", "log.db-wal", "catalog.db", "audit.key", "notes"):
        (data / name).touch(mode=0o644)
    data.chmod(0o755)
    usable_data(data)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (data, *data.iterdir())}
    files = {
        "log.db": 0o600,
        "log.db-wal": 0o600,
        "catalog.db": 0o600,
        "audit.key": 0o600,
        "notes": 0o644,
    }
    assert modes == {"data": 0o700, "run": 0o700, "store": 0o700, **files}


def test_every_role_tightens_the_directory_it_is_given(folder: Path) -> None:
    data = folder / "data"
    data.mkdir(mode=0o755)
    open_resources(Settings(data=data)).close()
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_a_data_directory_that_cannot_be_used_is_said(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        usable_data(folder / "file")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        usable_data(folder / "file" / "below")


def test_a_data_directory_remembers_what_it_belongs_to(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    mine = Settings(
        data=data, log_url="kafka://a:1,b:2", catalog_url="postgresql://u:secret@db:5432/x"
    )
    check_identity(mine)
    store_identity(mine)
    check_identity(mine)
    assert "secret" not in (data / "identity.json").read_text()
    assert identity_of(mine)["store_url"] == "(default)"
    for other in (
        Settings(data=data),
        Settings(data=data, log_url="kafka://c:1", catalog_url="postgresql://u:secret@db:5432/x"),
        Settings(
            data=data,
            log_url="kafka://a:1,b:2",
            catalog_url="postgresql://u:secret@db:5432/x",
            slots=9,
        ),
    ):
        with pytest.raises(ConfigurationError, match="belongs to"):
            check_identity(other)
    check_identity(
        Settings(data=data, log_url="kafka://a:1,b:2", catalog_url="postgresql://v:new@db:5432/x")
    )


def test_a_directory_that_moves_with_its_defaults_stays_itself(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    store_identity(Settings(data=data))
    data.rename(folder / "moved")
    check_identity(Settings(data=folder / "moved"))


@pytest.mark.parametrize("words", [("up",), ("tenant", "list"), ("config", "show"), ("doctor",)])
def test_commands_end_with_status_2_and_one_line(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "vicinage.toml").write_text("[gateway]\nprot = 1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words, "--data", str(folder / "d")],
        capture_output=True, text=True, cwd=folder, env=environment, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("vicinage: vicinage.toml: unknown setting gateway.prot")
    assert len(done.stderr.strip().split("\n")) == 1
    assert not (folder / "d").exists()
