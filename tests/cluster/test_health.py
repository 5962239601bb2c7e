"""The listener for health and metrics: separate from the API, cheap, with few connections."""

import asyncio
import socket
import time
from typing import Any

import httpx2
import pytest
from resources import eventually
from servers import free_port

from cluster import health
from cluster.descriptors import HEALTH, LEAST, RESERVE, connections_max
from cluster.health import serve_health


def served(ready: health.Ready = health.alive) -> str:
    port = free_port()
    serve_health("127.0.0.1", port, ready)
    return f"http://127.0.0.1:{port}"


def test_health_and_metrics_are_served_and_a_taken_port_ends_nothing() -> None:
    import ingest.run  # noqa: F401  (its metrics are made when it is imported)

    url = served()
    assert "vicinage_ingest_documents_total" in httpx2.get(f"{url}/metrics").text
    assert httpx2.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx2.get(f"{url}/readyz").json() == {"ready": True, "parts": {}}
    assert httpx2.get(f"{url}/v1/collections").status_code == 404
    serve_health("127.0.0.1", int(url.rpartition(":")[2]))
    serve_health("127.0.0.1", 65_536)


def test_a_role_that_does_not_say_whether_it_is_ready_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "ANSWER_S", 0.1)

    async def hangs() -> tuple[bool, dict[str, Any]]:
        await asyncio.sleep(60)
        return True, {}

    found = httpx2.get(f"{served(hangs)}/readyz")
    assert (found.status_code, found.json()["ready"]) == (503, False)


def test_idle_connections_neither_pile_up_nor_keep_others_out() -> None:
    url = served()
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    idle = [socket.create_connection(address, timeout=5) for _ in range(3 * HEALTH)]
    try:
        eventually(lambda: sum(closed(line) for line in idle) >= 2 * HEALTH)
        for _ in range(3):
            assert httpx2.get(f"{url}/healthz").is_success
    finally:
        for line in idle:
            line.close()


def closed(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return line.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_metrics_are_written_once_for_many_that_ask() -> None:
    url = served()
    with httpx2.Client() as http:
        http.get(f"{url}/metrics")
        began = time.monotonic()
        bodies = {http.get(f"{url}/metrics").content for _ in range(20)}
    if time.monotonic() - began < 0.9:
        assert len(bodies) <= 2


@pytest.mark.parametrize(
    ("limit", "wanted", "allowed"),
    [
        (65_536, 4_096, 4_096),
        (1_024, 4_096, 1_024 - RESERVE - HEALTH),
        (256, 4_096, 80),
        (64, 4_096, LEAST),
    ],
)
def test_connections_leave_a_reserve_of_descriptors(limit: int, wanted: int, allowed: int) -> None:
    assert connections_max(limit, wanted) == allowed
