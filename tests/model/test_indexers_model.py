"""Models two indexers on one catalog, each at times stale, stopped or away: searches equal a dict.

Only the rows in the log and the order of their versions decide what is found, not which indexer
sealed, merged or lost a lease.
"""

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from resources import make_indexer, resources_in
from sealed import append, contents, gone, make_collection, up, version

from indexer.run import Indexer
from tenants.entities import Generation, Group
from tenants.provisioning import VECTORS_TOPIC
from vicinage.clock import ManualClock

pytestmark = pytest.mark.timeout(600)

NAMES = st.sampled_from("abcdefgh")
INDEXERS = st.sampled_from(["one", "two"])
LEASE_S = 15.0


class TwoIndexers(RuleBasedStateMachine):
    """Writes, deletions and redeliveries, with two indexers that step in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vicinage-test-"))
        opened = resources_in(
            self.folder,
            seal_passages=3,
            segments_max=2,
            seal_age_s=40.0,
            replay_records_max=12,
            lease_s=LEASE_S,
            tombstone_age_s=100.0,
        )
        self.clock = ManualClock(time.time_ns() // 1_000_000)
        self.base = replace(opened, clock=self.clock)
        self.log_position = 0
        self.expected: dict[str, tuple[int, int]] = {}
        self.sealed: dict[object, tuple[int, int]] = {}
        self.indexers: dict[str, Indexer] = {}

    @initialize()
    def begin(self) -> None:
        self.generation = make_collection(self.base)
        self.other = self._in_the_same_slot(self.generation)
        for indexer_name in ("one", "two"):
            self.indexers[indexer_name] = make_indexer(self.base, indexer_name)

    def _in_the_same_slot(self, generation: Generation) -> Generation:
        made = (make_collection(self.base, f"other{i}") for i in range(100))
        return next(g for g in made if g.slots[0] in generation.slots)

    def _next(self) -> int:
        self.log_position += 1
        return self.log_position

    @rule(writes=st.lists(st.tuples(NAMES, st.integers(0, 3)), min_size=1, max_size=4))
    def write(self, writes: list[tuple[str, int]]) -> None:
        """Writes documents with this many passages; none: deleted."""
        for name, passages in writes:
            number = self._next()
            append(
                self.base,
                self.generation,
                up(name, number, passages) if passages else gone(name, number),
            )
            if passages:
                self.expected[name] = (version(number), passages)
            else:
                self.expected.pop(name, None)

    @rule(name=NAMES, back=st.integers(0, 2))
    def delete_as_judged(self, name: str, back: int) -> None:
        """Deletes by filter, at the matched version or an older one: then its document stays."""
        if name in self.expected:
            number = (self.expected[name][0] >> 10) - back
            append(self.base, self.generation, gone(name, max(0, number)))
            if not back:
                self.expected.pop(name)

    @rule()
    def deliver_the_last_again(self) -> None:
        """Repeats as ingest does after a kill between its append and its commit."""
        slot = self.generation.slots[0]
        end = self.base.log.end(VECTORS_TOPIC, slot)
        if end > self.generation.starts[0]:
            [last] = self.base.log.read(VECTORS_TOPIC, slot, end - 1)
            self.base.log.append(VECTORS_TOPIC, slot, [last.record])

    @rule()
    def write_for_another(self) -> None:
        for _ in range(8):
            append(self.base, self.other, up("x", self._next()))

    @rule()
    def commit(self) -> None:
        self.base.log.commit(Group.INGEST, {("vicinage.docs.acme", 0): self.log_position + 1})

    @rule(indexer_name=INDEXERS)
    def step(self, indexer_name: str) -> None:
        self._step(indexer_name)

    @rule(indexer_name=INDEXERS, name=NAMES)
    def write_and_step(self, indexer_name: str, name: str) -> None:
        self.write([(name, 3)])
        self._step(indexer_name)

    @rule(indexer_name=INDEXERS)
    def step_without_noticing_that_time_passed(self, indexer_name: str) -> None:
        """A paused process: it believes that it holds its leases."""
        if self.indexers[indexer_name]._leases.held:
            self.indexers[indexer_name]._leases.renewed_s = self.clock.monotonic()
        self._step(indexer_name)

    @rule(name=NAMES)
    def overtake_a_paused_one(self, name: str) -> None:
        """Pauses it with rows that it has read; the other works in its slots; it resumes."""
        self._step("one")
        self.write([(name, 2)])
        self.indexers["one"]._read(0)
        self.clock.advance(LEASE_S + 1)
        self.write([(name, 1), ("z", 2)])
        self._step("two")
        self.step_without_noticing_that_time_passed("one")

    def _step(self, indexer_name: str) -> None:
        indexer = self.indexers[indexer_name]
        indexer.step()
        indexer._maintenance.settle(30)

    @rule(indexer_name=INDEXERS)
    def die_and_restart(self, indexer_name: str) -> None:
        self.indexers[indexer_name]._reader.close()
        self.indexers[indexer_name]._maintenance.stop()
        self.indexers[indexer_name] = make_indexer(self.base, f"{indexer_name} {self._next()}")

    @rule(seconds=st.sampled_from([1.0, 6.0, 16.0, 45.0, 200.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def a_search_finds_what_was_written(self) -> None:
        if self.indexers:
            assert contents(self.base, self.generation) == self.expected

    @invariant()
    def what_is_sealed_stays_sealed_and_every_object_is_there(self) -> None:
        for manifest in self.base.manifests.of_generation("acme", "docs", 1):
            sealed, epoch = self.sealed.get(manifest.shard, (0, 0))
            assert manifest.sealed >= sealed
            assert manifest.epoch >= epoch, "a stale indexer never writes again"
            self.sealed[manifest.shard] = manifest.sealed, manifest.epoch
        there = {o.path for o in self.base.store.list("segments")}
        assert self.base.manifests.paths() <= there

    @invariant()
    def at_most_one_can_win_a_slot(self) -> None:
        if not self.indexers:
            return
        now = self.base.clock.now_ms()
        held = [
            (slot, lease) for i in self.indexers.values() for slot, lease in i._leases.held.items()
        ]
        for slot in range(self.base.settings.slots):
            good = [lease for s, lease in held if s == slot and lease.expires_ms > now]
            assert len(good) <= 1

    def teardown(self) -> None:
        for indexer in self.indexers.values():
            indexer._reader.close()
            indexer._maintenance.stop()
        self.base.close()
        shutil.rmtree(self.folder)


TwoIndexers.TestCase.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTwoIndexers = TwoIndexers.TestCase
