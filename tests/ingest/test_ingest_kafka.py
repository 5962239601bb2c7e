"""Ingest from a real Kafka, where a data team's producer works in transactions."""

import uuid
from pathlib import Path

import orjson
import pytest
from house import eventually, make_ingest, settings
from servers import NoUtf8

from cluster.wiring import ground
from ingest import dead_letters
from tenants import provisioning
from tenants.entities import Group


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_ingest_takes_what_a_transaction_committed_and_reaches_the_end_whatever_came_of_the_last(
    tmp_path: Path, kafka_servers: str
) -> None:
    from kafka import KafkaProducer

    base = ground(settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{kafka_servers}"}))
    name = f"team-{uuid.uuid4().hex[:8]}"
    tenant = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(base.registry, base.log, name, "docs", dimension=3, slots_total=8, actor="test")
    topic = tenant.documents_topic
    producer = KafkaProducer(bootstrap_servers=kafka_servers, transactional_id=name)
    producer.init_transactions()
    for document_id, end in (("kept", producer.commit_transaction), ("undone", producer.abort_transaction)):
        producer.begin_transaction()
        value = orjson.dumps({"collection": "docs", "id": document_id, "vector": [1, 0, 0]})
        producer.send(topic, value, partition=0).get(timeout=30)
        end()
    producer.close()
    ingest = make_ingest(base)

    def has_reached(end: int) -> bool:
        ingest.step(wait_s=0.1)
        return base.log.committed(Group.INGEST, [(topic, 0)]).get((topic, 0), 0) == end

    try:
        eventually(lambda: has_reached(4), wait_s=40)
        assert base.log.end(topic, 0) == 4, "two records and two markers"
        [generation] = base.registry.collection(name, "docs").generations
        [slot] = generation.slots
        ours = [
            s for s in base.log.read("vicinage.vectors", slot, generation.starts[0]) if name.encode() in s.record.key
        ]
        assert len(ours) == 1, "what was aborted never was"
    finally:
        ingest._reader.close()
        base.close()


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_a_record_that_cannot_be_decoded_is_a_dead_letter_and_the_next_goes_through(
    tmp_path: Path, kafka_servers: str
) -> None:
    from kafka import KafkaProducer

    base = ground(settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{kafka_servers}"}))
    name = f"team-{uuid.uuid4().hex[:8]}"
    tenant = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(base.registry, base.log, name, "docs", dimension=3, slots_total=8, actor="test")
    topic = tenant.documents_topic
    with KafkaProducer(bootstrap_servers=kafka_servers) as producer:
        for document_id, header in (("bad", NoUtf8("h")), ("good", "h")):
            value = orjson.dumps({"collection": "docs", "id": document_id, "vector": [1, 0, 0]})
            producer.send(topic, value, headers=[(header, b"")], partition=0).get(timeout=30)
    ingest = make_ingest(base)

    def committed() -> bool:
        ingest.step(wait_s=0.1)
        return base.log.committed(Group.INGEST, [(topic, 0)]).get((topic, 0), 0) == 2

    try:
        eventually(committed, wait_s=40)
        [letter] = dead_letters.read(base.log, tenant)
        assert (letter["offset"], letter["field"]) == (0, "headers")
        assert "UTF-8" in letter["reason"]
        [generation] = base.registry.collection(name, "docs").generations
        read = base.log.read("vicinage.vectors", generation.slots[0], generation.starts[0])
        assert len([s for s in read if name.encode() in s.record.key]) == 1
    finally:
        ingest._reader.close()
        base.close()
