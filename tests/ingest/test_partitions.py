"""One document over several partitions and writers: its newest write wins."""

import json

import pytest
from resources import make_ingest
from stepping import stepping

from ingest import intake
from ingest.documents import parse_json
from ingest.validation import DocumentLimits
from tenants import provisioning
from tenants.entities import Group, Tenant
from vicinage.log import Record
from vicinage.routing import document_key, home_of
from vicinage.wire import decode_rows

IDS = [f"d{i}" for i in range(40)]
N = 4


@pytest.fixture
def acme(base) -> Tenant:
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", partitions=N, actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", slots_total=8, actor="test"
    )
    return tenant


def post(base, tenant: Tenant, text: str) -> None:
    """Writes as the gateway does."""
    collection = base.registry.collection(tenant.name, "docs")
    rules = DocumentLimits.of(collection, base.settings.ingest)
    entries = [parse_json({"id": i, "text": text}, rules, tenant=tenant.name) for i in IDS]
    intake.accept(base.log, tenant, collection, entries, now_ms=1)


def produce(base, tenant: Tenant, text: str | None, n: int = N) -> None:
    """Writes as a data team's producer with Kafka's default partitioner does."""
    for i in IDS:
        value = (
            None
            if text is None
            else json.dumps({"collection": "docs", "id": i, "text": text}).encode()
        )
        partition = home_of("docs", i, n)
        base.log.append(tenant.documents_topic, partition, [Record(value, document_key("docs", i))])


def ingested(base, tenant: Tenant) -> None:
    ingest = make_ingest(base)
    tps = [(tenant.documents_topic, p) for p in range(base.log.topics()[tenant.documents_topic])]
    stepping(
        ingest,
        lambda: base.log.committed(Group.INGEST, tps) == {tp: base.log.end(*tp) for tp in tps},
    )
    ingest.stop()


def standing(base) -> dict[str, str]:
    """Returns document → text by versions alone, without deleted documents."""
    newest: dict[str, tuple[int, str | None]] = {}
    for slot in range(8):
        for stored in base.log.read("vicinage.vectors", slot, 0, bytes_max=1 << 30):
            for row in decode_rows(stored.record.value).batch.to_pylist():
                newest[row["document_id"]] = max(
                    newest.get(row["document_id"], (-1, None)), (row["version"], row["text"])
                )
    return {i: text for i, (_, text) in newest.items() if text is not None}


def test_writes_over_http_and_by_a_producer_are_ordered_by_arrival(base, acme) -> None:
    for written in ("one", "two", "three"):
        post(base, acme, f"http {written}")
        produce(base, acme, f"kafka {written}")
    ingested(base, acme)
    assert standing(base) == dict.fromkeys(IDS, "kafka three")
    post(base, acme, "http four")
    ingested(base, acme)
    assert standing(base) == dict.fromkeys(IDS, "http four")


def test_deletions_over_http_and_kafka_apply_to_each_others_writes(base, acme) -> None:
    produce(base, acme, "kafka")
    intake.delete(base.log, acme, base.registry.collection("acme", "docs"), IDS, now_ms=1)
    ingested(base, acme)
    assert standing(base) == {}
    post(base, acme, "http")
    produce(base, acme, None)
    ingested(base, acme)
    assert standing(base) == {}
