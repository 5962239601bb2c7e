"""One letter for each record, bounded whatever was sent."""

import base64

import pyarrow as pa
import pytest
from resources import make_ingest

from ingest import dead_letters, replay
from ingest.dead_letters import LETTER_BYTES_MAX, READ_BYTES_MAX, REJECTED_MAX
from tenants import provisioning
from tenants.entities import Tenant
from vicinage.log import LogRecord, Record
from vicinage.records import Rejected
from vicinage.wire import ARROW

DOCS = "vicinage.docs.acme"


@pytest.fixture
def acme(base) -> Tenant:
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", slots_total=8, actor="test"
    )
    return tenant


def stream(ids: list[str], texts: list[str]) -> bytes:
    batch = pa.record_batch({"id": ids, "text": texts}).replace_schema_metadata(
        {"collection": "docs"}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def letters_bytes(base, acme: Tenant) -> list[int]:
    return [len(s.record.value) for s in base.log.read(acme.dead_topic, 0, 0, bytes_max=1 << 30)]


def test_a_record_of_many_bad_documents_is_one_letter(base, acme) -> None:
    value = stream([f"document-number-{i}-of-this-record" for i in range(10_000)], [" "] * 10_000)
    base.log.append(
        DOCS, 0, [Record(value, headers=(("content-type", ARROW.encode()),)), Record(b"{")]
    )
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
    dead_letters.append(
        base.log, acme, [(LogRecord(DOCS, 0, i, record), one) for i in range(12) for one in bad]
    )
    assert len(letters_bytes(base, acme)) == 12
    assert max(letters_bytes(base, acme)) < LETTER_BYTES_MAX


def test_letters_are_listed_as_far_as_they_fit_into_one_answer(base, acme) -> None:
    record = Record(b"x" * (1 << 20))
    dead_letters.append(
        base.log, acme, [(LogRecord(DOCS, 0, i, record), Rejected("r")) for i in range(20)]
    )
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
    dead_letters.append(
        base.log, acme, [(LogRecord(DOCS, 0, i, record), bad) for i, record in enumerate(originals)]
    )
    before = base.log.end(DOCS, 0)
    done = replay.replay(base.log, acme, 1, None, partitions=1, now_ms=1)
    assert (done.replayed, done.skipped, done.last, done.next) == (3, 0, 6, 4)
    done = replay.replay(base.log, acme, 4, 5, partitions=1, now_ms=1)
    assert (done.replayed, done.last, done.next) == (2, 5, None)
    done = replay.replay(base.log, acme, 6, None, partitions=1, now_ms=1)
    assert (done.replayed, done.last, done.next) == (1, 6, None)
    written = base.log.read(DOCS, 0, before)
    assert [s.record.key for s in written] == [b"docs/%d" % i for i in range(1, 7)]


def test_a_record_that_is_not_a_letter_is_listed_and_not_replayed(base, acme) -> None:
    bad = Rejected("no JSON", collection="docs")
    dead_letters.append(base.log, acme, [(LogRecord(DOCS, 0, 0, Record(b"{}", b"docs/a")), bad)])
    letter = base.log.read(acme.dead_topic, 0, 0)[0].record.value
    assert letter is not None
    forged = [
        b"",
        None,
        b"garbage",
        b"[]",
        b'{"position": 0}',
        letter.replace(b'"partition":0', b'"partition":-1'),
    ]
    forged.append(
        letter.replace(b'"value_base64":"', b'"value_base64":"!')
    )  # a letter, but without contents
    base.log.append(acme.dead_topic, 0, [Record(value) for value in forged])
    dead_letters.append(base.log, acme, [(LogRecord(DOCS, 0, 1, Record(b"{}", b"docs/b")), bad)])
    found = dead_letters.read(base.log, acme)
    assert [w["position"] for w in found] == list(range(9))
    assert [w["reason"] == dead_letters.NO_LETTER for w in found] == [
        False,
        *[True] * 6,
        False,
        False,
    ]
    assert base64.b64decode(found[3]["value_base64"]) == b"garbage"
    assert dead_letters.read_one(base.log, acme, 3) == found[3]
    done = replay.replay(base.log, acme, 0, None, partitions=1, now_ms=1)
    assert (done.replayed, done.skipped, done.next) == (2, 7, None)


@pytest.mark.parametrize(
    "columns", [{"text": ["x"]}, {"id": [7]}, {"id": [b"\xff"]}, {"id": [None]}, {"id": [["a"]]}]
)
def test_a_table_without_ids_is_not_replayed_and_blocks_no_other_letter(
    base, acme, columns
) -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch(columns)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    record = Record(sink.getvalue().to_pybytes(), headers=(("content-type", ARROW.encode()),))
    dead_letters.append(
        base.log, acme, [(LogRecord(DOCS, 0, 0, record), Rejected("no ids", "id", "a", "docs"))]
    )
    dead_letters.append(
        base.log, acme, [(LogRecord(DOCS, 0, 1, Record(b"{}", b"docs/b")), Rejected("no JSON"))]
    )
    done = replay.replay(base.log, acme, 0, None, partitions=1, now_ms=1)
    assert (done.replayed + done.skipped, done.next) == (2, None)
