"""Chaos over a real Kafka and PostgreSQL: a few rounds here, two hundred by `make chaos`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from servers import kafka_starter, postgres_starter

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_after_each_round_of_faults_every_collection_is_what_was_acknowledged(tmp_path: Path) -> None:
    kafka_starter()
    postgres_starter()
    report = tmp_path / "report.json"
    words = ["--rounds", "6", "--seed", "2", "--json", str(report), "--folder", str(tmp_path / "chaos")]
    words += ["--lag-max-s", "60", "--events", "added,refuses,away,recreated,poison,races"]
    command = [sys.executable, str(ROOT / "loadtest" / "chaos.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    found = json.loads(report.read_text())
    assert found["rounds"] == 6
    assert found["writes"] > 0 < found["neighbor"]["others"]["n"]
    assert found["wrong"] == []
