"""Models documents over partitions that are added during writes.

No document is lost, reordered or resurrected. Gateways write by the newest map, producers by the
partitions that they know, and foreign producers into any partition. Only the order of acknowledged
writes decides. The documented exception is a producer that does not know new partitions yet: it
loses to a write that does.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from resources import eventually, make_ingest, resources_in

from ingest import dead_letters, intake
from ingest.documents import parse_json
from ingest.validation import DocumentLimits
from tenants import growth, provisioning, resuming
from tenants.entities import Group
from vicinage.clock import ManualClock
from vicinage.log import Record
from vicinage.routing import document_key, home_of
from vicinage.wire import decode_rows

pytestmark = pytest.mark.timeout(600)

NAMES = st.sampled_from([f"d{i}" for i in range(12)])
MOST = 9


class Growth(RuleBasedStateMachine):
    """A growing topic, its writers, and an ingest that lags or restarts further back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vicinage-test-"))
        self.base = replace(resources_in(self.folder), clock=ManualClock())
        self.expected: dict[str, tuple[int, int, str | None]] = {}
        """For each document: (partitions its writer knew, number of the write, text or None)."""
        self.misplaced = self.n_written = 0

    @initialize(partitions=st.integers(1, 2))
    def begin(self, partitions: int) -> None:
        base = self.base
        self.tenant = provisioning.create_tenant(
            base.registry, base.log, "acme", partitions=partitions, actor="test"
        )
        provisioning.create_collection(
            base.registry, base.log, "acme", "docs", dimension=2, slots_total=8, actor="test"
        )
        self.sizes = [partitions]
        self.ingest = make_ingest(base)

    def _written(self, name: str, text: str | None, n: int) -> None:
        newest, _, _ = self.expected.get(name, (0, 0, None))
        if n >= newest or newest == 0 or home_of("docs", name, n) == home_of("docs", name, newest):
            self.expected[name] = (max(n, newest), self.n_written, text)
        self.n_written += 1

    def _records(self, name: str, text: str | None) -> list[Record]:
        body = {"collection": "docs", "id": name, "vector": [1, 0], "text": text}
        return [
            Record(None if text is None else json.dumps(body).encode(), document_key("docs", name))
        ]

    def _wanders(self, name: str) -> bool:
        """Whether growth returned the document to an earlier partition, so its map is ambiguous."""
        homes = [home for home, _ in groupby(home_of("docs", name, n) for n in self.sizes)]
        return len(homes) != len(set(homes))

    @rule(name=NAMES, deleted=st.booleans())
    def post(self, name: str, deleted: bool) -> None:
        if self._wanders(name):
            return
        base, text = self.base, None if deleted else f"http {self.n_written}"
        base.registry.refresh()
        n = base.registry.partition_maps("acme")[-1].partitions
        collection = base.registry.collection("acme", "docs")
        if text is None:
            intake.delete(base.log, self.tenant, collection, [name], now_ms=1, partitions=n)
        else:
            rules = DocumentLimits.of(collection, base.settings.ingest)
            entries = [
                parse_json({"id": name, "vector": [1, 0], "text": text}, rules, tenant="acme")
            ]
            intake.accept(base.log, self.tenant, collection, entries, now_ms=1, partitions=n)
        self._written(name, text, n)

    @rule(name=NAMES, deleted=st.booleans(), back=st.integers(0, 2))
    def produce(self, name: str, deleted: bool, back: int) -> None:
        """A producer that knows the partitions of `back` growths ago."""
        if self._wanders(name):
            return
        n = self.sizes[max(0, len(self.sizes) - 1 - back)]
        text = None if deleted else f"kafka {self.n_written}"
        self.base.log.append(
            self.tenant.documents_topic, home_of("docs", name, n), self._records(name, text)
        )
        self._written(name, text, n)

    @rule(name=NAMES, partition=st.integers(0, MOST - 1))
    def produce_with_another_partitioner(self, name: str, partition: int) -> None:
        if partition >= self.sizes[-1] or partition in {
            home_of("docs", name, n) for n in range(1, MOST + 1)
        }:
            return
        self.base.log.append(
            self.tenant.documents_topic,
            partition,
            self._records(name, f"misplaced {self.misplaced}"),
        )
        self.misplaced += 1

    @rule(more=st.integers(1, 3))
    def grow(self, more: int) -> None:
        n = self.sizes[-1] + more
        # each growth is noticed before the next: a state between two checks has no map
        self.ingest_some()
        if n <= MOST:
            self.sizes.append(self.base.log.add_partitions(self.tenant.documents_topic, n))

    @rule(more=st.integers(1, 3))
    def set_partitions(self, more: int) -> None:
        """Grows through the platform: no check is needed before or after it."""
        n = self.sizes[-1] + more
        if n <= MOST:
            self.ingest_some()  # earlier growth of the topic itself is recorded first
            growth.set_partitions(self.base.registry, self.base.log, self.tenant, n, actor="test")
            self.sizes.append(n)

    @rule(partitions=st.integers(1, 3))
    def delete_the_topic_and_resume_in_a_new_one(self, partitions: int) -> None:
        self._catch_up()
        topic = self.tenant.documents_topic
        self.base.log.delete_topic(topic)
        self.base.log.ensure_topic(topic, partitions)
        states = self.base.registry.positions
        eventually(
            lambda: self.ingest_some() or any(s.state == "halted" for s in states.of("acme"))
        )
        resuming.apply(self.base.log, self.base.registry, self.tenant, actor="test")
        eventually(lambda: self.ingest_some() or not states.resuming())
        self.sizes = [partitions]
        self.expected = {
            name: (0, number, text) for name, (_, number, text) in self.expected.items()
        }

    @rule()
    def ingest_some(self) -> None:
        self.base.clock.advance(1)
        self.ingest.step()
        self.ingest.drain()

    @rule(partition=st.integers(0, MOST - 1), back=st.integers(0, 5))
    def restart_ingest_further_back(self, partition: int, back: int) -> None:
        self._end_ingest()
        if partition < self.sizes[-1]:
            tp = (self.tenant.documents_topic, partition)
            place = self.base.log.committed(Group.INGEST, [tp]).get(tp, 0)
            self.base.log.commit(Group.INGEST, {tp: max(0, place - back)})
        self.ingest = make_ingest(self.base)

    def _end_ingest(self) -> None:
        self.ingest.stop()

    def _catch_up(self) -> None:
        tps = [(self.tenant.documents_topic, p) for p in range(self.sizes[-1])]
        for _ in range(50):
            self.ingest_some()
            ends = {tp: self.base.log.end(*tp) for tp in tps}
            if {tp: self.base.log.committed(Group.INGEST, [tp]).get(tp, 0) for tp in tps} == ends:
                return
        raise AssertionError("ingest does not reach the ends of the topic")

    @invariant()
    def what_stands_is_what_was_written_last(self) -> None:
        if self.n_written % 5 == 4:
            self._compare()

    def _compare(self) -> None:
        self._catch_up()
        newest: dict[str, tuple[int, str | None]] = {}
        for slot in range(8):
            for stored in self.base.log.read("vicinage.vectors", slot, 0, bytes_max=1 << 30):
                for row in decode_rows(stored.record.value).batch.to_pylist():
                    known = newest.get(row["document_id"], (-1, None))
                    newest[row["document_id"]] = max(
                        known, (row["version"], row["text"]), key=lambda v: v[0]
                    )
        standing = {name: text for name, (_, text) in newest.items() if text is not None}
        assert standing == {
            name: text for name, (_, _, text) in self.expected.items() if text is not None
        }
        # Identified by content: a topic that is created again has the same positions once more.
        letters = {
            x["value_base64"] for x in dead_letters.read(self.base.log, self.tenant, limit=1_000)
        }
        assert len(letters) == self.misplaced

    def teardown(self) -> None:
        if hasattr(self, "ingest"):
            self._compare()
            self._end_ingest()
        self.base.close()
        shutil.rmtree(self.folder, ignore_errors=True)


TestGrowth = Growth.TestCase
TestGrowth.settings = settings(
    max_examples=8,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
