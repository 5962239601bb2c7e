"""Copies the rows of a generation into segments of the next one, part by part.

If the model changes, the passages of each part are embedded again.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from indexer.index.rows import document_runs, newest, no_deletes
from indexer.seal import Builder
from indexer.vectors_log import readable_rows
from tenants.entities import Generation, Lease, Manifest, SegmentRef
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.errors import Conflict, Overloaded, Refused
from vicinage.log import Log, read_between
from vicinage.records import Floats, ShardId
from vicinage.routing import shard_of
from vicinage.vectors import unit_length
from vicinage.wire import deletions_schema, rows_key, vector_column, vectors_schema

PART_PASSAGES: Final = 20_000
EMBED_TEXTS: Final = 512
EMBED_TRIES: Final = 60


class EmbedTexts(Protocol):
    """Embeds passages with the model of the next generation."""

    def __call__(self, model: str, texts: Sequence[str], tenant: str) -> Floats:
        """Returns vectors float32 [n, d]."""
        ...


class GenerationCopy:
    """Reads the rows of one generation and writes them to another.

    `lease(slot)` returns the lease under which a slot's manifests are swapped.
    """

    def __init__(
        self,
        log: Log,
        registry: Registry,
        builder: Builder,
        embed: EmbedTexts | None,
        lease: Callable[[int], Lease],
        stopping: threading.Event,
    ) -> None:
        self._log = log
        self._registry = registry
        self._builder = builder
        self._embed = embed
        self._lease = lease
        self._stopping = stopping

    def rows(self, shard: ShardId, generation: Generation, end: int) -> pa.RecordBatch:
        """Returns the live rows of the shard as of log offset `end`, ordered by document id."""
        manifest = self._builder.current(shard, generation)
        batches = [pa.RecordBatch.from_pylist([], schema=vectors_schema(generation.dimension))]
        for segment in self._builder.loading().segments(
            shard, manifest.segments, generation.metric
        ):
            batches.extend([segment.rows, _deletions(segment.deleted, segment.version)])
        key = rows_key(shard.tenant, shard.collection, shard.generation)
        logged = read_between(self._log, VECTORS_TOPIC, shard.slot, manifest.sealed, end)
        batches.extend(
            readable_rows((s for s in logged if s.record.key == key), generation.dimension)
        )
        live, _ = newest(batches)
        return live

    def write(self, part: pa.RecordBatch, live: Generation, new: Generation, tenant: str) -> None:
        """Writes the rows as one segment of each of the new generation's shards.

        Raises Overloaded if the embedder stays busy, Conflict if the generation was abandoned or a
        lease is lost, and Refused if the model cannot embed the rows.
        """
        if new.model != live.model:
            part = self._embedded_again(part, new, tenant)
        ids = part.column("document_id").to_pylist()
        shard_numbers = np.array([shard_of(i, len(new.slots)) for i in ids], np.int64)
        for number, shard in enumerate(new.shards()):
            rows = part.filter(pa.array(shard_numbers == number))
            if rows.num_rows:
                lease = self._lease(shard.slot)
                with self._builder.written(shard, new, rows, no_deletes(), lease) as segment:
                    self._builder.publish(shard, new, lease, partial(_with, segment))

    def _embedded_again(self, part: pa.RecordBatch, new: Generation, tenant: str) -> pa.RecordBatch:
        texts = part.column("text").to_pylist()
        if self._embed is None or new.model is None or any(t is None for t in texts):
            raise Refused(
                "some passages have no text to embed with the new model; send their documents "
                "again with text, or keep the model",
                field="model",
            )
        calls = range(0, len(texts), EMBED_TEXTS)
        vectors = np.concatenate(
            [self._embed_with_retries(new, texts[i : i + EMBED_TEXTS], tenant) for i in calls]
        )
        columns = [part.column(name) for name in part.schema.names[:-1]]
        vectors = unit_length(vectors, new.metric)
        return pa.RecordBatch.from_arrays(
            [*columns, vector_column(vectors)], schema=vectors_schema(new.dimension)
        )

    def _embed_with_retries(self, new: Generation, texts: Sequence[str], tenant: str) -> Floats:
        """Embeds the texts; retries while the embedder's queue is full.

        A part of many calls would rarely pass a busy embedder otherwise. Raises Conflict once the
        generation is abandoned: a canceled job embeds no more.
        """
        assert self._embed is not None
        assert new.model is not None
        for _ in range(EMBED_TRIES):
            self._check_wanted(new)
            try:
                return _checked(self._embed(new.model, texts, tenant), new, len(texts))
            except Overloaded as busy:
                if self._stopping.wait(busy.retry_after_s):
                    raise
        return _checked(self._embed(new.model, texts, tenant), new, len(texts))

    def _check_wanted(self, new: Generation) -> None:
        self._registry.refresh()
        found = self._registry.collection(new.tenant, new.collection)
        if all(g.number != new.number for g in found.generations):
            raise Conflict(f"generation {new.number} was abandoned; start the reindex again")


def rows_after(rows: pa.RecordBatch, document_id: str) -> pa.RecordBatch:
    """Returns the rows whose document id is greater."""
    ids = rows.column("document_id").to_pylist()
    return rows.filter(pa.array(np.array([i > document_id for i in ids], np.bool_)))


def parts(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yields runs of about PART_PASSAGES rows, whole documents each, ordered by document id."""
    runs = document_runs(rows.column("document_id").to_pylist(), rows.column("version").to_numpy())
    start = 0
    for _, end in runs:
        if end - start >= PART_PASSAGES:
            yield rows.slice(start, end - start)
            start = end
    if start < rows.num_rows:
        yield rows.slice(start)


def _with(segment: SegmentRef, manifest: Manifest) -> tuple[SegmentRef, ...]:
    return (*manifest.segments, segment)


def _checked(vectors: Floats, new: Generation, n: int) -> Floats:
    """Returns the model's answer if it is `n` finite vectors of the generation's dimension.

    Raises Refused otherwise.
    """
    if np.shape(vectors) != (n, new.dimension):
        found = " x ".join(str(size) for size in np.shape(vectors)) or "no"
        raise Refused(
            f"model {new.model} answered {found} numbers to {n} texts of {new.dimension}",
            field="model",
        )
    if not np.isfinite(vectors).all():
        raise Refused(f"model {new.model} answered a vector that is not finite", field="model")
    return vectors


def _deletions(deleted: Any, version: Any) -> pa.RecordBatch:
    """Returns a segment's deletions as rows, so that `newest` considers them too."""
    rows = [
        {"document_id": name, "version": int(version[at]), "event_time_ms": 0, "passage": -1}
        for at, name in deleted.items()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=deletions_schema())
