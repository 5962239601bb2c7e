"""Every kind of bad document gets one clear reason, and the rest of its batch goes through."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.documents import Rules, parse_arrow_body, parse_json, parse_ndjson
from vicinage.errors import Refused
from vicinage.records import Document, Rejected
from vicinage.settings import IngestSettings

LIMITS = IngestSettings()
TEXT = Rules("docs", 3, "cosine", takes_text=True, limits=LIMITS)
VECTORS = Rules("docs", 3, "cosine", takes_text=False, limits=LIMITS)


def deep(n: int) -> object:
    return 1 if n == 0 else {"a": deep(n - 1)}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"text": "x"}, "id"),
        ({"id": 5, "text": "x"}, "id"),
        ({"id": "", "text": "x"}, "id"),
        ({"id": "a" * 10_000, "text": "x"}, "id"),
        ({"id": "a\nb", "text": "x"}, "id"),
        ({"id": "a\u0000", "text": "x"}, "id"),
        ({"id": "a"}, "text"),
        ({"id": "a", "text": "  \n "}, "text"),
        ({"id": "a", "text": 7}, "text"),
        ({"id": "a", "text": "x" * (10 << 20)}, "text"),
        ({"id": "a", "text": "\ud800"}, "text"),
        ({"id": "a", "text": "x", "passages": ["y"]}, "text"),
        ({"id": "a", "passages": []}, "passages"),
        ({"id": "a", "passages": ["x", " "]}, "passages.1"),
        ({"id": "a", "vector": [1, 2]}, "vector"),
        ({"id": "a", "vector": []}, "vector"),
        ({"id": "a", "vector": [0, 0, 0]}, "vector"),
        ({"id": "a", "vector": [1e300, 0, 0]}, "vector"),
        ({"id": "a", "vector": [float("nan"), 0, 1]}, "vector"),
        ({"id": "a", "vector": ["1", 0, 1]}, "vector.0"),
        ({"id": "a", "vector": [1, 0, 0], "vectors": [[1, 0, 0]]}, "vector"),
        ({"id": "a", "vectors": [[1, 0, 0]], "passages": ["x", "y"]}, "vectors"),
        ({"id": "a", "text": "x", "metadata": [1]}, "metadata"),
        ({"id": "a", "text": "x", "metadata": {"a": "x" * 20_000}}, "metadata"),
        ({"id": "a", "text": "x", "metadata": deep(12)}, "metadata"),
        ({"id": "a", "text": "x", "metadata": {"$a": 1}}, "metadata"),
        ({"id": "a", "text": "x", "metadata": {"a": float("inf")}}, "metadata"),
        ({"id": "a", "text": "x", "surprise": 1}, "surprise"),
        ({"id": "a", "text": "x", "tenant": "another"}, "tenant"),
        ({"id": "a", "text": "x", "collection": "another"}, "collection"),
        ("not an object", "document"),
        (None, "document"),
    ],
)
def test_what_is_wrong_is_said_by_its_field(document: object, field: str) -> None:
    outcome = parse_json(document, TEXT, tenant="acme")
    assert isinstance(outcome, Rejected)
    assert outcome.field == field, outcome
    assert outcome.reason.startswith(f"{field}: ") and len(outcome.reason) < 300


@pytest.mark.parametrize("name", ["a/b", "it's", 'say "so"', "ünïcode", "../etc/passwd", "a b", "%2F", "x" * 512])
def test_unusual_ids_are_fine(name: str) -> None:
    assert parse_json({"id": name, "text": "x"}, TEXT, tenant="acme") == Document("docs", name, "x")


def test_text_needs_a_model_and_vectors_do_not() -> None:
    assert isinstance(parse_json({"id": "a", "text": "x"}, VECTORS, tenant="acme"), Rejected)
    made = parse_json({"id": "a", "vector": [3, 0, 4], "metadata": {"k": 1}}, VECTORS, tenant="acme")
    assert isinstance(made, Document)
    np.testing.assert_allclose(made.vectors, [[0.6, 0, 0.8]], atol=1e-6)


def test_a_bad_line_spoils_only_itself() -> None:
    lines = b'{"id": "a", "text": "x"}\n{broken\n\n{"id": "b", "text": "y"}\n{"id": "c"}'
    outcomes = parse_ndjson(lines, TEXT, tenant="acme")
    assert [type(o) for o in outcomes] == [Document, Rejected, Document, Rejected]
    assert "line 2" in outcomes[1].reason


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


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float16())])
def test_any_width_and_list_of_floats_will_do(kind: pa.DataType) -> None:
    values = pa.array([np.array([1, 0, 0], np.float16)] if kind.value_type == pa.float16() else [[1.0, 0.0, 0.0]], kind)
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
        pa.record_batch({"id": ["a"], "vector": vectors([[1, 2, 3]]), "vectors": pa.array([[[1.0, 2.0, 3.0]]])}),
    ],
)
def test_a_stream_of_another_schema_is_refused_whole(batch: pa.RecordBatch) -> None:
    with pytest.raises(Refused):
        parse_arrow_body(stream(batch), TEXT)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_stream_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        parse_arrow_body(data, TEXT)


def test_a_cut_stream_is_refused() -> None:
    whole = stream(pa.record_batch({"id": ["a"] * 50, "text": ["x"] * 50}))
    for cut in (10, len(whole) // 2, len(whole) - 20):
        with pytest.raises(Refused):
            parse_arrow_body(whole[:cut], TEXT)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["id", "text", "passages", "vector", "vectors", "metadata", "tenant", "x"]), values)
)
def test_no_json_makes_it_fall_over(document: dict) -> None:
    outcome = parse_json(document, TEXT, tenant="acme")
    assert isinstance(outcome, Document | Rejected)
    if isinstance(outcome, Document):
        json.dumps(outcome.metadata)
