"""The ingest role on the real log and catalog: versions, dead letters, kills at any step."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from resources import HashEmbedder, WordChunker, eventually, make_ingest, resources_in, running

from ingest import dead_letters, intake
from ingest.documents import parse_json
from ingest.identity import JUDGED_HEADER
from ingest.validation import DocumentLimits
from tenants import provisioning
from tenants.entities import Group, Tenant
from vicinage.clock import Deadline, ManualClock
from vicinage.errors import Conflict, Refused
from vicinage.log import Log, Record
from vicinage.partition_maps import PARTITIONS_MAX
from vicinage.tenant_context import TenantContext
from vicinage.wire import decode_rows

DOCS = "vicinage.docs.acme"


@pytest.fixture
def acme(base) -> Tenant:
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", slots_total=8, shards=2, actor="test"
    )
    provisioning.create_collection(
        base.registry, base.log, "acme", "flat", dimension=3, slots_total=8, actor="test"
    )
    return tenant


def send(base, *documents: object, key: bytes | None = None) -> int:
    """Writes as a data team's producer would."""
    records = [
        Record(d if isinstance(d, bytes | None) else json.dumps(d).encode(), key) for d in documents
    ]
    return base.log.append(DOCS, 0, records)[-1]


def rows(base) -> list[tuple]:
    found = []
    for slot in range(8):
        for stored in base.log.read("vicinage.vectors", slot, 0, bytes_max=1 << 30):
            message = decode_rows(stored.record.value)
            found.extend(
                (message.collection, r["document_id"], r["version"] >> 10, r["passage"], r["text"])
                for r in message.batch.to_pylist()
            )
    return sorted(found, key=str)


def work(base) -> None:
    ingest = make_ingest(base)
    while ingest.step(0.1):
        ingest.drain()
    ingest.drain()


def test_documents_become_rows_with_their_version_and_the_position_is_committed(base, acme) -> None:
    send(
        base,
        {"collection": "docs", "id": "a", "text": "one two"},
        {"collection": "flat", "id": "b", "vector": [1, 0, 0]},
    )
    work(base)
    assert rows(base) == [("docs", "a", 0, 0, "one two"), ("flat", "b", 1, 0, None)]
    assert base.log.committed(Group.INGEST, [(DOCS, 0)]) == {(DOCS, 0): 2}


def test_a_long_text_is_chunked_and_its_passages_stay_together(base, acme) -> None:
    text = " ".join(f"w{i}" for i in range(120))
    send(base, {"collection": "docs", "id": "a", "text": text})
    work(base)
    assert [(r[3], r[4]) for r in rows(base)] == [
        (i, p.text) for i, p in enumerate(WordChunker().chunk(text))
    ]


def test_deletions_and_the_last_of_several_writes_win(base, acme) -> None:
    send(base, *({"collection": "docs", "id": "a", "text": f"v{i}"} for i in range(3)))
    send(base, None, key=b"docs/b")
    work(base)
    assert rows(base) == [("docs", "a", 2, 0, "v2"), ("docs", "b", 3, -1, None)]


def test_a_deletion_by_filter_applies_to_the_matched_version(base, acme) -> None:
    send(base, *({"collection": "docs", "id": i, "text": "x"} for i in ("a", "b")))
    send(base, {"collection": "docs", "id": "b", "text": "newer"})
    judged = [
        Record(None, f"docs/{name}".encode(), ((JUDGED_HEADER, str(offset << 10).encode()),))
        for name, offset in (("a", 0), ("b", 1), ("c", 2))
    ]
    base.log.append(DOCS, 0, judged)
    work(base)
    assert rows(base) == [
        ("docs", "a", 0, -1, None),
        ("docs", "b", 2, 0, "newer"),
        ("docs", "c", 2, -1, None),
    ]
    assert dead_letters.read(base.log, acme) == []


@pytest.mark.parametrize("judged", [b"", b"x", b"-1", b"9" * 19, b"9" * 40, b"1024"])
def test_a_deletion_of_a_version_that_did_not_exist_is_a_dead_letter(base, acme, judged) -> None:
    base.log.append(
        DOCS, 0, [Record(None, b"docs/a"), Record(None, b"docs/a", ((JUDGED_HEADER, judged),))]
    )
    work(base)
    assert rows(base) == [("docs", "a", 0, -1, None)]
    assert [letter["field"] for letter in dead_letters.read(base.log, acme)] == ["headers"]


@pytest.mark.parametrize(
    ("value", "key", "field"),
    [
        (b"{broken", None, "value"),
        (b"[1]", None, "value"),
        (b"\xff\xfe", None, "value"),
        ({"id": "a", "text": "x"}, None, "collection"),
        ({"collection": "nope", "id": "a", "text": "x"}, None, "collection"),
        ({"collection": "docs", "id": "a", "text": ""}, None, "text"),
        ({"collection": "docs", "id": "a", "text": "x", "tenant": "umbrella"}, None, "tenant"),
        ({"collection": "flat", "id": "a", "vector": [1, 2]}, None, "vector"),
        (None, b"docs", "key"),
        (None, b"\xff", "key"),
        (None, b"nope/a", "collection"),
    ],
)
def test_an_invalid_record_is_a_dead_letter_and_the_rest_is_ingested(
    base, acme, value, key, field
) -> None:
    bad = send(base, value, key=key)
    send(base, {"collection": "docs", "id": "good", "text": "x"})
    work(base)
    assert [r[1] for r in rows(base)] == ["good"]
    [letter] = dead_letters.read(base.log, acme)
    assert (letter["field"], letter["offset"], letter["topic"]) == (field, bad, DOCS)
    assert letter["reason"]
    assert base.log.committed(Group.INGEST, [(DOCS, 0)]) == {(DOCS, 0): 2}


def test_a_posted_batch_is_ingested_the_same_way(base, acme) -> None:
    collection = base.registry.collection("acme", "docs")
    rules = DocumentLimits.of(collection, base.settings.ingest)
    entries = [
        parse_json(d, rules, tenant="acme")
        for d in ({"id": "a", "text": "x"}, {"id": "b"}, {"id": "a", "text": "y"})
    ]
    accepted = intake.accept(base.log, acme, collection, entries, now_ms=5)
    assert (accepted.accepted, len(accepted.rejected), str(accepted.token)) == (2, 1, "0-0")
    work(base)
    assert rows(base) == [("docs", "a", 0, 0, "y")]


def taken_and_held(base) -> tuple:
    """An ingest that has read records and then pauses, and its records."""
    held = make_ingest(base)
    held._topics.discover()
    records: list = []
    eventually(
        lambda: records.extend(held._partitions.poll(0.1, 0.1).get((DOCS, 0), ())) or records
    )
    return held, records


def test_an_ingest_that_paused_while_another_continued_writes_nothing_and_ends(base, acme) -> None:
    base = replace(base, clock=ManualClock())
    send(base, {"collection": "flat", "id": "a", "vector": [1, 0, 0]})
    held, records = taken_and_held(base)
    send(base, None, key=b"flat/a")
    work(base)
    written = rows(base)
    base.clock.advance(3_600)
    with pytest.raises(Conflict):
        held._parse((DOCS, 0), records)
    assert rows(base) == written
    assert base.log.committed(Group.INGEST, [(DOCS, 0)]) == {(DOCS, 0): 2}


def test_a_slow_ingest_that_was_not_overtaken_writes(base, acme) -> None:
    base = replace(base, clock=ManualClock())
    send(base, *({"collection": "flat", "id": f"d{i}", "vector": [1, 0, 0]} for i in range(3)))
    held, records = taken_and_held(base)
    base.clock.advance(3_600)
    held._parse((DOCS, 0), records)
    assert len(rows(base)) == 3
    assert base.log.committed(Group.INGEST, [(DOCS, 0)]) == {(DOCS, 0): 3}


def test_a_new_tenants_topic_is_read_within_seconds(base) -> None:
    with running(base, indexing=False):
        tenant = provisioning.create_tenant(base.registry, base.log, "late", actor="test")
        provisioning.create_collection(
            base.registry, base.log, "late", "docs", slots_total=8, actor="test"
        )
        base.log.append(
            tenant.documents_topic, 0, [Record(b'{"collection": "docs", "id": "a", "text": "x"}')]
        )
        eventually(lambda: rows(base), wait_s=5)


def test_a_suspended_tenant_is_not_read_and_loses_nothing(base, acme) -> None:
    base.registry.suspend_tenant("acme", actor="test")
    send(base, {"collection": "docs", "id": "a", "text": "x"})
    work(base)
    assert rows(base) == []
    base.registry.resume_tenant("acme", actor="test")
    work(base)
    assert len(rows(base)) == 1


def test_nothing_is_kept_of_a_deleted_partition(base, acme) -> None:
    ingest = make_ingest(base)
    send(base, {"collection": "docs", "id": "a", "text": "x"})
    eventually(lambda: ingest.step(0.1) or rows(base))
    assert ingest._partitions.routed
    assert ingest._lanes._gates
    base.registry.suspend_tenant("acme", actor="test")
    eventually(lambda: ingest._topics.discover() or not ingest._partitions.routed)
    assert not ingest._lanes._gates


def test_a_document_goes_to_every_serving_generation(base, acme) -> None:
    place = provisioning.placer(base.log, "acme", "docs", 1, 8)
    base.registry.add_generation(
        "acme",
        "docs",
        index="flat",
        model="all-minilm-l6-v2",
        dimension=384,
        place=place,
        actor="test",
    )
    send(base, {"collection": "docs", "id": "a", "text": "x"})
    work(base)
    assert len(rows(base)) == 2


WORK = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from resources import make_ingest, resources_in
base = resources_in(Path(sys.argv[1]))
ingest = make_ingest(base)
while ingest.step(0.2):
    ingest.drain()
"""


@pytest.mark.parametrize(
    "point", ["ingest.before_append", "ingest.between_append_and_commit", "ingest.after_commit"]
)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_kill_at_any_point_loses_and_duplicates_nothing(
    tmp_path: Path, point: str, nth: int
) -> None:
    base = resources_in(tmp_path / "data")
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", slots_total=8, actor="test"
    )
    names = [f"d{i}" for i in range(6)]
    words = [sys.executable, "-c", WORK, str(tmp_path / "data"), str(Path(__file__).parent.parent)]
    for half in (names[:3], names[3:]):
        send(base, *({"collection": "docs", "id": n, "text": n} for n in half))
        done = subprocess.run(
            words, env={**os.environ, "VICINAGE_CRASH": f"{point}:{nth}"}, check=False, timeout=60
        )
        assert done.returncode in (0, -signal.SIGKILL)
    subprocess.run(
        words,
        env={k: v for k, v in os.environ.items() if k != "VICINAGE_CRASH"},
        check=True,
        timeout=60,
    )
    with running(base, indexing=False) as searcher:
        [shard] = base.registry.collection("acme", "docs").generation().shards()
        import asyncio

        stats = asyncio.run(searcher.stats("acme", "docs"))
        assert [(s.documents, s.passages) for s in stats.shards] == [(6, 6)]
        for n in names:
            assert asyncio.run(searcher.document(shard, n, Deadline.after(5))).passages[0].text == n
    base.close()


def test_the_embedder_of_these_tests_finds_shared_words() -> None:
    a, b, c = HashEmbedder().embed(["red barn", "red barn boat", "blue"], tenant=TenantContext("t"))
    assert float(a @ b) > 0.6 > float(a @ c)


def test_a_topic_with_too_many_partitions_stops_no_other_and_is_checked_seldom(base) -> None:
    base.log.ensure_topic("vicinage.docs.wide", PARTITIONS_MAX + 1)
    with pytest.raises(Refused, match="at most"):
        provisioning.create_tenant(base.registry, base.log, "wide", actor="test")
    assert not base.registry.tenants()
    base.registry.create_tenant(
        "wide", priority="silver", actor="test"
    )  # its topic was created or grown meanwhile
    listed = Asked(base.log)
    ingest = make_ingest(replace(base, log=listed))
    for _ in range(5):
        ingest._topics.discover()
    assert listed.n == 1
    assert not [topic for topic, _ in ingest._partitions.positions if topic == "vicinage.docs.wide"]
    ingest.stop()


class Asked:
    """The real log, with a count of calls for the partitions of a topic."""

    def __init__(self, log: Log) -> None:
        self._log, self.n = log, 0

    def __getattr__(self, name: str) -> Any:
        self.n += name == "partitions"
        return getattr(self._log, name)
