"""★ Searches one snapshot of a shard: every part, then the best hits of all, then their texts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from indexer.backends import Backend, Mask, Rows
from indexer.index import lexical, ties
from indexer.index.effort import EXACT, effort_for, greatest_of
from indexer.index.filters import Columns, Joined
from indexer.index.scans import ScanBudget, to_scan
from indexer.index.segment import Segment
from indexer.index.snapshot import Snapshot
from tenants.entities import Metric
from vicinage.errors import Refused
from vicinage.filters import Tree
from vicinage.records import Bound, Floats, Hit, ShardQuery, ShardResult

ANSWER_BYTES_MAX: Final = 16 << 20
"""Bound on the text in one shard's result of one search.

A text that is not ASCII counts four bytes per character.
"""


@dataclass(slots=True)
class _Found:
    """Candidates of one part for every search: scores and rows, [n, k] each."""

    part: int
    scores: Floats
    rows: Rows


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment (its index) or the delta (−1), with its lexical index and the allowed rows."""

    part: int
    index: lexical.Lexical
    allowed: Mask | None
    n: int


def search(
    snapshot: Snapshot,
    query: ShardQuery,
    backend: Backend,
    metric: Metric,
    recall: float,
    scans: ScanBudget,
) -> ShardResult:
    """Returns the k best hits of each search.

    Pure but for reading mapped files and accounting in `scans`.
    """
    tree = query.filter.tree if query.filter else None
    queries = np.ascontiguousarray(query.vectors, np.float32)
    found: list[_Found] = []
    chosen: list[tuple[Segment, int]] = []
    instead, bound = _to_scan_instead(snapshot, query, recall, scans)

    def exact(vectors: Floats, allowed: Mask | None) -> tuple[Floats, Rows]:
        find = partial(backend.exact, vectors, queries, metric=metric, allowed=allowed)
        return ties.settled(find, query.k, len(vectors))

    for i, segment in enumerate(snapshot.segments):
        allowed = allowed_rows(snapshot.alive[i], segment.columns.columns() if tree else None, tree)
        effort = _effort(segment, query, recall)
        if i in instead:
            with scans.scanning():
                scores, rows = exact(segment.vectors, allowed)
        elif query.exact or effort is None:
            scores, rows = exact(segment.vectors, allowed)
        else:
            if "index" in segment.ref.objects:
                chosen.append((segment, effort))
            find = partial(
                backend.search,
                segment.index,
                segment.vectors,
                queries,
                metric=metric,
                effort=effort,
                allowed=allowed,
            )
            scores, rows = ties.settled(find, query.k, len(segment.vectors))
        found.append(_Found(i, _bounded(scores, metric), rows))
    if len(snapshot.delta):
        allowed = allowed_rows(
            snapshot.delta.alive, snapshot.delta.columns() if tree else None, tree
        )
        every = None if allowed is not None and bool(allowed.all()) else allowed
        scores, rows = exact(snapshot.delta.vectors, every)
        found.append(_Found(-1, _bounded(scores, metric), rows))
    return ShardResult(
        query.shard,
        _best(snapshot, found, query),
        snapshot.watermark,
        max((effort for _, effort in chosen), default=0),
        n_calibration_queries=min(
            (segment.ref.n_calibration_queries for segment, _ in chosen), default=0
        ),
        changes=snapshot.changes,
        greatest=all(effort >= greatest_of(segment) for segment, effort in chosen),
        scanned=sum(len(snapshot.segments[i]) for i in instead),
        unscanned=bound,
    )


def _bounded(scores: Floats, metric: Metric) -> Floats:
    """Returns the scores, clipped to at most 1 under cosine: rounding may exceed it."""
    return np.clip(scores, -np.inf, 1.0) if metric == "cosine" else scores


def _to_scan_instead(
    snapshot: Snapshot, query: ShardQuery, recall: float, scans: ScanBudget
) -> tuple[frozenset[int], Bound | None]:
    """Returns the segments that are scanned instead of searched by index.

    Also returns the bound that prevented the scan of others; None if no bound did.
    """
    if not query.scan or query.exact or recall >= EXACT:
        return frozenset(), None
    indexed = sum(s.index is not None for s in snapshot.segments)
    found = to_scan(snapshot.segments, scans.rows_max)
    if found and not scans.has_time():
        return frozenset(), "cpu"
    return found, "rows" if len(found) < indexed else None


def _effort(segment: Segment, query: ShardQuery, recall: float) -> int | None:
    """Returns the effort of a search of the segment; None for exact search by request."""
    if query.effort:
        return query.effort
    if query.scan and recall < EXACT:
        return greatest_of(segment)
    return effort_for(segment, recall if query.recall is None else query.recall, recall)


def search_words(snapshot: Snapshot, query: ShardQuery) -> tuple[tuple[Hit, ...], ...]:
    """Returns the k best hits of each query's text by BM25, among alive rows that pass the filter.

    Term statistics are those of the whole shard. There are k hits if k rows hold a term of the
    query. Raises Unavailable if an index must be fetched and the store is unavailable.
    """
    tree = query.filter.tree if query.filter else None
    parts = [
        _Part(
            i,
            s.lexical.index(),
            allowed_rows(snapshot.alive[i], s.columns.columns() if tree else None, tree),
            len(s),
        )
        for i, s in enumerate(snapshot.segments)
    ]
    if len(snapshot.delta):
        delta = snapshot.delta
        allowed = allowed_rows(delta.alive, delta.columns() if tree else None, tree)
        parts.append(_Part(-1, delta.lexical(), allowed, len(delta)))
    indexes = [part.index for part in parts]
    weights = [lexical.weights(lexical.terms(text), indexes) for text in query.texts]
    found = [
        _found_in(part, [of_query[i] for of_query in weights], query.k)
        for i, part in enumerate(parts)
    ]
    return _best(snapshot, found, query)


def _found_in(part: _Part, weights: Sequence[Mapping[str, float]], k: int) -> _Found:
    """Returns the best rows of one part for the term weights of each query."""

    def find(width: int) -> tuple[Floats, Rows]:
        scores, rows = (
            np.full((len(weights), width), -np.inf, np.float32),
            np.full((len(weights), width), -1, np.int64),
        )
        for i, weighted in enumerate(weights):
            best, at = part.index.search(weighted, width, part.allowed)
            scores[i, : len(at)], rows[i, : len(at)] = best, at
        return scores, rows

    return _Found(part.part, *ties.settled(find, k, part.n))


def allowed_rows(
    alive: Mask | None, columns: Columns | Joined | None, tree: Tree | None
) -> Mask | None:
    """Returns the rows that are alive and pass the filter; None for all rows."""
    if tree is None or columns is None:
        return alive
    mask = columns.mask(tree)
    return mask if alive is None else mask & alive


def _best(
    snapshot: Snapshot, found: list[_Found], query: ShardQuery
) -> tuple[tuple[Hit, ...], ...]:
    """Returns the k best hits of each query over all parts, best first.

    Breaks ties by document id and passage.
    """
    if not found:
        return ((),) * max(len(query.vectors), len(query.texts))
    parts = np.repeat([f.part for f in found], [f.rows.shape[1] for f in found])
    rows = np.concatenate([f.rows for f in found], axis=1)
    scores = np.concatenate([f.scores for f in found], axis=1)
    answers: list[tuple[Hit, ...]] = []
    for of_query, own in zip(rows, scores, strict=True):
        here = np.flatnonzero(of_query >= 0)
        addresses = list(zip(parts[here].tolist(), of_query[here].tolist(), strict=True))
        chosen = ties.best(own[here], addresses, query.k, partial(_name, snapshot))
        each = own[here][chosen].tolist()
        answers.append(
            _hits(
                snapshot,
                [(*addresses[i], score) for i, score in zip(chosen, each, strict=True)],
                query,
            )
        )
    return tuple(answers)


def _name(snapshot: Snapshot, address: ties.Address) -> tuple[str, int]:
    """Returns the document id and the passage at (part, row)."""
    part, row = address
    if part >= 0:
        return snapshot.segments[part].passages.name(row)
    message, at = snapshot.delta.row(row)
    return message.passages.name(at)


def _hits(
    snapshot: Snapshot, addresses: Iterable[tuple[int, int, float]], query: ShardQuery
) -> tuple[Hit, ...]:
    """Returns the hits at these (part, row, score).

    Raises Refused once their texts exceed ANSWER_BYTES_MAX.
    """
    hits: list[Hit] = []
    left = ANSWER_BYTES_MAX
    for part, row, score in addresses:
        if row < 0:
            continue
        if part >= 0:
            of = snapshot.segments[part]
            hit = of.passages.hit(row, score, query.include, of.vectors)
        else:
            message, at = snapshot.delta.row(row)
            hit = message.passages.hit(
                at, score, query.include, snapshot.delta.vectors[message.first :]
            )
        hits.append(hit)
        if hit.text is not None:
            left -= len(hit.text) if hit.text.isascii() else 4 * len(hit.text)
        if left < 0:
            raise Refused(
                f"the texts found take more than {ANSWER_BYTES_MAX} bytes; set a smaller k, or "
                "leave text out of include",
                field="k",
                limit=len(hits) - 1,
            )
    return tuple(hits)
