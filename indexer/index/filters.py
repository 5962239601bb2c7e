"""Evaluates metadata filters (`vicinage/filters.py`), over columns or on one document's metadata.

Guarantee 7: filters share the thread that searches, so their cost is bounded by construction. The
values of a field are sorted. Each value that a comparison names takes two binary searches, then its
rows are marked, or each row is compared once.
"""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vicinage.filters import Leaf, Tree, is_scalar, kind_of

Mask = NDArray[np.bool_]
Metadata = Mapping[str, Any]
COLUMNS_MAX: Final = 64
"""Most columns kept, in an LRU: callers may name any number of fields."""
MANY: Final = 32
"""Rows per matching row below which the ranks of all rows are compared instead.

That reads memory in order, while marking single rows writes to random places.
"""
EXACT_BELOW: Final = 2**53
"""Integers below it are exact as float64."""
KEY_MAX: Final = 128
"""Characters of the longest key that metadata may have (ingest/validation.py, in bytes)."""
_MISSING: Final = object()


def matches(tree: Tree, metadata: Metadata) -> bool:
    """Returns whether one document's metadata passes."""
    if isinstance(tree, Leaf):
        return _judge(tree, _reach(metadata, tree.field))
    if tree.op == "$not":
        return not matches(tree.parts[0], metadata)
    combine = all if tree.op == "$and" else any
    return combine(matches(part, metadata) for part in tree.parts)


class Columns:
    """Metadata of n documents as columns by field, each made at its first use.

    Keeps an LRU of COLUMNS_MAX columns. Safe for many threads.
    """

    def __init__(self, metadata: Sequence[Metadata]) -> None:
        self._n = len(metadata)
        self._metadata = metadata
        self._held: dict[str, _Column] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._n

    def kept(self) -> int:
        """Returns the number of columns held."""
        return len(self._held)

    def read(self, names: Iterable[str]) -> None:
        """Makes the columns of these fields."""
        for name in names:
            self._column(name)

    def unread(self, names: Iterable[str]) -> int:
        """Returns how many of these fields have no column yet."""
        return sum(name not in self._held for name in names)

    def _column(self, field: str) -> "_Column":
        with self._lock:
            found = self._held.pop(field, None)
            if found is not None:
                self._held[field] = found  # most recently used last
                return found
        # Two threads may both make it; neither waits for the other.
        made = _Column([_reach(m, field) for m in self._metadata])
        with self._lock:
            self._held[field] = made
            if len(self._held) > COLUMNS_MAX:
                del self._held[next(iter(self._held))]
        return made

    def mask(self, tree: Tree) -> Mask:
        """Returns bool [n]: which documents pass, as `matches` decides for each."""
        if isinstance(tree, Leaf):
            return self._column(tree.field).mask(tree)
        if not tree.parts:
            return np.ones(self._n, np.bool_)  # {} passes everything
        found = self.mask(tree.parts[0])
        if tree.op == "$not":
            return ~found
        for part in tree.parts[1:]:
            _COMBINE[tree.op](found, self.mask(part), out=found)
        return found


_COMBINE: Final = {"$and": np.logical_and, "$or": np.logical_or}


class Joined:
    """Columns of consecutive ranges of rows."""

    def __init__(self, parts: Sequence[Columns]) -> None:
        self._parts = parts

    def read(self, names: Iterable[str]) -> None:
        """See Columns."""
        for part in self._parts:
            part.read(names)

    def mask(self, tree: Tree) -> Mask:
        """Returns bool [n]; see Columns."""
        return (
            np.concatenate([part.mask(tree) for part in self._parts])
            if self._parts
            else np.zeros(0, np.bool_)
        )


class _Column:
    """One field of every document, inverted: by kind, the sorted values and the rows of each."""

    def __init__(self, values: list[Any]) -> None:
        self._present: Mask = np.fromiter(
            (v is not _MISSING for v in values), np.bool_, len(values)
        )
        rows_of: dict[str, dict[Any, list[int]]] = {}
        for row, value in enumerate(values):
            for element in value if isinstance(value, list) else (value,):
                if is_scalar(element):
                    rows_of.setdefault(kind_of(element), {}).setdefault(
                        _sortable(element), []
                    ).append(row)
        self._kinds = {kind: _Sorted(found, len(values)) for kind, found in rows_of.items()}

    def mask(self, leaf: Leaf) -> Mask:
        """Returns bool [n], which the caller may change."""
        if leaf.op == "$exists":
            return self._present.copy() if leaf.operand else ~self._present
        found = np.zeros(len(self._present), np.bool_)
        wanted = (
            leaf.operand if leaf.op in ("$in", "$nin") else {kind_of(leaf.operand): (leaf.operand,)}
        )
        for kind, operands in wanted.items():
            held = self._kinds.get(kind, _NOTHING)
            for operand in operands:
                held.mark(found, leaf.op, _sortable(operand))
        return ~found if leaf.op in ("$ne", "$nin") else found


class _Sorted:
    """The sorted distinct values of one kind; values[i] is in rows[starts[i] : starts[i + 1]].

    `ranks`: the index of each row's value, −1 without a value; None if a row has several values.
    """

    def __init__(self, rows_of: Mapping[Any, list[int]], n: int) -> None:
        values = sorted(rows_of)
        rows = [row for value in values for row in rows_of[value]]
        self._values: Sequence[Any] | NDArray[np.float64] = values
        self._rows = np.array(rows, np.int32)
        self._starts = np.cumsum([0, *(len(rows_of[v]) for v in values)])
        self._ranks: NDArray[np.int32] | None = None
        if len(np.unique(self._rows)) == len(rows):
            self._ranks = np.full(n, -1, np.int32)
            self._ranks[self._rows] = np.repeat(
                np.arange(len(values), dtype=np.int32), np.diff(self._starts)
            )
        if all(type(v) in (int, float) and abs(v) < EXACT_BELOW for v in values):
            self._values = np.array(values, np.float64)  # 8 bytes each instead of 32

    def mark(self, found: Mask, op: str, operand: Any) -> None:
        """Sets, in `found` [n], the rows with a value for which `value op operand` holds.

        For $ne and $nin, sets the rows that they exclude.
        """
        low, high = 0, len(self._values)
        if op not in ("$lt", "$lte"):
            low = (bisect_right if op == "$gt" else bisect_left)(self._values, operand)
        if op not in ("$gt", "$gte"):
            high = (bisect_left if op == "$lt" else bisect_right)(self._values, operand, low)
        first, end = self._starts[low], self._starts[high]
        if self._ranks is None or (end - first) * MANY < len(found):
            found[self._rows[first:end]] = True
        else:  # as unsigned integers, ranks below `low` exceed all others
            found |= (self._ranks - np.int32(low)).view(np.uint32) < np.uint32(high - low)


_NOTHING: Final = _Sorted({}, 0)


def _judge(leaf: Leaf, value: Any) -> bool:
    if leaf.op == "$exists":
        return bool((value is not _MISSING) == leaf.operand)
    if leaf.op in ("$ne", "$nin"):
        return not _judge(
            Leaf(leaf.field, "$eq" if leaf.op == "$ne" else "$in", leaf.operand), value
        )
    if value is _MISSING:
        return False
    operator = _OPERATORS[leaf.op]
    elements = value if isinstance(value, list) else [value]
    return any(operator(element, leaf.operand) for element in elements)


def _same(value: Any, operand: Any) -> bool:
    return kind_of(value) == kind_of(operand) and bool(value == operand)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def judge(value: Any, operand: Any) -> bool:
        return (
            kind_of(value) == kind_of(operand)
            and kind_of(value) in ("number", "string")
            and compare(value, operand)
        )

    return judge


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$eq": _same,
    "$ne": _same,
    "$gt": _ordered(lambda a, b: bool(a > b)),
    "$gte": _ordered(lambda a, b: bool(a >= b)),
    "$lt": _ordered(lambda a, b: bool(a < b)),
    "$lte": _ordered(lambda a, b: bool(a <= b)),
    "$in": lambda value, operands: is_scalar(value) and value in operands.get(kind_of(value), ()),
    "$nin": lambda value, operands: is_scalar(value) and value in operands.get(kind_of(value), ()),
    "$exists": lambda _value, _operand: True,
}


def _sortable(value: Any) -> Any:
    """Returns the sort key of a value among its kind: null has no order, so it is 0."""
    return 0 if value is None else value


def _reach(metadata: Metadata, field: str) -> Any:
    """Returns the value at a dotted path, _MISSING if there is none.

    A longer key comes first: keys may have dots.
    """
    if field in metadata:
        return metadata[field]
    at = field.rfind(".", 0, KEY_MAX + 1)
    while at >= 0:
        inner = metadata.get(field[:at])
        if isinstance(inner, dict) and (found := _reach(inner, field[at + 1 :])) is not _MISSING:
            return found
        at = field.rfind(".", 0, at)
    return _MISSING
