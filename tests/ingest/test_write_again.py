"""A tenant whose writes fail waits alone: others continue, and no row is lost or reordered."""

import json

from resources import eventually, make_ingest

from cluster.wiring import Resources
from ingest import dead_letters
from tenants import provisioning
from tenants.entities import Group, Tenant
from vicinage.errors import Unavailable
from vicinage.log import Record
from vicinage.routing import document_key


def tenant(base: Resources, name: str) -> Tenant:
    made = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(
        base.registry, base.log, name, "docs", dimension=2, slots_total=8, actor="test"
    )
    return made


def write(base: Resources, to: Tenant, name: str, vector: object) -> int:
    body = json.dumps({"collection": "docs", "id": name, "vector": vector}).encode()
    [offset] = base.log.append(to.documents_topic, 0, [Record(body, document_key("docs", name))])
    return offset


def reached(base: Resources, of: Tenant) -> int:
    tp = (of.documents_topic, 0)
    return base.log.committed(Group.INGEST, [tp]).get(tp, 0)


def test_a_tenant_whose_dead_letters_cannot_be_written_waits_alone_and_recovers(
    base: Resources, monkeypatch
) -> None:
    bad, good = tenant(base, "bad"), tenant(base, "good")
    away, append, tried = True, base.log.append, []

    def appends(topic: str, partition: int, records):
        if away and topic == bad.dead_topic:
            tried.append(topic)
            raise Unavailable("the topic takes no records", dependency="log")
        return append(topic, partition, records)

    monkeypatch.setattr(base.log, "append", appends)
    ingest = make_ingest(base)
    last = 0
    for name, vector in (("a", "no vector"), ("b", [1, 0])):
        last = write(base, bad, name, vector)
    eventually(lambda: ingest.step() is not None and len(tried) > 1)
    there = write(base, good, "x", [1, 0])
    eventually(lambda: ingest.step() is not None and reached(base, good) > there)
    assert reached(base, bad) == 0, "effects before positions"
    away = False
    eventually(lambda: ingest.step() is not None and reached(base, bad) > last)
    assert len(dead_letters.read(base.log, bad, limit=10)) == 1
    ingest.stop()


def test_a_failed_commit_is_repeated(base: Resources, monkeypatch) -> None:
    of, commit, failures = tenant(base, "acme"), base.log.commit, [1, 1]

    def commits(group, positions):
        if failures:
            failures.pop()
            raise Unavailable("no coordinator", dependency="log")
        commit(group, positions)

    monkeypatch.setattr(base.log, "commit", commits)
    ingest = make_ingest(base)
    last = write(base, of, "a", [1, 0])
    eventually(lambda: ingest.step() is not None and reached(base, of) > last)
    assert failures == []
    ingest.stop()
