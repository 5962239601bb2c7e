"""Arrow streams: a wrong column refuses the stream, a wrong row is rejected alone."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.columns import parse_arrow_body
from ingest.validation import DocumentLimits
from vicinage.errors import Refused
from vicinage.records import Document, Rejected
from vicinage.settings import IngestSettings

LIMITS = IngestSettings()
TEXT = DocumentLimits("docs", 3, "cosine", takes_text=True, settings=LIMITS)
VECTORS = DocumentLimits("docs", 3, "cosine", takes_text=False, settings=LIMITS)


def stream(batch: pa.RecordBatch, metadata: dict | None = None) -> bytes:
    batch = batch.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def vectors(rows: list[list[float] | None], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(rows, kind or pa.list_(pa.float32(), 3))


def test_arrow_rows_become_documents_and_bad_rows_are_rejected_alone() -> None:
    rows = [[3, 0, 4], None, [0, 0, 0], [1, float("nan"), 0]]
    batch = pa.record_batch(
        {
            "id": ["a", "b", "c", "d"],
            "text": ["x", None, "z", "w"],
            "vector": vectors(rows),
            "metadata": ['{"k":1}', None, None, None],
        }
    )
    outcomes = parse_arrow_body(stream(batch), TEXT)
    assert [type(o) for o in outcomes] == [Document, Rejected, Rejected, Rejected]
    np.testing.assert_allclose(outcomes[0].vectors, [[0.6, 0, 0.8]], atol=1e-6)
    assert outcomes[0].metadata == {"k": 1}
    assert [o.field for o in outcomes[1:]] == ["text", "vector", "vector"]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float16())]
)
def test_any_width_and_list_of_floats_is_accepted(kind: pa.DataType) -> None:
    values = pa.array(
        [np.array([1, 0, 0], np.float16)] if kind.value_type == pa.float16() else [[1.0, 0.0, 0.0]],
        kind,
    )
    [made] = parse_arrow_body(stream(pa.record_batch({"id": ["a"], "vector": values})), VECTORS)
    assert isinstance(made, Document)


@pytest.mark.parametrize(
    "batch",
    [
        pa.record_batch({"name": ["a"]}),
        pa.record_batch({"id": [1], "text": ["x"]}),
        pa.record_batch({"id": ["a"], "text": ["x"], "extra": [1]}),
        pa.record_batch({"id": ["a"], "vector": vectors([[1, 2]], pa.list_(pa.float32(), 2))}),
        pa.record_batch({"id": ["a"], "vector": vectors([[1, 2, 3]], pa.list_(pa.int32(), 3))}),
        pa.record_batch(
            {"id": ["a"], "vector": vectors([[1, 2, 3]]), "vectors": pa.array([[[1.0, 2.0, 3.0]]])}
        ),
    ],
)
def test_a_stream_of_another_schema_is_refused(batch: pa.RecordBatch) -> None:
    with pytest.raises(Refused):
        parse_arrow_body(stream(batch), TEXT)


@given(st.binary(max_size=200))
def test_bytes_that_are_not_a_stream_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        parse_arrow_body(data, TEXT)


def test_a_truncated_stream_is_refused() -> None:
    whole = stream(pa.record_batch({"id": ["a"] * 50, "text": ["x"] * 50}))
    for cut in (10, len(whole) // 2, len(whole) - 20):
        with pytest.raises(Refused):
            parse_arrow_body(whole[:cut], TEXT)


def test_empty_lists_are_refused_before_they_are_converted() -> None:
    """A few bytes can claim any number of them, since none takes a byte."""
    n = 2_000_000_000
    nothing = pa.FixedSizeListArray.from_buffers(
        pa.list_(pa.float32(), 0), n, [None], children=[pa.array([], pa.float32())]
    )
    offsets = pa.py_buffer(np.array([0, n], "<i4").tobytes())
    column = pa.ListArray.from_buffers(
        pa.list_(nothing.type), 1, [None, offsets], children=[nothing]
    )
    data = stream(pa.record_batch({"id": pa.array(["x"]), "vectors": column}))
    assert len(data) < 1_000
    with pytest.raises(Refused):
        parse_arrow_body(data, VECTORS)
    few = stream(
        pa.record_batch({"id": ["x"], "vector": pa.array([[]], pa.list_(pa.float32(), 0))})
    )
    with pytest.raises(Refused):
        parse_arrow_body(few, VECTORS)
