"""Readiness: a write, a wait and a search would succeed now, and the check costs almost nothing."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gate import Caller, build, calling
from resources import build_searcher, eventually, make_ingest, resources_in

from query import readiness
from tenants.provisioning import HEALTH_TOPIC


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Any]:
    """A gateway with a searcher, and ingest that a test may stop: (caller, stop, searcher)."""
    base = resources_in(tmp_path)
    stop = threading.Event()
    work = threading.Thread(target=make_ingest(base).run, args=(stop,), daemon=True)
    searcher = build_searcher(base)
    searcher.start()
    work.start()
    with calling(base, searcher, build(base, [searcher])) as call:
        yield call, stop, searcher
    stop.set()
    work.join(20)
    searcher.stop()
    base.close()


def parts(call: Caller) -> dict[str, bool]:
    return {name: part["ready"] for name, part in call("GET", "/readyz").json()["parts"].items()}


def test_everything_is_ready_on_a_whole_platform(gateway: Any) -> None:
    call, _, _ = gateway
    eventually(lambda: call("GET", "/readyz").status_code == 200)
    assert parts(call) == dict.fromkeys(("catalog", "log", "ingest", "searcher", "embedder"), True)


def test_a_stuck_ingest_is_not_ready(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "LIMIT_S", 1.5)
    call, stop, _ = gateway
    eventually(lambda: call("GET", "/readyz").status_code == 200)
    stop.set()
    eventually(lambda: call("GET", "/readyz").status_code == 503)
    assert parts(call) == {
        "catalog": True,
        "log": True,
        "ingest": False,
        "searcher": True,
        "embedder": True,
    }


def test_a_searcher_with_stuck_threads_is_not_ready(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "LIMIT_S", 1.5)
    call, _, searcher = gateway
    eventually(lambda: call("GET", "/readyz").status_code == 200)
    searcher.stop()
    eventually(lambda: call("GET", "/readyz").status_code == 503)
    assert not parts(call)["searcher"]


def test_many_requests_share_one_probe(gateway: Any) -> None:
    call, _, _ = gateway
    eventually(lambda: call("GET", "/readyz").status_code == 200)
    before, began = call.base.log.end(HEALTH_TOPIC, 0), time.monotonic()
    for _ in range(200):
        assert call("GET", "/readyz").status_code == 200
    probes = call.base.log.end(HEALTH_TOPIC, 0) - before
    assert probes <= (time.monotonic() - began) / readiness.FRESH_S + 1


def test_another_event_loop_gets_the_same_result(gateway: Any) -> None:
    call, _, _ = gateway
    eventually(lambda: call("GET", "/readyz").status_code == 200)
    whole, found = asyncio.run(call.state.readiness.parts_threadsafe())
    assert whole
    assert found == call("GET", "/readyz").json()["parts"]
