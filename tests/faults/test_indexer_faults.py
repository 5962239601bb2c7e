"""Kills the indexer at every step, and runs two at once: searches see the same documents."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resources import (
    DIMENSION,
    eventually,
    hash_vector,
    make_indexer,
    make_ingest,
    resources_in,
    running,
)

from indexer import reindex_jobs
from ingest import intake
from tenants import provisioning
from vicinage.clock import Deadline
from vicinage.errors import Conflict, Corrupt
from vicinage.records import Document, ShardQuery

SMALL = {"seal_passages": 10, "segments_max": 2, "flat_max": 15}


def fill(base, names: list[str], text: str = "") -> None:
    collection = base.registry.collection("acme", "docs")
    entries = [
        Document("docs", n, vectors=hash_vector(f"{n}{text}")[None], metadata={"n": n})
        for n in names
    ]
    for i in range(0, len(entries), 5):
        intake.accept(
            base.log, base.registry.tenant("acme"), collection, entries[i : i + 5], now_ms=1
        )
    ingest = make_ingest(base)
    while ingest.step(0.1):
        ingest.drain()


def start(folder: Path, **indexer):
    base = resources_in(folder, **{**SMALL, **indexer})
    if not base.registry.tenants():
        provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
        provisioning.create_collection(
            base.registry,
            base.log,
            "acme",
            "docs",
            dimension=DIMENSION,
            slots_total=8,
            actor="test",
        )
    return base


def seal_in_parts(base, names: list[str]) -> None:
    """Builds two segments, and enough rows for a third: one more than the maximum."""
    indexer = make_indexer(base, owner="the one before")
    for part in (names[:20], names[20:40]):
        fill(base, part)
        indexer.step(0.2)
    fill(base, names[40:])


def found(searcher, base) -> list[str]:
    """Returns the IDs of everything that an exact search finds."""
    live = base.registry.collection("acme", "docs").generation()
    hits = []
    for shard in live.shards():
        query = ShardQuery(
            shard, hash_vector("anything")[None], 1_000, exact=True, catalog=base.registry.refresh()
        )
        hits.extend(searcher.submit(query, Deadline.after(10)).result(10).hits[0])
    return sorted(h.document_id for h in hits)


WORK = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from resources import make_indexer, resources_in
base = resources_in(Path(sys.argv[1]), seal_passages=10, segments_max=2, flat_max=15, lease_s=1.5)
indexer = make_indexer(base, owner="the one that dies")
for _ in range(30):
    indexer.step(0.1)
"""
POINTS = [
    "seal.before_put",
    "seal.after_put_before_swap",
    "seal.after_swap",
    "compact.after_put_before_swap",
    "reindex.after_generation",
    "reindex.after_part",
    "reindex.after_ready",
    "reindex.after_cut_over",
]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_step_changes_no_search(tmp_path: Path, point: str) -> None:
    base = start(tmp_path / "data", lease_s=1.5)
    names = sorted(f"d{i}" for i in range(60))
    if point.startswith("compact"):
        seal_in_parts(base, names)
    else:
        fill(base, names)
    if point.startswith("reindex"):
        reindex_jobs.start(
            base.registry,
            base.jobs,
            "acme",
            "docs",
            index="flat",
            model=None,
            shards=2,
            actor="test",
        )
    words = [sys.executable, "-c", WORK, str(tmp_path / "data"), str(Path(__file__).parent.parent)]
    killed = subprocess.run(
        words, env={**os.environ, "VICINAGE_CRASH": point}, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, "the kill point was not reached"
    base.registry.refresh()
    with running(base) as searcher:
        assert found(searcher, base) == names
        fill(base, ["d0", "new"], " again")
        if point.startswith("reindex"):
            eventually(lambda: base.jobs.list()[0].state == "done")
            base.registry.refresh()
            assert base.registry.collection("acme", "docs").live == 2
        eventually(lambda: found(searcher, base) == sorted([*names, "new"]))
        assert not base.jobs.list(open_only=True)
    base.close()


def test_sealing_compacting_and_restarting_keep_every_document(tmp_path: Path) -> None:
    base = start(tmp_path / "data")
    with running(base) as searcher:
        for round_number in range(4):
            fill(
                base,
                [f"d{i}" for i in range(round_number * 12, round_number * 12 + 20)],
                f" {round_number}",
            )
        names = sorted(f"d{i}" for i in range(56))
        eventually(lambda: found(searcher, base) == names)
        eventually(lambda: max(s.segments for s in asyncio.run(searcher.stats()).shards) in (1, 2))
    with running(base, indexing=False) as again:
        assert found(again, base) == names
        assert any(s.segments for s in asyncio.run(again.stats()).shards)
    base.close()


def test_an_indexer_that_lost_its_lease_publishes_nothing(tmp_path: Path) -> None:
    base = start(tmp_path / "data", lease_s=1.1)
    fill(base, [f"d{i}" for i in range(30)])
    stale, fresh = make_indexer(base, "stale"), make_indexer(base, "fresh")
    stale._hold_leases()
    import time

    time.sleep(1.3)
    fresh._hold_leases()
    assert len(fresh._leases.held) == 8
    shard = base.registry.collection("acme", "docs").generation().shards()[0]
    before = base.manifests.of(shard, start=0)
    with pytest.raises(Conflict):
        base.manifests.swap(before, segments=(), sealed=99, lease=stale.lease(shard.slot))
    stale._leases.renewed_s = fresh._leases.renewed_s  # it has not noticed yet
    stale.step(0.2)
    assert base.manifests.of(shard, start=0) == before, "the stale one sealed nothing"
    assert shard.slot not in stale._leases.held, "and has released the slot"
    fresh.step(0.2)
    assert base.manifests.of(shard, start=0).segments
    base.close()


def test_a_deletion_made_while_a_reindex_copies_stays_a_deletion(tmp_path: Path) -> None:
    """The copied row is older than the deletion in the new generation's own log, sealed or not."""
    base = start(tmp_path / "data")
    names = [f"d{i}" for i in range(40)]
    fill(base, names)
    reindex_jobs.start(
        base.registry, base.jobs, "acme", "docs", index="flat", model=None, shards=1, actor="test"
    )
    indexer = make_indexer(base)
    indexer._hold_leases()
    indexer.step(0.2)
    indexer._maintenance._reindex.advance(
        base.jobs.list()[0]
    )  # the new generation exists, nothing is copied yet
    intake.delete(
        base.log,
        base.registry.tenant("acme"),
        base.registry.collection("acme", "docs"),
        ["d3", "d4"],
        now_ms=2,
    )
    fill(base, [f"e{i}" for i in range(20)])
    indexer.step(0.2)  # seals the deletions into the new generation before the old rows are copied
    for _ in range(8):
        indexer._maintenance.step(leading=True)
        indexer._maintenance.settle()
        [job] = base.jobs.list()
    assert job.state == "done", job
    base.registry.refresh()
    with running(base) as searcher:
        wanted = sorted({*names, *(f"e{i}" for i in range(20))} - {"d3", "d4"})
        eventually(lambda: found(searcher, base) == wanted)
    base.close()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["repair.after_put_before_swap", "repair.after_swap"])
def test_a_kill_during_a_rebuild_leaves_the_old_or_the_new_segment(
    tmp_path: Path, point: str
) -> None:
    base = start(tmp_path / "data", lease_s=1.5)
    names = sorted(f"d{i}" for i in range(30))
    fill(base, names)
    make_indexer(base).step(0.2)
    [before] = base.manifests.of_generation("acme", "docs", 1)
    file = Path(base.settings.store_url) / before.segments[0].objects["passages"].path
    file.write_bytes(file.read_bytes()[:-40] + b"\xff" * 40)
    with running(base, indexing=False) as searcher, pytest.raises(Corrupt):
        found(searcher, resources_in(tmp_path / "data"))
    assert [d.state for d in base.manifests.quarantine.open()] == ["noted"]
    words = [sys.executable, "-c", WORK, str(tmp_path / "data"), str(Path(__file__).parent.parent)]
    killed = subprocess.run(
        words, env={**os.environ, "VICINAGE_CRASH": point}, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, "the kill point was not reached"
    [after] = base.manifests.of_generation("acme", "docs", 1)
    assert (after == before) == (point == "repair.after_put_before_swap")
    assert [d.state for d in base.manifests.quarantine.open()] == ["noted"]
    with running(base) as searcher:
        eventually(lambda: not base.manifests.quarantine.open())
        eventually(lambda: not asyncio.run(searcher.stats()).failed)
        assert found(searcher, base) == names
        [last] = base.manifests.of_generation("acme", "docs", 1)
        assert last.version == before.version + 1, "rebuilt once"
    base.close()


class FaultyStore:
    """The real store, which damages passages as soon as they are written, or is slow."""

    def __init__(self, store: Any, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.spoils = self.waits = False
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def put(self, path: str, source: Any) -> Any:
        if self.waits:
            self.entered.set()
            assert self.go_on.wait(20)
        ref = self.store.put(path, source)
        if self.spoils and path.endswith("passages.arrow"):
            file = self.folder / path
            file.write_bytes(file.read_bytes()[:-40] + b"\xff" * 40)
        return ref


def test_during_a_rebuild_the_shard_and_other_shards_are_served(
    tmp_path: Path,
) -> None:
    base = start(tmp_path / "data")
    provisioning.create_tenant(base.registry, base.log, "other", actor="test")
    provisioning.create_collection(
        base.registry, base.log, "other", "docs", dimension=DIMENSION, slots_total=8, actor="test"
    )
    names = sorted(f"d{i}" for i in range(30))
    with running(base, indexing=False) as searcher:
        fill(base, names)
        eventually(lambda: found(searcher, base) == names)
        store = FaultyStore(base.store, Path(base.settings.store_url))
        indexer = make_indexer(replace(base, store=store))
        store.spoils = True
        indexer.step(0.2)
        eventually(lambda: asyncio.run(searcher.stats()).stale)
        assert found(searcher, base) == names, (
            "as of the manifest before, with the rows from the log"
        )
        [damage] = base.manifests.quarantine.open()
        store.spoils, store.waits = False, True
        repairing = threading.Thread(target=indexer._maintenance._repair.repair, args=(damage,))
        repairing.start()
        assert store.entered.wait(10)
        assert found(searcher, base) == names
        other = base.registry.collection("other", "docs").generation().shards()[0]
        query = ShardQuery(other, np.ones((1, DIMENSION), np.float32), 3)
        assert searcher.submit(query, Deadline.after(5)).result(5).hits == ((),)
        theirs = asyncio.run(searcher.stats("other"))
        assert (theirs.stale, theirs.failed) == ({}, {})
        assert base.manifests.quarantine.barred(other) == frozenset()
        store.go_on.set()
        repairing.join(20)
        eventually(lambda: [s.segments for s in asyncio.run(searcher.stats("acme")).shards] == [1])
        assert not asyncio.run(searcher.stats()).stale
        assert found(searcher, base) == names
    base.close()


def test_a_corrupt_segment_is_never_served_and_others_are(tmp_path: Path) -> None:
    base = start(tmp_path / "data")
    provisioning.create_collection(
        base.registry, base.log, "acme", "other", dimension=DIMENSION, slots_total=8, actor="test"
    )
    fill(base, [f"d{i}" for i in range(30)])
    indexer = make_indexer(base)
    indexer.step(0.2)
    [path] = [o.path for o in base.store.list("segments") if o.path.endswith("passages.arrow")][:1]
    file = Path(base.settings.store_url) / path
    file.write_bytes(file.read_bytes()[:-40] + b"\xff" * 40)
    with running(base, indexing=False) as searcher:
        with pytest.raises(Corrupt):
            found(searcher, base)
        other = base.registry.collection("acme", "other").generation().shards()[0]
        query = ShardQuery(other, np.ones((1, DIMENSION), np.float32), 3)
        assert searcher.submit(query, Deadline.after(5)).result(5).hits == ((),)
        assert {s.collection for s in asyncio.run(searcher.stats()).failed} == {"docs"}
    base.close()
