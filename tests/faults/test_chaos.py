"""Chaos over a real Kafka and PostgreSQL: a few rounds here, two hundred by `make chaos`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import free_port, kafka_starter, postgres_starter

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "loadtest"))
from chaos_tenant import Collection, Tenant


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_after_each_round_of_faults_every_collection_has_the_acknowledged_writes(
    tmp_path: Path,
) -> None:
    kafka_starter()
    postgres_starter()
    report = tmp_path / "report.json"
    words = [
        "--rounds",
        "6",
        "--seed",
        "2",
        "--json",
        str(report),
        "--folder",
        str(tmp_path / "chaos"),
    ]
    words += ["--lag-max-s", "60", "--events", "added,refuses,away,recreated,poison,races"]
    command = [sys.executable, str(ROOT / "loadtest" / "chaos.py"), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=580, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    found = json.loads(report.read_text())
    assert found["rounds"] == 6
    assert found["writes"] > 0 < found["neighbor"]["others"]["n"]
    assert found["wrong"] == []


@pytest.mark.timeout(60)
def test_a_record_without_a_broker_does_not_delay_its_round() -> None:
    tenant = Tenant("red", "key", f"http://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    collection, began = Collection("vectors", None), time.monotonic()
    tenant.produce(collection, [("d1", 1)])
    assert time.monotonic() - began < 10, (
        "the broker of a round is started again only after its writes"
    )
    assert collection.ledger.ids() == [], "nothing was sent"
    tenant.close()
