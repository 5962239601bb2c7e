"""Models ingest of several collections in one partition with failing models and crashes.

Models die, hang and come back. In any order, no row is lost, duplicated or reordered, positions are
correct at every moment, and a collection with a working model never waits for another.
"""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from resources import HashEmbedder, make_ingest, resources_in

from tenants import provisioning
from tenants.entities import EmbeddingModel, Generation, Group
from tenants.ingest_lanes import owed_from
from vicinage.clock import ManualClock
from vicinage.errors import Unavailable
from vicinage.log import Record
from vicinage.records import Floats
from vicinage.tenant_context import TenantContext
from vicinage.wire import decode_rows

pytestmark = pytest.mark.timeout(600)

TP = ("vicinage.docs.acme", 0)
MODELS = {"red": "m1", "green": "m1", "blue": "m2", "flat": None}
POINTS = (
    "ingest.before_append", "ingest.between_append_and_commit", "ingest.after_commit",
    "ingest.after_lane_opened", "ingest.after_lane_closed",
)  # fmt: skip
ROUNDS_MAX = 400
MODES = st.sampled_from(["well", "away", "hangs"])


class Died(BaseException):
    """The process is gone."""


@dataclass
class Model(HashEmbedder):
    """Answers, reports that it is away, or blocks its callers."""

    dimension: int = 4
    mode: str = "well"
    released: threading.Event = field(default_factory=threading.Event)

    def embed(self, texts: Sequence[str], *, tenant: TenantContext, **given: Any) -> Floats:
        if self.mode == "hangs":
            self.released.wait(30)
        if self.mode != "well":
            raise Unavailable("the model is away", dependency="embedder")
        return super().embed(texts, tenant=tenant, **given)

    def become(self, mode: str) -> None:
        self.mode = mode
        self.released.set()
        self.released = threading.Event()


class Ingesting(RuleBasedStateMachine):
    """One tenant, one partition, four collections, two models."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vicinage-test-"))
        self.clock = ManualClock(time.time_ns() // 1_000_000)
        opened = resources_in(self.folder)
        small = opened.settings.ingest.model_copy(update={"batch_passages": 3})
        self.base = replace(
            opened, clock=self.clock, settings=opened.settings.model_copy(update={"ingest": small})
        )
        self.models = {"m1": Model(), "m2": Model()}
        self.written: dict[str, list[tuple[int, str, bool]]] = {name: [] for name in MODELS}
        """Collection → (offset, document, whether it is a deletion)."""
        self.since: dict[tuple[str, int], int] = {}
        """Generation → the end of the topic at its creation: it owns what was written since."""
        self.armed: tuple[str, int] | None = None
        self.visits = 0
        self.crashed = self.dead = False
        self.patches = [
            patch(f"ingest.{module}.crash_point", self._crash_point)
            for module in ("writer", "lane_registry")
        ]
        for each in self.patches:
            each.start()

    def _crash_point(self, name: str) -> None:
        if self.dead:
            raise Died(name)
        if self.armed is not None and self.armed[0] == name:
            self.visits += 1
            if self.visits >= self.armed[1]:
                raise Died(name)

    @initialize()
    def begin(self) -> None:
        base = self.base
        for name in self.models:
            base.registry.register_model(
                EmbeddingModel(name, "openai", "http://x/v1", 4, 200), actor="test"
            )
        provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
        for name in MODELS:
            self._create(name)
        self.ingest = self._start()

    def _create(self, name: str) -> None:
        given: dict[str, Any] = {"model": MODELS[name]} if MODELS[name] else {"dimension": 3}
        made = provisioning.create_collection(
            self.base.registry, self.base.log, "acme", name, slots_total=8, actor="test", **given
        )
        self._noted(name, made.live)

    def _noted(self, name: str, number: int) -> None:
        self.since[name, number] = self.base.log.end(*TP)

    def _start(self) -> Any:
        return make_ingest(self.base, by_model=self.models)

    def _generations(self) -> list[Generation]:
        self.base.registry.refresh()
        return [g for c in self.base.registry.collections("acme") for g in c.generations]

    # actions

    @rule(
        names=st.lists(st.sampled_from(sorted(MODELS)), min_size=3, max_size=10),
        modes=st.tuples(MODES, MODES),
        number=st.integers(0, 3),
        gone=st.booleans(),
        seconds=st.sampled_from([0.1, 0.5, 3.0]),
    )
    def write(
        self, names: list[str], modes: tuple[str, str], number: int, gone: bool, seconds: float
    ) -> None:
        """Writes documents of several collections, then takes a few steps."""
        for model, mode in zip(self.models.values(), modes, strict=True):
            model.become(mode)
        for i, name in enumerate(names):
            self._send(name, f"d{(number + i) % 4}", gone=gone and i % 3 == 0)
        self.go_on(6, seconds)

    def _send(self, name: str, one: str, *, gone: bool) -> None:
        body: dict[str, Any] = {"collection": name, "id": one}
        body |= {"vector": [1, 0, 0]} if name == "flat" else {"text": f"{name} {one}"}
        record = Record(None if gone else json.dumps(body).encode(), f"{name}/{one}".encode())
        [offset] = self.base.log.append(*TP, [record])
        self.written[name].append((offset, one, gone))

    def _exists(self, name: str) -> bool:
        self.base.registry.refresh()
        return any(c.name == name for c in self.base.registry.collections("acme"))

    @rule(times=st.integers(1, 8), seconds=st.sampled_from([0.0, 0.3, 3.0]))
    def go_on(self, times: int, seconds: float) -> None:
        for _ in range(times):
            self._step()
            self.clock.advance(seconds)

    @rule(point=st.sampled_from(POINTS), nth=st.integers(1, 3), times=st.integers(1, 10))
    def crash(self, point: str, nth: int, times: int) -> None:
        """Crashes within this many steps if the point is reached, else after them."""
        self.armed, self.visits = (point, nth), 0
        for _ in range(times):
            self._step()
            self.clock.advance(0.5)
        self._die()

    @rule(name=st.sampled_from(["green", "blue"]))
    def build_with_another_model(self, name: str) -> None:
        if (
            not self._exists(name)
            or len(self.base.registry.collection("acme", name).generations) > 1
        ):
            return
        other = (
            "m2" if self.base.registry.collection("acme", name).generation().model == "m1" else "m1"
        )
        place = provisioning.placer(self.base.log, "acme", name, 1, 8)
        made = self.base.registry.add_generation(
            "acme", name, index="flat", model=other, dimension=4, place=place, actor="test"
        )
        self._noted(name, made.number)

    @rule(name=st.sampled_from(["green", "blue"]), how=st.sampled_from(["cancel", "cut over"]))
    def end_building(self, name: str, how: str) -> None:
        for g in [g for g in self._generations() if g.collection == name and g.state == "building"]:
            if how == "cancel":
                self.base.registry.set_generation_state(
                    "acme", name, g.number, "failed", actor="test"
                )
            else:
                self.base.registry.set_generation_state(
                    "acme", name, g.number, "ready", actor="test"
                )
                self.base.registry.cut_over("acme", name, g.number, actor="test")

    @rule(name=st.sampled_from(["red", "blue"]))
    def delete_and_create_again(self, name: str) -> None:
        self.base.registry.delete_collection("acme", name, actor="test")
        self.written[name].clear()
        self._create(name)

    @rule()
    def those_whose_model_is_well_go_on(self) -> None:
        """Checks progress within seconds of the clock, whatever the others do."""
        well = {None} | {name for name, m in self.models.items() if m.mode == "well"}
        live = {(c.name, c.live) for c in self.base.registry.collections("acme")}

        def all_done() -> bool:
            return all(
                self._done(g) == self.base.log.end(*TP)
                for g in self._generations()
                if g.model in well and (g.collection, g.number) in live
            )

        self._until(all_done)

    @precondition(lambda self: hasattr(self, "ingest"))
    @rule()
    def come_to_rest(self) -> None:
        for model in self.models.values():
            model.become("well")
        self._until(
            lambda: all(self._done(g) == self.base.log.end(*TP) for g in self._generations())
        )
        for g in self._generations():
            assert self._found(g) == self._expected(g, self.base.log.end(*TP)), g
        own = {(g.collection, g.number) for g in self._generations() if g.state != "live"}
        self._until(
            lambda: {(x.collection, x.generation) for x in self.base.registry.lanes.every()} <= own
        )

    # invariants

    @invariant()
    def positions_are_honest(self) -> None:
        """Below a generation's position, the log has every row, or a newer one."""
        if not hasattr(self, "ingest"):
            return
        for g in self._generations():
            below = self._done(g)
            found = self._found(g)
            for one, (offset, _) in self._expected(g, below).items():
                assert found.get(one, (-1, False))[0] >= offset, (
                    g.collection,
                    g.number,
                    one,
                    offset,
                    below,
                )

    @invariant()
    def nothing_is_written_twice(self) -> None:
        """Rows of one message are ordered by document, not by offset: versions order them."""
        if not hasattr(self, "ingest") or self.crashed:
            return  # after a crash work may be repeated: versions order it
        for g in self._generations():
            offsets = [offset for offset, *_ in self._rows(g)]
            assert len(offsets) == len(set(offsets)), (g.collection, g.number, offsets)

    def _done(self, g: Generation) -> int:
        committed = self.base.log.committed(Group.INGEST, [TP]).get(TP, 0)
        return owed_from(
            self.base.registry.lanes.of("acme", g.collection, [g.number]), 0, committed
        )

    def _expected(self, g: Generation, below: int) -> dict[str, tuple[int, bool]]:
        since = self.since[g.collection, g.number]
        return {one: (o, gone) for o, one, gone in self.written[g.collection] if since <= o < below}

    def _rows(self, g: Generation) -> list[tuple[int, str, bool]]:
        rows = []
        for slot in g.slots:
            for stored in self.base.log.read("vicinage.vectors", slot, 0, bytes_max=1 << 30):
                message = decode_rows(stored.record.value or b"")
                if (message.collection, message.generation) == (g.collection, g.number):
                    names, versions, passages = (
                        message.batch.column(c).to_pylist()
                        for c in ("document_id", "version", "passage")
                    )
                    rows += [
                        ((v >> 10) & ((1 << 45) - 1), n, p < 0)
                        for n, v, p in zip(names, versions, passages, strict=True)
                    ]
        return rows

    def _found(self, g: Generation) -> dict[str, tuple[int, bool]]:
        found: dict[str, tuple[int, bool]] = {}
        for offset, one, gone in self._rows(g):
            if offset >= found.get(one, (-1, False))[0]:
                found[one] = (offset, gone)
        return {
            one: (o, gone)
            for one, (o, gone) in found.items()
            if o >= self.since[g.collection, g.number]
        }

    # the role

    def _until(self, true: Any) -> None:
        for _ in range(ROUNDS_MAX):
            if true():
                return
            self._step()
            self.clock.advance(0.3)
        raise AssertionError(f"not so after {ROUNDS_MAX} steps")

    def _step(self) -> None:
        try:
            self.ingest.step(0.005)
        except Died:
            self._die()

    def _die(self) -> None:
        """Drops everything in memory; the next process begins at the stored positions."""
        self.crashed = self.dead = True
        for model in self.models.values():
            model.released.set()
        self.ingest.stop()
        self.armed, self.dead = None, False
        for model in self.models.values():
            model.released = threading.Event()
        self.ingest = self._start()

    def teardown(self) -> None:
        try:
            if hasattr(self, "ingest"):
                self.come_to_rest()
        finally:
            self._end()

    def _end(self) -> None:
        for each in self.patches:
            each.stop()
        for model in self.models.values():
            model.become("away")
        if hasattr(self, "ingest"):
            self.ingest.stop()
        self.base.close()
        shutil.rmtree(self.folder)


Ingesting.TestCase.settings = settings(
    max_examples=6,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
TestIngesting = Ingesting.TestCase
