"""Splits the body of search:batch into its searches. Pure: it may run in another process."""

import json
from typing import Any, Final

import orjson

from vicinage.errors import Refused
from vicinage.exact_json import Exactly, has_long_digits
from vicinage.wire import list_field, load_json

SEARCHES_MAX: Final = 1_000


def split(data: bytes) -> list[bytes]:
    """Returns the JSON of each search, in order. Raises Refused.

    Does not validate the searches; each is validated when it is parsed. Integers stay exact: a
    filter may hold one beyond 64 bits, which that validation refuses.
    """
    value = load_json(data or b"{}")
    if has_long_digits(data):
        value = Exactly(data).value
    return [_encoded(search) for search in _listed(value)]


def _listed(value: Any) -> list[Any]:
    searches = list_field(value, "searches", "searches")
    if not 1 <= len(searches) <= SEARCHES_MAX:
        raise Refused(
            f"{len(searches)} searches; 1 to {SEARCHES_MAX}", field="searches", limit=SEARCHES_MAX
        )
    return searches


def _encoded(search: object) -> bytes:
    try:
        return orjson.dumps(search)
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(search).encode()
