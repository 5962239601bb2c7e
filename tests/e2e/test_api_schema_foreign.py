"""Foreign tools read the OpenAPI document: Redocly lints it, and a generated client works with it.

`npm ci` installs them, pinned by a lock file, once for each version of that file.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gate import Caller, platform, serving

from query.api.openapi import document
from query.api.routes import ROUTERS

FOLDER = Path(__file__).parent / "openapi"
SOURCES = ("package.json", "package-lock.json")


@pytest.fixture(scope="module")
def tools() -> Path:
    """A folder with the tools and the sources of the client."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("needs Node.js and npm, to lint and use the OpenAPI document")
    pinned = b"".join((FOLDER / name).read_bytes() for name in SOURCES)
    name = f"vicinage-openapi-{hashlib.sha256(pinned).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            for each in SOURCES:
                shutil.copy(FOLDER / each, folder)
            run("npm", "ci", "--no-audit", "--no-fund", cwd=folder)
            (folder / "installed").touch()
    return folder


@pytest.fixture
def work(tools: Path, tmp_path: Path) -> Path:
    """A folder with the document, beside the tools."""
    (tmp_path / "openapi.json").write_text(json.dumps(document(ROUTERS, {})))
    (tmp_path / "node_modules").symlink_to(tools / "node_modules")
    for name in ("package.json", "redocly.yaml", "tsconfig.json", "golden.ts"):
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def run(*words: str, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_redocly_finds_nothing_to_improve(work: Path) -> None:
    words = ["npx", "--no-install", "redocly", "lint", "openapi.json", "--config", "redocly.yaml"]
    found = json.loads(run(*words, "--format", "json", cwd=work))
    assert found["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with platform(tmp_path_factory.mktemp("typed")) as caller:
        yield caller


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_typescript_client_generated_from_the_document_compiles_and_works(
    work: Path, call: Caller
) -> None:
    words = ["openapi-typescript", "openapi.json", "--default-non-nullable=false"]
    run("npx", "--no-install", *words, "-o", "vicinage.d.ts", cwd=work)
    run("npx", "--no-install", "tsc", "--project", ".", cwd=work)
    _, key = call.tenant()
    with serving(call.another()) as url:
        assert run("node", "build/golden.js", url, key, cwd=work) == "done\n"
