"""★ A shard: its segments and its delta, searched together.

Law 4: every change publishes a new immutable `Snapshot`, and a search uses one. A message's
additions and the rows that they replace change visibility together: a document is never visible
twice and never missing in between. Law 3: a document's higher version replaces the lower one, in
segments and delta alike; other writes are dropped.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexer.backends import Backend, Mask
from indexer.index import lexical
from indexer.index.delta import Delta, Entry
from indexer.index.effort import EXACT
from indexer.index.hits import Passages
from indexer.index.objects import Keys
from indexer.index.order import supersedes
from indexer.index.rows import document_runs
from indexer.index.scans import ScanBudget, ScanLog
from indexer.index.search import allowed_rows, search, search_words
from indexer.index.segment import Segment
from indexer.index.snapshot import Snapshot, StoredDocument, StoredPassage
from tenants.entities import Manifest, Metric
from vicinage import filters
from vicinage.errors import Corrupt, Refused
from vicinage.records import Floats, ShardId, ShardQuery, ShardResult
from vicinage.stats import CurveEnd, ShardStats
from vicinage.wire import DELETED, is_deletions

BEHIND_MAX: Final = 256
"""Rows that a search itself adds to the delta's lexical index, about 10 ms; more are added before it."""
READ_MAX: Final = 4_096
"""Metadata values that a search itself reads for its filter, about 8 ms; more are read before it."""
LEXICAL: Final = "$lexical"
"""Stands for the lexical indexes among names of fields; no field of a filter begins with $."""
CHARS_A_WORD: Final = 6
CUT_PAIRS: Final = 8_192
"""Pairs of a word and a row that take as long to search as tokenizing and stemming one word, about 2 µs."""
COUNT_PAIRS: Final = 20_480
"""Pairs that take as long as counting the rows of a term in one index, about 5 µs."""


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
        self._delta = Delta(dimension)
        self._segments: tuple[Segment, ...] = ()
        self._alive_documents: list[Mask] = []
        self._alive_rows: list[Mask | None] = []
        self._manifest = manifest
        self._watermark = manifest.sealed
        self._n_documents = 0
        self._changes = 0
        self._lock = threading.Lock()
        self.last_access_s = 0.0
        """Monotonic time of the last search or of loading."""
        self.snapshot = self._publish()

    # writing: one thread

    def apply(self, batch: pa.RecordBatch, offset: int) -> int:
        """Makes a message's rows searchable and returns the new watermark.

        Drops rows that are sealed already, or older than the document's present version. Raises
        Corrupt and changes nothing if the message has another dimension than this generation.
        """
        if (
            not is_deletions(batch)
            and batch.schema.field("vector").type.list_size != self.dimension
        ):
            raise Corrupt(
                f"the message at offset {offset} of {self.id} is not of dimension {self.dimension}",
                path=f"vicinage.vectors/{self.id.slot}/{offset}",
            )
        with self._lock:
            if offset >= self._manifest.sealed:
                self._take(batch, offset)
                self._changes += 1
            self._watermark = max(self._watermark, offset + 1)
            self.snapshot = self._publish()
        return self._watermark

    def advance(self, watermark: int) -> None:
        """Raises the watermark: no record below it that was not applied belongs to this shard."""
        with self._lock:
            if watermark > self._watermark:
                self._watermark = watermark
                self.snapshot = self._publish()

    def adopt(self, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """Replaces the segments by the manifest's, and drops the rows of the delta that these contain."""
        alive = surviving(
            segments
        )  # outside the lock: the thread that applies messages of all shards waits for it
        rows = [_rows_alive(s, a) for s, a in zip(segments, alive, strict=True)]
        n = sum(
            int(np.count_nonzero(a & (s.count > 0))) for s, a in zip(segments, alive, strict=True)
        )
        with self._lock:
            self._segments, self._alive_documents, self._alive_rows, self._n_documents = (
                tuple(segments),
                alive,
                rows,
                n,
            )
            self._changes += 1
            self._manifest = manifest
            kept = [m for m in self._delta.messages if m.offset >= manifest.sealed]
            self._delta = Delta(self.dimension)
            for message in kept:
                self._take(message.batch, message.offset)
            self._watermark = max(self._watermark, manifest.sealed)
            self.snapshot = self._publish()

    def unsealed(self) -> list[int]:
        """Returns the offsets of the messages in the delta, ascending."""
        with self._lock:
            return [m.offset for m in self._delta.messages]

    def made_bytes(self) -> int:
        """Returns the bytes allocated by the delta and by filter columns of segments."""
        return self._delta.bytes + sum(g.columns.bytes() for g in self.snapshot.segments)

    def held_bytes(self) -> int:
        """Returns the bytes that it takes in memory; every page of its segments counts as resident."""
        return self.made_bytes() + sum(g.resident_bytes() for g in self.snapshot.segments)

    def _take(self, batch: pa.RecordBatch, offset: int) -> None:
        """Adds the documents that are newer, and marks the rows that they replace as dead."""
        ids, versions = batch.column("document_id").to_pylist(), batch.column("version").to_numpy()
        passages = batch.column("passage").to_numpy()
        runs = document_runs(ids, versions)
        names = [ids[start] for start, _ in runs]
        sealed, sealed_gone, places = self._sealed_versions(names)
        alive = np.zeros(batch.num_rows, np.bool_)
        accepted: list[tuple[int, int, int]] = []
        replaced: list[Entry] = []
        for number, (start, end) in enumerate(runs):
            held = self._delta.documents.get(names[number])
            version, gone = int(versions[start]), bool(passages[start] == DELETED)
            if held and not supersedes(version, gone, held.version, held.count == 0):
                continue
            if not supersedes(version, gone, int(sealed[number]), bool(sealed_gone[number])):
                continue
            alive[start:end] = not gone
            accepted.append((number, start, 0 if gone else end - start))
            self._count(held, sealed[number], places, number, gone=gone)
            if held:
                replaced.append(held)
            # Noted at once: the message may hold the same document again.
            self._delta.documents[names[number]] = Entry(
                self._delta.n + start, 0 if gone else end - start, version
            )
        if not accepted:
            return  # a duplicate delivery
        self._delta.append(batch, offset, alive)
        self._delta.kill(replaced)
        self._kill_sealed(places, [number for number, _, _ in accepted])

    def _count(
        self,
        held: Entry | None,
        sealed: int,
        places: list[NDArray[np.int64]],
        number: int,
        *,
        gone: bool,
    ) -> None:
        was = held.count > 0 if held else sealed >= 0 and self._lives(places, number)
        self._n_documents += int(not gone) - int(was)

    def _lives(self, places: list[NDArray[np.int64]], number: int) -> bool:
        return any(
            p[number] >= 0 and bool(a[p[number]]) and s.count[p[number]] > 0
            for s, a, p in zip(self._segments, self._alive_documents, places, strict=True)
        )

    def _sealed_versions(
        self, names: list[str]
    ) -> tuple[NDArray[np.int64], Mask, list[NDArray[np.int64]]]:
        """Returns each document's newest write in the segments, and its index in each segment (−1: none).

        The write is its version (−1: none), and whether it is a deletion.
        """
        best, gone = np.full(len(names), -1, np.int64), np.zeros(len(names), np.bool_)
        if not self._segments:
            return best, gone, []
        keys = Keys.of(names)
        places = [segment.find(keys) for segment in self._segments]
        for segment, place in zip(self._segments, places, strict=True):
            here = np.flatnonzero(place >= 0)
            theirs, their_gone = segment.version[place[here]], segment.count[place[here]] == 0
            newer = supersedes(theirs, their_gone, best[here], gone[here])
            best[here[newer]], gone[here[newer]] = theirs[newer], their_gone[newer]
        return best, gone, places

    def _kill_sealed(self, places: list[NDArray[np.int64]], numbers: list[int]) -> None:
        """Marks replaced documents of segments as dead, in copies of the masks: snapshots keep the old ones."""
        for i, place in enumerate(places):
            hit = place[numbers]
            hit = hit[hit >= 0]
            hit = hit[self._alive_documents[i][hit]]
            if len(hit):
                documents = self._alive_documents[i].copy()
                documents[hit] = False
                self._alive_documents[i] = documents
                self._alive_rows[i] = _without(self._segments[i], self._alive_rows[i], hit)

    def _publish(self) -> Snapshot:
        graphs = sum(len(s) - _scanned(s, self._recall) for s in self._segments)
        rows = self._delta.n + sum(map(len, self._segments))
        return Snapshot(
            self._segments,
            tuple(self._alive_rows),
            self._delta.view(),
            self._watermark,
            self._manifest,
            self._n_documents,
            rows,
            self._changes,
            rows - graphs,
        )

    # reading: any thread

    def search(self, query: ShardQuery) -> ShardResult:
        """Returns the k best hits of each search, best first, from one snapshot.

        Raises Refused; in modes lexical and hybrid also Unavailable.
        """
        snapshot = self.snapshot
        if query.mode == "lexical":
            nothing = ((),) * len(query.texts)
            return ShardResult(
                query.shard, nothing, snapshot.watermark, 0, search_words(snapshot, query)
            )
        if query.vectors.ndim != 2 or query.vectors.shape[1] != self.dimension:
            raise Refused(
                f"the vector has {query.vectors.shape[-1]} numbers; the collection's dimension is {self.dimension}",
                field="vector",
                limit=self.dimension,
            )
        found = search(snapshot, query, self._backend, self._metric, self._recall, self._scans)
        self._scan_log.note(found.scanned, found.unscanned, len(query.vectors))
        return (
            replace(found, lexical=search_words(snapshot, query))
            if query.mode == "hybrid"
            else found
        )

    def aim_at(self, recall: float) -> None:
        """Sets the collection's recall objective."""
        if recall != self._recall:
            with self._lock:
                self._recall = recall
                self.snapshot = self._publish()

    def needs(self, query: ShardQuery) -> frozenset[str] | None:
        """Returns the names of what the search needs loaded first; None if it can be answered at once.

        These are lexical indexes of segments, a delta's lexical index that is far behind, and filter columns of many rows.
        """
        if not query.filter and not query.texts:
            return None
        names = query.filter.fields if query.filter else frozenset()
        s = self.snapshot
        if (
            sum(g.columns.unread(names) for g in s.segments)
            + s.delta.metadata.unread(s.delta, names)
            <= READ_MAX
        ):
            names = frozenset()
        if query.texts and not self._lexical_here():
            names |= {LEXICAL}
        return names or None

    def load_needed(self, names: frozenset[str]) -> None:
        """Loads what `needs` named, for the present snapshot.

        Waits for the store. Raises Unavailable.
        """
        if named := names - {LEXICAL}:
            s = self.snapshot
            for segment in s.segments:
                segment.columns.columns().read(named)
            s.delta.columns().read(named)
        if LEXICAL in names:
            self._open_lexical()

    def _lexical_here(self) -> bool:
        s = self.snapshot
        return (
            all(g.lexical.here() for g in s.segments)
            and s.delta.words.behind(s.delta) <= BEHIND_MAX
        )

    def _open_lexical(self) -> None:
        s = self.snapshot
        for segment in s.segments:
            segment.lexical.index()
        if s.delta.words.behind(s.delta) > BEHIND_MAX:
            s.delta.lexical()

    def scanned(self, *, exact: bool, scan: bool = False) -> int:
        """Returns how many numbers one search is compared with: rows without an index (all if `exact`) × dimension.

        With `scan`, includes the rows that may be scanned instead of an index.
        """
        s = self.snapshot
        rows = s.rows if exact else s.rows_scanned
        if scan and not exact:
            rows += min(s.rows - rows, self._scans.rows_max)
        return rows * self.dimension

    def looked_up(self, text: str) -> int:
        """Returns the estimated cost of a lexical search, in pairs of a word and a row.

        Uses the text's length only.

        Every word is tokenized and stemmed, at most COUNTED_MAX are counted in each index, and at
        most TERMS_MAX are searched.
        """
        s = self.snapshot
        words = 1 + len(text) // CHARS_A_WORD
        counted = min(lexical.COUNTED_MAX, words) * (len(s.segments) + 1)
        before = words * CUT_PAIRS + counted * COUNT_PAIRS if s.rows else 0
        return before + min(lexical.TERMS_MAX, words) * s.rows

    def document(self, document_id: str) -> StoredDocument | None:
        """Returns the document as it is searchable now; None if there is none."""
        with self._lock:
            entry = self._delta.documents.get(document_id)
            view, segments = self._delta.view(), self._segments
            sealed, gone, places = self._sealed_versions([document_id])
        if entry is not None:
            if not entry.count:
                return None
            message, at = view.row(entry.first)
            vectors = view.vectors[entry.first : entry.first + entry.count]
            return _stored(document_id, entry.version, message.passages, at, vectors)
        for segment, place in zip(segments, places, strict=True):
            at = int(place[0])
            if at >= 0 and segment.version[at] == sealed[0] and not gone[0] and segment.count[at]:
                first, count = int(segment.first[at]), int(segment.count[at])
                vectors = segment.vectors[first : first + count]
                return _stored(document_id, int(sealed[0]), segment.passages, first, vectors)
        return None

    def matching(self, condition: Mapping[str, Any], *, limit: int) -> tuple[tuple[str, int], ...]:
        """Returns (id, version) of at most `limit` documents whose metadata passes the filter, from one snapshot."""
        tree = filters.parse(condition)
        s = self.snapshot
        found: dict[str, int] = {}
        for segment, alive in zip(s.segments, s.alive, strict=True):
            allowed = allowed_rows(alive, segment.columns.columns(), tree)
            rows = np.flatnonzero(
                allowed if allowed is not None else np.ones(len(segment), np.bool_)
            )
            ids, versions = (
                segment.rows.column(name).take(pa.array(rows))
                for name in ("document_id", "version")
            )
            found |= zip(ids.to_pylist(), versions.to_pylist(), strict=True)
        allowed = allowed_rows(s.delta.alive, s.delta.columns(), tree)
        for row in np.flatnonzero(allowed if allowed is not None else ()):
            message, at = s.delta.row(int(row))
            found[message.passages.id(at)] = message.batch.column("version")[at].as_py()
        return tuple(islice(found.items(), limit))

    def stats(self) -> ShardStats:
        """Returns what the shard holds now."""
        s = self.snapshot
        alive = sum(
            len(g) if a is None else int(np.count_nonzero(a))
            for g, a in zip(s.segments, s.alive, strict=True)
        )
        delta = int(np.count_nonzero(s.delta.alive))
        return ShardStats(
            shard=self.id,
            documents=s.documents,
            passages=alive + delta,
            delta_passages=delta,
            segments=len(s.segments),
            kinds=tuple(g.ref.kind for g in s.segments),
            host_bytes=self.held_bytes(),
            store_bytes=sum(g.ref.bytes() for g in s.segments),
            watermark=s.watermark,
            manifest_version=s.manifest.version,
            segment_passages=sum(map(len, s.segments)),
            scanned_passages=s.rows_scanned,
            curve=_curve_end(s.segments),
            scans=self._scan_log.seen(),
        )


def _curve_end(segments: Sequence[Segment]) -> CurveEnd | None:
    ends = [
        CurveEnd(*s.ref.curve[-1], s.ref.n_calibration_queries) for s in segments if s.ref.curve
    ]
    return min(ends, key=lambda end: end.recall, default=None)


def surviving(segments: Sequence[Segment]) -> list[Mask]:
    """Returns for each segment which of its documents, deletions included, no other segment replaces. Pure.

    The newer write survives (`order.supersedes`); of equal writes, the one in the later segment.
    """
    masks: list[Mask] = []
    for i, segment in enumerate(segments):
        alive = np.ones(len(segment.version), np.bool_)
        for j, other in enumerate(segments):
            if i != j:
                place = other.find(segment.keys)
                here = np.flatnonzero(place >= 0)
                own, own_gone = segment.version[here], segment.count[here] == 0
                theirs, their_gone = other.version[place[here]], other.count[place[here]] == 0
                same = (theirs == own) & (their_gone == own_gone)
                alive[here] &= ~(supersedes(theirs, their_gone, own, own_gone) | (same & (j > i)))
        masks.append(alive)
    return masks


def _stored(
    document_id: str, version: int, passages: Passages, first: int, vectors: Floats
) -> StoredDocument:
    """Returns the document whose rows begin at `first`; `vectors` float32 [n, d] are the vectors of its rows."""
    extents = zip(*passages.extents(first, len(vectors)), vectors, strict=True)
    return StoredDocument(
        document_id,
        version,
        tuple(StoredPassage(*each) for each in extents),
        passages.metadata(first),
    )


def _scanned(segment: Segment, objective: float) -> int:
    """Returns the rows that each search scans: all without an index; for RaBitQ, an eighth, as its codes cost that."""
    if segment.index is None or objective >= EXACT:
        return len(segment)
    return len(segment) // 8 if segment.ref.kind == "rabitq" else 0


def _without(segment: Segment, alive: Mask | None, gone: NDArray[np.int64]) -> Mask | None:
    """Returns the alive rows without those of the `gone` documents.

    Visits only their rows: every message calls this.
    """
    rows = [(int(segment.first[d]), int(segment.count[d])) for d in gone if segment.count[d]]
    if not rows:
        return alive
    left = np.ones(len(segment), np.bool_) if alive is None else alive.copy()
    for first, count in rows:
        left[first : first + count] = False
    return left


def _rows_alive(segment: Segment, documents: Mask) -> Mask | None:
    return None if bool(documents[segment.count > 0].all()) else segment.rows_mask(documents)
