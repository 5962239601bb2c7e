"""Platforms on production parts: on Kafka and PostgreSQL, and on a Ray cluster of two nodes."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from resources import eventually
from vicinage_client import Client, NotFound, Unavailable

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "loadtest"))
from ray_nodes import ray_nodes
from running import ROOT, Platform, running

RAY = Path("/tmp/ray")  # where `ray start` puts its sessions
ARROW = "application/vnd.apache.arrow.stream"


def tenant(platform: Platform, name: str, *words: str) -> Client:
    """Creates a tenant and its client; its collection `docs` takes vectors of three numbers."""
    key = platform.cli("tenant", "create", name)["key"]
    platform.cli("collection", "create", name, "docs", "--dimension", "3", *words)
    return Client(platform.url, key)


def json_document(name: str, vector: list[float]) -> bytes:
    return json.dumps({"collection": "docs", "id": name, "vector": vector}).encode()


def arrow_documents(documents: dict[str, list[float]]) -> bytes:
    vectors = pa.array(list(documents.values()), pa.list_(pa.float32()))
    batch = pa.record_batch({"id": list(documents), "vector": vectors}).replace_schema_metadata(
        {"collection": "docs"}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def produce(servers: str, topic: str, *records: dict[str, Any]) -> dict[str, int]:
    """Sends with a plain producer; returns the last position that Kafka acknowledged."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    sent = [producer.send(topic, **record).get(timeout=30) for record in records]
    producer.close()
    return {"partition": sent[-1].partition, "offset": sent[-1].offset}


def ids(client: Client, **fields: Any) -> list[str]:
    answer = client.search("docs", vector=[1, 0.2, 0.1], k=40, timeout_ms=30_000, **fields)
    assert not answer.degraded
    return [hit.document_id for hit in answer.hits]


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.model
@pytest.mark.timeout(300)
def test_documents_of_a_plain_producer_are_found_before_and_after_a_restart(
    tmp_path: Path, kafka_servers: str, postgres_url: str
) -> None:
    with running(
        tmp_path / "data", log_url=f"kafka://{kafka_servers}", catalog_url=postgres_url
    ) as platform:
        acme, other = tenant(platform, "acme"), tenant(platform, "other")
        last = produce(
            kafka_servers,
            "vicinage.docs.acme",
            {"key": b"docs/a", "value": json_document("a", [1, 0, 0])},
            {"key": b"docs/b", "value": json_document("b", [0, 1, 0])},
            {"key": b"docs/gone", "value": json_document("gone", [1, 0.2, 0.1])},
            {"key": b"docs/gone", "value": None},
            {
                "key": b"docs",
                "value": arrow_documents({"c": [0, 0, 1], "d": [1, 1, 1]}),
                "headers": [("content-type", ARROW.encode())],
            },
            {"key": b"docs/bad", "value": b'{"collection": "docs", "id": "bad", "vec'},
        )
        found = ids(acme, wait_for=last)
        assert found[0] == "a" and sorted(found) == ["a", "b", "c", "d"]
        [letter] = acme.dead_letters()
        assert "JSON" in letter["reason"]
        assert (letter["partition"], letter["offset"]) == (last["partition"], last["offset"])

        assert ids(other) == [] and other.dead_letters() == []
        platform.cli("collection", "create", "acme", "private", "--dimension", "3")
        with pytest.raises(NotFound):
            other.search("private", vector=[1, 0, 0])

        assert platform.cli("down")["stopped"]
        platform.cli("up", "--port", platform.url.rpartition(":")[2], "--detach", timeout_s=240)
        assert ids(acme, wait_for=last) == found
        assert acme.collection("docs").counts["documents"] == 4
        assert ids(other) == []


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.model
@pytest.mark.timeout(800)
def test_a_searcher_that_dies_on_a_ray_cluster_is_reported_missing_and_restarts(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason="needs Ray")
    began = time.time()
    with (
        ray_nodes(2) as address,
        running(
            tmp_path / "data",
            up=("--ray", address, "--searchers", "2"),
            rerank__key=(secret := secrets.token_hex(16)),
            kafka__mac_keys=json.dumps([secret]),
        ) as platform,
    ):
        client = tenant(platform, "acme", "--shards", "4")
        written = client.upsert(
            "docs", [{"id": f"d{i}", "vector": [1, i / 10, 0]} for i in range(40)]
        )
        found = ids(client, wait_for=written)
        assert found[0] == "d2" and sorted(found) == sorted(f"d{i}" for i in range(40))
        facts = client.collection("docs")
        assert facts.counts["documents"] == 40 and facts.raw["shards"] == {
            "asked": 4,
            "answered": 4,
        }

        pids = platform.pids()
        assert {"gateway", "ingest", "embedder", "searcher-0", "searcher-1"} <= pids.keys()
        os.kill(pids["searcher-0"], signal.SIGKILL)
        degraded = first_answer(client, whole=False)
        assert degraded["missing_share"] == pytest.approx(0.5, abs=0.3)
        first_answer(client, whole=True)
        assert ids(client) == found

        told = [
            path
            for path in RAY.glob("session_*/logs/**/*")
            if path.is_file() and path.stat().st_mtime > began
        ]
        assert any(path.name.startswith("raylet") for path in told)
        assert not [path for path in told if secret.encode() in path.read_bytes()], (
            "any user may read Ray's logs"
        )
        commands = [
            " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
        ]
        assert not [command for command in commands if secret in command]

        tokenless = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")
        }
        refused = subprocess.run(
            [sys.executable, "-c", f"from cluster.ray import connect; connect({address!r})"],
            cwd=ROOT,
            env=tokenless,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert refused.stderr.strip().splitlines()[-1].startswith("vicinage.errors.Unavailable")
        assert "set RAY_AUTH_MODE=token" in refused.stderr

        pids |= platform.pids()
        assert platform.cli("down")["stopped"]
        eventually(lambda: not any(lives(pid) for pid in pids.values()))


def first_answer(client: Client, *, whole: bool, wait_s: float = 60.0) -> Any:
    """Returns `degraded` of the first answer that is complete, or that is not."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        try:
            degraded = client.search("docs", vector=[1, 0.2, 0.1], k=40).degraded
        except Unavailable:
            continue
        if (degraded is None) == whole:
            return degraded
        time.sleep(0.02)
    raise AssertionError(f"no answer was {'whole' if whole else 'degraded'} within {wait_s:.0f} s")


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
