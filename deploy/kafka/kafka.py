"""Starts an Apache Kafka for development and tests: one node, KRaft, loopback, from Maven.

    python deploy/kafka/kafka.py start --dir DIR --port PORT [--detach]
    python deploy/kafka/kafka.py stop --dir DIR

Needs Java 17 and Maven. The broker syncs each message: acknowledged records survive its kill.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLUSTER = "dmljaW5hZ2UtLS1kZXYtMQ"
SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={dir}/log
num.partitions=1
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.flush.interval.messages=1
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
socket.request.max.bytes=33554432
"""
EVENTS = """
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = Console
appender.file.name = file
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c %m%n
"""


def version() -> str:
    """Returns the Kafka version of pom.xml."""
    found = re.search(
        r"<artifactId>kafka_2.13</artifactId>\s*<version>([^<]+)", (HERE / "pom.xml").read_text()
    )
    assert found, "pom.xml names the version"
    return found[1]


def jars() -> Path:
    """Returns the folder of the server's jars, copied from Maven at first use."""
    folder = Path.home() / ".cache" / "vicinage" / "kafka" / version()
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = [
            "mvn",
            "-q",
            "-B",
            "-f",
            str(HERE / "pom.xml"),
            "dependency:copy-dependencies",
            f"-DoutputDirectory={folder}",
        ]
        subprocess.run(words, check=True, timeout=600)
        (folder / "complete").touch()
    return folder


def start(
    folder: Path,
    port: int,
    *,
    wait_s: float = 60.0,
    more: str = "",
    template: str = SETTINGS,
    formatting: Sequence[str] = (),
    **filled_in: object,
) -> subprocess.Popen[bytes]:
    """Starts a broker on 127.0.0.1:`port` with its data in `folder`; returns when it answers.

    A restarted broker keeps its data. At its first start, `template` with `filled_in` is its
    settings; `more` are further lines of them, and `formatting` are further arguments of
    `kafka-storage.sh format`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings, events = folder / "server.properties", folder / "log4j2.properties"
    if not settings.exists():
        filled = template.format(
            port=port, controller=_free_port(), dir=folder.resolve(), **filled_in
        )
        settings.write_text(filled + more)
        events.write_text(EVENTS)
        subprocess.run(
            [
                *_java(events),
                "kafka.tools.StorageTool",
                "format",
                "-t",
                CLUSTER,
                "-c",
                str(settings),
                "--ignore-formatted",
                *formatting,
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    with (folder / "server.out").open("ab") as out:
        process = subprocess.Popen(
            [*_java(events), "kafka.Kafka", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    (folder / "pid").write_text(str(process.pid))
    _wait_for(port, process, folder / "server.out", wait_s)
    return process


def stop(folder: Path, *, wait_s: float = 30.0) -> None:
    """Stops the broker that `start` started on `folder`, with SIGKILL after `wait_s`."""
    pid = int((folder / "pid").read_text())
    try:
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            os.kill(pid, 0)
            if _is_zombie(pid):
                return
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _java(events: Path) -> list[str]:
    options = ["-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", f"-Dlog4j2.configurationFile={events}"]
    return ["java", *options, "-cp", f"{jars()}/*"]


def _wait_for(port: int, process: subprocess.Popen[bytes], events: Path, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(
                "Kafka ended with "
                f"{process.returncode}:\n{events.read_text(errors='replace')[-2000:]}"
            )
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"Kafka did not listen on {port} within {wait_s:.0f} s; see {events}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=9092)
    parser.add_argument("--detach", action="store_true", help="return when it answers")
    args = parser.parse_args()
    if args.action == "stop":
        stop(args.dir)
        return
    process = start(args.dir, args.port)
    print(f"127.0.0.1:{args.port}", flush=True)
    if not args.detach:
        sys.exit(process.wait())


if __name__ == "__main__":
    main()
