"""Models a searcher with little memory against a dict: no row is lost or duplicated.

Writes, seals, searches, evictions and restarts come in any order.
"""

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from resources import resources_in
from rows import message, unit
from searching import ask, collection, reach, seal, searching, send, shard_of

from tenants import provisioning
from vicinage.clock import ManualClock

pytestmark = pytest.mark.timeout(600)

COLLECTIONS = ("a", "b", "c")
NAMES = [f"d{i}" for i in range(4)]
ROOM = 150_000
"""Bytes: a few segments of a few rows."""


class ResidencyMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vicinage-model-"))
        ground = resources_in(self.folder / "data")
        provisioning.create_tenant(ground.registry, ground.log, "acme", actor="test")
        self.base = replace(ground, clock=ManualClock())
        self.of = {name: collection(self.base, name) for name in COLLECTIONS}
        self.model: dict[str, dict[str, int]] = {name: {} for name in COLLECTIONS}
        self.unsealed: dict[str, list[pa.RecordBatch]] = {name: [] for name in COLLECTIONS}
        self.ends: dict[int, int] = {}
        self.version = 0
        self.running = ExitStack()
        self.restart()

    def teardown(self) -> None:
        self.running.close()
        self.base.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule()
    def restart(self) -> None:
        self.running.close()
        self.running = ExitStack()
        self.searcher = self.running.enter_context(searching(self.base, resident_bytes_max=ROOM))

    def _send(self, name: str, batch: pa.RecordBatch) -> None:
        shard = shard_of(self.of[name])
        self.ends[shard.slot] = send(self.base, shard, batch)
        self.unsealed[name].append(batch)

    @rule(
        name=st.sampled_from(COLLECTIONS),
        documents=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    )
    def upsert(self, name: str, documents: list[str]) -> None:
        rows = []
        for document in documents:
            self.version += 1
            rows.append((document, self.version, [unit(self.version)], "{}"))
            self.model[name][document] = self.version
        self._send(name, message(rows))

    @rule(name=st.sampled_from(COLLECTIONS), document=st.sampled_from(NAMES))
    def delete(self, name: str, document: str) -> None:
        self.version += 1
        self.model[name].pop(document, None)
        self._send(name, message([(document, self.version, None, "")]))

    @rule(name=st.sampled_from(COLLECTIONS))
    def seal(self, name: str) -> None:
        if self.unsealed[name]:
            shard = shard_of(self.of[name])
            seal(self.base, shard, self.of[name], self.unsealed[name], self.ends[shard.slot])
            self.unsealed[name] = []

    @rule(name=st.sampled_from(COLLECTIONS))
    def evict(self, name: str) -> None:
        self.searcher.shards.unload(shard_of(self.of[name]))

    @rule(name=st.sampled_from(COLLECTIONS))
    def ask(self, name: str) -> None:
        self.base.clock.advance(2)
        reach(self.searcher, self.ends)
        assert ask(self.searcher, shard_of(self.of[name])) == sorted(self.model[name].items())

    @invariant()
    def within_its_memory(self) -> None:
        assert self.searcher.shards.budget.resident_bytes() <= ROOM


TestResidency = ResidencyMachine.TestCase
TestResidency.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
