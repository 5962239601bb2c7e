"""A failing topic does not affect appends to others on a real Kafka.

Appends recover after an outage.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import free_port, load

from vicinage.errors import NotFound, Refused, TooLarge, Unavailable, VicinageError
from vicinage.log import Log, Record, open_log

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]
BLOCKED_S = 5.0
"""Longest append to the neighbor on a busy machine; a blocked one took 25 s and more."""


@pytest.fixture
def log(kafka_servers: str) -> Iterator[Log]:
    with open_log(f"kafka://{kafka_servers}") as made:
        yield made


@pytest.fixture
def names(log: Log) -> tuple[str, str]:
    """Creates a failing topic and its neighbor."""
    made = f"bad-{uuid.uuid4().hex[:8]}", f"good-{uuid.uuid4().hex[:8]}"
    for topic in made:
        log.ensure_topic(topic)
        log.append(topic, 0, [Record(b"first")])
    return made


def configure(servers: str, topic: str, **settings: str) -> None:
    from kafka import KafkaAdminClient
    from kafka.admin import ConfigResource, ConfigResourceType

    admin = KafkaAdminClient(bootstrap_servers=servers)
    changed = {name.replace("_", "."): value for name, value in settings.items()}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, changed)])
    admin.close()
    time.sleep(0.3)  # until the broker has heard of it


@contextmanager
def a_neighbor(log: Log, topic: str) -> Iterator[list[bytes]]:
    """Appends to `topic` continuously; fails if an append fails or takes BLOCKED_S."""
    stop, acknowledged, failed = threading.Event(), [], []

    def write() -> None:
        while not stop.is_set():
            value, began = str(len(acknowledged)).encode(), time.monotonic()
            try:
                log.append(topic, 0, [Record(value)])
            except VicinageError as error:
                failed.append(error)
            if time.monotonic() - began > BLOCKED_S:
                failed.append(f"an append took {time.monotonic() - began:.1f} s")
            acknowledged.append(value)
            time.sleep(0.002)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield acknowledged
    finally:
        stop.set()
        thread.join(60)
    assert failed == []
    found = [s.record.value for s in log.read(topic, 0, 1, bytes_max=1 << 30)]
    assert found == acknowledged, "each is there once, in order"


def moves_on(acknowledged: list[bytes], by: int = 5) -> None:
    goal, end = len(acknowledged) + by, time.monotonic() + 20
    while len(acknowledged) < goal:
        assert time.monotonic() < end, "the neighbor does not append"
        time.sleep(0.01)


def test_a_record_over_its_topics_limit_is_refused_alone(
    log: Log, names: tuple[str, str], kafka_servers: str
) -> None:
    bad, good = names
    with a_neighbor(log, good) as acknowledged:
        configure(
            kafka_servers, bad, max_message_bytes="10000"
        )  # not known here yet: the broker itself refuses first
        for _ in range(3):
            with pytest.raises(TooLarge, match=bad) as refused:
                log.append(bad, 0, [Record(os.urandom(20_000))])
            assert good not in refused.value.detail
            moves_on(acknowledged)
        assert log.append(bad, 0, [Record(os.urandom(3_000)) for _ in range(6)]) == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]
        moves_on(acknowledged)


def test_nothing_is_written_of_what_is_too_large_for_any_topic(
    log: Log, names: tuple[str, str]
) -> None:
    with pytest.raises(TooLarge):
        log.append(names[0], 0, [Record(b"small"), Record(bytes(17 << 20))])
    assert log.end(names[0], 0) == 1


def test_a_compacted_topic_refuses_its_own_records_alone(
    log: Log, names: tuple[str, str], kafka_servers: str
) -> None:
    bad, good = names
    with a_neighbor(log, good) as acknowledged:
        configure(kafka_servers, bad, cleanup_policy="compact")
        for _ in range(3):
            with pytest.raises(Unavailable, match=bad) as refused:
                log.append(bad, 0, [Record(b"no key")])
            assert good not in refused.value.detail
            moves_on(acknowledged)
        configure(kafka_servers, bad, cleanup_policy="delete")
        end = time.monotonic() + 20
        while True:
            try:
                log.append(bad, 0, [Record(b"no key")])
                break
            except Unavailable:
                assert time.monotonic() < end, "a setting that is repaired is seen soon"
                time.sleep(0.2)
        moves_on(acknowledged)


def test_a_deleted_topic_fails_its_own_appends_soon_and_takes_records_once_it_is_back(
    log: Log, names: tuple[str, str], kafka_servers: str
) -> None:
    from kafka import KafkaAdminClient

    bad, good = names
    admin = KafkaAdminClient(bootstrap_servers=kafka_servers)
    with a_neighbor(log, good) as acknowledged:
        admin.delete_topics([bad])
        errors: list[str] = []

        def write() -> None:
            began = time.monotonic()
            try:
                log.append(bad, 0, [Record(b"x")])
            except NotFound as gone:
                errors.append(gone.detail)
            assert time.monotonic() - began < 2 * BLOCKED_S

        threads = [threading.Thread(target=write) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(errors) == 8
        assert all(bad in e and good not in e for e in errors)
        moves_on(acknowledged)
        admin.create_topics({bad: {"num_partitions": 1}})
        admin.close()
        assert len(log.append(bad, 0, [Record(b"again")])) == 1
        moves_on(acknowledged)


def test_settings_that_cannot_work_are_named_with_what_to_set(log: Log, kafka_servers: str) -> None:
    compacted, small, well = (f"t-{uuid.uuid4().hex[:8]}" for _ in range(3))
    for topic in (compacted, small, well):
        log.ensure_topic(topic)
    configure(kafka_servers, compacted, cleanup_policy="compact")
    configure(kafka_servers, small, max_message_bytes="1048588")
    found = log.topic_problems([compacted, small, well, "there-is-no-such-topic"])
    assert set(found) == {compacted, small}
    assert "cleanup.policy=delete" in found[compacted][0]
    assert "max.message.bytes=16777216" in found[small][0]


def test_a_tenant_is_not_created_over_a_topic_that_cannot_work(
    tmp_path: Path, log: Log, kafka_servers: str
) -> None:
    from resources import settings

    from cluster.wiring import open_resources
    from tenants import provisioning

    name = f"team-{uuid.uuid4().hex[:8]}"
    log.ensure_topic(f"vicinage.docs.{name}")
    configure(kafka_servers, f"vicinage.docs.{name}", cleanup_policy="compact")
    base = open_resources(
        settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{kafka_servers}"})
    )
    try:
        with pytest.raises(Refused, match=r"cleanup\.policy"):
            provisioning.create_tenant(base.registry, base.log, name, actor="test")
        assert base.registry.tenants() == ()
        configure(kafka_servers, f"vicinage.docs.{name}", cleanup_policy="delete")
        assert provisioning.create_tenant(base.registry, base.log, name, actor="test").name == name
    finally:
        base.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_comes_back_by_itself_when_the_broker_was_away_under_writes(
    tmp_path: Path, kafka_servers: str
) -> None:
    del kafka_servers  # only says that Kafka can run here; this broker is one of its own
    starter, port = load("deploy/kafka/kafka.py"), free_port()
    broker = starter.start(tmp_path / "kafka", port)
    stop, acknowledged, slowest = threading.Event(), [], [0.0]
    log = open_log(f"kafka://127.0.0.1:{port}")

    def write(number: int) -> None:
        for i in range(100_000):
            began = time.monotonic()
            try:
                [offset] = log.append("t", 0, [Record(value := f"{number}:{i}".encode())])
                acknowledged.append((offset, value))
            except Unavailable:
                time.sleep(0.05)
            slowest[0] = max(slowest[0], time.monotonic() - began)
            if stop.wait(0.01):
                return

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    try:
        log.ensure_topic("t")
        log.commit("g", {("t", 0): 1})
        reader = log.reader({("t", 0): 0})
        for writer in writers:
            writer.start()
        moves_on(acknowledged)
        broker.kill()
        broker.wait()
        time.sleep(35)  # longer than any of the client's own deadlines
        before = len(acknowledged)
        broker = starter.start(tmp_path / "kafka", port)
        end = time.monotonic() + 30

        def soon(ask: Callable[[], object]) -> object:
            while True:
                try:
                    return ask()
                except Unavailable:
                    assert time.monotonic() < end, f"{ask} does not come back"
                    time.sleep(0.1)

        for ask in (
            lambda: log.append("t", 0, [Record(b"back")]),
            lambda: log.commit("g", {("t", 0): 2}),
            lambda: log.committed("g", [("t", 0)]),
            lambda: log.end("t", 0),
            log.topics,
            lambda: log.ensure_topic("new"),
            lambda: reader.poll(wait_s=0.5),
        ):
            soon(ask)
        moves_on(acknowledged)
        assert len(acknowledged) > before
        stop.set()
        for writer in writers:
            writer.join(60)
        assert slowest[0] < 20, "a writer waits for its own deadline at most"
        found = {s.offset: s.record.value for s in log.read("t", 0, 0, bytes_max=1 << 30)}
        assert all(found.get(offset) == value for offset, value in acknowledged)
        reader.close()
    finally:
        stop.set()
        broker.kill()
        broker.wait()
        log.close()


def test_dead_letters_that_cannot_be_written_delay_no_other_tenant(
    tmp_path: Path, kafka_servers: str
) -> None:
    from resources import settings

    from cluster.wiring import open_resources
    from ingest import dead_letters
    from tenants import provisioning
    from vicinage.log import LogRecord
    from vicinage.records import Rejected

    base = open_resources(
        settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{kafka_servers}"})
    )
    letters = [(LogRecord("vicinage.docs.x", 0, 3, Record(b"{")), Rejected("no JSON"))]
    try:
        tenant = provisioning.create_tenant(
            base.registry, base.log, f"team-{uuid.uuid4().hex[:8]}", actor="test"
        )
        configure(kafka_servers, tenant.dead_topic, cleanup_policy="compact")
        dead_letters.append(base.log, tenant, letters)
        assert base.log.end(tenant.dead_topic, 0) == 0
        base.log.delete_topic(tenant.dead_topic)
        time.sleep(1.2)  # what was read of its settings is used for a second
        dead_letters.append(base.log, tenant, letters)
        [found] = dead_letters.read(base.log, tenant)
        assert (found["reason"], found["offset"]) == ("no JSON", 3)
    finally:
        base.close()
