"""Models a shard against a dict, in any order; searches are exact.

The steps are upserts, deletes, redelivery, sealing, compaction and restarts.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rows import message

from indexer.backends import open_backend
from indexer.compact import living
from indexer.index.rows import newest
from indexer.index.segment import load
from indexer.index.segment_set import surviving
from indexer.index.segment_writer import write
from indexer.index.shard import Shard
from tenants.entities import Manifest
from vicinage.filters import Filter
from vicinage.records import ShardId, ShardQuery
from vicinage.store import LocalStore

pytestmark = pytest.mark.timeout(600)

D = 4
SHARD = ShardId("acme", "docs", 1, 0)
BACKEND = open_backend()
NAMES = [f"d{i}" for i in range(6)]


class ShardMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vicinage-model-"))
        self.store = LocalStore(self.folder)
        self.log: list[pa.RecordBatch] = []
        self.committed = 0
        self.version = 0
        self.manifest = Manifest(SHARD, 0, 0, 0, ())
        self.model: dict[str, tuple[int, list[np.ndarray], int]] = {}
        self.versions: dict[str, int] = {}
        """For each name, the version of its last content."""
        self.rng = np.random.default_rng(0)
        self.restart()

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _send(self, batch: pa.RecordBatch) -> None:
        self.log.append(batch)
        self.shard.apply(batch, len(self.log) - 1)

    @rule(
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
        n=st.integers(1, 3),
        color=st.integers(0, 2),
    )
    def upsert(self, names: list[str], n: int, color: int) -> None:
        rows = []
        for name in names:
            self.version += 1
            vectors = [
                v / np.linalg.norm(v) for v in self.rng.standard_normal((n, D)).astype(np.float32)
            ]
            rows.append((name, self.version, vectors, f'{{"color": {color}}}'))
            self.model[name] = (self.version, vectors, color)
            self.versions[name] = self.version
        self._send(message(rows))

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        self.version += 1
        self.model.pop(name, None)
        self._send(message([(name, self.version, None, "{}")]))

    @rule(name=st.sampled_from(NAMES), back=st.integers(0, 3))
    def delete_as_judged(self, name: str, back: int) -> None:
        """Deletes by filter, at the matched document's version, which may be old by now."""
        judged = max(0, self.versions.get(name, 0) - back)
        if name in self.model and self.model[name][0] == judged:
            self.model.pop(name)
        self._send(message([(name, judged, None, "{}")]))

    @rule(back=st.integers(1, 5))
    def deliver_again(self, back: int) -> None:
        """Repeats ingest's last steps after a crash.

        It repeats nothing that was committed, and so no tombstone that may be removed.
        """
        at = len(self.log) - back
        if at >= self.committed:
            self._send(self.log[at])

    def _write(self, live: pa.RecordBatch, deletes: pa.RecordBatch, spec: str):
        return write(
            live,
            deletes,
            shard=SHARD,
            spec=spec,
            metric="cosine",
            dimension=D,
            backend=BACKEND,
            store=self.store,
            flat_max=3,
            threads=1,
        )

    @rule(spec=st.sampled_from(["flat", "auto"]))
    def seal(self, spec: str) -> None:
        pending = self.log[self.manifest.sealed :]
        if pending:
            segment = self._write(*newest([message([]), *pending]), spec)
            self._adopt((*self.manifest.segments, segment), len(self.log))

    @rule(forget=st.booleans())
    def compact(self, forget: bool) -> None:
        if len(self.manifest.segments) < 2:
            return
        segments = [load(ref, self.store, BACKEND, "cosine") for ref in self.manifest.segments]
        parts = list(zip(segments, surviving(segments), strict=True))
        if forget:
            self.committed = len(self.log)
        live, deletes = living(parts, lambda _version: forget)
        self._adopt((self._write(live, deletes, "flat"),), self.manifest.sealed)

    def _adopt(self, segments: tuple, sealed: int) -> None:
        self.manifest = replace(
            self.manifest, version=self.manifest.version + 1, segments=segments, sealed=sealed
        )
        self.shard.adopt(
            self.manifest, [load(ref, self.store, BACKEND, "cosine") for ref in segments]
        )

    @rule()
    def restart(self) -> None:
        self.shard = Shard(
            SHARD,
            dimension=D,
            metric="cosine",
            recall=0.95,
            backend=BACKEND,
            manifest=self.manifest,
        )
        self.shard.adopt(
            self.manifest,
            [load(ref, self.store, BACKEND, "cosine") for ref in self.manifest.segments],
        )
        for offset, batch in enumerate(self.log):
            if offset >= self.manifest.sealed:
                self.shard.apply(batch, offset)

    @rule(
        back=st.integers(0, 4),
        name=st.sampled_from(NAMES),
        color=st.none() | st.integers(0, 2),
        k=st.integers(1, 30),
    )
    def search_words(self, back: int, name: str, color: int | None, k: int) -> None:
        """A row's text is "text NAME VERSION".

        By its version a document is found while that version is its newest, and never again.
        """
        version = max(0, self.version - back)  # a minus would not be part of a word
        for text, held in (
            ("text", lambda *_: True),
            (f"{name} {version}", lambda n, v: n == name or v == version),
            (f"{version}", lambda _, v: v == version),
        ):
            wanted = {
                (n, v, i)
                for n, (v, vectors, c) in self.model.items()
                if held(n, v) and color in (None, c)
                for i in range(len(vectors))
            }
            condition = None if color is None else {"color": color}
            asked = ShardQuery(
                SHARD,
                np.empty((1, 0), np.float32),
                k,
                filter=None if condition is None else Filter.parse(condition),
                mode="lexical",
                texts=(text,),
            )
            [hits] = self.shard.search(asked).lexical
            found = {(h.document_id, h.version, h.passage) for h in hits}
            assert found <= wanted
            assert len(found) == len(hits) == min(k, len(wanted))

    @invariant()
    def every_document_is_there_once_at_its_newest(self) -> None:
        if not hasattr(self, "shard"):
            return
        stats = self.shard.stats()
        assert stats.documents == len(self.model)
        assert stats.passages == sum(len(vectors) for _, vectors, _ in self.model.values())
        for name in NAMES:
            found = self.shard.document(name)
            assert (found and found.version) == (
                self.model[name][0] if name in self.model else None
            )

    @invariant()
    def searches_are_exact(self) -> None:
        if not hasattr(self, "shard"):
            return
        query = self.rng.standard_normal(D).astype(np.float32)
        query /= np.linalg.norm(query)
        for condition, keep in (
            (None, lambda c: True),
            ({"color": 1}, lambda c: c == 1),
            ({"color": {"$ne": 0}}, lambda c: c != 0),
        ):
            wanted = sorted(
                (-float(query @ v), name, i)
                for name, (_, vectors, color) in self.model.items()
                if keep(color)
                for i, v in enumerate(vectors)
            )[:5]
            for exact in (True, False):
                asked = ShardQuery(
                    SHARD,
                    query[None],
                    5,
                    filter=None if condition is None else Filter.parse(condition),
                    exact=exact,
                    effort=64,
                )
                [hits] = self.shard.search(asked).hits
                assert [(h.document_id, h.passage) for h in hits] == [
                    (name, i) for _, name, i in wanted
                ]


TestShard = ShardMachine.TestCase
TestShard.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
