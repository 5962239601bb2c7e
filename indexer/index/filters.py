"""Metadata filters: parsed once, judged exactly.

`{"lang": "en", "year": {"$gte": 2020}, "$or": [...]}` with $eq $ne $gt $gte $lt $lte $in $nin $exists $and $or $not.
Numbers compare with numbers, strings with strings, booleans with booleans. A list in the metadata matches when any of its
elements does. A missing field matches only $ne, $nin and {"$exists": false}. Dots reach into nested objects.

Law 7: the thread that searches is everybody's, so what a filter costs is bounded by construction: a field's values lie sorted,
each comparison is two binary searches a value it names, and it marks the rows it found, or looks at each once.
"""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vicinage.errors import Refused

Mask = NDArray[np.bool_]
Metadata = Mapping[str, Any]
DEPTH_MAX: Final = 8
CLAUSES_MAX: Final = 64
NAME_MAX: Final = 1_024
"""Characters of a field's name, dots included."""
FIELDS_MAX: Final = 16
"""The first filter that names a field reads it in every document's metadata."""
VALUES_MAX: Final = 1_000
VALUES_OF_ALL_MAX: Final = 2_000
COLUMNS_MAX: Final = 64
"""Columns that are kept, the last used: names of fields are the asker's to invent."""
MANY: Final = 32
"""From a row in so many on, rows are marked by one look at the ranks of all: that reads in order, marking writes all over."""
EXACT_BELOW: Final = 2**53
"""Integers below it are themselves as float64."""
KEY_MAX: Final = 128
"""Characters of the longest key that metadata may have (ingest/validation.py, in bytes)."""
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One comparison of one field. `operand` of $in and $nin is a set a kind: {"number": …, "string": …, "boolean": …}."""

    field: str
    op: str
    operand: Any


@dataclass(frozen=True, slots=True)
class Node:
    """and, or, not over parts."""

    op: str
    parts: "tuple[Leaf | Node, ...]"


Tree = Leaf | Node


class _Bounds:
    """What one filter has taken of what it may have."""

    def __init__(self) -> None:
        self._clauses = self._values = 0
        self._fields: set[str] = set()

    def clauses(self, n: int, at: str) -> None:
        """Count clauses. Raises Refused, as those below."""
        self._clauses += n
        if self._clauses > CLAUSES_MAX:
            raise Refused(f"{at}: a filter has at most {CLAUSES_MAX} clauses", field="filter", limit=CLAUSES_MAX)

    def values(self, n: int, at: str) -> None:
        """Count the values of a list."""
        if n > VALUES_MAX:
            raise Refused(f"{at}: a list has at most {VALUES_MAX} values", field="filter", limit=VALUES_MAX)
        self._values += n
        if self._values > VALUES_OF_ALL_MAX:
            raise Refused(
                f"{at}: the lists of a filter have at most {VALUES_OF_ALL_MAX} values together",
                field="filter",
                limit=VALUES_OF_ALL_MAX,
            )

    def field(self, name: str, at: str) -> None:
        """Count a field, once. No metadata has a longer name: to look for one would only take time."""
        if len(name) > NAME_MAX:
            raise Refused(
                f"{at[:80]}…: a field's name has at most {NAME_MAX} characters", field="filter", limit=NAME_MAX
            )
        self._fields.add(name)
        if len(self._fields) > FIELDS_MAX:
            raise Refused(f"{at}: a filter names at most {FIELDS_MAX} fields", field="filter", limit=FIELDS_MAX)


def parse(value: object) -> Tree:
    """The filter's tree. Raises Refused naming the place and the limit."""
    return _parse(value, "filter", DEPTH_MAX, _Bounds())


def _parse(value: object, at: str, depth: int, bounds: _Bounds) -> Tree:
    if depth <= 0:
        raise Refused(f"{at}: a filter is nested at most {DEPTH_MAX} deep", field="filter", limit=DEPTH_MAX)
    if not isinstance(value, dict):
        raise Refused(f"{at}: expected an object", field="filter")
    bounds.clauses(1 if not value else 0, at)  # `{}` passes everything, and is still a clause: no million of them
    parts: list[Tree] = []
    for key, operand in value.items():
        bounds.clauses(1, at)
        parts.extend(_clause(key, operand, at, depth, bounds))
    return parts[0] if len(parts) == 1 else Node("$and", tuple(parts))


def _clause(key: str, operand: object, at: str, depth: int, bounds: _Bounds) -> list[Tree]:
    here = f"{at}.{key}"
    if key in ("$and", "$or"):
        if not isinstance(operand, list) or not operand:
            raise Refused(f"{here}: expected a list of filters that is not empty", field="filter")
        return [Node(key, tuple(_parse(part, f"{here}.{i}", depth - 1, bounds) for i, part in enumerate(operand)))]
    if key == "$not":
        return [Node("$not", (_parse(operand, here, depth - 1, bounds),))]
    if key.startswith("$"):
        raise Refused(f"{here}: unknown operator; there are $and, $or, $not here", field="filter")
    bounds.field(key, here)
    if isinstance(operand, dict):
        if not operand:
            raise Refused(f"{here}: expected an operator", field="filter")
        bounds.clauses(len(operand) - 1, here)
        return [_leaf(key, op, value, f"{here}.{op}", bounds) for op, value in operand.items()]
    return [_leaf(key, "$eq", operand, here, bounds)]


def _leaf(field: str, op: str, operand: object, at: str, bounds: _Bounds) -> Leaf:
    if op not in _OPERATORS:
        raise Refused(f"{at}: unknown operator; there are {', '.join(_OPERATORS)}", field="filter")
    if op == "$exists":
        if not isinstance(operand, bool):
            raise Refused(f"{at}: expected true or false", field="filter")
    elif op in ("$in", "$nin"):
        if not isinstance(operand, list) or not all(_scalar(v) for v in operand):
            raise Refused(f"{at}: expected a list of strings, numbers, booleans and nulls", field="filter")
        bounds.values(len(operand), at)
        for value in operand:
            _check_exact(value, at)
        return Leaf(field, op, _by_kind(operand))
    elif not _scalar(operand):
        raise Refused(f"{at}: expected a string, number, boolean or null{_list_hint(operand)}", field="filter")
    elif op in ("$gt", "$gte", "$lt", "$lte") and (operand is None or isinstance(operand, bool)):
        raise Refused(f"{at}: booleans and null have no order", field="filter")
    _check_exact(operand, at)
    return Leaf(field, op, operand)


def _check_exact(value: object, at: str) -> None:
    """Raises Refused for an integer that no document can have."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise Refused(f"{at}: an integer beyond 64 bits: documents hold those as strings", field="filter")


def _by_kind(values: Sequence[Any]) -> dict[str, frozenset[Any]]:
    """The values as sets, so that none is looked for twice; apart by kind, since True equals 1."""
    kinds = {_kind(v) for v in values}
    return {kind: frozenset(v for v in values if _kind(v) == kind) for kind in kinds}


def matches(tree: Tree, metadata: Metadata) -> bool:
    """Whether one document's metadata passes."""
    if isinstance(tree, Leaf):
        return _judge(tree, _reach(metadata, tree.field))
    if tree.op == "$not":
        return not matches(tree.parts[0], metadata)
    combine = all if tree.op == "$and" else any
    return combine(matches(part, metadata) for part in tree.parts)


def fields(tree: Tree) -> frozenset[str]:
    """The fields that it looks at."""
    return frozenset((tree.field,)) if isinstance(tree, Leaf) else frozenset().union(*map(fields, tree.parts))


class Columns:
    """Metadata of n documents, turned into a column when a field is first asked for; the COLUMNS_MAX asked last are held.

    Safe for many threads.
    """

    def __init__(self, metadata: Sequence[Metadata]) -> None:
        self._n = len(metadata)
        self._metadata = metadata
        self._held: dict[str, _Column] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._n

    def kept(self) -> int:
        """How many columns it holds."""
        return len(self._held)

    def read(self, names: Iterable[str]) -> None:
        """Have these fields' columns made."""
        for name in names:
            self._column(name)

    def unread(self, names: Iterable[str]) -> int:
        """How many of these fields have no column yet."""
        return sum(name not in self._held for name in names)

    def _column(self, field: str) -> "_Column":
        with self._lock:
            found = self._held.pop(field, None)
            if found is not None:
                self._held[field] = found  # the one asked last stands last
                return found
        made = _Column([_reach(m, field) for m in self._metadata])  # of two threads each may make it: neither waits
        with self._lock:
            self._held[field] = made
            if len(self._held) > COLUMNS_MAX:
                del self._held[next(iter(self._held))]
        return made

    def mask(self, tree: Tree) -> Mask:
        """Bool [n]: which documents pass; the same that `matches` says of each."""
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
    """Columns of rows that stand one after the other."""

    def __init__(self, parts: Sequence[Columns]) -> None:
        self._parts = parts

    def read(self, names: Iterable[str]) -> None:
        """See Columns."""
        for part in self._parts:
            part.read(names)

    def mask(self, tree: Tree) -> Mask:
        """Bool [n]: see Columns."""
        return np.concatenate([part.mask(tree) for part in self._parts]) if self._parts else np.zeros(0, np.bool_)


class _Column:
    """One field of every document, inverted: each kind's distinct values in order, and which rows have each."""

    def __init__(self, values: list[Any]) -> None:
        self._present: Mask = np.fromiter((v is not _MISSING for v in values), np.bool_, len(values))
        rows_of: dict[str, dict[Any, list[int]]] = {}
        for row, value in enumerate(values):
            for element in value if isinstance(value, list) else (value,):
                if _scalar(element):
                    rows_of.setdefault(_kind(element), {}).setdefault(_sortable(element), []).append(row)
        self._kinds = {kind: _Sorted(found, len(values)) for kind, found in rows_of.items()}

    def mask(self, leaf: Leaf) -> Mask:
        """Bool [n], the caller's own."""
        if leaf.op == "$exists":
            return self._present.copy() if leaf.operand else ~self._present
        found = np.zeros(len(self._present), np.bool_)
        wanted = leaf.operand if leaf.op in ("$in", "$nin") else {_kind(leaf.operand): (leaf.operand,)}
        for kind, operands in wanted.items():
            held = self._kinds.get(kind, _NOTHING)
            for operand in operands:
                held.mark(found, leaf.op, _sortable(operand))
        return ~found if leaf.op in ("$ne", "$nin") else found


class _Sorted:
    """The distinct values of one kind in order; values[i] stands in rows[starts[i] : starts[i + 1]].

    `ranks`: of each row the place of its value, −1 of none; there are none where a row has two values.
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
            self._ranks[self._rows] = np.repeat(np.arange(len(values), dtype=np.int32), np.diff(self._starts))
        if all(type(v) in (int, float) and abs(v) < EXACT_BELOW for v in values):
            self._values = np.array(values, np.float64)  # 8 bytes each, where Python's take 32

    def mark(self, found: Mask, op: str, operand: Any) -> None:
        """Set, in `found` [n], the rows with a value for which `value op operand` holds; of $ne and $nin, those that they leave out."""
        low, high = 0, len(self._values)
        if op not in ("$lt", "$lte"):
            low = (bisect_right if op == "$gt" else bisect_left)(self._values, operand)
        if op not in ("$gt", "$gte"):
            high = (bisect_left if op == "$lt" else bisect_right)(self._values, operand, low)
        first, end = self._starts[low], self._starts[high]
        if self._ranks is None or (end - first) * MANY < len(found):
            found[self._rows[first:end]] = True
        else:  # as unsigned numbers, ranks below `low` lie beyond all others
            found |= (self._ranks - np.int32(low)).view(np.uint32) < np.uint32(high - low)


_NOTHING: Final = _Sorted({}, 0)


def _judge(leaf: Leaf, value: Any) -> bool:
    if leaf.op == "$exists":
        return bool((value is not _MISSING) == leaf.operand)
    if leaf.op in ("$ne", "$nin"):
        return not _judge(Leaf(leaf.field, "$eq" if leaf.op == "$ne" else "$in", leaf.operand), value)
    if value is _MISSING:
        return False
    operator = _OPERATORS[leaf.op]
    elements = value if isinstance(value, list) else [value]
    return any(operator(element, leaf.operand) for element in elements)


def _same(value: Any, operand: Any) -> bool:
    return _kind(value) == _kind(operand) and bool(value == operand)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def judge(value: Any, operand: Any) -> bool:
        return _kind(value) == _kind(operand) and _kind(value) in ("number", "string") and compare(value, operand)

    return judge


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$eq": _same,
    "$ne": _same,
    "$gt": _ordered(lambda a, b: bool(a > b)),
    "$gte": _ordered(lambda a, b: bool(a >= b)),
    "$lt": _ordered(lambda a, b: bool(a < b)),
    "$lte": _ordered(lambda a, b: bool(a <= b)),
    "$in": lambda value, operands: _scalar(value) and value in operands.get(_kind(value), ()),
    "$nin": lambda value, operands: _scalar(value) and value in operands.get(_kind(value), ()),
    "$exists": lambda _value, _operand: True,
}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if value is None:
        return "null"
    return "string" if isinstance(value, str) else "other"


def _scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _sortable(value: Any) -> Any:
    """Returns what stands for the value among its kind: null has no order of its own."""
    return 0 if value is None else value


def _reach(metadata: Metadata, field: str) -> Any:
    """Returns the value at a dotted path, _MISSING if there is none. A longer key comes first: keys may have dots."""
    if field in metadata:
        return metadata[field]
    at = field.rfind(".", 0, KEY_MAX + 1)
    while at >= 0:
        inner = metadata.get(field[:at])
        if isinstance(inner, dict) and (found := _reach(inner, field[at + 1 :])) is not _MISSING:
            return found
        at = field.rfind(".", 0, at)
    return _MISSING


def _list_hint(operand: object) -> str:
    return "; any of several values is $in" if isinstance(operand, list) else ""
