"""`vicinage up`: a supervisor of local processes. It restarts what dies and stops all in order.

Everything it knows lies in DATA/run: `platform.json` (pids, url), `operator.key`, `internal.key`, one event file a role.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import psutil

from vicinage.errors import Conflict, Refused, Unavailable
from vicinage.settings import Settings
from vicinage.telemetry import events

BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SETTLED_S: Final = 20.0
"""A process that lived this long starts its backoff anew."""
STOP_S: Final = 30.0
EVENTS_BYTES_MAX: Final = 64 << 20
_event = events("cluster")


@dataclass(slots=True)
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: int = -1
    again_at: float = 0.0
    quick_deaths: int = 0


@dataclass(slots=True)
class Supervisor:
    """Starts, watches, restarts and stops its children. One thread."""

    settings: Settings
    commands: dict[str, list[str]]
    children: list[Child] = field(default_factory=list)
    _stopping: bool = False
    _lock: IO[str] | None = None

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT, then stop everything in order. Raises Conflict where another supervises DATA."""
        folder = run_folder(self.settings)
        self._lock = _exclusive(folder)
        prepare(self.settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop_soon)
        self.children = [Child(name, command) for name, command in self.commands.items()]
        while not self._stopping:
            for child in self.children:
                self._tend(child)
            time.sleep(0.05)
        for child in reversed(
            self.children
        ):  # who is asked before who is asked by him: nobody finishes without what he needs
            self._end(child)
        (folder / "platform.json").unlink(missing_ok=True)

    def _stop_soon(self, *_: object) -> None:
        self._stopping = True

    def _tend(self, child: Child) -> None:
        if child.process is not None and child.process.poll() is None:
            return
        now = time.monotonic()
        if child.process is not None:
            quick = now - child.started < SETTLED_S
            child.quick_deaths = child.quick_deaths + 1 if quick else 0
            wait = BACKOFF_S[min(child.quick_deaths, len(BACKOFF_S) - 1)]
            _event.error("died", child=child.name, code=child.process.returncode, again_in_s=wait)
            child.process, child.again_at = None, now + wait
        if now >= child.again_at:
            self._start(child)

    def _start(self, child: Child) -> None:
        path = run_folder(self.settings) / f"{child.name}.log"
        if path.exists() and path.stat().st_size > EVENTS_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        environment = {**os.environ, **as_environment(self.settings), "VICINAGE_SUPERVISED": "1"}
        with path.open("ab") as out:
            child.process = subprocess.Popen(
                child.command, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
            )
        child.started = time.monotonic()
        child.restarts += 1
        self._write()

    def _end(self, child: Child) -> None:
        if child.process is None or child.process.poll() is not None:
            return
        child.process.terminate()
        try:
            child.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()

    def _write(self) -> None:
        s = self.settings.resolved()
        host = "127.0.0.1" if s.gateway.host in ("0.0.0.0", "::") else s.gateway.host  # noqa: S104  (compared, not bound)
        roles = {c.name: {"pid": c.process.pid, "restarts": c.restarts} for c in self.children if c.process is not None}
        state = {
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "url": f"http://{host}:{s.gateway.port}",
            "roles": roles,
        }
        path = run_folder(self.settings) / "platform.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(state, indent=2))
        part.replace(path)


def role_commands(names: Sequence[str], *more: str) -> dict[str, list[str]]:
    """The command line of each role."""
    return {name: [sys.executable, "-m", "cluster.cli", "role", name, *more] for name in names}


def run_folder(settings: Settings) -> Path:
    """DATA/run, made if absent, for its owner only, as DATA is."""
    folder = settings.resolved().data / "run"
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def as_environment(settings: Settings) -> dict[str, str]:
    """The settings that command-line options can change, for child processes."""
    s = settings.resolved()
    return {
        "VICINAGE_DATA": str(s.data),
        "VICINAGE_GATEWAY__HOST": s.gateway.host,
        "VICINAGE_GATEWAY__PORT": str(s.gateway.port),
        "VICINAGE_LOG_URL": s.log_url,
        "VICINAGE_CATALOG_URL": s.catalog_url.get_secret_value(),
        "VICINAGE_STORE_URL": s.store_url,
        "PYTHONUNBUFFERED": "1",
    }


def prepare(settings: Settings) -> None:
    """What must be there before the roles start: the schema, the vectors log, the internal and the operator's key."""
    from cluster.wiring import ground
    from tenants.keys import Keys

    folder = run_folder(settings)
    if not (folder / "internal.key").exists():
        _secret(folder / "internal.key", secrets.token_urlsafe(32))
    base = ground(settings)
    try:
        if not (folder / "operator.key").exists():
            _, text = Keys(base.engine, base.clock).create(None, {"operate"}, actor="operator/up")
            _secret(folder / "operator.key", text)
    finally:
        base.close()


def check_free(host: str, port: int) -> None:
    """Raise Refused where something listens there already: another platform would answer in this one's place."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except OSError as error:
        raise Refused(
            f"cannot listen on {host}:{port} ({error.strerror}): stop what listens there, or choose another with --port",
            field="port",
        ) from error


def running(data: Path) -> dict[str, Any] | None:
    """The state of the platform that runs on `data`, or None. A stale file of a dead supervisor is no platform."""
    path = data / "run" / "platform.json"
    try:
        state: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return state if _started(int(state["pid"])) == state["started"] else None


def stop(data: Path, *, wait_s: float = 90.0) -> bool:
    """Stop the platform on `data`; False when none runs. Raises Unavailable when it does not end in time."""
    state = running(data)
    if state is None:
        return False
    os.kill(int(state["pid"]), signal.SIGTERM)
    end = time.monotonic() + wait_s
    while running(data) is not None:
        if time.monotonic() > end:
            raise Unavailable(
                f"the platform (pid {state['pid']}) did not stop within {wait_s:.0f} s", dependency="supervisor"
            )
        time.sleep(0.05)
    return True


def _started(pid: int) -> float | None:
    """When that process began: with its pid, it names one process for good."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _exclusive(folder: Path) -> IO[str]:
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Conflict(
            f"a platform runs on {folder.parent} already: `vicinage status`, or `vicinage down` first"
        ) from None
    return lock


def _secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(text + "\n")
