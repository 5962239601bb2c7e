"""Guarantee 7 in parsing: records that take long to parse take their own tenant's turns.

The tests check order, not time.
"""

import json
import threading
import time

from resources import eventually, running

from ingest import dead_letters
from ingest.jobs import PARSED_BYTES, jobs_of
from ingest.parsing import HEAVY_S, LIGHT_BYTES, Parsing, bytes_of
from ingest.workers import Workers
from tenants import provisioning
from tenants.entities import Group, Tenant
from vicinage.log import LogRecord, Record, TopicPartition
from vicinage.records import Document
from vicinage.wire import ARROW, encode_documents

POISON = (
    b'{"collection":"docs","id":"a","vector":[1],"metadata":{"a":['
    + b",".join([b"[]"] * 200_000)
    + b"]}}"
)
"""A record that takes most of a second to parse, and is refused."""


def make(base, name: str) -> Tenant:
    tenant = provisioning.create_tenant(base.registry, base.log, name, actor="test")
    provisioning.create_collection(
        base.registry, base.log, name, "docs", dimension=1, slots_total=8, actor="test"
    )
    return tenant


def committed(base, tenant: Tenant) -> int:
    tp = (tenant.documents_topic, 0)
    return base.log.committed(Group.INGEST, [tp]).get(tp, 0)


def test_records_that_take_long_to_parse_delay_their_own_tenant_alone(base) -> None:
    bad, well = make(base, "bad"), make(base, "well")
    n = 8
    with running(base, indexing=False):
        base.log.append(bad.documents_topic, 0, [Record(POISON) for _ in range(n)])
        eventually(lambda: committed(base, bad) >= 1)
        document = json.dumps({"collection": "docs", "id": "a", "vector": [1]}).encode()
        base.log.append(well.documents_topic, 0, [Record(document)])
        eventually(lambda: committed(base, well) == 1)
        assert committed(base, bad) < n, "the neighbor's document did not wait for them"
        eventually(lambda: committed(base, bad) == n, wait_s=60)
    letters = dead_letters.read(base.log, bad)
    assert [letter["offset"] for letter in letters] == list(range(n))


def test_large_batches_are_written_completely_and_in_order(base) -> None:
    tenant = make(base, "acme")
    values = [
        json.dumps({"collection": "docs", "id": f"d{i}", "vector": [1 + i]}).encode()
        for i in range(3_000)
    ]
    with running(base, indexing=False):
        base.log.append(tenant.documents_topic, 0, [Record(v) for v in values])
        eventually(lambda: committed(base, tenant) == 3_000)
    assert dead_letters.read(base.log, tenant) == []


def test_a_jobs_bytes_are_bounded(base) -> None:
    tenant = make(base, "acme")
    tp = (tenant.documents_topic, 0)
    record = Record(
        b'{"collection":"docs","id":"a","vector":[1],"metadata":{"a":"' + b"x" * 10_000 + b'"}}'
    )
    records = [LogRecord(*tp, i, record) for i in range(250)]
    jobs = list(jobs_of(tenant, tp, records, base.registry, base.settings.ingest, read_after=0.0))
    assert [job.end for job in jobs] == [
        *(min(250, (i + 1) * jobs[0].end) for i in range(len(jobs)))
    ]
    assert jobs[0].end * 10_000 < PARSED_BYTES + 20_000


def test_a_stream_counts_as_what_it_claims_to_be_once_decompressed() -> None:
    document = Document("docs", "a", text="a" * (1 << 20))
    value = encode_documents([document], collection="docs", dimension=1)
    arrow = Record(value, headers=(("content-type", ARROW.encode()),))
    assert bytes_of([LogRecord("t", 0, 0, arrow)]) > LIGHT_BYTES
    assert bytes_of([LogRecord("t", 0, i, Record(b"{}", b"k")) for i in range(10)]) == 30


def test_a_turn_is_charged_with_its_duration() -> None:
    """A tenant whose turns take 20 times as long gets about a twentieth of them."""
    turns: list[str] = []
    ended = threading.Event()

    def turn(tp: TopicPartition) -> bool:
        turns.append(tp[0])
        time.sleep(0.02 if tp[0] == "slow" else 0.001)
        if turns.count("quick") >= 100:
            ended.set()
        return not ended.is_set()

    workers = Workers("test")
    parsing = Parsing(turn, workers)
    for partition in range(10):
        parsing.put(("slow", partition), Tenant("slow"))
        parsing.put(("quick", partition), Tenant("quick"))
    assert ended.wait(30)
    parsing.stop()
    workers.join(5)
    assert turns.count("slow") <= 40, "an equal share of turns would be a hundred"


def test_a_tenant_whose_records_took_long_is_not_parsed_by_the_thread_that_reads() -> None:
    parsing = Parsing(lambda _tp: False, Workers("test"))
    record = [LogRecord("t", 0, 0, Record(b"{}"))]
    assert parsing.is_light("acme", record)
    parsing.took("acme", HEAVY_S * 2)
    assert not parsing.is_light("acme", record)
    assert parsing.is_light("other", record)
    assert not parsing.is_light("other", [LogRecord("t", 0, 0, Record(b"x" * (LIGHT_BYTES + 1)))])
