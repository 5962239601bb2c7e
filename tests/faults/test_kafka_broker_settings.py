"""Effects of broker settings on reading: expired group positions, and a topic that is refused."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from resources import eventually, make_ingest, settings
from servers import free_port, kafka_starter

from cluster.wiring import Resources, open_resources
from tenants import provisioning
from tenants.entities import Group
from tenants.ingested import ingested
from vicinage.log import Record

BROKER = """
offsets.retention.minutes=1
offsets.retention.check.interval.ms=5000
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
"""
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("kafka"),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker of the test's own."""
    starter, folder, port = kafka_starter(), tmp_path_factory.mktemp("kafka"), free_port()
    starter.start(folder, port, more=BROKER)
    yield f"127.0.0.1:{port}"
    starter.stop(folder)


@pytest.fixture
def base(tmp_path: Path, servers: str) -> Iterator[Resources]:
    made = open_resources(
        settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{servers}"})
    )
    yield made
    made.close()


def send(base: Resources, topic: str, *ids: str) -> None:
    values = [orjson.dumps({"collection": "docs", "id": i, "vector": [1, 0, 0]}) for i in ids]
    base.log.append(topic, 0, [Record(value) for value in values])


def make_tenant(base: Resources) -> str:
    name = f"team-{uuid.uuid4().hex[:8]}"
    tenant = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(
        base.registry, base.log, name, "docs", dimension=3, slots_total=8, actor="test"
    )
    return tenant.documents_topic


def test_a_topic_that_the_broker_refuses_halts_alone_and_continues_once_allowed(
    base: Resources,
) -> None:
    from kafka.admin import (
        ACL,
        ACLOperation,
        ACLPermissionType,
        KafkaAdminClient,
        ResourcePattern,
        ResourceType,
    )

    refused, other = make_tenant(base), make_tenant(base)
    pattern = ResourcePattern(ResourceType.TOPIC, refused)
    rules = [
        ACL("User:ANONYMOUS", "*", operation, ACLPermissionType.ALLOW, pattern)
        for operation in (ACLOperation.DESCRIBE, ACLOperation.WRITE)
    ]
    with KafkaAdminClient(
        bootstrap_servers=base.settings.log_url.removeprefix("kafka://")
    ) as admin:
        admin.create_acls(rules)
        ingest = make_ingest(base)

        def working(true) -> None:
            eventually(lambda: ingest.step(wait_s=0.1) >= 0 and true(), wait_s=100)

        try:
            send(base, refused, "a")
            working(ingest._partitions.reader.halted)
            assert {tp: halt.kind for tp, halt in ingest._partitions.reader.halted().items()} == {
                (refused, 0): "unauthorized"
            }
            send(base, other, "b")
            working(lambda: base.log.committed(Group.INGEST, [(other, 0)]) == {(other, 0): 1})
            admin.create_acls(
                [ACL("User:ANONYMOUS", "*", ACLOperation.READ, ACLPermissionType.ALLOW, pattern)]
            )
            working(lambda: base.log.committed(Group.INGEST, [(refused, 0)]) == {(refused, 0): 1})
            working(lambda: not ingest._partitions.reader.halted())
        finally:
            ingest.stop()


def test_positions_that_expire_at_the_broker_are_taken_from_the_catalog(base: Resources) -> None:
    topic = make_tenant(base)
    tp, name = (topic, 0), topic.removeprefix("vicinage.docs.")
    send(base, topic, "a", "b")
    ingest = make_ingest(base)
    eventually(
        lambda: (
            ingest.step(wait_s=0.1) >= 0
            and [s.position for s in base.registry.positions.of(name)] == [2]
        ),
        wait_s=60,
    )
    ingest.stop()
    end = time.monotonic() + 180
    while base.log.committed(Group.INGEST, [tp]) and time.monotonic() < end:
        time.sleep(1)
    assert base.log.committed(Group.INGEST, [tp]) == {}, "the broker has forgotten it"
    base.registry.refresh()
    assert ingested(base.log, base.registry, [tp]) == {tp: 2}
    [generation] = base.registry.collection(name, "docs").generations
    rows = base.log.end("vicinage.vectors", generation.slots[0])
    ingest = make_ingest(base)
    eventually(
        lambda: ingest.step(wait_s=0.1) >= 0 and base.log.committed(Group.INGEST, [tp]) == {tp: 2},
        wait_s=60,
    )
    ingest.stop()
    assert base.log.end("vicinage.vectors", generation.slots[0]) == rows, (
        "nothing is ingested twice"
    )
