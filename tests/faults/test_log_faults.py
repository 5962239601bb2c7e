"""The log with a full disk or a stopped broker: no acknowledged write is lost, and it recovers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import free_port, load

from vicinage.errors import Unavailable
from vicinage.log import Record, open_log


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=True)
    try:
        with open_log(f"sqlite:///{small}/log.db") as log:
            log.ensure_topic("t")
            (small / "ballast").write_bytes(b"\0" * (1 << 20))
            acknowledged = []
            with pytest.raises(Unavailable, match="full"):
                for _ in range(100):
                    acknowledged.extend(log.append("t", 0, [Record(b"x" * 100_000)]))
            assert [r.offset for r in log.read("t", 0, 0, bytes_max=1 << 30)] == acknowledged
            (small / "ballast").unlink()
            acknowledged.extend(log.append("t", 0, [Record(b"again")]))
            assert [r.offset for r in log.read("t", 0, 0, bytes_max=1 << 30)] == acknowledged
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.xdist_group("kafka")
def test_a_killed_broker_has_everything_acknowledged_after_its_restart(
    tmp_path: Path, kafka_servers: str
) -> None:
    del kafka_servers  # checks that Kafka can run here; this broker is a separate one
    starter, port = load("deploy/kafka/kafka.py"), free_port()
    broker = starter.start(tmp_path / "kafka", port)
    try:
        with open_log(f"kafka://127.0.0.1:{port}") as log:
            log.ensure_topic("t")
            acknowledged = [
                o for i in range(50) for o in log.append("t", 0, [Record(str(i).encode())])
            ]
            broker.kill()
            broker.wait()
            with pytest.raises(Unavailable):
                log.append("t", 0, [Record(b"while away")])
            broker = starter.start(tmp_path / "kafka", port)
            end = time.monotonic() + 60
            while True:
                try:
                    acknowledged.extend(log.append("t", 0, [Record(b"back")]))
                    break
                except Unavailable:
                    assert time.monotonic() < end, "the log did not recover"
            found = [r.offset for r in log.read("t", 0, 0)]
            assert set(acknowledged) <= set(found)
    finally:
        broker.kill()
        broker.wait()


CLOSE_UNDER_READERS = """
import sys, threading, time
from vicinage.errors import Unavailable
from vicinage.log import Record, open_log
log = open_log(sys.argv[1])
log.ensure_topic("t")
log.append("t", 0, [Record(b"x" * 1_000)] * 2_000)
refused = []
def read():
    try:
        while True:
            log.read("t", 0, 0)
    except Unavailable:
        refused.append(1)
threads = [threading.Thread(target=read) for _ in range(6)]
for t in threads: t.start()
time.sleep(0.2)
log.close()
for t in threads: t.join(20)
assert len(refused) == 6, refused
for ask in (lambda: log.topics(), lambda: log.end("t", 0)):
    try:
        ask()
    except Unavailable:
        continue
    raise AssertionError("a closed log answered")
"""


def test_closing_refuses_readers_without_a_crash(tmp_path: Path) -> None:
    for _ in range(3):
        words = [sys.executable, "-c", CLOSE_UNDER_READERS, f"sqlite:///{tmp_path}/log.db"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (done.returncode, done.stderr[-1_000:])


NO_DESCRIPTORS = """
import os, resource, sys
from vicinage.log import Record, open_log
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
log = open_log(sys.argv[1])
log.ensure_topic("t")
reader = log.reader({("t", 0): 0})
log.append("t", 0, [Record(b"first")])
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for i in range(3):
    log.append("t", 0, [Record(b"without a free descriptor")])
for each in taken:
    os.close(each)
log.append("t", 0, [Record(b"last")])
found = []
while len(found) < 5:
    found += reader.poll(wait_s=5)
assert [s.offset for s in found] == [0, 1, 2, 3, 4], found
"""


def test_a_log_without_free_descriptors_continues_to_write(tmp_path: Path) -> None:
    words = [sys.executable, "-c", NO_DESCRIPTORS, f"sqlite:///{tmp_path}/log.db"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-1_000:]
