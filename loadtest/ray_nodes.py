"""A Ray cluster of several nodes on this machine, which ends with its starter.

It touches no other cluster of the machine.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

SMALL = ("--num-cpus", "4", "--object-store-memory", str(120 << 20), "--disable-usage-stats")
LOOPBACK = ("--node-ip-address", "127.0.0.1")
STARTED_S = 120.0


@contextmanager
def ray_nodes(n: int) -> Iterator[str]:
    """Yields the address of a cluster of `n` raylets once all of them have joined.

    Processes that start meanwhile have the cluster's token. The cluster has its own token, whatever
    `~/.ray/auth_token` holds. With such a file Ray's head requires one, and nodes that join have
    none.
    """
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(
            _environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        )
        stack.enter_context(
            _environment(RAY_raylet_start_wait_time_s=str(int(STARTED_S)))
        )  # 30 s is not enough on a busy machine
        stack.enter_context(_node("--head", "--port", str(port), "--include-dashboard", "false"))
        for _ in range(n - 1):
            stack.enter_context(_node("--address", address))
        yield address


@contextmanager
def _environment(**given: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _node(*words: str) -> Iterator[None]:
    # NOTE: `ray stop` ends every cluster of the machine. A node in its own session is ended through
    # that session alone.
    with tempfile.NamedTemporaryFile("w+") as out:
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            *words,
            *SMALL,
            *LOOPBACK,
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
        try:
            _await_start(process, Path(out.name))
            yield
        finally:
            _end(process)


def _await_start(process: subprocess.Popen[bytes], out: Path) -> None:
    end = time.monotonic() + STARTED_S
    while "Ray runtime started" not in (said := out.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"Ray did not start:\n{said[-2_000:]}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)  # processes that its stop order did not reach
    except ProcessLookupError:
        return
