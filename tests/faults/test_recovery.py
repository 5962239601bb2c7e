"""A whole platform while a dependency is away: it recovers without an operator."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from disk import full, small_disk
from resources import eventually
from servers import ROOT, free_port, postgres_starter

sys.path.insert(0, str(ROOT / "loadtest"))
from running import Platform, running

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.timeout(600)]
OUTAGE_S = 10.0
RECOVERED_S = 60.0


@dataclass
class User:
    """One tenant's client of a platform, and its acknowledged writes."""

    platform: Platform
    http: httpx2.Client
    acknowledged: int = 0

    def write(self) -> httpx2.Response:
        """Writes the next document."""
        document = {
            "id": f"d{self.acknowledged}",
            "vector": [1.0, float(self.acknowledged), 0.0, 0.0],
        }
        found = self.http.post("/v1/collections/c/documents", json={"documents": [document]})
        self.acknowledged += found.status_code == 202
        return found

    def search(self, **more: Any) -> httpx2.Response:
        body = {"vector": [1.0, 0.0, 0.0, 0.0], "k": 1_000, **more}
        return self.http.post("/v1/collections/c/search", json=body)

    def writes_and_finds(self) -> bool:
        """Returns whether a write is searchable right after the wait for it."""
        found = self.write()
        return (
            found.status_code == 202
            and self.search(wait_for=found.json()["token"]).status_code == 200
        )

    def ready(self) -> int:
        return self.http.get("/readyz").status_code

    def check_all_found(self) -> None:
        assert {h["document_id"] for h in self.search().json()["hits"]} == {
            f"d{i}" for i in range(self.acknowledged)
        }


@contextmanager
def user(platform: Platform) -> Iterator[User]:
    key = platform.cli("tenant", "create", "acme")["key"]
    with httpx2.Client(
        base_url=platform.url, headers={"authorization": f"Bearer {key}"}, timeout=40
    ) as http:
        assert http.post("/v1/collections", json={"name": "c", "dimension": 4}).status_code == 201
        someone = User(platform, http)
        eventually(someone.writes_and_finds, wait_s=30)
        yield someone


def supervisor(platform: Platform) -> int:
    return int(platform.cli("status")["pid"])


def test_a_disk_that_is_full_for_a_while_ends_no_process(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "small", 64) as small,
        running(small / "data") as platform,
        user(platform) as someone,
    ):
        pids, above = platform.pids(), supervisor(platform)
        statuses = []
        with full(small):
            end = time.monotonic() + OUTAGE_S
            while time.monotonic() < end:
                statuses.append(someone.write().status_code)
                assert someone.search().status_code == 200
                time.sleep(0.2)
            assert 503 in statuses, statuses
            assert set(statuses) <= {202, 503}, statuses
            assert someone.ready() == 503
        began = time.monotonic()
        eventually(someone.writes_and_finds, wait_s=RECOVERED_S)
        eventually(lambda: someone.ready() == 200, wait_s=RECOVERED_S)
        print(
            "recovered after",
            round(time.monotonic() - began, 1),
            "s;",
            len(statuses),
            "writes asked meanwhile",
        )
        someone.check_all_found()
        assert (platform.pids(), supervisor(platform)) == (pids, above)


def test_a_postgresql_catalog_that_is_away_for_a_while_ends_no_process(tmp_path: Path) -> None:
    starter, port = postgres_starter(), free_port()
    with ExitStack() as stack:
        url = starter.start(tmp_path / "postgres", port)
        stack.callback(starter.stop, tmp_path / "postgres")
        platform = stack.enter_context(running(tmp_path / "data", catalog_url=url))
        someone = stack.enter_context(user(platform))
        pids, above = platform.pids(), supervisor(platform)
        starter.stop(tmp_path / "postgres")
        end = time.monotonic() + OUTAGE_S
        while time.monotonic() < end:
            assert someone.search().status_code == 200
            time.sleep(0.2)
        assert someone.write().status_code == 503
        assert someone.ready() == 503
        starter.start(tmp_path / "postgres", port)
        began = time.monotonic()
        eventually(someone.writes_and_finds, wait_s=RECOVERED_S)
        eventually(lambda: someone.ready() == 200, wait_s=RECOVERED_S)
        print("recovered after", round(time.monotonic() - began, 1), "s")
        someone.check_all_found()
        assert (platform.pids(), supervisor(platform)) == (pids, above)


def idle(port: int, n: int, send: bytes = b"") -> Iterator[socket.socket]:
    for _ in range(n):
        with contextlib.suppress(OSError):
            line = socket.create_connection(("127.0.0.1", port), timeout=5)
            if send:
                line.sendall(send)
            yield line


UNREAD = b"POST /v1/collections/c/documents HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{"


def test_idle_connections_block_neither_writes_nor_metrics(tmp_path: Path) -> None:
    with running(tmp_path / "data", ulimit=256) as platform, user(platform) as someone:
        assert psutil.Process(platform.pids()["gateway"]).rlimit(psutil.RLIMIT_NOFILE)[1] == 256
        pids, port = platform.pids(), int(platform.url.rpartition(":")[2])
        lines = [
            *idle(port, 300),
            *idle(port, 100, UNREAD),
            *idle(port + 1, 300),
            *idle(port + 2, 300),
            *idle(port + 3, 100),
        ]
        try:
            for _ in range(20):
                assert someone.writes_and_finds()
            for other in (port + 2, port + 3):
                assert httpx2.get(f"http://127.0.0.1:{other}/metrics").is_success
            eventually(lambda: someone.ready() == 200)
            held = {name: psutil.Process(pid).num_fds() for name, pid in pids.items()}
            print("descriptors", held, "threads", psutil.Process(pids["ingest"]).num_threads())
            assert all(n <= 250 for n in held.values()), held
        finally:
            for line in lines:
                line.close()
        someone.check_all_found()
        assert platform.pids() == pids
