"""The command refuses to start if another package shadows one of its own, and names its path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vicinage.__main__ import PACKAGES, ROOT, shadowed


def start(
    cwd: Path, *words: str, path: str = "", safe: bool = True
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *(["-P"] if safe else []), "-m", "vicinage", *words],
        env=environment | ({"PYTHONPATH": path} if path else {}),
        capture_output=True, text=True, cwd=cwd, timeout=60, check=False,
    )  # fmt: skip


def other(folder: Path, name: str) -> Path:
    """Creates a foreign package of that name."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('never to be imported')\n")
    return folder


@pytest.mark.parametrize("name", ["query", "cluster"])
def test_another_package_of_the_same_name_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    done = start(tmp_path, "--help", path=str(other(tmp_path, name)))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"the package `{name}`" in done.stderr
    assert str(tmp_path / name) in done.stderr
    assert "environment of its own" in done.stderr


def test_what_lies_in_the_working_directory_is_not_imported(tmp_path: Path) -> None:
    done = start(other(tmp_path, "query"), "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_module_in_place_of_a_package_and_a_missing_package_are_clashes(tmp_path: Path) -> None:
    (tmp_path / "console.py").touch()
    assert "console.py" in (shadowed(ROOT, [str(tmp_path), str(ROOT)]) or "")
    assert "is not found" in (shadowed(ROOT, [str(tmp_path)]) or "")
    assert shadowed(ROOT, [str(ROOT), str(tmp_path)]) is None


def test_every_top_level_package_is_looked_at() -> None:
    import tomllib

    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]["wheel"]
    assert {*PACKAGES, "vicinage"} == set(built["packages"])
