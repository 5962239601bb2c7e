"""The models that document bodies and the parsers that read them accept and refuse the same bodies.

Every body is made from a valid one by a few mutations: another type, an unknown field, a value out
of range, null, a nested value, a boolean for an integer, a huge integer, a blank text, a duplicate.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ingest.documents import parse_json
from ingest.preparing import DOCUMENTS_MAX
from ingest.validation import VECTOR_FAULTS, DocumentLimits
from query.api.bounds import DELETE_MAX, K_DEFAULT, TEXT_BYTES_MAX, TIMEOUT_MS_MAX
from query.api.deletions import FIELDS as DELETION_FIELDS
from query.api.deletions import deletion_of
from query.api.http import parsed_object
from query.api.models.documents import DeleteDocumentsRequest, Document, WriteDocumentsRequest
from query.api.models.search import SearchBatchRequest, SearchRequest
from query.api.search_request import FIELDS, from_json
from query.batch import SEARCHES_MAX, split
from tenants.models import DIMENSION_MAX
from vicinage.errors import Refused
from vicinage.exact_json import Exactly
from vicinage.records import Rejected
from vicinage.settings import GatewaySettings, IngestSettings
from vicinage.wire import list_field, load_json

GATEWAY = GatewaySettings()
LIMITS = IngestSettings()
DIMENSION = 4
RULES = DocumentLimits("c", DIMENSION, "dot", takes_text=True, settings=LIMITS)
OF_THE_COLLECTION = ("the collection's dimension is", *VECTOR_FAULTS[1:])
"""Rejections that depend on the collection, which a model of the body cannot know."""


def accepted_by(model: type[BaseModel], body: Any) -> bool:
    try:
        model.model_validate(body)
    except (ValidationError, Refused):
        return False
    return True


def accepted(parse: Callable[[], object]) -> bool:
    try:
        parse()
    except Refused:
        return False
    return True


texts = st.sampled_from(["words", "a", "ß", "x" * 100, "𝒳"])
numbers = st.floats(-2, 2, width=32) | st.integers(-3, 3)
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION)
tokens = st.sampled_from(["0-41", "0-41.1-7", "latest", {"partition": 0, "offset": 41}])
scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "en", "$in"])
leaves = scalars | st.fixed_dictionaries(
    {}, optional={"$gte": st.integers(0, 9), "$in": st.lists(scalars, max_size=3)}
)
filters = st.recursive(
    st.dictionaries(st.sampled_from(["lang", "year", "author.name"]), leaves, max_size=2),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"$and": st.lists(inner, max_size=2), "$not": inner}
    ),
    max_leaves=4,
)
EDGES = [
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**64, 10**30, 1.0, 0.5, 1.5, -0.0, 1e39,
    1e300, K_DEFAULT, GATEWAY.k_max, GATEWAY.k_max + 1, GATEWAY.rerank_max, GATEWAY.rerank_max + 1,
    TIMEOUT_MS_MAX, TIMEOUT_MS_MAX + 1, "", " \n", "\u200b", "x", "1", "dense", "latest", "0-1",
    "0-", "1024-1", "x" * TEXT_BYTES_MAX, "x" * (TEXT_BYTES_MAX + 1), "ü" * (TEXT_BYTES_MAX // 2 +
    1), "AAAAAA==", "AAA", "a/../b", ".", "a\x00b", "\ud800", [], [None], [True], [1], ["x"],
    ["text", "text"], [[1.0]], [1] * DIMENSION, [0.5] * (DIMENSION_MAX + 1), {}, {"x": 1}, {"": 1},
    {"$eq": 1}, {"partition": 0, "offset": None}, {"partition": 1023, "offset": 2**53},
    {"partition": 1024, "offset": 0}, {"a": {"b": [1, {"c": None}]}}, {"method": None}, {"method":
    "rrf"}, {"method": "weighted", "dense_weight": 1}, {"dense_weight": True},
]  # fmt: skip
edges = st.sampled_from(EDGES).map(deepcopy)
names = st.sampled_from([*sorted(FIELDS), "ids", "id", "tenant", "limit", "Text"])


@st.composite
def mutated(draw: st.DrawFn, bodies: st.SearchStrategy[Any]) -> Any:
    """A body of `bodies` with up to three changes, each at its top or one level below."""
    body = deepcopy(draw(bodies))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        inner = [each for each in body.values() if isinstance(each, dict | list) and each]
        into = draw(st.sampled_from([body, body, *inner]))
        if isinstance(into, list):
            into[draw(st.integers(0, len(into) - 1))] = draw(edges)
        elif into and draw(st.booleans()):
            into[draw(st.sampled_from(sorted(into)))] = draw(edges)
        elif into and draw(st.booleans()):
            del into[draw(st.sampled_from(sorted(into)))]
        else:
            into[draw(names)] = draw(edges)
    return body


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


common = st.fixed_dictionaries(
    {},
    optional={
        "k": st.integers(1, 20),
        "filter": filters,
        "wait_for": tokens,
        "timeout_ms": st.integers(1, TIMEOUT_MS_MAX),
        "include": st.lists(st.sampled_from(["text", "metadata", "vector"]), max_size=3),
        "exact": st.booleans(),
    },
)
rerank = st.integers(20, GATEWAY.rerank_max)
fusions = st.fixed_dictionaries({}, optional={"dense_weight": st.floats(0, 1)})
hybrid = {"mode": st.just("hybrid"), "text": texts}
ways = st.one_of(
    st.fixed_dictionaries({"text": texts}, optional={"rerank": rerank, "mode": st.just("dense")}),
    st.fixed_dictionaries({"vector": vectors}),
    st.fixed_dictionaries({"vector_base64": st.just("AACAPwAAAAAAAAAAAAAAAA==")}),
    st.fixed_dictionaries({"mode": st.just("lexical"), "text": texts}, optional={"rerank": rerank}),
    st.fixed_dictionaries(
        hybrid, optional={"vector": vectors, "fusion": fusions, "rerank": rerank}
    ),
    st.fixed_dictionaries({**hybrid, "fusion": st.just({"method": "rrf"})}),
)
searches = st.builds(lambda way, other: way | other, ways, common)


def parses_search(data: bytes) -> bool:
    return accepted(lambda: from_json("c", parsed_object(data, FIELDS), GATEWAY))


@settings(max_examples=600)
@given(mutated(searches))
@example({"vector": [1, 0, 0, 0], "mode": None, "k": None, "fusion": None})
@example({"text": "x", "mode": "hybrid", "fusion": {"method": None}})
@example({"text": "x", "mode": "hybrid", "fusion": {"method": None, "dense_weight": 0.5}})
@example({"text": "x", "rerank": 5})
def test_the_model_and_the_parser_of_a_search_agree(body: Any) -> None:
    data = encoded(body)
    assert parses_search(data) == (
        accepted(lambda: load_json(data)) and accepted_by(SearchRequest, json.loads(data))
    )


@settings(max_examples=200)
@given(st.lists(mutated(searches), max_size=3).map(lambda each: {"searches": each}) | mutated(
    st.lists(searches, max_size=2).map(lambda each: {"searches": each})
))  # fmt: skip
def test_the_model_of_a_batch_accepts_those_of_which_every_search_parses(body: Any) -> None:
    data = encoded(body)

    def parse() -> None:
        for each in split(data):
            from_json("c", parsed_object(each, FIELDS), GATEWAY)

    assert accepted(parse) == (
        accepted(lambda: load_json(data)) and accepted_by(SearchBatchRequest, json.loads(data))
    )


@pytest.mark.parametrize("n", [0, 1, SEARCHES_MAX, SEARCHES_MAX + 1])
def test_the_size_of_a_batch_is_bounded_alike(n: int) -> None:
    body = {"searches": [{"text": "x"}] * n}
    assert accepted(lambda: split(encoded(body))) == accepted_by(SearchBatchRequest, body)


contents = st.one_of(
    st.fixed_dictionaries({"text": texts}, optional={"vector": vectors}),
    st.fixed_dictionaries({"vectors": st.lists(vectors, min_size=1, max_size=3)}),
    st.integers(1, 3).flatmap(
        lambda n: st.fixed_dictionaries(
            {"passages": st.lists(texts, min_size=n, max_size=n)},
            optional={"vectors": st.lists(vectors, min_size=n, max_size=n)},
        )
    ),
)
facts = st.fixed_dictionaries(
    {"id": st.sampled_from(["a", "guide/7", "ü", "x" * LIMITS.id_bytes_max])},
    optional={
        "metadata": st.dictionaries(st.sampled_from(["lang", "year"]), scalars, max_size=2),
        "collection": st.just("c"),
        "tenant": st.just("acme"),
    },
)
documents = st.builds(lambda content, other: content | other, contents, facts)


@settings(max_examples=600)
@given(mutated(documents))
@example({"id": "a", "text": "x" * (LIMITS.text_bytes_max + 1)})
@example({"id": "a", "passages": ["x" * (LIMITS.text_bytes_max // 2 + 1)] * 2})
@example({"id": "x" * (LIMITS.id_bytes_max + 1), "text": "x"})
@example({"id": "a", "text": "x", "metadata": {"n": 2**64}})
@example({"id": "a", "text": "x", "metadata": {"k" * 129: 1}})
@example({"id": "a", "text": "x", "metadata": {"x": "x" * LIMITS.metadata_bytes_max}})
@example({"id": "a", "text": "x", "vectors": [[1, 0, 0, 0]] * 2})
def test_the_model_and_the_parser_of_a_document_agree(body: Any) -> None:
    data = encoded(body)
    if not accepted(lambda: load_json(data)):
        return
    found = parse_json(load_json(data), RULES, tenant="acme", exactly=Exactly(data))
    if isinstance(found, Rejected) and (
        any(text in found.reason for text in OF_THE_COLLECTION)
        or found.field in ("tenant", "collection")
    ):
        return
    assert isinstance(found, Rejected) != accepted_by(Document, json.loads(data)), found


@settings(max_examples=100)
@given(mutated(st.just({"documents": [{"id": "a", "text": "x"}]})))
@example({"documents": []})
@example({"documents": [{"id": "a", "text": "x"}] * (DOCUMENTS_MAX + 1)})
def test_the_model_of_a_write_accepts_lists_of_valid_documents(body: Any) -> None:
    def parse() -> None:
        entries = list_field(body, "documents", "documents")
        if len(entries) > DOCUMENTS_MAX:
            raise Refused("too many")
        for each in entries:
            if isinstance(parse_json(each, RULES, tenant="acme"), Rejected):
                raise Refused("rejected")

    assert accepted(parse) == accepted_by(WriteDocumentsRequest, body)


deletions = st.one_of(
    st.fixed_dictionaries({"ids": st.lists(st.sampled_from(["a", "..", "ü"]), max_size=2)}),
    st.fixed_dictionaries({"filter": filters}, optional={"wait_for": tokens}),
)


@settings(max_examples=200)
@given(mutated(deletions))
@example({"ids": ["a"] * DELETE_MAX})
@example({"ids": ["a"] * (DELETE_MAX + 1)})
@example({"ids": ["x" * (LIMITS.id_bytes_max + 1)]})
@example({"filter": {}})
@example({"ids": [], "wait_for": "0-1"})
def test_the_model_and_the_parser_of_a_deletion_agree(body: Any) -> None:
    data = encoded(body)

    def parse() -> None:
        deletion_of(parsed_object(data, DELETION_FIELDS), LIMITS.id_bytes_max)

    assert accepted(parse) == (
        accepted(lambda: load_json(data)) and accepted_by(DeleteDocumentsRequest, json.loads(data))
    )
