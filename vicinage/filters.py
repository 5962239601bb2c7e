"""Metadata filters of searches, parsed once per request.

`{"lang": "en", "year": {"$gte": 2020}, "$or": [...]}` with $eq $ne $gt $gte $lt $lte $in $nin
$exists $and $or $not. Numbers compare with numbers, strings with strings, booleans with booleans. A
list in the metadata matches if any of its elements does. A missing field matches only $ne, $nin and
{"$exists": false}. A dot in a field's name reaches into nested objects. `indexer/index/filters.py`
evaluates what is parsed here.

Guarantee 7: the limits below bound what a filter costs the searcher that evaluates it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from vicinage.errors import Refused

DEPTH_MAX: Final = 8
CLAUSES_MAX: Final = 64
NAME_MAX: Final = 1_024
"""Characters of a field's name, dots included."""
FIELDS_MAX: Final = 16
"""Bounds the work of a first filter: it reads each field in every document's metadata."""
VALUES_MAX: Final = 1_000
VALUES_OF_ALL_MAX: Final = 2_000
OPERATORS: Final = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists")
"""Comparisons of one field."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One comparison of one field.

    For $in and $nin, `operand` has a set per kind: {"number": …, "string": …}.
    """

    field: str
    op: str
    operand: Any


@dataclass(frozen=True, slots=True)
class Node:
    """A combination of parts by $and, $or or $not."""

    op: str
    parts: "tuple[Leaf | Node, ...]"


Tree = Leaf | Node


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter.

    Immutable and picklable: a request makes it once, and its shard queries carry it.

    `text` is the filter's JSON. Compare filters by it: trees compare 1 and True as equal, filters
    do not.
    """

    tree: Tree
    fields: frozenset[str]
    """Names of the fields that it reads."""
    text: bytes

    @classmethod
    def parse(cls, value: object) -> "Filter":
        """Returns the parsed filter. Raises Refused naming the place and the limit."""
        tree = parse(value)
        return cls(tree, _fields(tree), orjson.dumps(value))


class _Bounds:
    """Counts what one filter uses of its limits. Every method raises Refused beyond one."""

    def __init__(self) -> None:
        self._clauses = self._values = 0
        self._fields: set[str] = set()

    def clauses(self, n: int, at: str) -> None:
        """Counts clauses."""
        self._clauses += n
        if self._clauses > CLAUSES_MAX:
            raise Refused(
                f"{at}: a filter has at most {CLAUSES_MAX} clauses",
                field="filter",
                limit=CLAUSES_MAX,
            )

    def values(self, n: int, at: str) -> None:
        """Counts the values of a list."""
        if n > VALUES_MAX:
            raise Refused(
                f"{at}: a list has at most {VALUES_MAX} values", field="filter", limit=VALUES_MAX
            )
        self._values += n
        if self._values > VALUES_OF_ALL_MAX:
            raise Refused(
                f"{at}: the lists of a filter have at most {VALUES_OF_ALL_MAX} values together",
                field="filter",
                limit=VALUES_OF_ALL_MAX,
            )

    def field(self, name: str, at: str) -> None:
        """Counts a field once.

        No metadata key is longer than NAME_MAX, so a longer name cannot match.
        """
        if len(name) > NAME_MAX:
            raise Refused(
                f"{at[:80]}…: a field's name has at most {NAME_MAX} characters",
                field="filter",
                limit=NAME_MAX,
            )
        self._fields.add(name)
        if len(self._fields) > FIELDS_MAX:
            raise Refused(
                f"{at}: a filter names at most {FIELDS_MAX} fields",
                field="filter",
                limit=FIELDS_MAX,
            )


def parse(value: object) -> Tree:
    """Returns the filter's tree. Raises Refused naming the place and the limit."""
    return _parse(value, "filter", DEPTH_MAX, _Bounds())


def _parse(value: object, at: str, depth: int, bounds: _Bounds) -> Tree:
    if depth <= 0:
        raise Refused(
            f"{at}: a filter is nested at most {DEPTH_MAX} deep", field="filter", limit=DEPTH_MAX
        )
    if not isinstance(value, dict):
        raise Refused(f"{at}: expected an object", field="filter")
    # `{}` passes everything. It counts as a clause, so that a filter cannot hold a million of them.
    bounds.clauses(1 if not value else 0, at)
    parts: list[Tree] = []
    for key, operand in value.items():
        bounds.clauses(1, at)
        parts.extend(_clause(key, operand, at, depth, bounds))
    return parts[0] if len(parts) == 1 else Node("$and", tuple(parts))


def _clause(key: str, operand: object, at: str, depth: int, bounds: _Bounds) -> list[Tree]:
    here = f"{at}.{key}"
    if key in ("$and", "$or"):
        if not isinstance(operand, list) or not operand:
            raise Refused(f"{here}: expected a non-empty list of filters", field="filter")
        return [
            Node(
                key,
                tuple(
                    _parse(part, f"{here}.{i}", depth - 1, bounds) for i, part in enumerate(operand)
                ),
            )
        ]
    if key == "$not":
        return [Node("$not", (_parse(operand, here, depth - 1, bounds),))]
    if key.startswith("$"):
        raise Refused(f"{here}: unknown operator; use $and, $or or $not", field="filter")
    bounds.field(key, here)
    if isinstance(operand, dict):
        if not operand:
            raise Refused(
                f'{here}: expected an object with an operator, such as {{"$gte": 1}}',
                field="filter",
            )
        bounds.clauses(len(operand) - 1, here)
        return [_leaf(key, op, value, f"{here}.{op}", bounds) for op, value in operand.items()]
    return [_leaf(key, "$eq", operand, here, bounds)]


def _leaf(field: str, op: str, operand: object, at: str, bounds: _Bounds) -> Leaf:
    if op not in OPERATORS:
        raise Refused(f"{at}: unknown operator; use one of {', '.join(OPERATORS)}", field="filter")
    if op == "$exists":
        if not isinstance(operand, bool):
            raise Refused(f"{at}: expected true or false", field="filter")
    elif op in ("$in", "$nin"):
        if not isinstance(operand, list) or not all(is_scalar(v) for v in operand):
            raise Refused(
                f"{at}: expected a list of strings, numbers, booleans and nulls", field="filter"
            )
        bounds.values(len(operand), at)
        for value in operand:
            _check_exact(value, at)
        return Leaf(field, op, _by_kind(operand))
    elif not is_scalar(operand):
        raise Refused(
            f"{at}: expected a string, number, boolean or null{_list_hint(operand)}", field="filter"
        )
    elif op in ("$gt", "$gte", "$lt", "$lte") and (operand is None or isinstance(operand, bool)):
        raise Refused(
            f"{at}: booleans and null have no order; use $eq, $ne, $in or $nin", field="filter"
        )
    _check_exact(operand, at)
    return Leaf(field, op, operand)


def _check_exact(value: object, at: str) -> None:
    """Raises Refused for an integer beyond 64 bits, which no document can hold."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise Refused(
            f"{at}: an integer exceeds 64 bits; documents store it as a string, so use one",
            field="filter",
        )


def _by_kind(values: Sequence[Any]) -> dict[str, frozenset[Any]]:
    """Returns the values as one set per kind, without duplicates: True equals 1 in Python."""
    kinds = {kind_of(v) for v in values}
    return {kind: frozenset(v for v in values if kind_of(v) == kind) for kind in kinds}


def _fields(tree: Tree) -> frozenset[str]:
    """Returns the names of the fields that the tree reads."""
    return (
        frozenset((tree.field,))
        if isinstance(tree, Leaf)
        else frozenset().union(*map(_fields, tree.parts))
    )


def kind_of(value: Any) -> str:
    """Returns the JSON kind of a value: values of different kinds never match."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if value is None:
        return "null"
    return "string" if isinstance(value, str) else "other"


def is_scalar(value: object) -> bool:
    """Returns whether the value is null, a string, a number or a boolean."""
    return value is None or isinstance(value, str | int | float | bool)


def _list_hint(operand: object) -> str:
    return "; use $in to match any of several values" if isinstance(operand, list) else ""
