"""Round trips; the first format still loads; untrusted bytes are refused at little cost."""

import resource
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vicinage.arrow_stream import DECODED_FLOOR, DECODED_RATIO, claimed_bytes, read_stream
from vicinage.errors import Corrupt, Refused
from vicinage.records import Document, Position, Token
from vicinage.wire import (
    DECODED_BYTES_MAX,
    DELETED,
    decode_documents,
    decode_rows,
    deletions_schema,
    encode_documents,
    encode_rows,
    first_rows,
    is_deletions,
    load_json,
    parse_rows_key,
    rows_bytes,
    rows_key,
    vector_column,
    vectors_of,
    vectors_schema,
)

FORMATS = Path(__file__).resolve().parent.parent / "formats"


def batch(*, older: bool = False) -> pa.RecordBatch:
    """Returns a document of two passages, and a deletion; `older`: in format 1."""
    vectors = vector_column(np.arange(9, dtype=np.float32).reshape(3, 3), [False, False, True])
    columns = [
        ["a", "a", "b"],
        [5, 5, 6],
        [1, 1, 2],
        [0, 1, -1],
        ["x", "y", None],
        [0, 2, None],
        [1, 3, None],
        ['{"k": 1}', '{"k": 1}' if older else None, None],
    ]
    schema = vectors_schema(3)
    return pa.RecordBatch.from_arrays(
        [*(pa.array(c, schema.field(i).type) for i, c in enumerate(columns)), vectors],
        schema=schema,
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
    "value",
    [b"", b"nonsense", encode_rows(batch(), tenant="t", collection="c", generation=1)[:-60]],
)
def test_a_broken_message_is_corrupt(value: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_rows(value)


@given(st.integers(0), st.integers(0, 255))
def test_a_message_with_any_byte_changed_is_read_or_corrupt(at: int, byte: int) -> None:
    value = bytearray(encode_rows(batch(), tenant="t", collection="c", generation=1))
    value[at % len(value)] = byte
    with suppress(Corrupt):
        decode_rows(bytes(value))


@pytest.mark.parametrize("lacks", ["vicinage", "tenant", "collection", "generation"])
def test_a_message_that_lacks_a_name_is_corrupt(lacks: str) -> None:
    names = {"vicinage": "1", "tenant": "t", "collection": "c", "generation": "1"}
    del names[lacks]
    with pytest.raises(Corrupt):
        decode_rows(stream(batch().replace_schema_metadata(names)))


def test_a_message_of_other_columns_is_corrupt() -> None:
    other = pa.record_batch(
        {"document_id": ["a"], "vector": pa.array([[1.0]], pa.list_(pa.float64()))}
    )
    with pytest.raises(Corrupt):
        decode_rows(encode_rows(other, tenant="t", collection="c", generation=1))


@pytest.mark.parametrize("key", [b"", b"a/b", b"a/b/c", b"a/b/1/2", b"\xff/b/1"])
def test_a_key_that_is_not_ours_is_corrupt(key: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_rows_key(key)


def test_vectors_are_read_where_they_lie() -> None:
    value = encode_rows(batch(), tenant="acme", collection="docs", generation=7)
    vectors = vectors_of(decode_rows(value).batch)
    start = np.frombuffer(value, np.uint8).ctypes.data
    assert start <= vectors.ctypes.data < start + len(value)
    assert not vectors.flags.writeable


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


def stream(*batches: pa.RecordBatch, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as writer:
        for one in batches:
            writer.write_batch(one)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_streams_are_read_and_their_size_is_known_before(compression: str) -> None:
    plain = pa.record_batch(
        {"id": [f"d{i}" for i in range(5_000)], "text": ["words " * 10] * 5_000}
    )
    data = stream(plain, plain, compression=compression)
    _, found = decode_documents(data)
    assert [b.equals(plain) for b in found] == [True, True]
    messages = list(pa.ipc.MessageReader.open_stream(data))
    assert messages[0].type == "schema"
    assert 0 <= claimed_bytes(messages[1]) - plain.nbytes <= 128


def test_a_stream_that_would_fill_the_memory_is_refused_before_it_does() -> None:
    bomb = stream(pa.record_batch({"id": ["x" * (DECODED_BYTES_MAX + 1)]}), compression="zstd")
    assert len(bomb) < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused) as refused:
        decode_documents(bomb)
    assert refused.value.limit == DECODED_FLOOR + DECODED_RATIO * len(bomb) < DECODED_BYTES_MAX
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_a_buffer_that_claims_a_terabyte_or_less_than_nothing_is_refused() -> None:
    data = stream(pa.record_batch({"id": ["x" * 5_000]}), compression="zstd")
    at = data.rindex(struct.pack("<q", 5_000))
    for claim in (1 << 40, -5):
        with pytest.raises(Refused):
            decode_documents(data[:at] + struct.pack("<q", claim) + data[at + 8 :])


V4 = pa.ipc.MetadataVersion.V4


def test_an_older_metadata_version_is_refused_in_the_schema_and_in_batches() -> None:
    plain = pa.record_batch({"id": ["a"]})
    old = stream(plain, metadata_version=V4)
    with pytest.raises(Refused, match="V4"):
        decode_documents(old)
    schema = plain.schema.serialize().to_pybytes()
    old_schema = next(iter(pa.ipc.MessageReader.open_stream(old))).serialize().to_pybytes()
    with pytest.raises(Refused, match="V4"):
        decode_documents(schema + old[len(old_schema) :])


def old_bomb(n_bytes: int) -> bytes:
    """Returns a V4 stream with one buffer of `n_bytes`, compressed as in Arrow 0.17."""
    buffer = struct.pack("<q", n_bytes) + pa.compress(bytes(n_bytes), codec="zstd", asbytes=True)
    batch = pa.record_batch({"id": np.frombuffer(buffer, np.uint8)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(metadata_version=V4)
    ) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "ZSTD"})
    return sink.getvalue().to_pybytes()


def test_a_bomb_compressed_as_in_arrow_0_17_is_refused_before_it_is_decompressed() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match="V4"):
        decode_documents(old_bomb(DECODED_BYTES_MAX + 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_a_column_whose_name_is_not_utf8_is_refused() -> None:
    data = stream(pa.record_batch({"id": ["a"], "strangename": ["b"]}))
    with pytest.raises(Refused):
        decode_documents(data.replace(b"strangename", b"\xff\xfetrangename"[:11]))


def test_a_stream_without_its_schema_is_refused() -> None:
    plain = pa.record_batch({"id": ["a"]})
    with pytest.raises(Refused, match="not with its schema"):
        decode_documents(plain.serialize().to_pybytes())


def test_a_dictionary_is_refused_plainly() -> None:
    with pytest.raises(Refused, match="dictionary"):
        decode_documents(stream(pa.record_batch({"id": pa.array(["a", "b"]).dictionary_encode()})))


@given(
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4), st.booleans()
)
def test_a_stream_with_any_bytes_changed_is_read_or_refused(
    changes: list[tuple[int, int]], compressed: bool
) -> None:
    plain = pa.record_batch(
        {"id": ["a", "b"], "text": ["x" * 50, None], "vector": pa.array([[1.0], None])}
    )
    data = bytearray(stream(plain, compression="lz4" if compressed else None))
    for at, byte in changes:
        data[at % len(data)] = byte
    with suppress(Refused):
        decode_documents(bytes(data))


def test_json_that_is_none_is_refused_with_the_place() -> None:
    for data in (b"", b"{", b'{"a": NaN}', b"\xff", b"[" * 5_000):
        with pytest.raises(Refused) as refused:
            load_json(data, field="line 3")
        assert refused.value.field == "line 3"


def test_bytes_of_the_first_format_still_load() -> None:
    rows = decode_rows((FORMATS / "vectors-1.arrow").read_bytes())
    assert rows.batch.replace_schema_metadata(None).equals(batch(older=True))
    name, [decoded] = decode_documents((FORMATS / "documents-1.arrow").read_bytes())
    assert (name, decoded.column("id").to_pylist()) == ("docs", ["a", "b"])


def test_bytes_of_the_second_format_of_vectors_still_load() -> None:
    rows = decode_rows((FORMATS / "vectors-2.arrow").read_bytes())
    assert rows.batch.replace_schema_metadata(None).equals(batch())


@pytest.mark.parametrize("older", [True, False])
def test_the_first_row_of_a_document_is_known_from_each_of_its_rows(older) -> None:
    assert first_rows(batch(older=older)).tolist() == [0, 0, 2]
    assert first_rows(batch(older=older).slice(2)).tolist() == [0]


@given(
    st.lists(
        st.tuples(st.text(max_size=40), st.integers(1, 30), st.text(max_size=50)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 300),
)
def test_rows_take_no_more_than_is_reckoned(documents, dimension) -> None:
    ids = [name for name, n, _ in documents for _ in range(n)]
    texts = [text for _, n, text in documents for _ in range(n)]
    facts = [
        f'{{"k":"{"x" * 500}"}}' if i == 0 else None for _, n, _ in documents for i in range(n)
    ]
    n = len(ids)
    columns = [ids, [5] * n, [1] * n, [0] * n, texts, [0] * n, [1] * n, facts]
    schema = vectors_schema(dimension)
    arrays = [pa.array(c, schema.field(i).type) for i, c in enumerate(columns)]
    whole = pa.RecordBatch.from_arrays(
        [*arrays, vector_column(np.zeros((n, dimension), np.float32))], schema=schema
    )
    reckoned = sum(
        rows_bytes(
            name,
            n,
            dimension,
            text_bytes=n * len(text.encode()),
            metadata_json=orjson.dumps({"k": "x" * 500}).decode(),
        )
        for name, n, text in documents
    )
    taken = len(encode_rows(whole, tenant="acme", collection="docs", generation=1))
    assert taken <= reckoned + 4_096, "the schema is not counted"


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


def gone(passage: int = DELETED) -> pa.RecordBatch:
    schema = deletions_schema()
    columns = [["a", "b"], [7, 8], [1, 2], [passage] * 2, *([[None, None]] * 4)]
    return pa.RecordBatch.from_arrays(
        [pa.array(c, schema.field(i).type) for i, c in enumerate(columns)], schema=schema
    )


def test_a_message_of_deletions_has_no_vectors_and_nothing_else_may_lack_them() -> None:
    stored = (FORMATS / "vectors-3.arrow").read_bytes()
    assert decode_rows(stored).batch.replace_schema_metadata(None).equals(gone())
    assert is_deletions(decode_rows(stored).batch)
    with pytest.raises(Corrupt):
        decode_rows(encode_rows(gone(0), tenant="t", collection="c", generation=1))


def test_a_body_in_another_encoding_says_so_and_where() -> None:
    with pytest.raises(
        Refused, match=r"^line 3 is not UTF-8 \(its byte 12\): send it encoded as UTF-8$"
    ):
        load_json(b'{"text":"caf\xe9"}', field="line 3")
    with pytest.raises(Refused, match="is not JSON"):
        load_json(b'{"text":}', field="line 3")


@pytest.mark.parametrize("more", [b"x", b"whole"])
def test_bytes_behind_the_end_of_a_stream_are_refused(more: bytes) -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"id": ["a"]})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream = sink.getvalue().to_pybytes()
    end = len(stream) - 8  # a stream may end without its marker
    for whole in (stream, stream[:end]):
        assert len(read_stream(whole, bytes_max=1 << 20, rows_max=10)[1]) == 1
    with pytest.raises(Refused, match="follow the end of the Arrow stream"):
        read_stream(stream + (stream if more == b"whole" else more), bytes_max=1 << 20, rows_max=10)
