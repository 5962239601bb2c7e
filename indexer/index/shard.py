"""★ A shard: its segments and its delta, searched together.

Guarantee 4: every change publishes a new immutable `Snapshot`, and a search uses one. A message's
additions and the rows that they replace change visibility together: a document is never visible
twice and never missing in between. `contents.py` decides which write of a document counts.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from indexer.backends import Backend
from indexer.index import costs, lookup, preload
from indexer.index.contents import Contents, check_dimension
from indexer.index.scans import ScanBudget, ScanLog
from indexer.index.search import search, search_words
from indexer.index.segment import Segment
from indexer.index.segment_set import SegmentSet
from indexer.index.snapshot import Snapshot, StoredDocument
from indexer.index.stats import shard_stats
from tenants.entities import Manifest, Metric
from vicinage.errors import Refused
from vicinage.records import ShardId, ShardQuery, ShardResult
from vicinage.stats import ShardStats


class Shard:
    """One collection's part in one slot.

    One thread writes (`apply`, `adopt`); any number of threads search.
    """

    def __init__(
        self,
        shard: ShardId,
        *,
        dimension: int,
        metric: Metric,
        recall: float,
        backend: Backend,
        manifest: Manifest,
        scans: ScanBudget | None = None,
    ) -> None:
        self.id = shard
        self.dimension = dimension
        self._metric: Metric = metric
        self._recall = recall
        self._backend = backend
        self._scans = scans or ScanBudget()
        self._scan_log = ScanLog(shard)
        self._contents = Contents(dimension)
        self._manifest = manifest
        self._watermark = manifest.sealed
        self._changes = 0
        self._lock = threading.Lock()
        self.last_access_s = 0.0
        """Monotonic time of the last search or of loading."""
        self.snapshot = self._make_snapshot()

    # writing: one thread

    def apply(self, batch: pa.RecordBatch, offset: int) -> int:
        """Makes a message's rows searchable and returns the new watermark.

        Drops rows that are sealed already, or older than the document's present version. Raises
        Corrupt and changes nothing if the message has another dimension than this generation.
        """
        check_dimension(batch, self.dimension, self.id, offset)
        with self._lock:
            if offset >= self._manifest.sealed:
                self._contents.add(batch, offset)
                self._changes += 1
            self._watermark = max(self._watermark, offset + 1)
            self.snapshot = self._make_snapshot()
        return self._watermark

    def advance(self, watermark: int) -> None:
        """Raises the watermark: no record below it that was not applied belongs to this shard."""
        with self._lock:
            if watermark > self._watermark:
                self._watermark = watermark
                self.snapshot = self._make_snapshot()

    def adopt(self, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """Replaces the segments by the manifest's, and drops the delta's rows that they contain."""
        # Outside the lock: the thread that applies messages of all shards waits for the lock.
        sealed = SegmentSet(segments)
        with self._lock:
            self._contents.adopt(sealed, manifest.sealed)
            self._changes += 1
            self._manifest = manifest
            self._watermark = max(self._watermark, manifest.sealed)
            self.snapshot = self._make_snapshot()

    def aim_at(self, recall: float) -> None:
        """Sets the collection's recall objective."""
        if recall != self._recall:
            with self._lock:
                self._recall = recall
                self.snapshot = self._make_snapshot()

    def _make_snapshot(self) -> Snapshot:
        delta, segments = self._contents.delta, self._contents.sealed.segments
        indexed = sum(len(s) - costs.rows_scanned(s, self._recall) for s in segments)
        rows = delta.n + sum(map(len, segments))
        return Snapshot(
            segments,
            self._contents.sealed.alive(),
            delta.view(),
            self._watermark,
            self._manifest,
            self._contents.n_documents,
            rows,
            self._changes,
            rows - indexed,
        )

    # reading: any thread

    def search(self, query: ShardQuery) -> ShardResult:
        """Returns the k best hits of each search, best first, from one snapshot.

        Raises Refused; in modes lexical and hybrid also Unavailable.
        """
        snapshot = self.snapshot
        if query.mode == "lexical":
            none = ((),) * len(query.texts)
            words = search_words(snapshot, query)
            return ShardResult(query.shard, none, snapshot.watermark, 0, words)
        if query.vectors.ndim != 2 or query.vectors.shape[1] != self.dimension:
            raise Refused(
                f"the vector has {query.vectors.shape[-1]} numbers; "
                f"the collection's dimension is {self.dimension}",
                field="vector",
                limit=self.dimension,
            )
        found = search(snapshot, query, self._backend, self._metric, self._recall, self._scans)
        self._scan_log.note(found.scanned, found.unscanned, len(query.vectors))
        if query.mode == "hybrid":
            return replace(found, lexical=search_words(snapshot, query))
        return found

    def document(self, document_id: str) -> StoredDocument | None:
        """Returns the document as it is searchable now; None if there is none."""
        with self._lock:
            delta, sealed = self._contents.delta, self._contents.sealed
            entry, view = delta.documents.get(document_id), delta.view()
            segments, writes = sealed.segments, sealed.newest([document_id])
        if entry is not None:
            return lookup.in_delta(view, document_id, entry)
        return lookup.in_segments(segments, document_id, writes)

    def matching(self, condition: Mapping[str, Any], *, limit: int) -> tuple[tuple[str, int], ...]:
        """Returns (id, version) of at most `limit` documents that pass the filter."""
        return lookup.matching(self.snapshot, condition, limit=limit)

    def needs(self, query: ShardQuery) -> frozenset[str] | None:
        """Returns the names of what the search needs loaded first; None if it can run at once."""
        return preload.needs(self.snapshot, query)

    def load_needed(self, names: frozenset[str]) -> None:
        """Loads what `needs` named. Waits for the store. Raises Unavailable."""
        preload.load_needed(self.snapshot, names)

    def vector_cost(self, *, exact: bool, scan: bool = False) -> int:
        """Returns how many numbers one vector search compares: rows × dimension.

        With `scan`, includes the rows that may be scanned instead of an index.
        """
        scan_rows_max = self._scans.rows_max if scan else 0
        rows = costs.rows_compared(self.snapshot, exact=exact, scan_rows_max=scan_rows_max)
        return rows * self.dimension

    def lexical_cost(self, text: str) -> int:
        """Returns the estimated cost of a lexical search, in pairs of a word and a row."""
        return costs.lexical_pairs(self.snapshot, text)

    def unsealed(self) -> list[int]:
        """Returns the offsets of the messages in the delta, ascending."""
        with self._lock:
            return [m.offset for m in self._contents.delta.messages]

    def made_bytes(self) -> int:
        """Returns the bytes allocated by the delta and by filter columns of segments."""
        return self._contents.delta.bytes + sum(g.columns.bytes() for g in self.snapshot.segments)

    def held_bytes(self) -> int:
        """Returns its bytes in memory; every page of its segments counts as resident."""
        return self.made_bytes() + sum(g.resident_bytes() for g in self.snapshot.segments)

    def stats(self) -> ShardStats:
        """Returns what the shard holds now."""
        return shard_stats(self.id, self.snapshot, self.held_bytes(), self._scan_log.seen())
