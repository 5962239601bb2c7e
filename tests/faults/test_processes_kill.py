"""Kills each process of a real platform under writes and searches: one round here.

`make kill` runs twenty.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)
def test_after_kills_of_every_process_exactly_the_acknowledged_writes_are_found() -> None:
    words = [sys.executable, str(ROOT / "loadtest" / "kill_rounds.py"), "--rounds", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=580, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    report = json.loads((ROOT / "build" / "kill.json").read_text())
    assert [k["process"] for k in report["kills"]] == ["gateway", "ingest", "embedder"]
    for collection in report["collections"]:
        assert (
            collection["acknowledged"]
            == collection["found"]
            > collection["never_written_again"]
            > 0
        )
        assert collection["searches"] > 0
        assert collection["wrong"] == []
