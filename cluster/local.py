"""`vicinage up`: a supervisor of local processes, which restarts roles and stops them in order.

Its files are in DATA/run: `platform.json` (pids, url), `operator.key`, `internal.key`, and one
event file per role.
"""

import contextlib
import fcntl
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
from typing import IO, TYPE_CHECKING, Any, Final

import psutil

from cluster.identity import store_identity
from cluster.lifetime import SUPERVISOR
from cluster.state_file import StateFile
from vicinage.errors import Conflict, Denied, Refused, Unavailable
from vicinage.settings import Settings
from vicinage.telemetry import events

if TYPE_CHECKING:
    from tenants.keys import Keys

PROGRAM: Final = (sys.executable, "-P", "-m", "vicinage")
"""The command of the platform's processes. -P: nothing in the working directory is imported."""
BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SETTLED_S: Final = 20.0
"""The backoff of a process that lived this long starts again."""
STOP_S: Final = 30.0
"""Time for a role to stop; a little more than its own limit (`lifetime.STOP_S`)."""
DOWN_S: Final = 100.0
"""Time for the supervisor to stop every role."""
LEFTOVER_S: Final = 10.0
"""Time for a role without a supervisor to stop."""
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
    retry_at: float = 0.0
    quick_exits: int = 0


@dataclass(slots=True)
class Supervisor:
    """Starts, watches, restarts and stops its children. One thread."""

    settings: Settings
    commands: dict[str, list[str]]
    children: list[Child] = field(default_factory=list)
    _stopping: bool = False
    _lock: IO[str] | None = None
    _state: StateFile = field(init=False)

    def run(self) -> None:
        """Supervises until SIGTERM or SIGINT, then stops everything in order.

        Raises Conflict if another process supervises DATA.
        """
        folder = run_folder(self.settings)
        self._lock = _exclusive(folder)
        self._state = StateFile(folder / "platform.json")
        prepare(self.settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop_soon)
        self.children = [Child(name, command) for name, command in self.commands.items()]
        while not self._stopping:
            for child in self.children:
                self._restart_if_dead(child)
            self._state.settle(self._describe)
            time.sleep(0.05)
        # A role is stopped before the roles that it calls, so that it can finish its work.
        for child in reversed(self.children):
            self._end(child)
        self._state.remove()

    def _stop_soon(self, *_: object) -> None:
        self._stopping = True

    def _restart_if_dead(self, child: Child) -> None:
        """Starts the child again once it has ended and its backoff has passed.

        Never raises for a lack of processes or descriptors.
        """
        if child.process is not None and child.process.poll() is None:
            return
        now = time.monotonic()
        if child.process is not None:
            self._schedule_restart(child, now, f"exit status {child.process.returncode}")
            child.process = None
        if now >= child.retry_at:
            try:
                self._start(child)
            except OSError as error:  # no process or descriptor is free now
                child.started = now
                self._schedule_restart(child, now, str(error))

    def _schedule_restart(self, child: Child, now: float, reason: str) -> None:
        """Records an exit and sets the next start after the backoff."""
        quick = now - child.started < SETTLED_S
        child.quick_exits = child.quick_exits + 1 if quick else 0
        wait = BACKOFF_S[min(child.quick_exits, len(BACKOFF_S) - 1)]
        child.retry_at = now + wait
        _event.error("role.exited", child=child.name, reason=reason, retry_in_s=wait)

    def _start(self, child: Child) -> None:
        # PYTHONSAFEPATH is -P for the processes that roles start
        own = {SUPERVISOR: str(os.getpid()), "PYTHONSAFEPATH": "1"}
        environment = {**os.environ, **as_environment(self.settings), **own}
        with _events_file(run_folder(self.settings) / f"{child.name}.log") as out:
            child.process = subprocess.Popen(
                child.command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        child.started = time.monotonic()
        child.restarts += 1

    def _end(self, child: Child) -> None:
        if child.process is None or child.process.poll() is not None:
            return
        child.process.terminate()
        try:
            child.process.wait(max(STOP_S, self.settings.gateway.drain_s + STOP_S / 2))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()

    def _describe(self) -> dict[str, Any]:
        roles = {
            c.name: {"pid": c.process.pid, "restarts": c.restarts}
            for c in self.children
            if c.process is not None
        }
        return {
            "pid": os.getpid(),
            "url": url_of(self.settings),
            "roles": roles,
        }


def url_of(settings: Settings) -> str:
    """Returns the gateway's URL for clients on this machine."""
    s = settings.resolved().gateway
    host = "127.0.0.1" if s.host in ("0.0.0.0", "::") else s.host  # noqa: S104  (compared, not bound)
    return f"http://{host}:{s.port}"


def role_commands(names: Sequence[str], *more: str) -> dict[str, list[str]]:
    """Returns the command line of each role."""
    return {name: [*PROGRAM, "role", name, *more] for name in names}


def run_folder(settings: Settings) -> Path:
    """Returns DATA/run; creates it if absent, accessible to its owner only, as DATA is."""
    folder = settings.resolved().data / "run"
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def as_environment(settings: Settings) -> dict[str, str]:
    """Returns settings that command-line options can change, as variables for child processes."""
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
    """Creates the schema, the vectors log, and the internal and operator keys."""
    from cluster.wiring import LOG_WAIT_S, open_resources
    from tenants.keys import Keys

    folder = run_folder(settings)
    store_identity(settings)
    if not (folder / "internal.key").exists():
        _secret(folder / "internal.key", secrets.token_urlsafe(32))
    resources = open_resources(settings, log_wait_s=LOG_WAIT_S)
    try:
        _operator_key(folder / "operator.key", Keys(resources.engine, resources.clock))
    finally:
        resources.close()


def renew_operator_key(settings: Settings) -> None:
    """Creates another operator key if the one in DATA's file was revoked.

    So the owner of DATA is never locked out. Writes to the catalog directly, as commands do while
    no platform runs, with an audit record.
    """
    from cluster.wiring import open_resources
    from tenants.keys import Keys

    resources = open_resources(settings)
    try:
        _operator_key(
            run_folder(settings) / "operator.key", Keys(resources.engine, resources.clock)
        )
    finally:
        resources.close()


def _operator_key(path: Path, keys: "Keys") -> None:
    """Writes an operator's key to the file, unless the file has a valid one."""
    try:
        keys.authenticate(path.read_text().strip(), "operate")
    except (FileNotFoundError, Denied):
        _, text = keys.create(None, {"operate"}, actor="operator/up")
        path.unlink(missing_ok=True)
        _secret(path, text)


def ports_of(settings: Settings, *, on_ray: bool = False) -> list[tuple[str, int]]:
    """Returns the addresses that the roles on this machine listen on. Pure.

    They are those of the API, health, ingest's metrics, and the embedder.
    """
    from urllib.parse import urlsplit

    s = settings.resolved()
    host, port = s.gateway.host, s.gateway.port
    found = [(host, port), (host, s.gateway.health_port or port + 3)]
    embedder = urlsplit(s.embedder.url)
    if not on_ray:
        found.append((host, s.ingest.metrics_port or port + 2))
        if embedder.hostname in (host, "127.0.0.1", "localhost") and embedder.port:
            found.append((embedder.hostname, embedder.port))
    return [(h, p) for h, p in found if port]  # port 0: the system chooses


def check_free(host: str, port: int) -> None:
    """Raises Refused if another process listens there: it would answer instead of this platform."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[0][4])
    except OSError as error:
        raise Refused(
            f"cannot listen on {host}:{port} ({error.strerror}): stop the program that listens"
            " there, or choose another port with --port",
            field="port",
        ) from error


def running(data: Path) -> dict[str, Any] | None:
    """Returns the state of the platform that runs on `data`, or None.

    Ignores a file that a dead supervisor left.
    """
    state = StateFile(data / "run" / "platform.json").read()
    return state if state and state.get("pid") == supervisor_pid(data) else None


def supervisor_pid(data: Path) -> int | None:
    """Returns the process id of the supervisor with DATA's lock, or None. Reads only the file."""
    try:
        with (data / "run" / "lock").open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = lock.read().strip()
                return int(text) if text.isdecimal() else None
    except FileNotFoundError:
        pass
    return None


def stop(data: Path, *, wait_s: float = DOWN_S) -> bool:
    """Stops the platform on `data` in any state. Returns False if there was nothing to stop.

    Kills the supervisor after `wait_s` for an orderly stop, and every role that is left, also of
    an earlier supervisor. Raises Unavailable if a process remains.
    """
    supervisor = supervisor_pid(data)
    if supervisor is not None:
        _end_process(supervisor, wait_s)
    left = _roles_of(data)
    for pid in left:
        _end_process(pid, LEFTOVER_S)
    if (remaining := _roles_of(data)) or supervisor_pid(data) is not None:
        raise Unavailable(
            f"the platform did not stop: processes {remaining or supervisor}",
            dependency="supervisor",
        )
    return supervisor is not None or bool(left)


def _end_process(pid: int, wait_s: float) -> None:
    """Ends a process with SIGTERM, and with SIGKILL if it still runs after `wait_s`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(wait_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(LEFTOVER_S)


def _roles_of(data: Path) -> list[int]:
    """Returns the process ids of the platform's running roles.

    The supervisor's variables in their environment identify them.
    """
    found = []
    for process in psutil.process_iter():
        try:
            given = process.environ()
            is_role = SUPERVISOR in given and given.get("VICINAGE_DATA") == str(data.absolute())
            if is_role and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue  # another user's, or just ended
    return found


def _events_file(path: Path) -> IO[bytes]:
    """Opens the file of a role's events, and rotates a large one.

    Returns the null device if the file cannot be opened.
    """
    try:
        if path.exists() and path.stat().st_size > EVENTS_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")
    except OSError as error:
        _event.error("events_file.not_opened", path=str(path), reason=str(error))
        return Path(os.devnull).open("ab")


def _exclusive(folder: Path) -> IO[str]:
    """Takes DATA's lock and writes this process id into it. Raises Conflict.

    The file always has 20 bytes: once it exists, a full disk does not matter.
    """
    lock = os.fdopen(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+")
    for tries_left in (4, 3, 2, 1, 0):  # `supervisor_pid` takes it for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if tries_left:
                time.sleep(0.05)
                continue
            lock.close()
            raise Conflict(
                f"a platform runs on {folder.parent} already: see `vicinage status`, or stop it"
                " with `vicinage down`"
            ) from None
    os.pwrite(lock.fileno(), f"{os.getpid():<20}".encode(), 0)
    return lock


def _secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(text + "\n")
