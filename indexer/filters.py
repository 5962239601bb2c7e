"""Metadata filters: parsed once, judged exactly.

`{"lang": "en", "year": {"$gte": 2020}, "$or": [...]}` with $eq $ne $gt $gte $lt $lte $in $nin $exists $and $or $not.
Numbers compare with numbers, strings with strings, booleans with booleans. A list in the metadata matches when any of its
elements does. A missing field matches only $ne, $nin and {"$exists": false}. Dots reach into nested objects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vicinage.errors import Refused

Mask = NDArray[np.bool_]
Metadata = Mapping[str, Any]
DEPTH_MAX: Final = 8
CLAUSES_MAX: Final = 64
VALUES_MAX: Final = 1_000
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One comparison of one field."""

    field: str
    op: str
    operand: Any


@dataclass(frozen=True, slots=True)
class Node:
    """and, or, not over parts."""

    op: str
    parts: "tuple[Leaf | Node, ...]"


Tree = Leaf | Node


def parse(value: object) -> Tree:
    """The filter's tree. Raises Refused naming the place and the limit."""
    count = [0]
    return _parse(value, "filter", DEPTH_MAX, count)


def _parse(value: object, at: str, depth: int, count: list[int]) -> Tree:
    if depth <= 0:
        raise Refused(f"{at}: a filter is nested at most {DEPTH_MAX} deep", field="filter", limit=DEPTH_MAX)
    if not isinstance(value, dict):
        raise Refused(f"{at}: expected an object", field="filter")
    _take(count, 1 if not value else 0, at)  # `{}` passes everything, and is still a clause: no million of them
    parts: list[Tree] = []
    for key, operand in value.items():
        _take(count, 1, at)
        parts.extend(_clause(key, operand, at, depth, count))
    return parts[0] if len(parts) == 1 else Node("$and", tuple(parts))


def _take(count: list[int], n: int, at: str) -> None:
    count[0] += n
    if count[0] > CLAUSES_MAX:
        raise Refused(f"{at}: a filter has at most {CLAUSES_MAX} clauses", field="filter", limit=CLAUSES_MAX)


def _clause(key: str, operand: object, at: str, depth: int, count: list[int]) -> list[Tree]:
    here = f"{at}.{key}"
    if key in ("$and", "$or"):
        if not isinstance(operand, list) or not operand:
            raise Refused(f"{here}: expected a list of filters that is not empty", field="filter")
        return [Node(key, tuple(_parse(part, f"{here}.{i}", depth - 1, count) for i, part in enumerate(operand)))]
    if key == "$not":
        return [Node("$not", (_parse(operand, here, depth - 1, count),))]
    if key.startswith("$"):
        raise Refused(f"{here}: unknown operator; there are $and, $or, $not here", field="filter")
    if isinstance(operand, dict):
        if not operand:
            raise Refused(f"{here}: expected an operator", field="filter")
        _take(count, len(operand) - 1, here)
        return [_leaf(key, op, value, f"{here}.{op}") for op, value in operand.items()]
    return [_leaf(key, "$eq", operand, here)]


def _leaf(field: str, op: str, operand: object, at: str) -> Leaf:
    if op not in _OPERATORS:
        raise Refused(f"{at}: unknown operator; there are {', '.join(_OPERATORS)}", field="filter")
    if op == "$exists":
        if not isinstance(operand, bool):
            raise Refused(f"{at}: expected true or false", field="filter")
    elif op in ("$in", "$nin"):
        if not isinstance(operand, list) or not all(_scalar(v) for v in operand):
            raise Refused(f"{at}: expected a list of strings, numbers and booleans", field="filter")
        if len(operand) > VALUES_MAX:
            raise Refused(f"{at}: a list has at most {VALUES_MAX} values", field="filter", limit=VALUES_MAX)
    elif not _scalar(operand):
        raise Refused(f"{at}: expected a string, number or boolean", field="filter")
    elif op in ("$gt", "$gte", "$lt", "$lte") and isinstance(operand, bool):
        raise Refused(f"{at}: booleans have no order", field="filter")
    return Leaf(field, op, operand)


def matches(tree: Tree, metadata: Metadata) -> bool:
    """Whether one document's metadata passes."""
    if isinstance(tree, Leaf):
        return _judge(tree, _reach(metadata, tree.field))
    if tree.op == "$not":
        return not matches(tree.parts[0], metadata)
    combine = all if tree.op == "$and" else any
    return combine(matches(part, metadata) for part in tree.parts)


class Columns:
    """Metadata of n documents, turned into a column when a field is first asked for. Safe for many threads."""

    def __init__(self, metadata: Sequence[Metadata]) -> None:
        self._metadata = metadata
        self._columns: dict[str, _Column] = {}

    def mask(self, tree: Tree) -> Mask:
        """Bool [n]: which documents pass; the same that `matches` says of each."""
        if isinstance(tree, Leaf):
            return self._column(tree.field).mask(tree)
        parts = [self.mask(part) for part in tree.parts]
        if not parts:
            return np.ones(len(self._metadata), np.bool_)  # {} passes everything
        if tree.op == "$not":
            return ~parts[0]
        combined: Mask = np.logical_and.reduce(parts) if tree.op == "$and" else np.logical_or.reduce(parts)
        return combined

    def _column(self, field: str) -> "_Column":
        column = self._columns.get(field)
        if column is None:
            column = self._columns[field] = _Column([_reach(m, field) for m in self._metadata])
        return column


class _Column:
    """One field of every document: numbers as an array, everything else as codes of its distinct values."""

    def __init__(self, values: list[Any]) -> None:
        self._numbers: NDArray[np.float64] | None = None
        if values and all(type(v) in (int, float) for v in values) and all(abs(v) < 2**53 for v in values):
            self._numbers = np.array(values, np.float64)
        codes: dict[object, int] = {}
        self._distinct: list[Any] = []
        if self._numbers is None:
            self._codes = np.fromiter((self._code(v, codes) for v in values), np.int64, len(values))

    def _code(self, value: Any, codes: dict[object, int]) -> int:
        name = value if value is _MISSING else (type(value).__name__, repr(value))
        if name not in codes:
            codes[name] = len(self._distinct)
            self._distinct.append(value)
        return codes[name]

    def mask(self, leaf: Leaf) -> Mask:
        vectorised = _VECTORISED.get(leaf.op)
        if self._numbers is not None and vectorised and type(leaf.operand) in (int, float):
            found: Mask = vectorised(self._numbers, leaf.operand)
            return found
        if self._numbers is not None:
            return np.fromiter((_judge(leaf, v) for v in self._numbers.tolist()), np.bool_, len(self._numbers))
        verdicts = np.array([_judge(leaf, v) for v in self._distinct], np.bool_)
        return verdicts[self._codes] if len(verdicts) else np.zeros(0, np.bool_)


_VECTORISED: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "$eq": np.equal,
    "$ne": np.not_equal,
    "$gt": np.greater,
    "$gte": np.greater_equal,
    "$lt": np.less,
    "$lte": np.less_equal,
}


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
    "$in": lambda value, operands: any(_same(value, o) for o in operands),
    "$nin": lambda value, operands: any(_same(value, o) for o in operands),
    "$exists": lambda _value, _operand: True,
}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"


def _scalar(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _reach(metadata: Metadata, field: str) -> Any:
    if field in metadata:
        return metadata[field]
    head, dot, rest = field.partition(".")
    inner = metadata.get(head, _MISSING) if dot else _MISSING
    return _reach(inner, rest) if isinstance(inner, dict) else _MISSING
