"""What a segment makes or fetches when it is first needed: filter columns and the lexical index."""

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
from vicinage.store import Store
from vicinage.telemetry import counter, events

COLUMN_TIMES: Final = 8
VALUE_BYTES: Final = 64
"""Of metadata: about what takes as long to read as one value does. A list's numbers take some bytes each."""
OPEN_MAX: Final = 256
"""Lexical indexes of segments that a process holds."""
_event = events("segment")
_rebuilt = counter(
    "vicinage_searcher_lexical_rebuilt_total",
    "lexical indexes that were corrupt or lost, and were made anew of their texts",
)


def values_in(n_rows: int, metadata_bytes: int) -> int:
    """What reading one field of so many rows costs, in values: a row's may be a list of thousands."""
    return max(n_rows, metadata_bytes // VALUE_BYTES)


class LazyColumns:
    """The segment's metadata as filter columns, by row; parsed at the first filtered search."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows
        self._columns: Columns | None = None

    def bytes(self) -> int:
        """Bytes they take by now; 0 before the first filtered search. Parsed values are COLUMN_TIMES as large as their JSON (measured: 5 to 8)."""
        return 0 if self._columns is None else COLUMN_TIMES * int(self._rows.column("metadata").nbytes)

    def unread(self, names: Collection[str]) -> int:
        """Values that are still to be read before a filter on these fields: rows × fields, and more where lists are long."""
        fields = len(names) if self._columns is None else self._columns.unread(names)
        return fields and fields * values_in(len(self._rows), int(self._rows.column("metadata").nbytes))

    def columns(self) -> Columns:
        """One entry per row."""
        if self._columns is None:
            self._columns = Columns(metadata_of(self._rows))
        return self._columns


class LazyLexical:
    """The segment's lexical index: fetched, verified and mapped when somebody first asks for words. Safe for many threads.

    A segment that was written without one, or whose file is not what was written, has its own made in memory, of the texts.
    Only the OPEN_MAX that were asked last are held: tantivy gives each a thread, which sleeps.
    """

    _open: ClassVar["WeakKeyDictionary[LazyLexical, None]"] = WeakKeyDictionary()
    """Those of this process that hold an index, the one asked last at the end."""
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self, ref: SegmentRef, store: Store, rows: pa.RecordBatch, barred: frozenset[str], on_damage: "OnDamage"
    ) -> None:
        self._ref, self._store, self._rows = ref, store, rows
        self._barred, self._on_damage = barred, on_damage
        self._lock = threading.Lock()
        self._index: lexical.Lexical | None = None

    def here(self) -> bool:
        """Whether `index` answers at once."""
        return self._index is not None

    def index(self) -> lexical.Lexical:
        """The index. The first time it may take as long as the store takes. Raises Unavailable."""
        with self._lock:
            index = self._index = self._index or self._fetched() or self._made()
        with self._opening:
            self._open.pop(self, None)
            self._open[self] = None
            if len(self._open) > OPEN_MAX:
                oldest = next(iter(self._open.keys()))
                oldest.let_go()
                del self._open[oldest]
        return index

    def let_go(self) -> None:
        """Hold it no more; who searches in it now goes on."""
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

    def _made(self) -> lexical.Lexical:
        made = lexical.Growing()
        if has_text(self._rows):
            made.add(self._rows.column("text").to_pylist())
        return made.now
