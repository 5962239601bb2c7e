"""The supervisor: the order of stopping, and the permissions of files in DATA."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from resources import eventually
from servers import ROOT

from cluster.local import check_free, prepare
from cluster.wiring import open_resources
from tenants.keys import Keys
from vicinage.errors import Refused
from vicinage.settings import Settings

SUPERVISES = """
import sys
from pathlib import Path
from cluster.local import Supervisor
from vicinage.settings import Settings

CHILD = '''
import signal, sys, time
def ended(*_):
    with open(sys.argv[2], "a") as out:
        out.write(sys.argv[1] + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, ended)
open(sys.argv[2] + "." + sys.argv[1], "w").close()
while True:
    time.sleep(1)
'''
order = sys.argv[2]
names = ("embedder", "ingest", "gateway")
commands = {name: [sys.executable, "-c", CHILD, name, order] for name in names}
Supervisor(Settings(data=Path(sys.argv[1])), commands).run()
"""


def test_the_gateway_is_stopped_first_and_the_embedder_last(tmp_path: Path) -> None:
    data, order = tmp_path / "data", tmp_path / "order"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISES, str(data), str(order)], cwd=ROOT
    )
    try:
        names = ("embedder", "ingest", "gateway")
        eventually(lambda: all(Path(f"{order}.{name}").exists() for name in names), wait_s=60)
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0
    finally:
        supervisor.kill()
    assert order.read_text().split() == ["gateway", "ingest", "embedder"]
    assert not (data / "run" / "platform.json").exists()
    for folder in (data, data / "run"):
        assert folder.stat().st_mode & 0o777 == 0o700, (
            "tenants' documents and the operator's key are its owner's alone"
        )


def test_the_operator_of_a_data_directory_gets_another_key_for_one_that_was_revoked(
    tmp_path: Path,
) -> None:
    settings = Settings(data=tmp_path / "data")
    prepare(settings)
    path = tmp_path / "data" / "run" / "operator.key"
    first = path.read_text().strip()
    prepare(settings)
    assert path.read_text().strip() == first, "a key that is accepted stays"
    base = open_resources(settings)
    keys = Keys(base.engine, base.clock)
    other, _ = keys.create(None, {"operate"}, actor="test")
    keys.revoke(first.split("_")[1], actor="test")
    prepare(settings)
    second = path.read_text().strip()
    assert keys.authenticate(second, "operate").key_id not in (other.id, first.split("_")[1])
    assert path.stat().st_mode & 0o777 == 0o600
    base.close()


def test_a_port_that_is_taken_is_said_before_anything_starts() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(Refused, match=f"127.0.0.1:{port}.*--port"):
            check_free("127.0.0.1", port)
    check_free("127.0.0.1", port)
