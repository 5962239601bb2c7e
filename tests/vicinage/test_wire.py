"""Bytes and back; bytes of the first format still load; bytes of strangers are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vicinage.errors import Corrupt, Refused
from vicinage.records import Document, Position, Token
from vicinage.wire import (
    decode_documents,
    decode_rows,
    encode_documents,
    encode_rows,
    load_json,
    parse_rows_key,
    rows_key,
    vector_column,
    vectors_of,
    vectors_schema,
)

FORMATS = Path(__file__).resolve().parent.parent / "formats"


def batch() -> pa.RecordBatch:
    vectors = vector_column(np.arange(9, dtype=np.float32).reshape(3, 3), [False, False, True])
    columns = [
        ["a", "a", "b"],
        [5, 5, 6],
        [1, 1, 2],
        [0, 1, -1],
        ["x", "y", None],
        [0, 2, None],
        [1, 3, None],
        ['{"k": 1}'] * 2 + [None],
    ]
    schema = vectors_schema(3)
    return pa.RecordBatch.from_arrays(
        [*(pa.array(c, schema.field(i).type) for i, c in enumerate(columns)), vectors], schema=schema
    )


def test_a_vectors_message_comes_back_as_it_was() -> None:
    rows = decode_rows(encode_rows(batch(), tenant="acme", collection="docs", generation=7))
    assert (rows.tenant, rows.collection, rows.generation) == ("acme", "docs", 7)
    assert rows.batch.replace_schema_metadata(None).equals(batch())
    np.testing.assert_array_equal(vectors_of(rows.batch)[:2], [[0, 1, 2], [3, 4, 5]])
    assert parse_rows_key(rows_key("acme", "docs", 7)) == ("acme", "docs", 7)


def test_slices_of_vectors_keep_their_rows() -> None:
    np.testing.assert_array_equal(vectors_of(batch().slice(1, 1)), [[3, 4, 5]])


@pytest.mark.parametrize(
    "value", [b"", b"nonsense", encode_rows(batch(), tenant="t", collection="c", generation=1)[:-60]]
)
def test_a_broken_message_is_corrupt(value: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_rows(value)


def test_documents_come_back_as_they_were() -> None:
    documents = [
        Document("docs", "a", "text", metadata={"k": [1, "ü"]}),
        Document("docs", "b", passages=("x", "y"), vectors=np.ones((2, 3), np.float32)),
        Document("docs", "c", vectors=np.zeros((1, 3), np.float32)),
    ]
    name, [decoded] = decode_documents(encode_documents(documents, collection="docs", dimension=3))
    assert name == "docs"
    assert decoded.column("id").to_pylist() == ["a", "b", "c"]
    assert decoded.column("vectors").to_pylist() == [[], [[1.0] * 3] * 2, [[0.0] * 3]]
    assert decoded.column("metadata").to_pylist()[0] == '{"k":[1,"ü"]}'


def test_too_many_rows_are_refused() -> None:
    documents = [Document("docs", str(i), "x") for i in range(20)]
    with pytest.raises(Refused):
        decode_documents(encode_documents(documents, collection="docs", dimension=1), rows_max=10)


def test_json_that_is_none_is_refused_with_the_place() -> None:
    for data in (b"", b"{", b'{"a": NaN}', b"\xff", b"[" * 5_000):
        with pytest.raises(Refused) as refused:
            load_json(data, field="line 3")
        assert refused.value.field == "line 3"


def test_bytes_of_the_first_format_still_load() -> None:
    rows = decode_rows((FORMATS / "vectors-1.arrow").read_bytes())
    assert rows.batch.replace_schema_metadata(None).equals(batch())
    name, [decoded] = decode_documents((FORMATS / "documents-1.arrow").read_bytes())
    assert (name, decoded.column("id").to_pylist()) == ("docs", ["a", "b"])


def test_tokens_are_their_text_and_cover_the_last_of_each_partition() -> None:
    token = Token.covering([Position(1, 5), Position(0, 3), Position(1, 9)])
    assert str(token) == "0-3.1-9"
    assert Token.parse("0-3.1-9") == token
    for bad in ("", "0", "-1", "0-", "a-b", "0-1.", "0-1,1-2", "9" * 30):
        with pytest.raises(Refused):
            Token.parse(bad)


def test_versions_follow_offsets_then_partitions() -> None:
    positions = [Position(1, 0), Position(0, 1), Position(3, 1), Position(0, 2)]
    assert [p.version() for p in positions] == sorted(p.version() for p in positions)
