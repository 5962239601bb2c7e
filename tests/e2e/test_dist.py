"""The wheels of `make dist`: each is installed into an empty environment and works there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
UV = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SIZE_MAX = 1_500_000_000
"""Bytes of an installation for a CPU: torch's CUDA libraries alone are three times that."""
pytestmark = [pytest.mark.serial, pytest.mark.model, pytest.mark.timeout(1_200)]
SEARCH = """
import sys
from vicinage_client import Client
with Client(sys.argv[1], sys.argv[2]) as client:
    documents = [
        {"id": "hello", "text": "Vicinage finds nearest neighbors for many tenants."},
        {"id": "soup", "text": "Simmer the onions until translucent."},
    ]
    written = client.upsert("docs", documents)
    found = client.search("docs", "what finds neighbors?", k=1, wait_for=written.token)
    print([hit.document_id for hit in found.hits], found.degraded)
"""


def run(*words: str | Path, cwd: Path, timeout_s: float = 900, **environment: str) -> str:
    """Returns the output of a command.

    It sees no settings, no project and no packages of this test's own environment.
    """
    hidden = ("VICINAGE_", "PYTHON", "VIRTUAL_ENV", "UV_PROJECT", "MAKE", "MFLAGS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, (
        f"{words}: {done.returncode}\n{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}"
    )
    return done.stdout


@dataclass(frozen=True, slots=True)
class Installed:
    """Returns the command, and the folder of its environment."""

    command: Path
    environment: Path
    wheel: Path
    client: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("dist")
    run("make", "dist", f"DIST={folder / 'dist'}", cwd=ROOT)
    [wheel] = (folder / "dist").glob("vicinage-*.whl")
    [client] = (folder / "dist").glob("vicinage_client-*.whl")
    places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    run(UV, "tool", "install", "--quiet", "--python", PYTHON, f"{wheel}[cpu]", cwd=folder, **places)
    yield Installed(folder / "bin" / "vicinage", folder / "tools" / "vicinage", wheel, client)
    shutil.rmtree(folder)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    made = tmp_path / "empty"
    made.mkdir()
    return made


def test_an_installation_for_a_cpu_is_small_and_has_no_torch(installed: Installed) -> None:
    files = [
        path
        for path in installed.environment.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    assert sum(path.stat().st_size for path in files) < SIZE_MAX
    [packages] = installed.environment.glob("lib/*/site-packages")
    assert (packages / "tenants" / "migrations" / "versions" / "0001_first.py").is_file()
    static = {path.name for path in (packages / "query" / "api" / "static").iterdir()}
    assert {"swagger-ui-bundle.js.gz", "redoc.standalone.js.gz", "redoc.LICENSE.txt"} < static
    assert not {"torch", "triton", "nvidia"} & {path.name for path in packages.iterdir()}


def test_the_demo_works_in_an_empty_directory_and_leaves_it_empty(
    installed: Installed, empty: Path
) -> None:
    told = json.loads(run(installed.command, "demo", "--json", "--documents", "50", cwd=empty))
    assert told["ok"], [check for check in told["checks"] if not check["ok"]]
    assert len(told["checks"]) > 10
    assert not list(empty.iterdir())


def test_a_first_search_by_the_installed_command_and_client(
    installed: Installed, empty: Path
) -> None:
    port = free_port()
    run(UV, "venv", "--quiet", "--python", PYTHON, "app", cwd=empty)
    python = empty / "app" / "bin" / "python"
    run(UV, "pip", "install", "--quiet", "--python", python, installed.client, cwd=empty)
    url = json.loads(
        run(installed.command, "up", "--port", str(port), "--detach", "--json", cwd=empty)
    )["url"]
    try:
        key = json.loads(run(installed.command, "tenant", "create", "acme", "--json", cwd=empty))[
            "key"
        ]
        run(installed.command, "collection", "create", "acme/docs", cwd=empty)
        assert run(python, "-c", SEARCH, url, key, cwd=empty) == "['hello'] None\n"
        rows = json.loads(
            run(installed.command, "doctor", "--port", str(free_port()), "--json", cwd=empty)
        )
        assert [row for row in rows if not row["ok"]] == []
    finally:
        run(installed.command, "down", cwd=empty)


def test_every_extra_can_be_resolved(installed: Installed, empty: Path) -> None:
    run(UV, "venv", "--quiet", "--python", PYTHON, "app", cwd=empty)
    for extras in ("cpu,torch,kafka,postgres,s3,ray", "gpu,torch"):
        wanted = f"vicinage[{extras}] @ {installed.wheel.as_uri()}"
        run(
            UV,
            "pip",
            "install",
            "--dry-run",
            "--python",
            empty / "app" / "bin" / "python",
            wanted,
            cwd=empty,
        )
