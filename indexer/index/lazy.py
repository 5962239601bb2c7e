"""Parts of a segment that load on first use: filter columns and the lexical index."""

import threading
from collections.abc import Collection
from typing import ClassVar, Final
from weakref import WeakKeyDictionary

import pyarrow as pa

from indexer.index import lexical
from indexer.index.filters import Columns
from indexer.index.hits import metadata_of
from indexer.index.objects import Damaged, OnDamage, opened
from indexer.index.rows import has_text
from tenants.entities import SegmentRef
from vicinage.metrics import counter
from vicinage.store import Store
from vicinage.telemetry import events

COLUMN_TIMES: Final = 8
VALUE_BYTES: Final = 64
"""Metadata bytes that take about as long to read as one value.

Numbers of a list take a few bytes each.
"""
OPEN_MAX: Final = 256
"""Most lexical indexes of segments that a process keeps open."""
_event = events("segment")
_rebuilt = counter("vicinage_searcher_lexical_rebuilt_total")


def values_in(n_rows: int, metadata_bytes: int) -> int:
    """Returns the cost of reading one field of `n_rows`, in values.

    One row's value may be a list of thousands.
    """
    return max(n_rows, metadata_bytes // VALUE_BYTES)


class LazyColumns:
    """A segment's metadata as filter columns, by row. Parsed at the first filtered search."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows
        self._columns: Columns | None = None

    def bytes(self) -> int:
        """Returns their bytes; 0 before the first filtered search.

        Parsed values take COLUMN_TIMES their JSON (measured: 5 to 8).
        """
        return (
            0 if self._columns is None else COLUMN_TIMES * int(self._rows.column("metadata").nbytes)
        )

    def unread(self, names: Collection[str]) -> int:
        """Returns how many values a filter on these fields still has to read.

        These are rows × fields, more for long lists.
        """
        fields = len(names) if self._columns is None else self._columns.unread(names)
        return fields and fields * values_in(
            len(self._rows), int(self._rows.column("metadata").nbytes)
        )

    def columns(self) -> Columns:
        """Returns the columns, one entry per row."""
        if self._columns is None:
            self._columns = Columns(metadata_of(self._rows))
        return self._columns


class LazyLexical:
    """A segment's lexical index: fetched, verified and mapped at its first search by words.

    Safe for many threads.

    If the file is absent or damaged, the index is built in memory from the texts. An LRU of
    OPEN_MAX indexes stays open, because tantivy keeps a (sleeping) thread for each.
    """

    _open: ClassVar["WeakKeyDictionary[LazyLexical, None]"] = WeakKeyDictionary()
    """The LRU of this process: most recently used last."""
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        ref: SegmentRef,
        store: Store,
        rows: pa.RecordBatch,
        barred: frozenset[str],
        on_damage: "OnDamage",
    ) -> None:
        self._ref, self._store, self._rows = ref, store, rows
        self._barred, self._on_damage = barred, on_damage
        self._lock = threading.Lock()
        self._index: lexical.Lexical | None = None

    def is_loaded(self) -> bool:
        """Returns whether `index` returns at once."""
        return self._index is not None

    def index(self) -> lexical.Lexical:
        """Returns the index. The first call waits for the store. Raises Unavailable."""
        with self._lock:
            index = self._index = self._index or self._fetched() or self._built()
        with self._opening:
            self._open.pop(self, None)
            self._open[self] = None
            if len(self._open) > OPEN_MAX:
                oldest = next(iter(self._open.keys()))
                oldest.evict()
                del self._open[oldest]
        return index

    def evict(self) -> None:
        """Releases the index; searches under way keep it."""
        self._index = None

    def _fetched(self) -> lexical.Lexical | None:
        if "lexical" not in self._ref.objects:
            return None
        try:
            return opened(self._ref, "lexical", self._store, lexical.unpack, self._barred)
        except Damaged as damaged:
            self._on_damage(damaged)
            if damaged.fault != "format":
                _rebuilt.inc()
                _event.error("lexical_index.rebuilt", path=damaged.path, error=damaged.detail)
            return None

    def _built(self) -> lexical.Lexical:
        built = lexical.Growing()
        if has_text(self._rows):
            built.add(self._rows.column("text").to_pylist())
        return built.now
