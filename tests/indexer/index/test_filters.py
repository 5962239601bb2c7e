"""Filters: their meaning, their refusals, and equal results by columns and by document."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.index.filters import COLUMNS_MAX, Columns, matches
from vicinage.errors import Refused
from vicinage.filters import parse

BOOK = {
    "lang": "en",
    "year": 2020,
    "tags": ["a", "b"],
    "open": True,
    "author": {"name": "Ada"},
    "price": 9.5,
}
BOOK |= {
    "dotted.key": 1,
    "a.b": {"c": 2, "x.y": 3},
    "a": {"b": {"z": 1}},
    "nothing": None,
    "holes": [None, 1],
}


@pytest.mark.parametrize(
    ("condition", "passes"),
    [
        ({"lang": "en"}, True),
        ({"lang": "de"}, False),
        ({"year": {"$gte": 2020, "$lt": 2021}}, True),
        ({"year": {"$gt": 2020}}, False),
        ({"year": "2020"}, False),
        ({"year": {"$gte": "2000"}}, False),
        ({"open": True}, True),
        ({"open": 1}, False),
        ({"tags": "a"}, True),
        ({"tags": {"$in": ["x", "b"]}}, True),
        ({"tags": {"$nin": ["x", "b"]}}, False),
        ({"tags": {"$ne": "z"}}, True),
        ({"missing": {"$ne": 1}}, True),
        ({"missing": {"$nin": [1]}}, True),
        ({"missing": {"$exists": False}}, True),
        ({"lang": {"$exists": True}}, True),
        ({"missing": {"$gte": 0}}, False),
        ({"author.name": "Ada"}, True),
        ({"author.age": {"$exists": False}}, True),
        ({"$or": [{"lang": "de"}, {"year": 2020}]}, True),
        ({"$and": [{"lang": "en"}, {"year": 1999}]}, False),
        ({"$not": {"lang": "de"}}, True),
        ({"lang": "en", "price": {"$lte": 9.5}}, True),
        ({"dotted.key": 1}, True),
        ({"dotted.key.inner": {"$exists": True}}, False),
        ({"a.b.c": 2}, True),
        ({"a.b.c.d": {"$exists": False}}, True),
        ({"a.b.x.y": 3}, True),
        ({"author.name.first": {"$exists": False}}, True),
        ({"nothing": None}, True),
        ({"nothing": {"$ne": None}}, False),
        ({"lang": None}, False),
        ({"lang": {"$ne": None}}, True),
        ({"missing": None}, False),
        ({"missing": {"$ne": None}}, True),
        ({"holes": None}, True),
        ({"holes": 1}, True),
        ({"holes": {"$in": [None, "x"]}}, True),
        ({"tags": {"$nin": [None]}}, True),
        ({"nothing": 0}, False),
        ({}, True),
        ({"$not": {}}, False),
        ({"$or": [{}, {"lang": "de"}]}, True),
        ({"$and": [{}, {"lang": "de"}]}, False),
    ],
)
def test_filters_pass_the_documents_that_they_describe(condition: dict, passes: bool) -> None:
    tree = parse(condition)
    assert matches(tree, BOOK) is passes
    assert Columns([BOOK, {}]).mask(tree).tolist() == [passes, matches(tree, {})]


def deep(n: int) -> dict:
    return {"a": 1} if n == 0 else {"$not": deep(n - 1)}


@pytest.mark.parametrize(
    "condition",
    [
        1,
        [],
        "x",
        {"$xor": []},
        {"a": {"$regex": "x"}},
        {"a": {}},
        {"$or": []},
        {"$and": {}},
        {"a": {"$in": 1}},
        {"a": {"$in": [[1]]}},
        {"a": {"$in": list(range(1001))}},
        {"a": {"$gt": None}},
        {"a": {"$gt": True}},
        {"a": 2**64},
        {"a": {"$in": [-(2**63) - 1]}},
        {"a": {"$exists": 1}},
        {"a": [1]},
        deep(9),
        {str(i): i for i in range(65)},
        {"$or": [{}] * 65},
        {"$or": [{"a": {"$gte": i, "$lt": i + 1}} for i in range(33)]},
        {str(i): i for i in range(17)},
        {"$or": [{"a": {"$in": list(range(700))}}] * 3},
    ],
)
def test_an_invalid_filter_is_refused(condition: object) -> None:
    with pytest.raises(Refused) as refused:
        parse(condition)
    assert refused.value.field == "filter"


class Counted(str):
    """A string that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __lt__(self, other: str) -> bool:
        Counted.compared += 1
        return str.__lt__(self, other)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_the_most_expensive_legal_filter_compares_each_value_a_few_times_only() -> None:
    n_rows = 50_000
    columns = Columns(
        [{"tags": [Counted(f"tag {i}"), Counted(f"tag {i + 1}")]} for i in range(n_rows)]
    )
    columns.mask(parse({"tags": "the first filter makes the column"}))
    lists = [[f"tag {part * 60 + i * 1_000}" for i in range(33)] for part in range(60)]
    tree = parse({"$or": [{"tags": {"$in": values}} for values in lists]})
    Counted.compared = 0
    assert 0 < np.count_nonzero(columns.mask(tree)) < 2 * 60 * 33
    assert Counted.compared < 60 * 33 * 2 * 20  # two binary searches among 50,001 values


def test_matching_a_value_with_a_list_is_one_lookup_at_any_length() -> None:
    tree = parse({"tag": {"$in": [f"tag {i}" for i in range(1_000)]}})
    Counted.compared = 0
    assert matches(tree, {"tag": Counted("tag 999")})
    assert Counted.compared <= 3


def test_columns_of_arbitrary_fields_are_evicted() -> None:
    columns = Columns([{"x": 1}])
    for i in range(1_000):
        columns.mask(parse({f"invented {i}": 1}))
    assert columns.kept() <= COLUMNS_MAX


huge = st.sampled_from([2**53 - 1, 2**53, 2**53 + 1, 2.0**53, -(2**63), 2**63])
scalars = st.one_of(
    st.integers(-3, 3),
    huge,
    st.sampled_from(["a", "b", ""]),
    st.booleans(),
    st.sampled_from([0.5, -1.5]),
)
fields = st.sampled_from(["x", "y", "z"])
documents = st.lists(
    st.dictionaries(fields, st.one_of(scalars, st.none(), st.lists(scalars, max_size=3))),
    max_size=12,
)
leaves = st.one_of(
    st.tuples(fields, st.sampled_from(["$eq", "$ne"]), scalars),
    st.tuples(
        fields,
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        scalars.filter(lambda v: not isinstance(v, bool)),
    ),
    st.tuples(fields, st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=3)),
    st.tuples(fields, st.just("$exists"), st.booleans()),
).map(lambda leaf: {leaf[0]: {leaf[1]: leaf[2]}})
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=6,
)


@given(documents, trees)
def test_columns_and_documents_agree(metadata: list[dict], condition: dict) -> None:
    tree = parse(condition)
    assert Columns(metadata).mask(tree).tolist() == [matches(tree, m) for m in metadata]


@pytest.mark.parametrize("op", ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"])
def test_few_rows_and_many_are_marked_alike(op: str) -> None:
    """Few rows are marked one by one, many by their ranks; rows of several values one by one."""
    rng = np.random.default_rng(0)
    one = [{"g": int(g)} if g >= 0 else {} for g in rng.integers(-50, 1_000, 500)]
    some = [
        {"g": [int(g), int(g) + 7]} if g % 5 == 0 else m
        for m, g in zip(one, rng.integers(0, 1_000, 500), strict=True)
    ]
    for metadata in (one, some):
        columns = Columns(metadata)
        for bound in (-1, 0, 3, 500, 990, 999, 1_000):
            tree = parse({"g": {op: bound}})
            assert columns.mask(tree).tolist() == [matches(tree, m) for m in metadata]


def test_a_list_instead_of_a_value_names_the_operator_for_lists() -> None:
    with pytest.raises(Refused, match=r"filter\.lang: expected .*; use \$in to match any"):
        parse({"lang": ["en", "de"]})
