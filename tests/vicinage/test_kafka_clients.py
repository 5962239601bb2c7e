"""Without a broker, every call fails within its bound and leaves no thread or descriptor."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import free_port

from vicinage.errors import Unavailable
from vicinage.log import Log, Record, open_log
from vicinage.log.kafka_access import has_authorizer
from vicinage.log.kafka_clients import open_client
from vicinage.settings import KafkaSettings

CALLS: dict[str, Callable[[Log], Any]] = {
    "topics": lambda log: log.topics(),
    "ensure_topic": lambda log: log.ensure_topic("t"),
    "partitions": lambda log: log.partitions("t"),
    "add_partitions": lambda log: log.add_partitions("t", 2),
    "topic_ids": lambda log: log.topic_ids("t"),
    "delete_topic": lambda log: log.delete_topic("t"),
    "end": lambda log: log.end("t", 0),
    "extents": lambda log: log.extents([("t", 0)]),
    "trim": lambda log: log.trim("t", 0, 1),
    "append": lambda log: log.append("t", 0, [Record(b"well")]),
    "topic_problems": lambda log: log.topic_problems(["t"]),
    "commit": lambda log: log.commit("g", {("t", 0): 1}),
    "committed": lambda log: log.committed("g", [("t", 0)]),
    "wait_committed": lambda log: log.wait_committed("g", "t", 0, 1, wait_s=1),
    "poll": lambda log: log.reader({("t", 0): 0}).poll(wait_s=0.1),
}
BLOCKED_S = 5.0
"""Longest of these calls on a busy machine; kafka-python looks for a broker for 30 s."""


@pytest.fixture
def silent() -> Iterator[str]:
    """Yields host:port of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"127.0.0.1:{server.getsockname()[1]}"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_fails_at_once_where_no_broker_listens(name: str) -> None:
    threads, began = threading.active_count(), time.monotonic()
    with open_log(f"kafka://127.0.0.1:{free_port()}") as log, pytest.raises(Unavailable):
        CALLS[name](log)
    assert time.monotonic() - began < BLOCKED_S
    assert threading.active_count() == threads


@pytest.mark.timeout(60)
def test_doctor_learns_at_once_that_no_broker_listens() -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable):
        has_authorizer(f"kafka://127.0.0.1:{free_port()}", KafkaSettings())
    assert time.monotonic() - began < BLOCKED_S


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["KafkaAdminClient", "KafkaConsumer", "KafkaProducer"])
def test_a_client_without_an_answer_leaves_nothing_behind(kind: str, silent: str) -> None:
    import kafka
    from kafka.errors import KafkaError

    threads, files, began = threading.active_count(), descriptors(), time.monotonic()
    for _ in range(3):
        with pytest.raises(KafkaError):
            open_client(getattr(kafka, kind), [silent], {}, answer_ms=200)
    assert time.monotonic() - began < 3 * BLOCKED_S
    assert (threading.active_count(), descriptors()) == (threads, files)
