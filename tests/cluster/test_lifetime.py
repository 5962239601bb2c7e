"""A role never outlives its supervisor, and `vicinage down` ends a platform in any state."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from disk import full, small_disk
from resources import eventually
from servers import ROOT

from cluster.lifetime import LATE
from cluster.local import running, stop, supervisor_pid
from vicinage.telemetry import EventWriter

SUPERVISES = """
import sys
from pathlib import Path
from cluster.local import Supervisor
from vicinage.settings import Settings
from vicinage.telemetry import configure_events

configure_events("supervisor")
ROLE = '''
import signal, time
from cluster.lifetime import end_with_supervisor
end_with_supervisor()
signal.signal(signal.SIGTERM, {told})
{work}
'''
commands = {{name: [sys.executable, "-c", ROLE] for name in ("embedder", "ingest", "gateway")}}
Supervisor(Settings(data=Path(sys.argv[1])), commands).run()
"""
ENDS, HANGS = "signal.SIG_DFL", "signal.SIG_IGN"
SLEEPS = "time.sleep(600)"
HOLDS_THE_LOCK = "import re; re.match(r'(a*)*b', 'a' * 60)"
"""A regular expression that matches for hours and holds the GIL."""


@contextmanager
def supervised(
    data: Path, told: str = ENDS, work: str = SLEEPS
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a supervisor of three roles; yields once all have started."""
    words = [sys.executable, "-c", SUPERVISES.format(told=told, work=work), str(data)]
    with (data.parent / "supervisor.log").open("wb") as out:
        supervisor = subprocess.Popen(words, cwd=ROOT, stderr=out)
    try:
        eventually(lambda: len(roles(data)) == 3, wait_s=60)
        time.sleep(0.5)  # until they have begun, whatever they do
        yield supervisor
    finally:
        supervisor.kill()
        supervisor.wait()
        stop(data)


def roles(data: Path) -> dict[str, int]:
    """Returns role → process id of the running roles."""
    state = running(data)
    found = {name: role["pid"] for name, role in state["roles"].items()} if state else {}
    return {name: pid for name, pid in found.items() if lives(pid)}


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("work", [SLEEPS, HOLDS_THE_LOCK], ids=["sleeps", "holds-the-lock"])
def test_a_role_ends_with_its_supervisor_however_that_ends(tmp_path: Path, work: str) -> None:
    with supervised(tmp_path / "data", HANGS, work) as supervisor:
        pids = roles(tmp_path / "data").values()
        supervisor.kill()
        supervisor.wait()
        eventually(lambda: not any(lives(pid) for pid in pids), wait_s=5)
        assert supervisor_pid(tmp_path / "data") is None
        assert running(tmp_path / "data") is None


def test_down_ends_a_platform_whose_state_file_is_gone(tmp_path: Path) -> None:
    with supervised(tmp_path / "data") as supervisor:
        pids = roles(tmp_path / "data").values()
        (tmp_path / "data" / "run" / "platform.json").unlink()
        assert stop(tmp_path / "data")
        assert supervisor.wait(10) == 0
        assert not any(lives(pid) for pid in pids)


def test_down_ends_a_supervisor_that_does_not_answer(tmp_path: Path) -> None:
    with supervised(tmp_path / "data") as supervisor:
        pids = roles(tmp_path / "data").values()
        psutil.Process(supervisor.pid).suspend()
        assert stop(tmp_path / "data", wait_s=0.5)
        assert not lives(supervisor.pid)
        eventually(lambda: not any(lives(pid) for pid in pids), wait_s=5)


def test_down_ends_a_role_that_no_supervisor_has(tmp_path: Path) -> None:
    given = {**os.environ, "VICINAGE_DATA": str(tmp_path), "VICINAGE_SUPERVISED": "1"}
    words = [sys.executable, "-c", f"import time; print(flush=True); {SLEEPS}"]
    left = subprocess.Popen(words, env=given, stdout=subprocess.PIPE)
    try:
        assert left.stdout is not None
        left.stdout.readline()
        assert stop(tmp_path)
        assert not lives(left.pid)
    finally:
        left.kill()
        left.wait()
    assert not stop(tmp_path)


def test_a_role_that_does_not_stop_in_time_ends(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-c",
        f"import time; from cluster.lifetime import limit_stop; limit_stop(0.2); {SLEEPS}",
    ]
    done = subprocess.run(words, cwd=ROOT, timeout=30, capture_output=True, check=False)
    assert done.returncode == LATE


def test_a_full_disk_does_not_end_the_supervisor_and_a_role_that_dies_meanwhile_is_started_again(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "small", 4) as small, supervised(small / "data") as supervisor:
        before = roles(small / "data")
        with full(small):
            psutil.Process(before["ingest"]).kill()
            eventually(
                lambda: (
                    any(p.pid not in before.values() for p in children(supervisor))
                    and len(children(supervisor)) == 3
                )
            )
            time.sleep(1.5)  # its state file would be written again meanwhile
            assert supervisor.poll() is None
            assert running(small / "data") is not None
        eventually(lambda: roles(small / "data").keys() == before.keys())
        assert roles(small / "data")["ingest"] != before["ingest"]
        assert roles(small / "data")["gateway"] == before["gateway"]


def children(supervisor: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [
        p for p in psutil.Process(supervisor.pid).children() if p.status() != psutil.STATUS_ZOMBIE
    ]


def test_events_that_a_full_disk_does_not_take_end_no_thread(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1) as small, (small / "role.log").open("w") as out:
        writer = EventWriter(out)
        writer.info(json.dumps({"event": "before"}))
        with full(small):
            for _ in range(200):
                writer.error(json.dumps({"event": "x" * 1_000}))
        assert (small / "role.log").read_text().startswith('{"event": "before"}\n')
