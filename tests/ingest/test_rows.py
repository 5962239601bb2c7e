"""Rows of ingest fit into a broker's message; metadata is written once for each document."""

import json
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from resources import eventually, make_ingest

from ingest import dead_letters, intake
from ingest.columns import parse_arrow
from ingest.documents import parse_json
from ingest.embed import Embedded
from ingest.jobs import Job, Write
from ingest.rows import messages
from ingest.validation import DocumentLimits
from tenants import provisioning
from tenants.entities import Collection, Generation, Group, Objectives, Tenant
from tenants.provisioning import VECTORS_TOPIC
from vicinage.log import LogRecord, Record, open_log
from vicinage.log.kafka import MESSAGE_BYTES_MAX as BROKER_BYTES_MAX
from vicinage.records import Document, Passage, Rejected
from vicinage.wire import MESSAGE_BYTES_MAX, decode_documents, decode_rows, encode_documents

DOCS = "vicinage.docs.acme"
LARGE = {"k": "x" * 16_000}
WIDE = 2_048


@pytest.fixture
def acme(base) -> Tenant:
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", slots_total=8, actor="test"
    )
    provisioning.create_collection(
        base.registry, base.log, "acme", "wide", dimension=WIDE, slots_total=8, actor="test"
    )
    return tenant


def send(base, *documents: dict[str, Any]) -> None:
    base.log.append(DOCS, 0, [Record(json.dumps(d).encode()) for d in documents])


def work(base) -> None:
    ingest = make_ingest(base)
    while ingest.step(0.1):
        ingest.drain()


def values(base, topic: str = "vicinage.vectors", partitions: int = 8) -> list[bytes]:
    return [
        stored.record.value
        for slot in range(partitions)
        for stored in base.log.read(topic, slot, 0, bytes_max=1 << 30)
    ]


def rules(base, name: str, tenant: str = "acme") -> DocumentLimits:
    return DocumentLimits.of(base.registry.collection(tenant, name), base.settings.ingest)


def vectors(n: int, dimension: int = WIDE) -> np.ndarray:
    return np.eye(1, dimension, dtype=np.float32).repeat(n, axis=0)


def test_metadata_is_written_with_the_first_passage_alone(base, acme) -> None:
    text = " ".join(f"w{i}" for i in range(120))
    send(
        base,
        {"collection": "docs", "id": "a", "text": text, "metadata": {"k": 1}},
        {"collection": "docs", "id": "b", "text": "x"},
    )
    work(base)
    found = [r for v in values(base) for r in decode_rows(v).batch.to_pylist()]
    assert sorted((r["document_id"], r["passage"], r["metadata"]) for r in found) == [
        ("a", 0, '{"k":1}'), ("a", 1, None), ("a", 2, None), ("b", 0, None),
    ]  # fmt: skip


def test_vectors_of_a_model_without_normalization_are_normalized_beside_given_vectors(
    acme,
) -> None:
    live = Generation("acme", "docs", 1, "live", None, 3, "cosine", "flat", (0,), (0,))
    generations = (live, replace(live, number=2, state="building", model="raw"))
    moving = Collection("acme", "docs", "active", 1, generations, Objectives())
    given = Document("docs", "a", text="x", vectors=np.array([[1, 0, 0]], np.float32))
    write = Write(moving, "a", 1, 0, given, LogRecord(DOCS, 0, 0, Record(b"")))
    made = {
        model: Embedded(
            passages={(id(write), model): [Passage("x", 0, 1)]}, vectors={(id(write), model): of}
        )
        for model, of in ((None, given.vectors), ("raw", np.array([[0, 3, 4]], np.float32)))
    }
    found = [
        decode_rows(r.value) for _, r in messages(Job(acme, (DOCS, 0), 0, writes=[write]), made)
    ]
    vectors = {rows.generation: rows.batch.column("vector").to_pylist() for rows in found}
    assert vectors == {1: [[1, 0, 0]], 2: [pytest.approx([0, 0.6, 0.8])]}


def test_many_documents_of_large_metadata_are_messages_that_a_broker_takes(base, acme) -> None:
    send(
        base,
        *(
            {"collection": "docs", "id": f"{i}" * 100, "text": "x", "metadata": LARGE}
            for i in range(600)
        ),
    )
    work(base)
    found = values(base)
    assert sum(decode_rows(v).batch.num_rows for v in found) == 600
    assert max(map(len, found)) < 4 << 20


def test_many_deletions_of_wide_vectors_fit_into_messages_too(base, acme) -> None:
    base.log.append(DOCS, 0, [Record(None, key=f"wide/{i}".encode()) for i in range(512)])
    work(base)
    found = values(base)
    assert sum(decode_rows(v).batch.num_rows for v in found) == 512
    assert sum(map(len, found)) < 512 * 200  # no vectors: those of 2,048 numbers would take 4 MiB


def test_a_document_and_its_deletion_in_one_batch_keep_their_order(base, acme) -> None:
    records = [
        Record(json.dumps({"collection": "docs", "id": i, "text": "x"}).encode()) for i in "ab"
    ]
    gone = [Record(None, key=f"docs/{i}".encode()) for i in "ac"]
    base.log.append(DOCS, 0, [*records, *gone])
    work(base)
    rows = [r for v in values(base) for r in decode_rows(v).batch.to_pylist()]
    assert sorted((r["document_id"], r["passage"]) for r in rows) == [
        ("a", -1),
        ("b", 0),
        ("c", -1),
    ]


def test_a_text_of_more_than_a_message_is_a_dead_letter_once_it_is_chunked(base, acme) -> None:
    small = base.settings.ingest.model_copy(update={"text_bytes_max": 8 << 20})
    base = replace(base, settings=base.settings.model_copy(update={"ingest": small}))
    long = "a b " * 200_000  # 8,000 passages of 50 words, 384 numbers each
    send(
        base,
        {"collection": "docs", "id": "long", "text": long},
        {"collection": "docs", "id": "short", "text": "x"},
    )
    work(base)
    assert [r["document_id"] for v in values(base) for r in decode_rows(v).batch.to_pylist()] == [
        "short"
    ]
    [letter] = dead_letters.read(base.log, acme)
    assert (letter["id"], letter["field"]) == ("long", "text")
    assert str(MESSAGE_BYTES_MAX) in letter["reason"]
    assert base.log.committed(Group.INGEST, [(DOCS, 0)]) == {(DOCS, 0): 2}


@pytest.mark.parametrize("n", [1_400, 2_000])
def test_vectors_of_more_than_a_message_are_refused_by_the_gateway(base, acme, n) -> None:
    given = {"id": "a", "passages": ["x"] * n, "vectors": vectors(n).tolist(), "metadata": LARGE}
    found = parse_json(given, rules(base, "wide"), tenant="acme")
    stream = encode_documents(
        [Document("wide", "a", passages=("x",) * n, vectors=vectors(n), metadata=LARGE)],
        collection="wide", dimension=WIDE,
    )  # fmt: skip
    [arrow] = parse_arrow(decode_documents(stream)[1], rules(base, "wide"))
    for entry in (found, arrow):
        assert isinstance(entry, Rejected if n == 2_000 else Document)
        if isinstance(entry, Rejected):
            assert entry.field == "vectors"
            assert str(MESSAGE_BYTES_MAX) in entry.reason


def test_passages_too_many_for_their_vectors_are_refused_before_they_are_embedded(
    base, acme
) -> None:
    found = parse_json({"id": "a", "passages": ["x"] * 9_000}, rules(base, "docs"), tenant="acme")
    assert isinstance(found, Rejected)
    assert found.field == "passages"


def largest(base, tenant: str = "acme") -> list[Document]:
    """Returns documents of every kind, as large as the limits allow."""
    n = 1_350
    given = [
        {
            "id": f"{i}" * 500,
            "passages": ["x" * 500] * n,
            "vectors": vectors(n).tolist(),
            "metadata": LARGE,
        }
        for i in range(2)
    ]
    given += [
        {"id": f"v{i}", "vector": vectors(1)[0].tolist(), "metadata": LARGE} for i in range(600)
    ]
    entries = [parse_json(g, rules(base, "wide", tenant), tenant=tenant) for g in given]
    assert all(isinstance(e, Document) for e in entries), next(
        e for e in entries if isinstance(e, Rejected)
    )
    return [e for e in entries if isinstance(e, Document)]


def test_posted_documents_are_records_that_a_broker_takes(base, acme) -> None:
    documents = largest(base)
    intake.accept(base.log, acme, base.registry.collection("acme", "wide"), documents, now_ms=1)
    records = values(base, DOCS, 1)
    assert max(map(len, records)) < BROKER_BYTES_MAX
    assert sorted(map(len, records))[-3] < 3 << 20, (
        "only a single document may exceed the target size of a record"
    )
    work(base)
    found = values(base)
    assert max(map(len, found)) < BROKER_BYTES_MAX
    assert sum(decode_rows(v).batch.num_rows for v in found) == 2 * 1_350 + 600
    assert dead_letters.read(base.log, acme) == []


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_a_real_broker_accepts_the_largest(base, kafka_servers) -> None:
    with open_log(f"kafka://{kafka_servers}") as log:
        base = replace(base, log=log)
        log.ensure_topic(VECTORS_TOPIC, base.settings.slots)
        tenant = provisioning.create_tenant(
            base.registry, log, f"t{uuid.uuid4().hex[:8]}", actor="test"
        )
        provisioning.create_collection(
            base.registry,
            log,
            tenant.name,
            "wide",
            dimension=WIDE,
            slots_total=base.settings.slots,
            actor="test",
        )
        documents = largest(base, tenant.name)
        collection = base.registry.collection(tenant.name, "wide")
        intake.accept(log, tenant, collection, documents, now_ms=1)
        tp = (tenant.documents_topic, 0)
        ingest = make_ingest(base)
        eventually(
            lambda: (
                ingest.step(0.2) < 0 or log.committed(Group.INGEST, [tp]).get(tp) == log.end(*tp)
            ),
            wait_s=60,
        )
        assert dead_letters.read(log, tenant) == []
