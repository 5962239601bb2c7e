"""The command line on a catalog without a platform and on a running one; exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from resources import eventually
from servers import free_port
from vicinage_client import Client

ROOT = Path(__file__).resolve().parent.parent.parent


def vicinage(*words: str, data: Path, wanted: int = 0, timeout_s: float = 120) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words, "--data", str(data), "--json"],
        capture_output=True, text=True, cwd=ROOT, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == wanted, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if wanted == 0 else done.stderr


def operator_key(data: Path) -> str:
    return (data / "run" / "operator.key").read_text().strip()


def bearer(data: Path) -> dict[str, str]:
    return {"authorization": f"Bearer {operator_key(data)}"}


def restarts(data: Path) -> int:
    """Returns how often the gateway was restarted; -1 while it is not ready.

    `status` reports that by its exit status.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "status", "--data", str(data), "--json"],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ready"] else 1)
    return found["roles"]["gateway"]["restarts"] if found["ready"] else -1


def test_help_answers_at_once() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        times.append(time.perf_counter() - start)
    assert "tenant" in done.stdout and "Exit status" in done.stdout
    assert min(times) < 1.0, (
        "heavy imports belong inside the commands; 0.13 s when nothing else runs"
    )


@pytest.mark.timeout(400)
def test_tenants_keys_and_collections_without_a_running_platform(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = vicinage("tenant", "create", "acme", "--class", "gold", data=data)
    assert made["tenant"] == "acme" and made["key"].startswith("vk_")
    assert (
        vicinage("collection", "create", "acme", "docs", "--dimension", "3", data=data)["dimension"]
        == 3
    )
    assert [t["tenant"] for t in vicinage("tenant", "list", data=data)] == ["acme"]
    key = vicinage("key", "create", "acme", "--scopes", "read", "--expires", "90d", data=data)
    assert key["scopes"] == ["read"] and key["expires_ms"]
    assert vicinage("key", "revoke", key["id"], data=data)["revoked_ms"]
    assert len(vicinage("key", "list", "acme", data=data)) == 2
    assert vicinage("tenant", "suspend", "acme", data=data)["state"] == "suspended"
    server = (
        "--kind",
        "openai",
        "--location",
        "http://127.0.0.1:9/v1",
        "--dimension",
        "8",
        "--window-tokens",
        "512",
    )
    assert "cannot be used" in vicinage("model", "register", "own", *server, data=data, wanted=1)
    added = vicinage(
        "model", "register", "own", *server, "--no-normalized", "--no-check", data=data
    )
    assert added["normalized"] is False
    assert [m["name"] for m in vicinage("model", "list", data=data)] == ["all-minilm-l6-v2", "own"]
    newest = vicinage("audit", "verify", data=data)
    against = f"{newest['seq']}:{newest['hash']}"
    assert vicinage("audit", "verify", "--against", against, data=data)["compared"]
    assert "not the one" in vicinage(
        "audit", "verify", "--against", f"{newest['seq']}:00", data=data, wanted=1
    )
    assert "exists already" in vicinage("tenant", "create", "acme", data=data, wanted=1)
    assert "dimension" in vicinage(
        "collection", "create", "acme", "x", "--dimension", "0", data=data, wanted=1
    )
    assert "no platform runs" in vicinage("recall", data=data, wanted=3)
    assert "no platform runs" in vicinage("status", data=data, wanted=3)
    vicinage("tenant", "create", data=data, wanted=2)


@pytest.mark.timeout(300)
def test_doctor_checks_every_part(tmp_path: Path) -> None:
    rows = vicinage("doctor", data=tmp_path / "data")
    assert {r["check"] for r in rows} >= {
        "faiss",
        "model",
        "disk",
        "catalog",
        "log",
        "store",
        "segments",
        "port",
    }
    assert all(r["ok"] for r in rows)


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(400)
def test_up_to_down_with_a_kill_and_a_reindex_between(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    started = vicinage("up", "--port", str(port), "--detach", data=data, timeout_s=240)
    try:
        assert started["url"] == f"http://127.0.0.1:{port}"
        assert "already" in vicinage("up", "--port", str(port), "--detach", data=data, wanted=3)
        key = vicinage("tenant", "create", "acme", data=data)["key"]
        vicinage("collection", "create", "acme", "docs", data=data)
        client = Client(started["url"], key)
        written = client.upsert(
            "docs",
            [{"id": f"d{i}", "text": f"document number {i} of the shelf"} for i in range(30)],
        )
        assert (
            client.search("docs", "document number 7", k=1, wait_for=written).hits[0].document_id
            == "d7"
        )

        before = vicinage("status", data=data)["roles"]["gateway"]
        os.kill(before["pid"], signal.SIGKILL)
        eventually(lambda: restarts(data) == 1, wait_s=60)
        assert (
            client.search("docs", "document number 7", k=1, timeout_ms=60_000).hits[0].document_id
            == "d7"
        )

        job = vicinage(
            "reindex", "start", "acme/docs", "--index", "hnsw", "--shards", "2", "--wait", data=data
        )
        assert (job["state"], job["done"]) == ("done", 30)
        facts = vicinage("collection", "show", "acme", "docs", data=data)
        assert facts["generation"] == 2 and facts["counts"]["documents"] == 30
        assert vicinage("capacity", data=data)["collections"][0]["documents"] == 30
        assert vicinage("freshness", "acme", data=data)[0]["lag_ms"] == 0
        assert oct((data / "run" / "operator.key").stat().st_mode)[-3:] == "600"
        vicinage("key", "create", "--scopes", "operate", data=data)
        [first] = [
            k["id"]
            for k in vicinage("key", "list", data=data)
            if f"_{k['id']}_" in operator_key(data)
        ]
        vicinage("key", "revoke", first, data=data)
        eventually(
            lambda: (
                httpx2.get(f"{started['url']}/v1/admin/keys", headers=bearer(data)).status_code
                == 401
            )
        )
        assert vicinage("tenant", "list", data=data), "the operator of DATA is not locked out"
        assert f"_{first}_" not in operator_key(data)
    finally:
        assert vicinage("down", data=data)["stopped"]
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{started['url']}/healthz")
    assert not vicinage("down", data=data)["stopped"]
