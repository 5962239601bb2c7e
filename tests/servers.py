"""Real servers for tests: each is shared by all processes of a test run and started on demand.

On a machine without them the test skips and names what is missing; `VICINAGE_REQUIRE=all` makes
that a failure.
"""

import fcntl
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import create_engine, text

ROOT = Path(__file__).resolve().parent.parent


def load(path: str) -> ModuleType:
    """Returns a script of deploy/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_starter", ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    """Returns a free port with three free successors, below the range of outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with ExitStack() as held, suppress(OSError):
            for each in range(port, port + 4):
                held.enter_context(socket.socket()).bind(("127.0.0.1", each))
            return port


class Shared:
    """Shares one server among all workers of a test run: the first starts it, the last stops it."""

    def __init__(
        self, name: str, start: Callable[[Path], str], stop: Callable[[Path], None]
    ) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"alone-{os.getpid()}")
        self.folder = Path(tempfile.gettempdir()) / f"vicinage-tests-{run}" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._start, self._stop = start, stop

    def _change(self, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.folder / "state.json"
            state = json.loads(path.read_text()) if path.exists() else {"users": 0, "address": None}
            change(state)
            path.write_text(json.dumps(state))
            return state

    def enter(self) -> str:
        def come(state: dict[str, Any]) -> None:
            if state["address"] is None:
                state["address"] = self._start(self.folder / "server")
            state["users"] += 1

        return str(self._change(come)["address"])

    def leave(self) -> None:
        def go(state: dict[str, Any]) -> None:
            state["users"] -= 1
            if state["users"] == 0:
                self._stop(self.folder / "server")
                shutil.rmtree(self.folder / "server", ignore_errors=True)
                state["address"] = None

        self._change(go)


def _shared(name: str, start: Callable[[Path], str], stop: Callable[[Path], None]) -> Iterator[str]:
    server = Shared(name, start, stop)
    address = server.enter()
    try:
        yield address
    finally:
        server.leave()


def kafka_starter() -> ModuleType:
    """Returns the starter of Apache Kafka; skips if it cannot run."""
    if not shutil.which("java") or not shutil.which("mvn"):
        pytest.skip("needs Java 17 and Maven, to run Apache Kafka")
    return load("deploy/kafka/kafka.py")


def postgres_starter() -> ModuleType:
    """Returns the starter of PostgreSQL; skips if it cannot run."""
    starter = load("deploy/postgres/postgres.py")
    if not (starter.BIN / "initdb").exists():
        pytest.skip("needs PostgreSQL's server binaries (Debian: postgresql-15)")
    return starter


@pytest.fixture(scope="session")
def kafka_servers() -> Iterator[str]:
    """host:port of a real Apache Kafka."""
    starter = kafka_starter()

    def start(folder: Path) -> str:
        port = free_port()
        starter.start(folder, port)
        return f"127.0.0.1:{port}"

    yield from _shared("kafka", start, starter.stop)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    starter = postgres_starter()

    def stop(folder: Path) -> None:
        starter.stop(folder)
        shutil.rmtree(starter.home_of(folder), ignore_errors=True)

    yield from _shared("postgres", lambda folder: starter.start(folder, free_port()), stop)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    name = f"t{uuid.uuid4().hex[:12]}"
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.execute(text(f"CREATE DATABASE {name}"))
    yield postgres_server.rpartition("/")[0] + f"/{name}"
    with engine.connect() as c:
        c.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of a real S3 server: versitygw, built from its Go module."""
    binary = Path.home() / ".cache" / "vicinage" / "bin" / "versitygw"
    if not binary.exists():
        if not shutil.which("go"):
            pytest.skip("needs Go, to build the S3 server")
        with (Path(tempfile.gettempdir()) / "vicinage-s3-build.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not binary.exists():
                binary.parent.mkdir(parents=True, exist_ok=True)
                environment = {**os.environ, "GOBIN": str(binary.parent)}
                words = ["go", "install", "github.com/versity/versitygw/cmd/versitygw@v1.8.0"]
                done = subprocess.run(
                    words,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=1_200,
                    check=False,
                )
                if done.returncode != 0:
                    pytest.skip(f"the S3 server does not build here: {done.stderr[-300:]}")

    def start(folder: Path) -> str:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        port = free_port()
        words = [
            str(binary),
            "--access",
            "test",
            "--secret",
            "testtest",
            "--port",
            f"127.0.0.1:{port}",
            "posix",
            str(folder / "data"),
        ]
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        (folder / "pid").write_text(str(process.pid))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"127.0.0.1:{port}"
            time.sleep(0.05)
        raise RuntimeError("the S3 server does not listen")

    def stop(folder: Path) -> None:
        os.kill(int((folder / "pid").read_text()), 15)

    yield from _shared("s3", start, stop)


class NoUtf8(str):
    """Returns the name of a header as a producer in another language may write it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"
