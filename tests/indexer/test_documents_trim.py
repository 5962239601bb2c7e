"""Documents logs are trimmed below ingest's position; superseded segments are deleted soon."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from resources import make_indexer, resources_in
from sealed import append, contents, make_collection, up, version

from cluster.wiring import Resources
from indexer.documents_trim import STALLED_S, DocumentsTrim, floors
from indexer.run import Indexer
from tenants import provisioning
from tenants.entities import Group, IngestLane
from tenants.positions import PartitionState
from vicinage.clock import ManualClock
from vicinage.errors import Unavailable
from vicinage.log import Log, Record

DOCS = ("vicinage.docs.acme", 0)
KEEP_S = 3_600.0


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Resources]:
    made = resources_in(
        tmp_path / "data", keep_documents_s=KEEP_S, keep_documents_bytes=10_000, seal_passages=1
    )
    yield replace(made, clock=ManualClock(time.time_ns() // 1_000_000))
    made.close()


@pytest.fixture
def trim(base: Resources) -> DocumentsTrim:
    make_collection(base)
    return DocumentsTrim(base.log, base.registry, base.settings.indexer, base.clock)


def pass_time(base: Resources, trim: DocumentsTrim, seconds: float) -> None:
    for _ in range(int(seconds / 20) + 1):
        base.clock.advance(20)
        trim.step()


def write(base: Resources, n: int, *, bytes_: int = 10) -> None:
    base.log.append(*DOCS, [Record(b"x" * bytes_) for _ in range(n)])


def test_records_below_the_position_of_ingest_are_trimmed_after_a_while(
    base: Resources, trim: DocumentsTrim
) -> None:
    write(base, 10)
    base.log.commit(Group.INGEST, {DOCS: 7})
    pass_time(base, trim, KEEP_S - 100)
    assert base.log.begin(*DOCS) == 0
    pass_time(base, trim, 400)
    assert base.log.begin(*DOCS) == 7, "records that ingest has not read are kept at any age"
    pass_time(base, trim, 2 * KEEP_S)
    assert base.log.begin(*DOCS) == 7


def test_records_beyond_the_bound_on_bytes_are_trimmed_sooner(
    base: Resources, trim: DocumentsTrim
) -> None:
    write(base, 40, bytes_=1_000)
    base.log.commit(Group.INGEST, {DOCS: 35})
    pass_time(base, trim, STALLED_S / 2)
    assert base.log.begin(*DOCS) == 0, "a stalled ingest may still read them"
    pass_time(base, trim, 120)
    assert base.log.begin(*DOCS) == 30
    base.log.commit(Group.INGEST, {DOCS: 40})
    write(base, 40, bytes_=1_000)
    pass_time(base, trim, STALLED_S + 120)
    assert base.log.begin(*DOCS) == 40, "never beyond the position of ingest"


def test_records_that_a_lane_still_reads_are_kept(base: Resources, trim: DocumentsTrim) -> None:
    write(base, 40, bytes_=1_000)
    [lane] = base.registry.lanes.open([IngestLane("acme", "docs", 1, 0, 12, "model")])
    base.log.commit(Group.INGEST, {DOCS: 40})
    pass_time(base, trim, 3 * KEEP_S)
    assert base.log.begin(*DOCS) == 12
    base.registry.lanes.close(lane)
    pass_time(base, trim, KEEP_S + 400)
    assert base.log.begin(*DOCS) == 40


@pytest.mark.parametrize("resumed", [None, 3])
def test_a_topic_created_again_during_a_trim_keeps_records_that_ingest_has_not_read(
    base: Resources, trim: DocumentsTrim, resumed: int | None
) -> None:
    write(base, 2_500)
    base.log.commit(Group.INGEST, {DOCS: 2_500})
    while base.log.begin(*DOCS) == 0:
        base.clock.advance(20)
        trim.step()
    assert base.log.begin(*DOCS) == 1_000
    base.log.delete_topic(DOCS[0])
    base.log.ensure_topic(DOCS[0], 1)
    write(base, 50)
    if resumed:
        base.log.commit(Group.INGEST, {DOCS: resumed})
    base.clock.advance(2)
    trim.step()
    assert base.log.begin(*DOCS) <= (resumed or 0)


def test_records_that_a_restart_reads_again_are_kept(base: Resources, trim: DocumentsTrim) -> None:
    """A client that alters the group's positions in Kafka cannot cause a loss of unread records."""
    write(base, 10)
    (topic_id,) = base.log.topic_ids(DOCS[0]).values()
    base.registry.positions.save([PartitionState("acme", 0, topic_id, 4, "reading", 0)])
    base.log.commit(Group.INGEST, {DOCS: 9})
    pass_time(base, trim, 2 * KEEP_S)
    assert base.log.begin(*DOCS) == 4


def test_an_unknown_position_trims_nothing() -> None:
    lane = IngestLane("acme", "docs", 1, 0, 3, "model")
    assert floors({}, [lane]) == {}
    assert floors({DOCS: 9, ("vicinage.docs.other", 0): 5}, [lane]) == {
        DOCS: 3,
        ("vicinage.docs.other", 0): 5,
    }


def work_off(base: Resources, indexer: Indexer, rounds: int = 6) -> None:
    for _ in range(rounds):
        indexer.step()
        indexer._maintenance.settle()
        base.clock.advance(1)


def test_superseded_objects_are_deleted_a_minute_after_no_manifest_names_them(
    tmp_path: Path,
) -> None:
    made = resources_in(
        tmp_path / "data", seal_passages=1, segments_max=1, superseded_age_s=60, scrub_per_minute=0
    )
    base = replace(made, clock=ManualClock(time.time_ns() // 1_000_000))
    generation, indexer = make_collection(base), make_indexer(base)
    for i in range(4):
        append(base, generation, up(f"d{i}", i))
        work_off(base, indexer)
    named = base.manifests.paths()
    assert named < {o.path for o in base.store.list("segments")}
    base.clock.advance(61)
    work_off(base, indexer)
    assert {o.path for o in base.store.list("segments")} == base.manifests.paths() == named
    assert contents(base, generation) == {f"d{i}": (version(i), 1) for i in range(4)}
    made.close()


def test_objects_of_a_deleted_collection_are_deleted_at_the_age_of_an_orphan(
    tmp_path: Path,
) -> None:
    made = resources_in(tmp_path / "data", seal_passages=1, orphan_age_s=100)
    base = replace(made, clock=ManualClock(time.time_ns() // 1_000_000))
    generation, indexer = make_collection(base), make_indexer(base)
    append(base, generation, up("a", 1))
    work_off(base, indexer)
    base.registry.delete_collection("acme", "docs", actor="test")
    for stored in base.store.list("segments"):
        os.utime(Path(base.settings.store_url) / stored.path, (time.time() - 101,) * 2)
    base.clock.advance(61)
    work_off(base, indexer)
    assert list(base.store.list("segments")) == []
    made.close()


class Leaderless:
    """A log that cannot look up one topic's offsets."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log, self._topic = log, topic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def lose(self, topic: str) -> None:
        self._topic = topic

    def begin(self, topic: str, partition: int) -> int:
        if topic == self._topic:
            raise Unavailable(f"{topic}/{partition} has no leader", dependency="log")
        return self._log.begin(topic, partition)


@pytest.mark.parametrize("broken", ["aaa", "zzz"])
def test_a_topic_without_a_leader_blocks_no_trim_of_others(base: Resources, broken: str) -> None:
    make_collection(base)
    tenant = provisioning.create_tenant(base.registry, base.log, broken, actor="test")
    for topic in (DOCS[0], tenant.documents_topic):
        base.log.append(topic, 0, [Record(b"x") for _ in range(10)])
        base.log.commit(Group.INGEST, {(topic, 0): 7})
    trim = DocumentsTrim(
        Leaderless(base.log, tenant.documents_topic),
        base.registry,
        base.settings.indexer,
        base.clock,
    )  # type: ignore[arg-type]
    for _ in range(int((KEEP_S + 400) / 20)):
        base.clock.advance(20)
        with suppress(Unavailable):
            trim.step()
    assert base.log.begin(*DOCS) == 7
    assert base.log.begin(tenant.documents_topic, 0) == 0


def test_a_topic_that_loses_its_leader_before_its_trim_blocks_no_other(
    base: Resources, trim: DocumentsTrim
) -> None:
    tenant = provisioning.create_tenant(base.registry, base.log, "aaa", actor="test")
    log = Leaderless(base.log, "none yet")
    trim = DocumentsTrim(log, base.registry, base.settings.indexer, base.clock)  # type: ignore[arg-type]
    for topic in (tenant.documents_topic, DOCS[0]):
        base.log.append(topic, 0, [Record(b"x") for _ in range(10)])
        base.log.commit(Group.INGEST, {(topic, 0): 1})
    pass_time(base, trim, KEEP_S + 400)
    for topic in (tenant.documents_topic, DOCS[0]):
        base.log.commit(Group.INGEST, {(topic, 0): 7})
    pass_time(base, trim, KEEP_S - 200)
    assert base.log.begin(*DOCS) == 1
    log.lose(tenant.documents_topic)
    for _ in range(60):
        base.clock.advance(20)
        with suppress(Unavailable):
            trim.step()
    assert base.log.begin(*DOCS) == 7
