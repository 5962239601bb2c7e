"""One letter a record, bounded whatever was sent."""

import base64

import pyarrow as pa
import pytest
from house import make_ingest

from ingest import dead_letters, replay
from ingest.dead_letters import LETTER_BYTES_MAX, READ_BYTES_MAX, REJECTED_MAX
from tenants import provisioning
from tenants.entities import Tenant
from vicinage.log import Record, Stored
from vicinage.records import Rejected
from vicinage.wire import ARROW

DOCS = "vicinage.docs.acme"


@pytest.fixture
def acme(base) -> Tenant:
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    provisioning.create_collection(base.registry, base.log, "acme", "docs", slots_total=8, actor="test")
    return tenant


def stream(ids: list[str], texts: list[str]) -> bytes:
    batch = pa.record_batch({"id": ids, "text": texts}).replace_schema_metadata({"collection": "docs"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def letters_bytes(base, acme: Tenant) -> list[int]:
    return [len(s.record.value) for s in base.log.read(acme.dead_topic, 0, 0, bytes_max=1 << 30)]


def test_a_record_of_many_bad_documents_is_one_letter(base, acme) -> None:
    value = stream([f"document-number-{i}-of-this-record" for i in range(10_000)], [" "] * 10_000)
    base.log.append(DOCS, 0, [Record(value, headers=(("content-type", ARROW.encode()),)), Record(b"{")])
    ingest = make_ingest(base)
    while ingest.step(0.1):
        ingest.drain()
    first, second = dead_letters.read(base.log, acme)
    assert (first["id"], first["field"], first["reason"], first["collection"]) == (
        "document-number-0-of-this-record", "text", "text: is empty", "docs",
    )  # fmt: skip
    assert (first["n_rejected"], len(first["rejected"])) == (10_000, REJECTED_MAX)
    assert first["rejected"][99] == {
        "id": "document-number-99-of-this-record", "field": "text", "reason": "text: is empty",
    }  # fmt: skip
    assert value.startswith(base64.b64decode(first["value_base64"]))
    assert (second["offset"], second["n_rejected"], second["field"]) == (1, 1, "value")
    assert max(letters_bytes(base, acme)) < LETTER_BYTES_MAX


def test_a_letter_is_bounded_whatever_was_sent(base, acme) -> None:
    worst = "\x01" * 100_000
    record = Record(b"\xff" * (10 << 20), key=b"\xff" * (1 << 20))
    bad = [Rejected(worst, worst, worst, "docs")] * 10_000
    dead_letters.append(base.log, acme, [(Stored(DOCS, 0, i, record), one) for i in range(12) for one in bad])
    assert len(letters_bytes(base, acme)) == 12
    assert max(letters_bytes(base, acme)) < LETTER_BYTES_MAX


def test_letters_are_given_as_far_as_they_fit_into_one_answer(base, acme) -> None:
    record = Record(b"x" * (1 << 20))
    dead_letters.append(base.log, acme, [(Stored(DOCS, 0, i, record), Rejected("r")) for i in range(20)])
    first = dead_letters.read(base.log, acme)
    assert sum(len(w["value_base64"]) for w in first) < READ_BYTES_MAX + LETTER_BYTES_MAX
    found = [w["offset"] for w in first]
    while more := dead_letters.read(base.log, acme, after=len(found) - 1):
        found += [w["offset"] for w in more]
    assert found == list(range(20))


def test_a_replay_is_bounded_and_continues_where_it_stopped(base, acme, monkeypatch) -> None:
    monkeypatch.setattr(replay, "AT_ONCE_MAX", 3)
    bad = Rejected("no JSON", collection="docs")
    originals = [Record(b"{}", b"docs/%d" % i) for i in range(7)]
    dead_letters.append(base.log, acme, [(Stored(DOCS, 0, i, record), bad) for i, record in enumerate(originals)])
    before = base.log.end(DOCS, 0)
    done = replay.replay(base.log, acme, 1, None, partitions=1, now_ms=1)
    assert (done.replayed, done.skipped, done.last, done.next) == (3, 0, 6, 4)
    done = replay.replay(base.log, acme, 4, 5, partitions=1, now_ms=1)
    assert (done.replayed, done.last, done.next) == (2, 5, None)
    done = replay.replay(base.log, acme, 6, None, partitions=1, now_ms=1)
    assert (done.replayed, done.last, done.next) == (1, 6, None)
    written = base.log.read(DOCS, 0, before)
    assert [s.record.key for s in written] == [b"docs/%d" % i for i in range(1, 7)]
