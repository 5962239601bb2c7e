"""Filters: what they mean, what they refuse, and that the fast way says the same as the plain one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.filters import Columns, matches, parse
from vicinage.errors import Refused

BOOK = {"lang": "en", "year": 2020, "tags": ["a", "b"], "open": True, "author": {"name": "Ada"}, "price": 9.5}


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
        ({}, True),
        ({"$not": {}}, False),
        ({"$or": [{}, {"lang": "de"}]}, True),
        ({"$and": [{}, {"lang": "de"}]}, False),
    ],
)
def test_what_a_filter_means(condition: dict, passes: bool) -> None:
    tree = parse(condition)
    assert matches(tree, BOOK) is passes
    assert Columns([BOOK, {}]).mask(tree).tolist() == [passes, matches(tree, {})]


def deep(n: int) -> dict:
    return {"a": 1} if n == 0 else {"$not": deep(n - 1)}


@pytest.mark.parametrize(
    "condition",
    [1, [], "x", {"$xor": []}, {"a": {"$regex": "x"}}, {"a": {}}, {"$or": []}, {"$and": {}}, {"a": {"$in": 1}}, {"a": {"$in": [[1]]}},
     {"a": {"$in": list(range(1001))}}, {"a": None}, {"a": {"$gt": True}}, {"a": {"$exists": 1}}, {"a": [1]}, deep(9), {str(i): i for i in range(65)},
     {"$or": [{}] * 65}, {"$or": [{"a": {"$gte": i, "$lt": i + 1}} for i in range(33)]}],
)  # fmt: skip
def test_what_is_no_filter_is_refused(condition: object) -> None:
    with pytest.raises(Refused) as refused:
        parse(condition)
    assert refused.value.field == "filter"


scalars = st.one_of(st.integers(-3, 3), st.sampled_from(["a", "b", ""]), st.booleans(), st.sampled_from([0.5, -1.5]))
fields = st.sampled_from(["x", "y", "z"])
documents = st.lists(st.dictionaries(fields, st.one_of(scalars, st.lists(scalars, max_size=3))), max_size=12)
leaves = st.one_of(
    st.tuples(fields, st.sampled_from(["$eq", "$ne"]), scalars),
    st.tuples(
        fields, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), scalars.filter(lambda v: not isinstance(v, bool))
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
def test_columns_judge_as_documents_do(metadata: list[dict], condition: dict) -> None:
    tree = parse(condition)
    assert Columns(metadata).mask(tree).tolist() == [matches(tree, m) for m in metadata]
