"""Starts and stops a real platform in its own folder through the command line."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parent.parent
UP_S = 600.0
"""Longest start of a platform: the first one after an installation reads gigabytes of libraries."""


@dataclass(frozen=True, slots=True)
class Platform:
    """Where the platform runs, and how to use it."""

    data: Path
    url: str
    environment: dict[str, str]

    def cli(self, *words: str, timeout_s: float = 180, first: tuple[str, ...] = ()) -> Any:
        """Returns the parsed output of `vicinage WORDS --json --data DATA`.

        Ends the program if the command fails. `first` precedes the command: a program that starts
        it.
        """
        done = subprocess.run(
            [
                *first,
                sys.executable,
                "-m",
                "cluster.cli",
                *words,
                "--json",
                "--data",
                str(self.data),
            ],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(
                f"vicinage {' '.join(words)} ended with "
                f"{done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return json.loads(done.stdout) if done.stdout.strip() else None

    def pids(self) -> dict[str, int]:
        """Returns role → process ID."""
        roles = json.loads((self.data / "run" / "platform.json").read_text())["roles"]
        actors = self.data / "run" / "actors.json"  # on Ray the roles are actors
        if actors.exists():
            roles |= json.loads(actors.read_text())
        return {name: role["pid"] for name, role in roles.items()}

    def wait_ready(self, part: str | None = None, *, wait_s: float = UP_S) -> None:
        """Waits until the platform, or one part of it, reports that it is ready."""
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            try:
                answer = httpx2.get(f"{self.url}/readyz", timeout=5)
                if part is None and answer.status_code == httpx2.codes.OK:
                    return
                if part and answer.json()["parts"].get(part, {}).get("ready"):
                    return
            except (httpx2.HTTPError, ValueError):
                pass  # not listening yet: wait
            time.sleep(0.1)
        raise SystemExit(
            f"{self.url}/readyz: {part or 'the platform'} was not ready within {wait_s} s"
        )


def free_port() -> int:
    """Returns a free port whose three successors are free, too.

    They are for the embedder, the metrics of ingest, and health. The port is below the range that
    the system gives to outgoing connections: one of those could take a successor meanwhile.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with ExitStack() as held, suppress(OSError):
            for each in range(port, port + 4):
                held.enter_context(closing(socket.socket())).bind(("127.0.0.1", each))
            return port


def end_when_told() -> None:
    """Makes SIGTERM unwind this program like Ctrl-C, so that everything it started is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))


@contextmanager
def running(
    data: Path,
    *,
    up: tuple[str, ...] = (),
    wait_s: float = UP_S,
    ulimit: int | None = None,
    **settings: str,
) -> Iterator[Platform]:
    """Starts a platform in `data` (settings as VICINAGE_* words), yields it, and always stops it.

    `ulimit` is the number of files that each process may have open; None: as many as this process.
    """
    port = free_port()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        **{f"VICINAGE_{k.upper()}": v for k, v in settings.items()},
    }
    platform = Platform(data, f"http://127.0.0.1:{port}", environment)
    first = ("prlimit", f"--nofile={ulimit}:{ulimit}") if ulimit else ()
    data.mkdir(parents=True, exist_ok=True)
    try:
        platform.cli("up", "--port", str(port), "--detach", *up, timeout_s=wait_s, first=first)
        platform.wait_ready(wait_s=wait_s)
        yield platform
    finally:
        subprocess.run(
            [sys.executable, "-m", "cluster.cli", "down", "--data", str(data)],
            cwd=ROOT,
            env=environment,
            timeout=120,
            check=False,
            capture_output=True,
        )
