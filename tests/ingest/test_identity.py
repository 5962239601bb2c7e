"""A recreated collection never receives records that were written to the earlier one."""

import json

import pytest
from resources import make_ingest

from ingest import dead_letters, intake
from ingest.documents import parse_json
from ingest.validation import DocumentLimits
from tenants import provisioning
from tenants.entities import Collection, Group, Tenant
from vicinage.log import Record
from vicinage.wire import decode_rows

DOCS = "vicinage.docs.acme"


def create(base) -> Collection:
    return provisioning.create_collection(
        base.registry, base.log, "acme", "docs", dimension=3, slots_total=8, actor="test"
    )


@pytest.fixture
def acme(base) -> Tenant:
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    create(base)
    return tenant


def create_again(base) -> Collection:
    base.registry.delete_collection("acme", "docs", actor="test")
    return create(base)


def post(base, tenant: Tenant, collection: Collection, *ids: str) -> None:
    rules = DocumentLimits.of(collection, base.settings.ingest)
    entries = [parse_json({"id": i, "vector": [1, 0, 0]}, rules, tenant="acme") for i in ids]
    assert intake.accept(base.log, tenant, collection, entries, now_ms=1).accepted == len(ids)


def produce(base, *ids: str) -> None:
    """Writes as a data team's own producer, which sends no header."""
    bodies = [
        json.dumps({"collection": "docs", "id": i, "vector": [1, 0, 0]}).encode() for i in ids
    ]
    base.log.append(DOCS, 0, [Record(body) for body in bodies])


def work(base) -> None:
    ingest = make_ingest(base)
    while ingest.step(0.1):
        ingest.drain()
    ingest.drain()


def rows(base) -> list[tuple[str, int]]:
    """Returns (ID, passage) of every row of the collection's live generation."""
    live = base.registry.collection("acme", "docs").generation()
    found = []
    for slot in range(8):
        for stored in base.log.read("vicinage.vectors", slot, 0, bytes_max=1 << 30):
            message = decode_rows(stored.record.value)
            if message.generation == live.number:
                found.extend((r["document_id"], r["passage"]) for r in message.batch.to_pylist())
    return sorted(found)


def test_a_collection_created_again_receives_only_what_was_written_to_it(base, acme) -> None:
    old = base.registry.collection("acme", "docs")
    post(base, acme, old, *(f"posted-{i}" for i in range(20)))
    produce(base, *(f"produced-{i}" for i in range(20)))
    new = create_again(base)
    post(base, acme, new, "a")
    produce(base, "b")
    post(base, acme, old, "late")  # by a gateway that has not seen the deletion
    work(base)
    assert rows(base) == [("a", 0), ("b", 0)]
    letters = dead_letters.read(base.log, acme)
    assert sum(letter["n_rejected"] for letter in letters) == 22, (
        "one record of 20 posted, 20 produced, one late"
    )
    reasons = {letter["reason"] for letter in letters}
    assert len(reasons) == 2
    assert all(
        "earlier collection of this name" in r or "before this collection was created" in r
        for r in reasons
    )
    assert {letter["collection"] for letter in letters} == {"docs"}


def test_deletions_written_to_an_earlier_collection_have_no_effect(base, acme) -> None:
    old = base.registry.collection("acme", "docs")
    base.log.append(DOCS, 0, [Record(None, b"docs/a")])
    new = create_again(base)
    post(base, acme, new, "a", "b", "c")
    intake.delete(base.log, acme, old, ["a"], now_ms=1)
    intake.delete(base.log, acme, new, ["b"], now_ms=1)
    base.log.append(DOCS, 0, [Record(None, b"docs/c")])
    work(base)
    assert rows(base) == [("a", 0), ("b", -1), ("c", -1)]
    assert dead_letters.read(base.log, acme) == []
    assert base.log.committed(Group.INGEST, [(DOCS, 0)]) == {(DOCS, 0): base.log.end(DOCS, 0)}


def test_a_record_is_compared_with_the_offsets_of_its_own_partition(base) -> None:
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", partitions=2, actor="test")
    create(base)
    base.log.append(
        DOCS,
        1,
        [Record(json.dumps({"collection": "docs", "id": "old", "vector": [1, 0, 0]}).encode())],
    )
    assert create_again(base).first_offsets == (0, 1)
    for partition, name in enumerate(("x", "y")):
        body = json.dumps({"collection": "docs", "id": name, "vector": [1, 0, 0]}).encode()
        base.log.append(DOCS, partition, [Record(body)])
    work(base)
    assert rows(base) == [("x", 0), ("y", 0)]
    assert len(dead_letters.read(base.log, tenant)) == 1
