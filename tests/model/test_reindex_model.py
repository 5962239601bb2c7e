"""Models a reindex beside everything else: the live generation has and finds what was written.

Documents are written, replaced, deleted and delivered again; shards are sealed and compacted. The
collection is rebuilt as another kind and with another number of shards, canceled, and cut over. The
indexer dies anywhere in between.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from resources import make_indexer, resources_in
from rows import unit
from sealed import append, contents, gone, loaded, make_collection, up, version

from indexer import reindex_jobs
from tenants.entities import Collection, Generation
from vicinage.clock import ManualClock
from vicinage.errors import Conflict
from vicinage.filters import Filter
from vicinage.records import ShardQuery

pytestmark = pytest.mark.timeout(600)

NAMES = st.sampled_from([f"d{i}" for i in range(12)])
SPECS = st.sampled_from(
    ["flat", "auto", "hnsw:M=8,efc=40", "hnsw:M=8,efc=40,codes=sq8", "ivf", "ivfpq", "rabitq"]
)
CONDITIONS: tuple[tuple[Mapping[str, Any] | None, str], ...] = (
    (None, ""),
    ({"name": {"$lt": "d5"}}, "d5"),
)
K = 5
RECALL = 0.95


class Reindexing(RuleBasedStateMachine):
    """One collection, one indexer, at most one reindex at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vicinage-test-"))
        opened = resources_in(
            self.folder, seal_passages=4, segments_max=2, seal_age_s=40.0, tombstone_age_s=100.0
        )
        self.clock = ManualClock(time.time_ns() // 1_000_000)
        self.base = replace(opened, clock=self.clock)
        self.position = 0
        self.expected: dict[str, tuple[int, int]] = {}
        self.right = self.wanted = 0

    @initialize()
    def begin(self) -> None:
        make_collection(self.base, shards=2)
        self.indexer = make_indexer(self.base)
        self.write([(f"d{i}", 1 + i % 2) for i in range(8)])

    def _collection(self) -> Collection:
        self.base.registry.refresh()
        return self.base.registry.collection("acme", "docs")

    def _receiving(self) -> list[Generation]:
        """Returns the generations that ingest writes to."""
        return [
            g for g in self._collection().generations if g.state in ("live", "building", "ready")
        ]

    @rule(writes=st.lists(st.tuples(NAMES, st.integers(0, 2)), min_size=1, max_size=5))
    def write(self, writes: list[tuple[str, int]]) -> None:
        """Writes documents with this many passages; none: deleted."""
        for name, passages in writes:
            self.position += 1
            row = up(name, self.position, passages) if passages else gone(name, self.position)
            for generation in self._receiving():
                append(self.base, generation, row)
            if passages:
                self.expected[name] = (version(self.position), passages)
            else:
                self.expected.pop(name, None)

    @rule(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), stale=st.booleans())
    def delete_as_judged(self, names: list[str], stale: bool) -> None:
        """Deletes by filter at the matched versions; `stale`: documents are replaced meanwhile."""
        judged = {name: self.expected[name][0] >> 10 for name in names if name in self.expected}
        if stale:
            self.write([(name, 1) for name in judged])
        for name, number in judged.items():
            for generation in self._receiving():
                append(self.base, generation, gone(name, number))
            if not stale:
                self.expected.pop(name)

    @rule(name=NAMES, passages=st.integers(1, 2))
    def deliver_something_old(self, name: str, passages: int) -> None:
        """Repeats old writes as after a rewind of ingest: versions replaced or deleted long ago."""
        if name in self.expected and self.position > 1:
            for generation in self._receiving():
                append(self.base, generation, up(name, 0, passages))

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.indexer.step()
            self.indexer._maintenance.settle(30)

    @rule(index=SPECS, shards=st.integers(1, 3))
    def ask_for_a_reindex(self, index: str, shards: int) -> None:
        open_ = self.base.jobs.list(open_only=True)
        try:
            reindex_jobs.start(
                self.base.registry,
                self.base.jobs,
                "acme",
                "docs",
                index=index,
                model=None,
                shards=shards,
                actor="test",
            )
        except Conflict:
            assert open_, "only another reindex prevents it"

    @rule(index=SPECS, shards=st.integers(1, 3), name=NAMES, dies=st.booleans())
    def reindex_to_the_end(self, index: str, shards: int, name: str, dies: bool) -> None:
        """Runs a reindex with a write, and perhaps a crash, somewhere on the way."""
        self.ask_for_a_reindex(index, shards)
        self.step(2)
        self.write([(name, 2)])
        if dies:
            self.die_and_restart()
        for _ in range(12):
            if not self.base.jobs.list(open_only=True):
                break
            self.step(1)
        assert self.base.jobs.list()[-1].state == "done"
        for seed in range(4):
            self.search(seed % 2, seed)

    @rule()
    def cancel(self) -> None:
        for job in self.base.jobs.list(open_only=True):
            reindex_jobs.cancel(self.base.registry, self.base.jobs, job.id, actor="test")

    @rule()
    def die_and_restart(self) -> None:
        self._end()
        self.clock.advance(60)
        self.indexer = make_indexer(self.base)

    @rule(seconds=st.sampled_from([1.0, 45.0, 200.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(which=st.integers(0, len(CONDITIONS) - 1), seed=st.integers(0, 1_000))
    def search(self, which: int, seed: int) -> None:
        """Compares what would be served with numpy over what was written."""
        condition, below = CONDITIONS[which]
        live, query = self._collection().generation(), unit(seed)[None]
        found = [
            hit
            for shard in live.shards()
            for hit in loaded(self.base, shard, live)
            .search(
                ShardQuery(
                    shard,
                    query,
                    K,
                    filter=None if condition is None else Filter.parse(condition),
                )
            )
            .hits[0]
        ]
        names = [name for name in self.expected if not below or name < below]
        scores = sorted(
            (float(query[0] @ v) for name in names for v in self._vectors(name)), reverse=True
        )
        served = sorted((hit.score for hit in found), reverse=True)[:K]
        assert {hit.document_id for hit in found} <= set(names)
        assert len(served) == min(K, len(scores))
        if scores:
            least = scores[: len(served)][-1]
            self.right += sum(score >= least - 1e-4 for score in served)
            self.wanted += len(served)
        if self.wanted >= 40:
            assert self.right >= (RECALL - 0.05) * self.wanted, (
                "within the error of so few searches"
            )

    def _vectors(self, name: str) -> list[np.ndarray]:
        at, passages = self.expected[name]
        return [unit(crc32(f"{name} {at >> 10} {i}".encode())) for i in range(passages)]

    @invariant()
    def the_live_generation_holds_what_was_written(self) -> None:
        if self.position:
            assert contents(self.base, self._collection().generation()) == self.expected

    @invariant()
    def one_generation_is_live(self) -> None:
        if self.position:
            assert [g.state for g in self._collection().generations].count("live") == 1

    def _end(self) -> None:
        self.indexer._reader.close()
        self.indexer._maintenance.stop()

    def teardown(self) -> None:
        if hasattr(self, "indexer"):
            self._end()
        self.base.close()
        shutil.rmtree(self.folder)


Reindexing.TestCase.settings = settings(
    max_examples=8, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestReindexing = Reindexing.TestCase
