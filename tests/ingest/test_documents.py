"""Every kind of bad document gets one reason, and the rest of its batch is accepted."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.documents import parse_json, parse_ndjson
from ingest.preparing import Body, entries_of
from ingest.validation import DocumentLimits
from vicinage.records import Document, Rejected
from vicinage.settings import IngestSettings

LIMITS = IngestSettings()
TEXT = DocumentLimits("docs", 3, "cosine", takes_text=True, settings=LIMITS)
VECTORS = DocumentLimits("docs", 3, "cosine", takes_text=False, settings=LIMITS)


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
        ({"id": "a", "text": "\u200b\u00ad\ufeff"}, "text"),
        ({"id": "a", "text": "\u0000 \u0007"}, "text"),
        ({"id": "a", "passages": ["x", "\u2060"]}, "passages.1"),
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
def test_an_error_names_its_field(document: object, field: str) -> None:
    outcome = parse_json(document, TEXT, tenant="acme")
    assert isinstance(outcome, Rejected)
    assert outcome.field == field, outcome
    assert outcome.reason.startswith(f"{field}: ") and len(outcome.reason) < 300


@pytest.mark.parametrize("text", ["?", "…", "👍🏽", "\u200bx", "ก", "\u0301"])
def test_any_readable_string_is_a_text(text: str) -> None:
    assert parse_json({"id": "a", "text": text}, TEXT, tenant="acme") == Document("docs", "a", text)


def test_a_text_of_invisible_characters_is_refused_with_the_reason() -> None:
    refused = parse_json({"id": "a", "text": "\u200b" * 1_000}, TEXT, tenant="acme")
    assert isinstance(refused, Rejected)
    assert (
        refused.reason
        == "text: is empty: it has white space, control and invisible characters alone"
    )


@pytest.mark.parametrize(
    "name", ["a/b", "it's", 'say "so"', "ünïcode", "..etc/passwd..", "a b", "%2F", "x" * 512]
)
def test_unusual_ids_are_accepted(name: str) -> None:
    assert parse_json({"id": name, "text": "x"}, TEXT, tenant="acme") == Document("docs", name, "x")


def test_text_needs_a_model_and_vectors_do_not() -> None:
    assert isinstance(parse_json({"id": "a", "text": "x"}, VECTORS, tenant="acme"), Rejected)
    made = parse_json(
        {"id": "a", "vector": [3, 0, 4], "metadata": {"k": 1}}, VECTORS, tenant="acme"
    )
    assert isinstance(made, Document)
    np.testing.assert_allclose(made.vectors, [[0.6, 0, 0.8]], atol=1e-6)


def test_a_bad_line_is_rejected_alone() -> None:
    lines = b'{"id": "a", "text": "x"}\n{broken\n\n{"id": "b", "text": "y"}\n{"id": "c"}'
    outcomes = parse_ndjson(lines, TEXT, tenant="acme")
    assert [type(o) for o in outcomes] == [Document, Rejected, Document, Rejected]
    assert "line 2" in outcomes[1].reason


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["id", "text", "passages", "vector", "vectors", "metadata", "tenant", "x"]),
        values,
    )
)
def test_any_json_is_parsed_or_rejected(document: dict) -> None:
    outcome = parse_json(document, TEXT, tenant="acme")
    assert isinstance(outcome, Document | Rejected)
    if isinstance(outcome, Document):
        json.dumps(outcome.metadata)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
@pytest.mark.parametrize("context", ['{"n": %d}', '{"n": [1, %d]}', '{"a": {"n": %d}}'])
def test_an_integer_beyond_64_bits_is_rejected_and_never_rounded(number: int, context: str) -> None:
    text = context % number
    document = f'{{"id": "a", "text": "x", "metadata": {text}}}'.encode()
    as_json = entries_of(Body("", b'{"documents": [' + document + b"]}", TEXT, "acme", 1))
    as_line = entries_of(Body("application/x-ndjson", document, TEXT, "acme", 1))
    for [found] in (as_json, as_line):
        assert isinstance(found, Rejected)
        assert (found.field, found.id) == ("metadata", "a")


@pytest.mark.parametrize(
    "number",
    [
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551615",
        "1e30",
        "6.02e23",
        "-1e300",
    ],
)
def test_a_number_that_can_be_kept_is_kept_as_it_is(number: str) -> None:
    line = f'{{"id": "a", "text": "x", "metadata": {{"n": {number}}}}}'.encode()
    [found] = entries_of(Body("application/x-ndjson", line, TEXT, "acme", 1))
    assert isinstance(found, Document)
    assert found.metadata == {"n": json.loads(number)}
    assert type(found.metadata["n"]) is type(json.loads(number))
