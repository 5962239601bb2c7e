"""The segments of a shard, and which of their documents and rows no newer write replaces."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.backends import Mask
from indexer.index.objects import Keys
from indexer.index.order import supersedes
from indexer.index.segment import Segment

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NewestWrites:
    """The newest write of each of n documents in the segments.

    `version` −1: no segment has the document. `deleted`: whether the write is a deletion.
    `positions`: for each segment, the index of each document in it, or −1.
    """

    version: NDArray[np.int64]
    deleted: Mask
    positions: list[Positions]


class SegmentSet:
    """Segments with masks of their alive documents and rows.

    One thread writes (`kill`). Masks are copied on write, because snapshots keep the old ones.
    """

    def __init__(self, segments: Sequence[Segment] = ()) -> None:
        self.segments = tuple(segments)
        self._documents = surviving(segments)
        self._rows = [_alive_rows(s, a) for s, a in self._with_masks()]
        self.n_documents = sum(
            int(np.count_nonzero(a & (s.count > 0))) for s, a in self._with_masks()
        )
        """Live documents when the set was made."""

    def alive(self) -> tuple[Mask | None, ...]:
        """Returns for each segment the mask of its alive rows; None for all rows."""
        return tuple(self._rows)

    def newest(self, ids: list[str]) -> NewestWrites:
        """Returns the newest write of each document."""
        version, deleted = np.full(len(ids), -1, np.int64), np.zeros(len(ids), np.bool_)
        if not self.segments:
            return NewestWrites(version, deleted, [])
        keys = Keys.of(ids)
        positions = [segment.find(keys) for segment in self.segments]
        for segment, found in zip(self.segments, positions, strict=True):
            here = np.flatnonzero(found >= 0)
            theirs, their_gone = segment.version[found[here]], segment.count[found[here]] == 0
            newer = supersedes(theirs, their_gone, version[here], deleted[here])
            version[here[newer]], deleted[here[newer]] = theirs[newer], their_gone[newer]
        return NewestWrites(version, deleted, positions)

    def is_alive(self, writes: NewestWrites, number: int) -> bool:
        """Returns whether the document with this number among `writes` is alive in a segment."""
        return bool(writes.version[number] >= 0) and any(
            p[number] >= 0 and bool(a[p[number]]) and s.count[p[number]] > 0
            for (s, a), p in zip(self._with_masks(), writes.positions, strict=True)
        )

    def kill(self, writes: NewestWrites, numbers: list[int]) -> None:
        """Marks the documents with these numbers among `writes` as dead."""
        for i, positions in enumerate(writes.positions):
            hit = positions[numbers]
            hit = hit[hit >= 0]
            hit = hit[self._documents[i][hit]]
            if len(hit):
                documents = self._documents[i].copy()
                documents[hit] = False
                self._documents[i] = documents
                self._rows[i] = _without(self.segments[i], self._rows[i], hit)

    def _with_masks(self) -> Iterable[tuple[Segment, Mask]]:
        return zip(self.segments, self._documents, strict=True)


def surviving(segments: Sequence[Segment]) -> list[Mask]:
    """Returns for each segment a mask of the documents that no other segment replaces. Pure.

    Deletions count as documents. The newer write survives (`order.supersedes`); of equal writes,
    the one in the later segment.
    """
    masks: list[Mask] = []
    for i, segment in enumerate(segments):
        alive = np.ones(len(segment.version), np.bool_)
        for j, other in enumerate(segments):
            if i != j:
                position = other.find(segment.keys)
                here = np.flatnonzero(position >= 0)
                own, own_gone = segment.version[here], segment.count[here] == 0
                theirs = other.version[position[here]]
                their_gone = other.count[position[here]] == 0
                same = (theirs == own) & (their_gone == own_gone)
                alive[here] &= ~(supersedes(theirs, their_gone, own, own_gone) | (same & (j > i)))
        masks.append(alive)
    return masks


def _without(segment: Segment, alive: Mask | None, gone: Positions) -> Mask | None:
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


def _alive_rows(segment: Segment, documents: Mask) -> Mask | None:
    return None if bool(documents[segment.count > 0].all()) else segment.rows_mask(documents)
