"""What the command line refuses before anything is opened, and how its usage reads."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import main
from cluster.reference import pages


def ended(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(words))
    return done.exit_code, done.output


@pytest.mark.parametrize("command", ["up", "down", "doctor"])
@pytest.mark.parametrize("option", ["--url", "--key"])
def test_what_is_about_this_machine_alone_takes_no_platform_elsewhere(
    command: str, option: str, tmp_path: Path
) -> None:
    code, said = ended(command, "--data", str(tmp_path / "data"), option, "http://127.0.0.1:9")
    assert code == 2 and "No such option" in said and option in said
    assert not (tmp_path / "data").exists()


def test_variables_that_name_a_platform_elsewhere_do_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VICINAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("VICINAGE_KEY", "vk_x")
    assert ended("down", "--data", str(tmp_path), "--json") == (0, f'{{"stopped": false, "data": "{tmp_path}"}}\n')


def test_freshness_is_of_tenants_and_does_not_drop_a_collection_in_silence(tmp_path: Path) -> None:
    code, said = ended("freshness", "acme/docs", "--data", str(tmp_path))
    assert code == 2 and "vicinage collection show" in said


def test_the_reference_says_what_every_option_means_and_which_arguments_may_be_left_out() -> None:
    page = pages()["commands.md"]
    assert [line for line in page.splitlines() if line.startswith("- ") and line.rstrip().endswith("`")] == []
    for usage in (
        "collection list [OPTIONS] [TENANT]",
        "key create [OPTIONS] [TENANT]",
        "freshness [OPTIONS] [TENANT]",
    ):
        assert f"## `vicinage {usage}`" in page


@pytest.mark.parametrize(("name", "cells"), [("settings.md", 5), ("metrics.md", 2), ("errors.md", 3), ("api.md", 3)])
def test_a_bar_within_a_cell_does_not_end_it(name: str, cells: int) -> None:
    rows = [line.replace(r"\|", "") for line in pages()[name].splitlines() if line.startswith("|")]
    assert len(rows) > 2 and {row.count("|") for row in rows} == {cells + 1}
