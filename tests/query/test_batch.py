"""The body of search:batch is split into the JSON of its searches; each is parsed by itself."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.api.http import parsed_object
from query.batch import SEARCHES_MAX, split
from vicinage.errors import Refused

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, min_size=1, max_size=8))
def test_each_search_is_returned_unchanged(searches: list[Any]) -> None:
    data = orjson.dumps({"searches": searches})
    assert [orjson.loads(one) for one in split(data)] == searches


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**40])
def test_an_integer_beyond_64_bits_stays_exact(number: int) -> None:
    data = b'{"searches": [{"filter": {"n": %d}}, {"k": 3}]}' % number
    first, second = split(data)
    assert parsed_object(first, frozenset({"filter"})) == {"filter": {"n": number}}
    assert orjson.loads(second) == {"k": 3}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "searches"),
        (b"[]", "body"),
        (b"{}", "searches"),
        (b'{"searches": null}', "searches"),
        (b'{"searches": {}}', "searches"),
        (b'{"searches": []}', "searches"),
        (b'{"searches": [' + b"1," * SEARCHES_MAX + b"1]}", "searches"),
        (b'{"searches": [1], "k": 3}', "k"),
        (b'{"searches": [1]', "body"),
        (b'{"searches": [' + b"9" * 5_000 + b"]}", "body"),
    ],
)
def test_a_body_without_a_list_of_searches_is_refused(data: bytes, field: str) -> None:
    with pytest.raises(Refused) as refused:
        split(data)
    assert refused.value.field == field


def test_as_many_searches_as_are_allowed() -> None:
    assert len(split(b'{"searches": [' + b"1," * (SEARCHES_MAX - 1) + b"1]}")) == SEARCHES_MAX
