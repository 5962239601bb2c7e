"""The files in deploy/ use the platform's settings, commands, paths and ports."""

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cluster.cli import main
from cluster.configuration import unknown_variables
from vicinage.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = (ROOT / "deploy" / "container" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "deploy" / "systemd" / "vicinage.service")
    return parser


def test_every_variable_is_a_setting() -> None:
    image = dict(re.findall(r"(VICINAGE_\w+)=(\S+)", DOCKERFILE))
    service = COMPOSE["services"]["vicinage"]["environment"]
    assert {"VICINAGE_DATA", "VICINAGE_LOG_URL", "VICINAGE_CATALOG_URL"} <= {*image, *service}
    assert unknown_variables({**image, **service}) == []


def test_the_images_settings_are_valid_and_listen_where_it_exposes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in re.findall(r"(VICINAGE_\w+)=(\S+)", DOCKERFILE):
        monkeypatch.setenv(name, value)
    gateway = Settings().gateway
    assert gateway.host == "0.0.0.0"
    assert re.search(rf"^EXPOSE {gateway.port}$", DOCKERFILE, re.MULTILINE)
    assert COMPOSE["services"]["vicinage"]["ports"] == [f"127.0.0.1:{gateway.port}:{gateway.port}"]


def test_bases_and_images_are_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    images = [
        service["image"] for service in COMPOSE["services"].values() if "build" not in service
    ]
    for name in (*bases, *images):
        assert re.search(r":\d+\.\d+", name), name
    assert len({*bases}) == 1


def test_the_image_has_the_extras_that_the_compose_file_needs() -> None:
    [extras] = re.findall(r"^ARG EXTRAS=(\S+)", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "kafka", "postgres"} <= set(extras.split(","))


@pytest.mark.parametrize("command", [["up"], ["status", "--json"]])
def test_the_commands_exist(command: list[str]) -> None:
    assert f'"{command[0]}"' in DOCKERFILE
    done = CliRunner().invoke(main, [*command, "--help"])
    assert done.exit_code == 0, done.output


def test_the_unit_starts_the_installed_command_and_leaves_it_time_to_stop() -> None:
    from cluster.local import DOWN_S

    service = unit()["Service"]
    command, verb, *words = service["ExecStart"].split()
    assert (command, verb, words) == (
        "/opt/vicinage/bin/vicinage",
        "up",
        ["--data", "/var/lib/vicinage"],
    )
    assert float(service["TimeoutStopSec"]) > DOWN_S
    assert service["KillMode"] == "mixed", "roles are stopped by their supervisor, in order"
    assert "/opt/vicinage" in (ROOT / "deploy" / "container" / "install.sh").read_text()
