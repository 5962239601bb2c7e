"""The delta: passages newer than the segments, in memory, searched exactly.

One writer appends; readers hold a `DeltaView`, and the writer never changes its rows. The mask of
alive rows is copied on write. Nothing is added to an index that a reader uses.
"""

import threading
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from indexer.backends import Mask
from indexer.index.filters import Columns, Joined
from indexer.index.hits import Passages, metadata_of
from indexer.index.lazy import values_in
from indexer.index.lexical import Growing, Lexical
from vicinage.records import Floats
from vicinage.wire import is_deletions, vectors_of

BLOCK: Final = 1_024
"""Rows per block of filter columns: a write invalidates at most one block."""
ROWS_AT_FIRST: Final = 64
"""Rows allocated by the first message.

An empty delta allocates none, so that an idle shard costs little.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document in the delta: rows [first, first + count); count 0 means deleted."""

    first: int
    count: int
    version: int


@dataclass(frozen=True, slots=True)
class Message:
    """One applied vectors message.

    `first`: its first row in the delta; `offset`: its position in the log.
    """

    batch: pa.RecordBatch
    passages: Passages
    offset: int
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class DeltaView:
    """An immutable view of the delta."""

    vectors: Floats
    alive: Mask
    messages: list[Message]
    n_messages: int
    starts: list[int]
    metadata: "Metadata"
    words: "Words"

    def __len__(self) -> int:
        return len(self.vectors)

    def row(self, row: int) -> tuple[Message, int]:
        """Returns the message that holds `row`, and the row's number in it."""
        message = self.messages[bisect_right(self.starts, row, hi=self.n_messages) - 1]
        return message, row - message.first

    def columns(self) -> Joined:
        """Returns the metadata by row, as filter columns."""
        return self.metadata.columns(self)

    def lexical(self) -> Lexical:
        """Returns a lexical index of at least its rows; adds those that are not indexed yet.

        It may have later rows, too.
        """
        return self.words.lexical(self)


class Metadata:
    """Each row's metadata, parsed once, at the first filter, in columns of BLOCK rows.

    Safe for many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0
        """Bytes of the metadata as JSON."""
        self._parsed: list[Mapping[str, Any]] = []
        self._blocks: list[Columns] = []
        """All blocks but the last are full: after a write, only the last is rebuilt."""

    def columns(self, view: DeltaView) -> Joined:
        """Returns the columns of the view's rows."""
        with self._lock:
            while len(self._parsed) < len(view):
                message, _ = view.row(len(self._parsed))
                self._parsed.extend(metadata_of(message.batch))
            return Joined(
                [
                    self._block(first, min(first + BLOCK, len(view)))
                    for first in range(0, len(view), BLOCK)
                ]
            )

    def unread(self, view: DeltaView, names: Collection[str]) -> int:
        """Returns about how many values a filter on these fields still has to read.

        Does not wait for a reading thread.
        """
        values, blocks = values_in(len(view), self.bytes), self._blocks
        rows = 0
        for at, first in enumerate(range(0, len(view), BLOCK) if names else ()):
            size = min(BLOCK, len(view) - first)
            made = at < len(blocks) and len(blocks[at]) >= size
            rows += size * (blocks[at].unread(names) if made else len(names))
        return rows * values // max(1, len(view))

    def _block(self, first: int, end: int) -> Columns:
        at = first // BLOCK
        held = len(self._blocks[at]) if at < len(self._blocks) else 0
        if held == end - first:
            return self._blocks[at]
        made = Columns(self._parsed[first:end])
        if held < len(made):  # else the view is older than the block held, which stays
            self._blocks[at : at + 1] = [made]
        return made


class Words:
    """The lexical index of the rows: built at the first lexical search, then extended.

    Safe for many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._index: Growing | None = None

    def behind(self, view: DeltaView) -> int:
        """Returns how many rows of the view are not indexed yet."""
        return max(0, len(view) - (self._index.n if self._index else 0))

    def lexical(self, view: DeltaView) -> Lexical:
        """Returns the index: see DeltaView.

        Indexes dead rows, too: in an older view they are alive.
        """
        with self._lock:
            index = self._index = self._index or Growing()
            texts: list[str | None] = []
            while index.n + len(texts) < len(view):
                message, at = view.row(index.n + len(texts))
                texts.extend(message.batch.column("text")[at:].to_pylist())
            if texts:
                index.add(texts)
            return index.now


@dataclass(slots=True, eq=False)
class Delta:
    """The delta as its single writer uses it. Any thread may use what `view()` returns."""

    dimension: int
    documents: dict[str, Entry] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    n: int = 0
    bytes: int = 0
    _starts: list[int] = field(default_factory=list)
    _vectors: Floats = field(init=False)
    _alive: Mask = field(init=False)
    _metadata: Metadata = field(default_factory=Metadata)
    _words: Words = field(default_factory=Words)

    def __post_init__(self) -> None:
        self._vectors = np.empty((0, self.dimension), np.float32)
        self._alive = np.zeros(0, np.bool_)

    def append(self, batch: pa.RecordBatch, offset: int, alive: Mask) -> int:
        """Appends a message's rows and returns the first row's number.

        Dead rows are kept: rows and batch stay aligned.

        A message of deletions adds no rows; it is kept until a segment holds it.
        """
        if is_deletions(batch):
            self._hold(batch, offset, self.n)
            return self.n
        first, self.n = self.n, self.n + batch.num_rows
        if self.n > len(self._vectors):
            grown = np.empty((max(self.n, 2 * first, ROWS_AT_FIRST), self.dimension), np.float32)
            grown[:first] = self._vectors[:first]
            self._vectors = grown
        self._vectors[first : self.n] = vectors_of(batch)
        # A deletion has no vector: the memory there may hold NaN.
        self._vectors[first : self.n][~alive] = 0
        self._alive = np.concatenate([self._alive, alive])
        self._hold(batch, offset, first)
        self.bytes += 4 * self.dimension * batch.num_rows
        self._metadata.bytes += int(batch.column("metadata").nbytes)
        return first

    def _hold(self, batch: pa.RecordBatch, offset: int, first: int) -> None:
        self._starts.append(first)
        self.messages.append(Message(batch, Passages(batch), offset, first))
        self.bytes += batch.nbytes

    def kill(self, entries: list[Entry]) -> None:
        """Marks rows dead in all later views. `append` must come first: it copies the mask."""
        for entry in entries:
            self._alive[entry.first : entry.first + entry.count] = False

    def view(self) -> DeltaView:
        """Returns the delta as of now, for readers."""
        return DeltaView(
            self._vectors[: self.n],
            self._alive,
            self.messages,
            len(self.messages),
            self._starts,
            self._metadata,
            self._words,
        )
