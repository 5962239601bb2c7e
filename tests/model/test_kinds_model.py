"""Models every index kind against exact numpy, in any order of writes and maintenance.

An exact search is always exact. No deleted, replaced or filtered passage is ever found. As many
passages are found as exist. Over the searches of a run, recall@10 is at least the objective under
each filter, within the statistical error of that many searches.
"""

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from rows import message

from indexer.backends import open_backend, widths
from indexer.compact import living
from indexer.index.rows import newest
from indexer.index.segment import load
from indexer.index.segment_set import surviving
from indexer.index.segment_writer import write
from indexer.index.shard import Shard
from tenants.entities import Manifest, Metric
from vicinage.filters import Filter
from vicinage.records import ShardId, ShardQuery
from vicinage.store import LocalStore

pytestmark = pytest.mark.timeout(600)

D, K, SEARCHES = 48, 10, 80
RECALL = 0.95
BATCH = 300
"""Documents written at once: after a few of them a segment is large enough for an index."""
CENTERS = 12
SHARD = ShardId("acme", "docs", 1, 0)
BACKEND = open_backend()
SPECS = ("auto", "hnsw:M=16,efc=40", "hnsw:codes=sq8", "ivf", "ivfpq", "rabitq", "flat")
CONDITIONS: tuple[tuple[Mapping[str, Any] | None, Callable[[int, bool], bool]], ...] = (
    (None, lambda _group, _side: True),
    ({"group": {"$lt": 50}}, lambda group, _side: group < 50),
    ({"group": {"$lt": 10}}, lambda group, _side: group < 10),
    ({"group": 1}, lambda group, _side: group == 1),
    ({"side": True}, lambda _group, side: side),
)
"""Filters of a half, a tenth and a hundredth, and one correlated with or against the query."""


class KindsMachine(RuleBasedStateMachine):
    spec = "auto"
    metric: Metric = "cosine"

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vicinage-model-"))
        self.store = LocalStore(self.folder)
        self.rng = np.random.default_rng(0)
        self.centers = self.rng.standard_normal((CENTERS, D)).astype(np.float32)
        self.log: list[pa.RecordBatch] = []
        self.manifest = Manifest(SHARD, 0, 0, 0, ())
        self.version = 0
        self.model: dict[str, tuple[np.ndarray, int, bool]] = {}
        self.right, self.wanted = Counter[int](), Counter[int]()
        self.now = self.spec
        self.restart()
        self.upsert(0)
        self.upsert(1)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _vectors(self, n: int) -> np.ndarray:
        """Returns vectors around a few centers, as texts lie around their subjects."""
        drawn = self.centers[self.rng.integers(0, CENTERS, n)] + self.rng.standard_normal(
            (n, D)
        ).astype(np.float32)
        return (
            drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
            if self.metric == "cosine"
            else drawn
        )

    def _send(self, rows: list[Any]) -> None:
        self.log.append(message(rows, D))
        self.shard.apply(self.log[-1], len(self.log) - 1)

    @rule(which=st.integers(0, 9))
    def upsert(self, which: int) -> None:
        """Writes `BATCH` documents, new ones or replacements."""
        rows = []
        for i, vector in enumerate(self._vectors(BATCH)):
            self.version += 1
            group, side = int(self.rng.integers(0, 100)), bool(vector[0] > 0)
            self.model[f"d{which}-{i}"] = (vector, group, side)
            rows.append(
                (
                    f"d{which}-{i}",
                    self.version,
                    [vector],
                    f'{{"group": {group}, "side": {str(side).lower()}}}',
                )
            )
        self._send(rows)

    @rule(share=st.sampled_from([0.01, 0.3]))
    def delete(self, share: float) -> None:
        names = [n for n in sorted(self.model) if self.rng.random() < share]
        for name in names:
            self.model.pop(name)
        self.version += 1
        if names:
            self._send([(name, self.version, None, "{}") for name in names])

    def _write(self, live: pa.RecordBatch, deletes: pa.RecordBatch) -> Any:
        return write(
            live,
            deletes,
            shard=SHARD,
            spec=self.now,
            metric=self.metric,
            dimension=D,
            backend=BACKEND,
            store=self.store,
            flat_max=200,
            threads=1,
        )

    @rule()
    def seal(self) -> None:
        if pending := self.log[self.manifest.sealed :]:
            self._adopt(
                (*self.manifest.segments, self._write(*newest([message([], D), *pending]))),
                len(self.log),
            )

    def _merge(self) -> None:
        segments = [load(ref, self.store, BACKEND, self.metric) for ref in self.manifest.segments]
        if segments:
            parts = list(zip(segments, surviving(segments), strict=True))
            self._adopt(
                (self._write(*living(parts, lambda _version: False)),), self.manifest.sealed
            )

    @rule()
    def compact(self) -> None:
        self._merge()

    @rule(spec=st.sampled_from(SPECS))
    def reindex(self, spec: str) -> None:
        """Rebuilds everything sealed as another kind, and back.

        Sealed segments keep the other kind until they are compacted.
        """
        self.now = spec
        self._merge()
        self.now = self.spec

    def _adopt(self, segments: tuple, sealed: int) -> None:
        self.manifest = replace(
            self.manifest, version=self.manifest.version + 1, segments=segments, sealed=sealed
        )
        self.shard.adopt(
            self.manifest, [load(ref, self.store, BACKEND, self.metric) for ref in segments]
        )

    @rule()
    def restart(self) -> None:
        self.shard = Shard(
            SHARD,
            dimension=D,
            metric=self.metric,
            recall=RECALL,
            backend=BACKEND,
            manifest=self.manifest,
        )
        self.shard.adopt(
            self.manifest,
            [load(ref, self.store, BACKEND, self.metric) for ref in self.manifest.segments],
        )
        for offset, batch in enumerate(self.log):
            if offset >= self.manifest.sealed:
                self.shard.apply(batch, offset)

    def _scores(self, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        if self.metric == "euclidean":
            return -np.square(queries[:, None] - vectors[None]).sum(axis=2)
        return queries @ vectors.T

    @rule(which=st.integers(0, len(CONDITIONS) - 1))
    def search(self, which: int) -> None:
        condition, keep = CONDITIONS[which]
        names = [n for n, (_, group, side) in self.model.items() if keep(group, side)]
        queries = self._vectors(SEARCHES)
        vectors = np.array([self.model[n][0] for n in names]).reshape(-1, D)
        scores = self._scores(queries, vectors)
        best = np.sort(scores, axis=1)[:, ::-1][:, :K]
        for exact in (True, False):
            found = self.shard.search(
                ShardQuery(
                    SHARD,
                    queries,
                    K,
                    filter=None if condition is None else Filter.parse(condition),
                    exact=exact,
                )
            ).hits
            for i, hits in enumerate(found):
                assert len(hits) == len({h.document_id for h in hits}) == min(K, len(names))
                assert {h.document_id for h in hits} <= set(names)
                got = np.array([h.score for h in hits], np.float32)
                if exact:
                    np.testing.assert_allclose(got, best[i], rtol=1e-3, atol=1e-3)
                elif len(names) > K:
                    self.right[which] += int(np.count_nonzero(got >= best[i, -1] - 1e-4))
                    self.wanted[which] += K
        self._keeps_its_objective(which)

    def _keeps_its_objective(self, which: int) -> None:
        """Returns three standard errors of the mean recall.

        Hits of a search are correlated: each search counts as three draws.
        """
        right, wanted = self.right[which], self.wanted[which]
        if wanted >= SEARCHES * K:
            error = math.sqrt(RECALL * (1 - RECALL) / (wanted / K * 3))
            assert right / wanted >= RECALL - 3 * error, (CONDITIONS[which][0], right, wanted)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_a_shard_of_this_kind_meets_its_guarantees(
    spec: str, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In segments of a few thousand rows a filter of a tenth would always be scanned row by row.
    # Here an index is searched wherever it can be.
    monkeypatch.setattr(widths, "ROWS_PER_STEP", 1)
    machine = type("Machine", (KindsMachine,), {"spec": spec, "metric": metric})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=4,
            stateful_step_count=14,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
