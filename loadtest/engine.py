"""Measures the engine alone, in this process and on one thread.

It searches a shard of real passages without a filter, under filters, in batches, and after churn.
Every figure is CPU time of this thread at the effort that the shard chose for its objective, beside
raw FAISS HNSW.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import bench
from bench import K

from indexer.backends import open_backend
from indexer.compact import living, pick, weigh
from indexer.index.rows import newest
from indexer.index.segment import Segment, load
from indexer.index.segment_writer import write
from indexer.index.shard import Shard
from tenants.entities import Manifest
from vicinage.filters import Filter
from vicinage.records import ShardId, ShardQuery
from vicinage.settings import IndexerSettings
from vicinage.store.local import LocalStore
from vicinage.wire import vector_column, vectors_schema

Floats = NDArray[np.float32]
SHARD = ShardId("bench", "engine", 1, 0)
SHARES = {0.5: 500, 0.1: 100, 0.01: 10, 0.001: 1}
"""Selectivity → the bound of `{"g": {"$lt": bound}}`, where g is a random number below 1,000."""
KNOWN = 256
"""Recent searches of the collection, on which effort curves are measured.

docs/decisions/010-effort-correction.md has the reasons.
"""
CHURNED = 10_000
"""Passages that are replaced repeatedly."""
ROUNDS = 10
REPLACED = 0.3


def measure(
    report: Any,
    vectors: Floats,
    queries: Floats,
    truth: NDArray[np.int64],
    raw_ms: float,
    batch: int = 64,
) -> None:
    """Adds the engine's rows to the report.

    The first queries are earlier searches of the collection; the others are measured.
    """
    known, queries, truth = queries[:KNOWN], queries[KNOWN:], truth[KNOWN:]
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 1_000, len(vectors))
    # The half of the passages that contains a query's own, and the other half, which a filter
    # against the query leaves.
    side = vectors @ (vectors[0] - vectors[1]) > 0
    with tempfile.TemporaryDirectory(prefix="vicinage-engine-") as folder:
        engine = Engine(Path(folder), vectors.shape[1], known)
        started = time.thread_time()
        engine.seal(range(len(vectors)), vectors, 1, groups, side)
        built = time.thread_time() - started
        [ref] = [s.ref for s in engine.shard.snapshot.segments]
        index = ref.objects["index"].bytes
        report.add(
            "engine: seal (index, curve, files)",
            len(vectors) / built,
            "passages/s",
            kind=ref.kind,
            seconds=round(built, 1),
        )
        report.add(
            "engine: index bytes of a passage, beside its vector",
            index / len(vectors),
            "bytes",
            kind=ref.kind,
        )
        engine.plain(report, "engine: Shard.search", queries, truth, raw_ms)
        engine.batch(report, queries, truth, raw_ms, batch)
        scores = queries @ vectors.T
        for share, bound in SHARES.items():
            allowed = groups < bound
            engine.filtered(
                report,
                f"engine: filter of {share:.1%}",
                queries,
                scores,
                allowed,
                {"g": {"$lt": bound}},
                raw_ms,
            )
        some = np.flatnonzero(queries @ (vectors[0] - vectors[1]) > 0)[:500]
        for name, wanted in (("runs with", True), ("runs against", False)):
            engine.filtered(
                report,
                f"engine: filter of half that {name} the query",
                queries[some],
                scores[some],
                side == wanted,
                {"side": wanted},
                raw_ms,
            )
    with tempfile.TemporaryDirectory(prefix="vicinage-engine-") as folder:
        some = slice(0, CHURNED)
        churn(report, Path(folder), known, vectors[some], queries, groups[some], side[some])


class Engine:
    """A shard whose segments are in a folder."""

    def __init__(self, folder: Path, dimension: int, queries: Floats) -> None:
        self._queries = queries
        self._store = LocalStore(folder)
        self._backend = open_backend()
        self._d = dimension
        self._version = 1
        self.rows_written = 0
        self.shard = Shard(
            SHARD,
            dimension=dimension,
            metric="cosine",
            recall=0.95,
            backend=self._backend,
            manifest=Manifest(SHARD, 0, 0, 0, ()),
        )

    def seal(
        self,
        ids: Any,
        vectors: Floats,
        version: int,
        groups: NDArray[np.int64],
        side: NDArray[np.bool_],
    ) -> None:
        """Seals one more segment of these documents, a passage each."""
        rows = batch_of([str(i) for i in ids], vectors, version, groups, side)
        self._publish([*self.shard.snapshot.segments, self._written(*newest([rows]))])

    def _written(self, live: pa.RecordBatch, deletes: pa.RecordBatch) -> Segment:
        ref = write(
            live,
            deletes,
            shard=SHARD,
            spec="auto",
            metric="cosine",
            dimension=self._d,
            backend=self._backend,
            store=self._store,
            flat_max=2_000,
            threads=1,
            recent_queries=self._queries,
        )
        self.rows_written += ref.n_passages
        return load(ref, self._store, self._backend, "cosine")

    def _publish(self, segments: list[Segment]) -> None:
        self._version += 1
        manifest = replace(
            self.shard.snapshot.manifest,
            version=self._version,
            segments=tuple(s.ref for s in segments),
        )
        self.shard.adopt(manifest, segments)

    def bytes(self) -> int:
        """Returns the bytes of its segments in the store."""
        return sum(s.ref.bytes() for s in self.shard.snapshot.segments)

    def compact(self) -> None:
        """Merges what the indexer would merge, until nothing is left to merge."""
        while True:
            segments = self.shard.snapshot.segments
            weights, alive = weigh(segments)
            chosen = pick(weights, IndexerSettings())
            if not chosen:
                return
            parts = [(s, a) for s, a in zip(segments, alive, strict=True) if s.ref.id in chosen]
            kept = [s for s in segments if s.ref.id not in chosen]
            self._publish([self._written(*living(parts, lambda _version: False)), *kept])

    def search(
        self, queries: Floats, condition: Mapping[str, Any] | None = None
    ) -> tuple[float, list[list[int]]]:
        """Returns the least CPU milliseconds a query of several runs, and the documents found.

        Each call has one query.
        """
        parsed = None if condition is None else Filter.parse(condition)
        made = [
            ShardQuery(SHARD, q[None], K, filter=parsed, include=frozenset({"text"}))
            for q in queries
        ]
        found, seconds = bench.least(lambda: [self.shard.search(query).hits[0] for query in made])
        return seconds / len(queries) * 1e3, [[int(h.document_id) for h in hits] for hits in found]

    def plain(
        self, report: Any, case: str, queries: Floats, truth: NDArray[np.int64], raw_ms: float
    ) -> None:
        """Measures searches without a filter."""
        ms, found = self.search(queries)
        effort = self.shard.search(ShardQuery(SHARD, queries[:1], K)).effort
        report.add(
            case,
            ms,
            "CPU ms",
            bound=raw_ms,
            recall=round(bench.recall(found, truth), 4),
            effort=effort,
            per_s=round(1e3 / ms),
        )

    def batch(
        self, report: Any, queries: Floats, truth: NDArray[np.int64], raw_ms: float, size: int
    ) -> None:
        """Measures many queries in one call, as the searcher's queue combines them."""
        made = [
            ShardQuery(SHARD, queries[i : i + size], K, include=frozenset({"text"}))
            for i in range(0, len(queries), size)
        ]
        answers, seconds = bench.least(
            lambda: [hits for query in made for hits in self.shard.search(query).hits]
        )
        ms, found = (
            seconds / len(queries) * 1e3,
            [[int(h.document_id) for h in hits] for hits in answers],
        )
        report.add(
            f"engine: Shard.search, {size} queries a call",
            ms,
            "CPU ms",
            bound=raw_ms,
            recall=round(bench.recall(found, truth), 4),
        )

    def filtered(
        self,
        report: Any,
        case: str,
        queries: Floats,
        scores: Floats,
        allowed: NDArray[np.bool_],
        condition: Mapping[str, Any],
        raw_ms: float,
    ) -> None:
        """Measures searches under a filter that leaves `allowed`."""
        truth = np.argsort(-np.where(allowed, scores, -9), axis=1, kind="stable")[:, :K]
        ms, found = self.search(queries, condition)
        share = round(float(allowed.mean()), 4)
        report.add(
            case,
            ms,
            "CPU ms",
            bound=raw_ms,
            recall=round(bench.recall(found, truth), 4),
            share=share,
            per_s=round(1e3 / ms),
        )


def churn(
    report: Any,
    folder: Path,
    known: Floats,
    vectors: Floats,
    queries: Floats,
    groups: NDArray[np.int64],
    side: NDArray[np.bool_],
) -> None:
    """Measures ten rounds that replace 30 % of the vectors, with compaction, beside a fresh build.

    A shard is largest just before it compacts, so the worst of all rounds is reported beside the
    last.
    """
    churned, fresh = (
        Engine(folder / name, vectors.shape[1], known) for name in ("churned", "fresh")
    )
    everyone, rng, now = range(len(vectors)), np.random.default_rng(1), vectors.copy()
    churned.seal(everyone, now, 1, groups, side)
    at_first, sizes, times = churned.rows_written, [], []
    for round_ in range(ROUNDS):
        chosen = rng.choice(len(now), int(REPLACED * len(now)), replace=False)
        now[chosen] = now[rng.permutation(chosen)]
        churned.seal(chosen, now[chosen], round_ + 2, groups[chosen], side[chosen])
        churned.compact()
        sizes.append(churned.bytes())
        times.append(churned.search(queries[:500])[0])
    fresh.seal(everyone, now, 1, groups, side)
    truth = bench.exact(now, queries)
    (fresh_ms, fresh_found), (ms, found) = fresh.search(queries), churned.search(queries)
    efforts = [e.shard.search(ShardQuery(SHARD, queries[:1], K)).effort for e in (churned, fresh)]
    report.add(
        f"engine: Shard.search after {ROUNDS} rounds of replacing {REPLACED:.0%}",
        ms,
        "CPU ms",
        bound=fresh_ms,
        recall=round(bench.recall(found, truth), 4),
        fresh_recall=round(bench.recall(fresh_found, truth), 4),
        n=len(now),
        efforts=efforts,
        worst_round=round(max(times) / fresh_ms, 2),
        bytes_to_fresh=round(churned.bytes() / fresh.bytes(), 3),
        bytes_worst=round(max(sizes) / fresh.bytes(), 3),
        rows_written_to_replaced=round(
            (churned.rows_written - at_first) / (ROUNDS * REPLACED * len(now)), 2
        ),
    )


def batch_of(
    ids: list[str],
    vectors: Floats,
    version: int,
    groups: NDArray[np.int64],
    side: NDArray[np.bool_],
) -> pa.RecordBatch:
    """Returns rows as a vectors message has them."""
    n, schema = len(ids), vectors_schema(vectors.shape[1])
    metadata = [
        f'{{"g":{g},"side":{"true" if s else "false"}}}'
        for g, s in zip(groups.tolist(), side.tolist(), strict=True)
    ]
    columns = [
        ids,
        [version] * n,
        [1] * n,
        [0] * n,
        [f"passage {i}" for i in ids],
        [0] * n,
        [1] * n,
        metadata,
    ]
    arrays = [pa.array(c, schema.field(i).type) for i, c in enumerate(columns)]
    return pa.RecordBatch.from_arrays([*arrays, vector_column(vectors)], schema=schema)


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    kept = max(bench.KEPT, n + 2_000)
    every = bench.vectors_of(bench.passages(kept), kept)
    base, queries, made = np.ascontiguousarray(every[:n]), every[-2_000:], bench.Report()
    truth_ = bench.exact(base, queries)
    measure(made, base, queries, truth_, bench.raw_faiss(made, base, queries, truth_))
