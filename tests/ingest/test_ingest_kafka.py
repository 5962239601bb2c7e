"""Ingest from a real Kafka with a data team's producer that uses transactions."""

import time
import uuid
from pathlib import Path

import orjson
import pytest
from resources import eventually, make_ingest, settings
from servers import NoUtf8

from cluster.wiring import open_resources
from ingest import dead_letters
from tenants import provisioning, resuming
from tenants.entities import Group
from tenants.ingested import ingested
from vicinage.log import Record
from vicinage.partition_maps import unpack_version
from vicinage.records import Position
from vicinage.routing import document_key, home_of
from vicinage.wire import decode_rows


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_ingest_reads_committed_transactions_and_reaches_the_end_after_aborted_ones(
    tmp_path: Path, kafka_servers: str
) -> None:
    from kafka import KafkaProducer

    base = open_resources(
        settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{kafka_servers}"})
    )
    name = f"team-{uuid.uuid4().hex[:8]}"
    tenant = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(
        base.registry, base.log, name, "docs", dimension=3, slots_total=8, actor="test"
    )
    topic = tenant.documents_topic
    producer = KafkaProducer(bootstrap_servers=kafka_servers, transactional_id=name)
    producer.init_transactions()
    for document_id, end in (
        ("kept", producer.commit_transaction),
        ("undone", producer.abort_transaction),
    ):
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
            s
            for s in base.log.read("vicinage.vectors", slot, generation.starts[0])
            if name.encode() in s.record.key
        ]
        assert len(ours) == 1, "aborted records are not read"
    finally:
        ingest.stop()
        base.close()


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_a_record_that_cannot_be_decoded_is_a_dead_letter_and_the_next_is_ingested(
    tmp_path: Path, kafka_servers: str
) -> None:
    from kafka import KafkaProducer

    base = open_resources(
        settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{kafka_servers}"})
    )
    name = f"team-{uuid.uuid4().hex[:8]}"
    tenant = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(
        base.registry, base.log, name, "docs", dimension=3, slots_total=8, actor="test"
    )
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
        ingest.stop()
        base.close()


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_a_real_producers_key_that_moves_when_partitions_are_added_keeps_its_order(
    tmp_path: Path, kafka_servers: str
) -> None:
    from kafka import KafkaProducer

    base = open_resources(
        settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{kafka_servers}"})
    )
    name = f"team-{uuid.uuid4().hex[:8]}"
    tenant = provisioning.create_tenant(base.registry, base.log, name, partitions=2, actor="test")
    provisioning.create_collection(
        base.registry, base.log, name, "docs", dimension=3, slots_total=8, actor="test"
    )
    topic, ids = tenant.documents_topic, [f"d{i}" for i in range(30)]
    moving = {i for i in ids if home_of("docs", i, 2) != home_of("docs", i, 5)}
    assert moving and moving != set(ids)
    ingest = make_ingest(base)

    def reached(positions: dict[int, int]) -> bool:
        ingest.step(wait_s=0.1)
        tps = {(topic, p): at for p, at in positions.items()}
        return base.log.committed(Group.INGEST, list(tps)) == tps

    def ends(n: int) -> dict[int, int]:
        return {p: end for p in range(n) if (end := base.log.end(topic, p))}

    with KafkaProducer(bootstrap_servers=kafka_servers, metadata_max_age_ms=500) as producer:

        def send(text: str) -> None:
            for i in ids:
                value = orjson.dumps(
                    {"collection": "docs", "id": i, "text": text, "vector": [1, 0, 0]}
                )
                producer.send(topic, key=document_key("docs", i), value=value).get(timeout=30)

        try:
            for round_ in range(4):
                send(f"before {round_}")
            eventually(lambda: reached(ends(2)), wait_s=40)
            base.log.add_partitions(topic, 5)
            until = time.monotonic() + 20
            while len(producer.partitions_for(topic)) < 5 and time.monotonic() < until:
                time.sleep(0.2)
            send("after")
            for i in sorted(moving)[:2]:
                producer.send(topic, key=document_key("docs", i), value=None).get(timeout=30)
            assert len(ends(5)) == 5, "some keys have moved to new partitions"
            eventually(lambda: reached(ends(5)), wait_s=40)
            [generation] = base.registry.collection(name, "docs").generations
            newest: dict[str, tuple[int, str | None]] = {}
            for stored in base.log.read(
                "vicinage.vectors", generation.slots[0], generation.starts[0]
            ):
                for row in (
                    decode_rows(stored.record.value).batch.to_pylist()
                    if name.encode() in stored.record.key
                    else ()
                ):
                    known = newest.get(row["document_id"], (-1, None))
                    newest[row["document_id"]] = max(
                        known, (row["version"], row["text"]), key=lambda v: v[0]
                    )
            standing = {i: text for i, (_, text) in newest.items() if text is not None}
            assert standing == dict.fromkeys(set(ids) - set(sorted(moving)[:2]), "after")
            assert dead_letters.read(base.log, tenant) == []
            base.registry.refresh()
            assert [m.partitions for m in base.registry.partition_maps(name)] == [2, 5]
        finally:
            ingest.stop()
            base.close()


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_expired_offsets_and_a_recreated_topic_lose_nothing(
    tmp_path: Path, kafka_servers: str
) -> None:
    from kafka import KafkaAdminClient
    from kafka import TopicPartition as Tp

    base = open_resources(
        settings(tmp_path / "data").model_copy(update={"log_url": f"kafka://{kafka_servers}"})
    )
    name = f"team-{uuid.uuid4().hex[:8]}"
    tenant = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(
        base.registry, base.log, name, "docs", dimension=3, slots_total=8, actor="test"
    )
    tp = (tenant.documents_topic, 0)

    def send(*ids: str) -> None:
        values = [orjson.dumps({"collection": "docs", "id": i, "vector": [1, 0, 0]}) for i in ids]
        base.log.append(*tp, [Record(value) for value in values])

    def written() -> list[tuple[str, int]]:
        [generation] = base.registry.collection(name, "docs").generations
        read = base.log.read("vicinage.vectors", generation.slots[0], generation.starts[0])
        batches = [decode_rows(s.record.value).batch for s in read if name.encode() in s.record.key]
        return [
            (row["document_id"], row["version"]) for batch in batches for row in batch.to_pylist()
        ]

    def saved() -> list[tuple[str, str | None, int]]:
        return [(s.state, s.kind, s.position) for s in base.registry.positions.of(name)]

    def working(true) -> None:
        def step() -> bool:
            ingest.step(wait_s=0.1)
            return bool(true())

        eventually(step, wait_s=40)

    ingest = make_ingest(base)
    try:
        send("a", "b")
        working(lambda: saved() == [("reading", None, 2)])
        ingest.drain()
        with KafkaAdminClient(bootstrap_servers=kafka_servers) as admin:
            admin.delete_group_offsets(Group.INGEST, [Tp(*tp)])
        assert base.log.committed(Group.INGEST, [tp]) == {}
        assert ingested(base.log, base.registry, [tp]) == {tp: 2}, (
            "a wait for an old token is answered"
        )
        ingest._positions._recommit_s = 0.0
        working(lambda: base.log.committed(Group.INGEST, [tp]) == {tp: 2})
        with KafkaAdminClient(bootstrap_servers=kafka_servers) as admin:
            admin.delete_group_offsets(Group.INGEST, [Tp(*tp)])
        ingest.stop()
        ingest = make_ingest(base)
        working(lambda: base.log.committed(Group.INGEST, [tp]) == {tp: 2})
        assert len(written()) == 2, "nothing is ingested twice"
        base.log.delete_topic(tp[0])
        base.log.ensure_topic(tp[0])
        send("b", "c", "d")
        working(lambda: saved() == [("halted", "topic_replaced", 2)])
        resuming.apply(base.log, base.registry, tenant, actor="test")
        working(lambda: saved() == [("reading", None, 3)])
        newest: dict[str, int] = {}
        for document_id, version in written():
            newest[document_id] = max(newest.get(document_id, -1), version)
        assert {i: unpack_version(v) for i, v in newest.items()} == {
            "a": (0, Position(0, 0)),
            "b": (1, Position(0, 0)),
            "c": (1, Position(0, 1)),
            "d": (1, Position(0, 2)),
        }
    finally:
        ingest.stop()
        base.close()
