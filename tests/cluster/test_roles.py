"""The role boundary: a process ends if one of its parts dies, so that it is restarted."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from resources import eventually
from servers import ROOT, free_port
from starlette.testclient import TestClient

from cluster.configuration import ConfigurationError
from cluster.roles import serve_embedder
from cluster.wiring import build_embedder
from tenants.entities import EmbeddingModel
from vicinage.settings import Settings

DIES = """
import sys
from pathlib import Path
from cluster.roles import run_role
from query import gateway
from query.quality import recall
from vicinage.settings import GatewaySettings, Settings

async def dead(*_):
    raise ZeroDivisionError("the part is dead")

{part} = dead
gateway_settings = GatewaySettings(port=int(sys.argv[2]))
run_role("gateway", Settings(data=Path(sys.argv[1]), gateway=gateway_settings))
"""


@pytest.mark.parametrize("part", ["recall.RecallMonitor.run", "gateway._keep_fresh"])
def test_a_gateway_whose_part_died_ends_its_process(tmp_path: Path, part: str) -> None:
    words = [sys.executable, "-c", DIES.format(part=part), str(tmp_path), str(free_port())]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 70, ended.stderr
    assert "the part is dead" in ended.stdout + ended.stderr


def test_an_embedder_leaves_out_a_local_model_whose_files_are_not_there(tmp_path: Path) -> None:
    missing = EmbeddingModel("lost", "local", str(tmp_path / "absent"), 4, 100)
    no_package = EmbeddingModel("lost-too", "local", "package:no_such_package", 4, 100)
    app = build_embedder(Settings(), [missing, no_package], key=None)
    assert TestClient(app).get("/readyz").json()["models"] == {}


STOPS = """
import sys
from pathlib import Path
from cluster.roles import run_role
from vicinage.settings import GatewaySettings, Settings

gateway_settings = GatewaySettings(port=int(sys.argv[2]))
run_role("gateway", Settings(data=Path(sys.argv[1]), gateway=gateway_settings))
print("ended in order", file=sys.stderr)
"""


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_that_is_told_to_stop_ends_what_it_holds_before_it_ends(
    tmp_path: Path, stop_signal: signal.Signals
) -> None:
    port = free_port()
    words = [sys.executable, "-c", STOPS, str(tmp_path), str(port)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: listens(port), wait_s=50)
        process.send_signal(stop_signal)
        _, said = process.communicate(timeout=30)
    assert "ended in order" in said and process.returncode == 0


def listens(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/healthz").is_success
    except httpx2.TransportError:
        return False


def test_an_embedder_without_its_key_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"internal\.key is missing"):
        serve_embedder(Settings(data=tmp_path))
