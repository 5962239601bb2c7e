"""The work of a parser is bounded by the body's bytes: calls, and bytes of memory, not seconds.

Each body repeats one fragment that a parser reads many times: there a small input could cause much
work.
"""

import contextlib
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.documents import Entry
from ingest.preparing import Body, entries_of
from ingest.validation import DocumentLimits
from query.api import search_request
from query.api.http import checked_object
from query.batch import split
from vicinage import filters
from vicinage.errors import Refused
from vicinage.json_shape import CONTAINERS_MAX, VALUES_MAX, check_shape
from vicinage.settings import GatewaySettings, IngestSettings
from vicinage.wire import ARROW, load_json

RULES = DocumentLimits("docs", 4, "cosine", takes_text=True, settings=IngestSettings())
MiB = 1 << 20


@dataclass
class Work:
    """The work of a call: lines of Python and calls, and the most memory that it held at once."""

    steps: int = 0
    bytes: int = 0

    def of(self, call: Callable[[], object]) -> "Work":
        self._counted(call)
        pa.default_memory_pool().release_unused()
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            _tolerantly(call)
            self.bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.bytes += max(0, pa.total_allocated_bytes() - before)
        return self

    def _counted(self, call: Callable[[], object]) -> None:
        def step(_frame: Any, _event: str, _arg: Any) -> Any:
            self.steps += 1
            return step

        before = sys.gettrace()
        sys.settrace(step)
        try:
            _tolerantly(call)
        finally:
            sys.settrace(before)


def _tolerantly(call: Callable[[], object]) -> None:
    with contextlib.suppress(Refused):
        call()


def bounded(
    data: bytes, call: Callable[[], object], *, floor: int = 2 * MiB, each: int = 80
) -> None:
    """The work of `call` on `data` is at most 40 steps and `each` bytes for a byte of it."""
    work = Work().of(call)
    assert work.steps <= 5_000 + 40 * len(data), (
        f"{work.steps} steps for {len(data)} bytes: {data[:80]!r}"
    )
    assert work.bytes <= floor + each * len(data), (
        f"{work.bytes} bytes for {len(data)} bytes: {data[:80]!r}"
    )


def entries(kind: str, data: bytes) -> list[Entry]:
    return entries_of(Body(kind, data, RULES, "acme", 1))


FRAGMENTS = st.sampled_from(
    [
        "1",
        "-1",
        "1.5",
        "1e300",
        "null",
        "true",
        '""',
        '"a"',
        '"\\u0041"',
        "[]",
        "{}",
        "[[]]",
        '{"":0}',
        "[1,0,0,0]",
        "[0,0,0,0]",
        '{"id":"a"}',
        '{"id":"a","text":"x"}',
        '{"id":1}',
        '{"x":1}',
        '{"id":"a","vector":[1,0,0,0]}',
        "9" * 30,
        '{"id":"a","metadata":{"a":[1,2]}}',
        '{"$and":[{}]}',
        '{"vector":[1,0,0,0]}',
        '"' + "x" * 200 + '"',
    ]
)
DOCUMENTS = [
    "%s",
    "[%s]",
    '{"documents":[%s]}',
    '{"documents":%s}',
    '{"documents":[{"id":"a","passages":[%s]}]}',
    '{"documents":[{"id":"a","vector":[%s]}]}',
    '{"documents":[{"id":"a","vectors":[%s]}]}',
    '{"documents":[{"id":"a","text":"x","metadata":{"a":[%s]}}]}',
    '{"documents":[{"id":[%s]}]}',
    '{"documents":[{"id":"a","text":"x","metadata":{"a":1}},%s]}',
]
sizes = st.sampled_from([1_000, 20_000])
much = settings(max_examples=60, deadline=None, derandomize=True)


def repeated(context: str, fragment: str, n: int) -> bytes:
    return (context % ",".join([fragment] * n)).encode()


@much
@given(context=st.sampled_from(DOCUMENTS), fragment=FRAGMENTS, n=sizes)
def test_documents_as_json(context: str, fragment: str, n: int) -> None:
    data = repeated(context, fragment, n)
    bounded(data, lambda: entries("", data))


@pytest.mark.parametrize("form", ['"%d":0', '"id%d":"a"', '"%d":{}'])
@pytest.mark.parametrize(
    "context",
    ["{%s}", '{"documents":[{%s}]}', '{"documents":[{"id":"a","text":"x","metadata":{%s}}]}'],
)
def test_documents_with_many_names(context: str, form: str) -> None:
    data = (context % ",".join(form % i for i in range(40_000))).encode()
    bounded(data, lambda: entries("", data))


@much
@given(fragment=FRAGMENTS, n=sizes, width=st.sampled_from([1, 500]))
def test_documents_as_lines(fragment: str, n: int, width: int) -> None:
    line = f'{{"id":"a","passages":[{",".join([fragment] * width)}]}}' if width > 1 else fragment
    data = "\n".join([line] * (n // width + 1)).encode()
    bounded(data, lambda: entries("application/x-ndjson", data))


def stream(columns: dict[str, pa.Array], compression: str | None, batches: int = 1) -> bytes:
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as writer:
        for _ in range(batches):
            writer.write_batch(batch)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def lists(rows: int, values: pa.Array) -> pa.Array:
    """Returns `rows` lists, of which the first has all values."""
    offsets = np.concatenate([[0], np.full(rows, len(values))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def vectors(n: int, d: int, value: float | None) -> pa.Array:
    flat = (
        pa.array(np.full(n * d, value, np.float32))
        if value is not None
        else pa.nulls(n * d, pa.float32())
    )
    return pa.FixedSizeListArray.from_arrays(flat, d)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([1, 100, 9_000]),
    n=st.sampled_from([0, 1, 10_000, 500_000, 2_000_000]),
    d=st.sampled_from([1, 4]),
    value=st.sampled_from([0.0, 1.0, float("nan"), None]),
    what=st.sampled_from(["vectors", "vector", "passages", "text", "metadata", "ids"]),
    compression=st.sampled_from(["zstd", "lz4", None]),
)
def test_documents_as_arrow(
    rows: int, n: int, d: int, value: float | None, what: str, compression: str | None
) -> None:
    columns = {"id": pa.array([str(i) for i in range(rows)], pa.utf8())}
    if what == "vectors":
        columns["vectors"] = lists(rows, vectors(n, d, value))
    elif what == "vector":
        columns["vector"] = vectors(rows, d, value)
    elif what == "passages":
        columns["passages"] = lists(rows, pa.array([""]).take(pa.array(np.zeros(n, np.int32))))
    elif what in ("text", "metadata"):
        columns[what] = pa.array(["[" * (n // rows)] * rows, pa.utf8())
    else:
        columns = {
            "id": pa.array(["x" * (n // rows)] * rows, pa.utf8()),
            "text": pa.array(["x"] * rows, pa.utf8()),
        }
    data = stream(columns, compression)
    bounded(data, lambda: entries(ARROW, data), floor=160 * MiB, each=200)


def test_an_arrow_stream_of_many_empty_batches_or_columns_is_refused_early() -> None:
    empty = {"id": pa.array([], pa.utf8()), "text": pa.array([], pa.utf8())}
    data = stream(empty, None, batches=20_000)
    assert Work().of(lambda: entries(ARROW, data)).steps < 200_000
    wide = stream({f"c{i}": pa.array([], pa.utf8()) for i in range(5_000)}, None)
    assert Work().of(lambda: entries(ARROW, wide)).steps < 1_000


SEARCHES = [
    "%s",
    '{"vector":[%s]}',
    '{"include":[%s]}',
    '{"vector":[1],"filter":{"$or":[%s]}}',
    '{"text":[%s]}',
]
SEARCHES += [
    '{"filter":{"a":{"$in":[%s]}}}',
    '{"filter":{"$and":[{"a":1},%s]}}',
    '{"fusion":{"a":[%s]}}',
    '{"wait_for":[%s]}',
]


@much
@given(context=st.sampled_from(SEARCHES), fragment=FRAGMENTS, n=sizes)
def test_a_search_body(context: str, fragment: str, n: int) -> None:
    data = repeated(context, fragment, n)
    bounded(
        data,
        lambda: search_request.from_json(
            "c", checked_object(load_json(data), search_request.FIELDS), GatewaySettings()
        ),
    )


@much
@given(
    context=st.sampled_from(
        ["%s", '{"searches":%s}', '{"searches":[%s]}', '{"searches":[{"vector":[%s]}]}']
    ),
    fragment=FRAGMENTS,
    n=st.sampled_from([900, 20_000]),
)
def test_a_body_of_many_searches(context: str, fragment: str, n: int) -> None:
    data = repeated(context, fragment, n)
    bounded(data, lambda: split(data), floor=6 * MiB)  # 1,000 searches of at least 4 KiB each


@much
@given(
    condition=st.sampled_from(
        ["%s", '{"a":{"$in":[%s]}}', '{"$or":[%s]}', '{"$not":{"$and":[%s]}}']
    ),
    fragment=FRAGMENTS,
    n=sizes,
)
def test_a_filter(condition: str, fragment: str, n: int) -> None:
    data = repeated(condition, fragment, n)
    bounded(data, lambda: filters.parse(load_json(data)))


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (b"[" + b"[]," * (CONTAINERS_MAX + 1) + b"0]", CONTAINERS_MAX),
        (b"[" + b"{}," * (CONTAINERS_MAX + 1) + b"0]", CONTAINERS_MAX),
        (b"[" + b"1," * (VALUES_MAX + 1) + b"1]", VALUES_MAX),
        (b'["\\"",' + b"1," * (VALUES_MAX + 1) + b"1]", VALUES_MAX),
    ],
)
def test_a_text_of_too_many_values_is_refused_before_it_is_parsed(data: bytes, limit: int) -> None:
    with pytest.raises(Refused) as refused:
        load_json(data)
    assert refused.value.limit == limit


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.text(st.sampled_from('",[{\\a')),
        lambda v: st.lists(v) | st.dictionaries(st.text(st.sampled_from('",[{\\a')), v),
    )
)
def test_brackets_and_commas_in_texts_are_not_counted(value: Any) -> None:
    import orjson

    def containers(v: Any) -> int:
        inner = v.values() if isinstance(v, dict) else v if isinstance(v, list) else ()
        return isinstance(v, list | dict) + sum(map(containers, inner))

    data = orjson.dumps(value)
    n = containers(value)
    check_shape(data, containers_max=n, values_max=len(data))
    if n:
        with pytest.raises(Refused):
            check_shape(data, containers_max=n - 1, values_max=len(data))
