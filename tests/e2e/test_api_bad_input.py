"""Bad input: each gets one problem document with the field and the limit; the process continues."""

import base64
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import pyarrow as pa
import pytest
from gate import Caller, platform, problem, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vicinage.settings import GatewaySettings
from vicinage.wire import ARROW

BODY_MAX = 2 << 20
SEARCH = "/v1/collections/c/search"
DOCUMENTS = "/v1/collections/c/documents"


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    gateway = GatewaySettings(body_bytes_max=BODY_MAX, timeout_ms=5_000, k_max=100)
    with platform(tmp_path_factory.mktemp("bad"), gateway) as caller:
        yield caller


@pytest.fixture(scope="module")
def key(call: Caller) -> str:
    made = call.tenant()[1]
    call.collection(made)
    call.collection(made, "words", model="all-minilm-l6-v2")
    call.collection(made, "dots", metric="dot")
    token = call.write(made, [{"id": "a", "vector": [1, 0, 0, 0], "metadata": {"n": 1}}])
    assert call.search(made, vector=[1, 0, 0, 0], wait_for=token)["hits"]
    return made


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {"n": 1}
    for _ in range(levels):
        made = {"$and": [made]}
    return made


GOOD = [1.0, 0.0, 0.0, 0.0]
BAD_SEARCHES: dict[str, tuple[Any, str]] = {
    "not an object": ([1, 2], "body"),
    "nothing asked": ({}, "text"),
    "two ways of asking": ({"vector": GOOD, "text": "x"}, "vector"),
    "an unknown field": ({"vector": GOOD, "limit": 3}, "limit"),
    "a tenant": ({"vector": GOOD, "tenant": "other"}, "tenant"),
    "another dimension": ({"vector": [1.0, 2.0]}, "vector"),
    "an empty vector": ({"vector": []}, "vector"),
    "a vector of words": ({"vector": ["a", "b", "c", "d"]}, "vector"),
    "a vector of booleans": ({"vector": [True, False, True, False]}, "vector"),
    "a vector with null": ({"vector": [1, None, 0, 0]}, "vector"),
    "a vector of vectors": ({"vector": [GOOD]}, "vector"),
    "a ragged vector": ({"vector": [1, [2], 3, 4]}, "vector"),
    "a vector that is a string": ({"vector": "1,0,0,0"}, "vector"),
    "a vector that is an object": ({"vector": {"0": 1}}, "vector"),
    "a zero vector under cosine": ({"vector": [0, 0, 0, 0]}, "vector"),
    "a number beyond float32": ({"vector": [1e39, 0, 0, 0]}, "vector"),
    "a number beyond float64": ({"vector": [10**400, 0, 0, 0]}, "body"),
    "base64 that is not": ({"vector_base64": "%%%"}, "vector_base64"),
    "base64 beyond ASCII": ({"vector_base64": "ü"}, "vector_base64"),
    "base64 of half a number": (
        {"vector_base64": base64.b64encode(b"123").decode()},
        "vector_base64",
    ),
    "base64 of nothing": ({"vector_base64": ""}, "vector_base64"),
    "base64 of NaN": (
        {"vector_base64": base64.b64encode(np.full(4, np.nan, "<f4").tobytes()).decode()},
        "vector",
    ),
    "base64 of infinity": (
        {"vector_base64": base64.b64encode(np.full(4, np.inf, "<f4").tobytes()).decode()},
        "vector",
    ),
    "a text for vectors": ({"text": "hello"}, "text"),
    "k of zero": ({"vector": GOOD, "k": 0}, "k"),
    "k below zero": ({"vector": GOOD, "k": -1}, "k"),
    "k of a million": ({"vector": GOOD, "k": 1_000_000}, "k"),
    "k of a half": ({"vector": GOOD, "k": 1.5}, "k"),
    "k in words": ({"vector": GOOD, "k": "ten"}, "k"),
    "k of true": ({"vector": GOOD, "k": True}, "k"),
    "no time": ({"vector": GOOD, "timeout_ms": 0}, "timeout_ms"),
    "without end": ({"vector": GOOD, "timeout_ms": 10**12}, "timeout_ms"),
    "exact in words": ({"vector": GOOD, "exact": "yes"}, "exact"),
    "include everything": ({"vector": GOOD, "include": ["everything"]}, "include"),
    "include of lists": ({"vector": GOOD, "include": [["text"]]}, "include"),
    "include in words": ({"vector": GOOD, "include": "text"}, "include"),
    "a filter that is a list": ({"vector": GOOD, "filter": []}, "filter"),
    "a filter of an unknown operator": (
        {"vector": GOOD, "filter": {"n": {"$regex": "x"}}},
        "filter",
    ),
    "a filter nested deeply": ({"vector": GOOD, "filter": deep(9)}, "filter"),
    "a filter nested very deeply": ({"vector": GOOD, "filter": deep(400)}, "filter"),
    "a filter of many clauses": (
        {"vector": GOOD, "filter": {f"f{i}": i for i in range(65)}},
        "filter",
    ),
    "a filter of many values": (
        {"vector": GOOD, "filter": {"n": {"$in": list(range(1_001))}}},
        "filter",
    ),
    "a token of another kind": ({"vector": GOOD, "wait_for": "yesterday"}, "wait_for"),
    "a token that is a number": ({"vector": GOOD, "wait_for": 7}, "wait_for"),
    "a token of another alphabet": ({"vector": GOOD, "wait_for": "٠-١"}, "wait_for"),
    "a token without an offset": ({"vector": GOOD, "wait_for": {"partition": 0}}, "wait_for"),
    "a token too far": ({"vector": GOOD, "wait_for": "0-999999999"}, "wait_for"),
    "a token of no partition": ({"vector": GOOD, "wait_for": "7-0"}, "wait_for"),
}


@pytest.mark.parametrize("what", BAD_SEARCHES)
def test_a_bad_search_is_refused_with_the_field(call: Caller, key: str, what: str) -> None:
    body, name = BAD_SEARCHES[what]
    headers = {"content-type": "application/json"}
    found = call("POST", SEARCH, key, content=json.dumps(body).encode(), headers=headers)
    assert problem(found, 400, field=name)["type"].endswith((":refused", ":too-large"))


LIMITS = {
    "k of zero": 1,
    "k of a million": 100,
    "another dimension": 4,
    "a filter of many values": 1_000,
}


@pytest.mark.parametrize("what", LIMITS)
def test_an_exceeded_limit_is_named(call: Caller, key: str, what: str) -> None:
    assert (
        problem(call("POST", SEARCH, key, json=BAD_SEARCHES[what][0]), 400)["limit"] == LIMITS[what]
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [("", "text"), (" \n\t ", "text"), ("x" * (33 << 10), "text"), (7, "text"), (["x"], "text")],
)
def test_a_bad_search_text_is_refused(call: Caller, key: str, text: object, name: str) -> None:
    problem(call("POST", "/v1/collections/words/search", key, json={"text": text}), 400, field=name)


@pytest.mark.parametrize("size", [0, 300 << 10], ids=["small", "large"])
@pytest.mark.parametrize(
    "number", ["18446744073709551616", "-9223372036854775809", "100000000000000000000000"]
)
def test_an_integer_beyond_64_bits_in_a_filter_is_refused_and_never_rounded(
    call: Caller, key: str, size: int, number: str
) -> None:
    one = f'{{"vector": {GOOD}, "filter": {{"$or": [{{"n": {{"$in": [1, {number}]}}}}]}}}}'
    headers = {"content-type": "application/json"}
    found = call("POST", SEARCH, key, content=one.encode() + b" " * size, headers=headers)
    problem(found, 400, field="filter")
    batch = f'{{"searches": [{one}]}}' + " " * size
    found = call("POST", f"{SEARCH}:batch", key, content=batch.encode(), headers=headers)
    refused = found if found.status_code == 400 else None
    assert refused is not None or json.loads(found.content)["problem"]["field"] == "filter"
    raw = np.ones(4, "<f4").tobytes()
    found = call(
        "POST", SEARCH, key, content=raw, headers={"content-type": "application/octet-stream"},
        params={"filter": f'{{"n": {number}}}'},
    )  # fmt: skip
    problem(found, 400, field="filter")


@pytest.mark.parametrize("number", ["18446744073709551615", "-9223372036854775808", "1e300"])
def test_a_large_body_keeps_integers_of_64_bits_exact(call: Caller, key: str, number: str) -> None:
    one = f'{{"vector": {GOOD}, "filter": {{"n": {number}}}}}' + " " * (300 << 10)
    headers = {"content-type": "application/json"}
    assert call("POST", SEARCH, key, content=one.encode(), headers=headers).status_code == 200


def test_half_a_surrogate_pair_is_not_text(call: Caller, key: str) -> None:
    problem(call("POST", "/v1/collections/words/search", key, content=b'{"text": "\\ud800"}'), 400)


def test_very_short_and_very_long_vectors_are_handled_exactly(call: Caller, key: str) -> None:
    assert call.search(key, vector=[1e-30, 0, 0, 0])["hits"][0]["score"] == pytest.approx(1)
    assert call.search(key, vector=[3e38, 0, 0, 0])["hits"][0]["score"] == pytest.approx(1)
    problem(
        call("POST", "/v1/collections/dots/search", key, json={"vector": [3e38, 0, 0, 0]}),
        400,
        field="vector",
    )


PARAMETERS: dict[str, tuple[dict[str, str], str]] = {
    "k of zero": ({"k": "0"}, "k"),
    "k in words": ({"k": "ten"}, "k"),
    "k as a superscript": ({"k": "²"}, "k"),
    "k of 5,000 digits": ({"k": "9" * 5_000}, "k"),
    "no time": ({"timeout_ms": "-5"}, "timeout_ms"),
    "a filter that is no JSON": ({"filter": "{"}, "filter"),
    "exact in words": ({"exact": "perhaps"}, "exact"),
    "an unknown one": ({"shade": "red"}, "shade"),
    "text beside a vector": ({"text": "x"}, "text"),
    "a token of another kind": ({"wait_for": "x"}, "wait_for"),
    "include everything": ({"include": "text,everything"}, "include"),
}


@pytest.mark.parametrize("what", PARAMETERS)
def test_a_bad_parameter_beside_a_raw_vector_is_refused_by_name(
    call: Caller, key: str, what: str
) -> None:
    parameters, name = PARAMETERS[what]
    raw = np.array(GOOD, "<f4").tobytes()
    headers = {"content-type": "application/octet-stream"}
    problem(
        call("POST", SEARCH, key, content=raw, headers=headers, params=parameters), 400, field=name
    )


@pytest.mark.parametrize(
    ("raw", "name"), [(b"", "body"), (b"12345", "body"), (b"1234" * 3, "vector")]
)
def test_a_raw_vector_of_the_wrong_length_is_refused(
    call: Caller, key: str, raw: bytes, name: str
) -> None:
    headers = {"content-type": "application/octet-stream"}
    problem(call("POST", SEARCH, key, content=raw, headers=headers), 400, field=name)


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "JSON and a half": b'{"vector": [1]} {',
    "not UTF-8": b'{"text": "\xff"}',
    "NaN": b'{"vector": [NaN, 0, 0, 0]}',
    "a byte order mark": b'\xef\xbb\xbf{"vector": [1, 0, 0, 0]}',
    "nested beyond any parser": b"[" * 100_000,
    "zeros": b"\0" * 64,
}
POSTS = [SEARCH, f"{SEARCH}:batch", DOCUMENTS, f"{DOCUMENTS}:delete", "/v1/collections"]


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_not_a_json_object_is_refused(
    call: Caller, key: str, path: str, what: str
) -> None:
    found = call(
        "POST", path, key, content=BODIES[what], headers={"content-type": "application/json"}
    )
    problem(found, 400)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "multipart/form-data", "nonsense"]
)
def test_an_unknown_content_type_is_refused(call: Caller, key: str, path: str, kind: str) -> None:
    found = call("POST", path, key, content=b"{}", headers={"content-type": kind})
    problem(found, 400, field="content-type")


@pytest.mark.parametrize("path", POSTS)
def test_a_body_over_the_limit_is_refused_whether_announced_or_streamed(
    call: Caller, key: str, path: str
) -> None:
    headers = {"content-type": "application/json"}
    found = call("POST", path, key, content=b" " * (BODY_MAX + 1), headers=headers)
    assert problem(found, 413, "too-large", "body")["limit"] <= BODY_MAX

    async def endless() -> Any:
        for _ in range(1_000):
            yield b" " * (1 << 16)

    problem(call("POST", path, key, content=endless(), headers=headers), 413, "too-large", "body")
    problem(
        call("POST", path, key, content=b"{}", headers={**headers, "content-length": "9" * 5_000}),
        413,
    )


def test_a_truncated_body_affects_no_other_request(call: Caller, key: str) -> None:
    with serving(call.another()) as url:
        place = urlsplit(url)
        for _ in range(5):
            with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
                head = (
                    f"POST {DOCUMENTS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
                    "content-length: 1000\r\n\r\n"
                )
                connection.sendall(head.encode() + b'{"documents": [')
        with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert connection.recv(64).startswith(b"HTTP/1.1 200")


def arrow(columns: dict[str, Any], *, cut: int = 0) -> bytes:
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data[: len(data) - cut] if cut else data


VECTORS = pa.array([GOOD], pa.list_(pa.float32()))
STREAMS = {
    "nothing": b"",
    "no Arrow": b"ARROW1 it is not",
    "cut off": arrow({"id": ["a"], "vector": VECTORS}, cut=40),
    "without ids": arrow({"vector": VECTORS}),
    "ids that are numbers": arrow({"id": [1], "vector": VECTORS}),
    "an unknown column": arrow({"id": ["a"], "vector": VECTORS, "shade": ["red"]}),
    "vectors of integers": arrow(
        {"id": ["a"], "vector": pa.array([[1, 0, 0, 0]], pa.list_(pa.int64()))}
    ),
    "vectors of words": arrow({"id": ["a"], "vector": ["1,0,0,0"]}),
    "another dimension": arrow(
        {"id": ["a"], "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))}
    ),
}


@pytest.mark.parametrize("what", STREAMS)
def test_an_arrow_stream_of_the_wrong_form_is_refused(call: Caller, key: str, what: str) -> None:
    found = call("POST", DOCUMENTS, key, content=STREAMS[what], headers={"content-type": ARROW})
    assert problem(found, 400)["field"]


def test_lines_that_are_not_json_are_rejected_alone(call: Caller, key: str) -> None:
    lines = b'{"id": "l1", "vector": [1,0,0,0]}\n{"id": \n[]\n\n{"id": "l2", "vector": [0,1,0,0]}'
    found = call(
        "POST", DOCUMENTS, key, content=lines, headers={"content-type": "application/x-ndjson"}
    ).json()
    assert found["accepted"] == 2
    assert [r["field"] for r in found["rejected"]] == ["line 2", "document"]


def test_a_text_of_ten_megabytes_is_refused_whole(call: Caller, key: str) -> None:
    body = {"documents": [{"id": "big", "text": "x" * (10 << 20)}]}
    problem(
        call("POST", "/v1/collections/words/documents", key, json=body), 413, "too-large", "body"
    )


def test_a_text_over_the_documents_limit_is_rejected_alone(call: Caller, key: str) -> None:
    body = {
        "documents": [{"id": "big", "text": "x" * ((1 << 20) + 1)}, {"id": "small", "text": "x"}]
    }
    found = call("POST", "/v1/collections/words/documents", key, json=body).json()
    assert (found["accepted"], found["rejected"][0]["id"], found["rejected"][0]["field"]) == (
        1,
        "big",
        "text",
    )


def test_more_documents_than_a_request_may_hold_are_refused(call: Caller, key: str) -> None:
    found = call("POST", DOCUMENTS, key, json={"documents": [{}] * 10_001})
    assert problem(found, 400, field="documents")["limit"] == 10_000


DELETIONS: dict[str, Any] = {
    "nothing": {},
    "both": {"ids": ["a"], "filter": {"n": 1}},
    "ids that are numbers": {"ids": [1]},
    "an empty id": {"ids": [""]},
    "an id with a control character": {"ids": ["a\u0000"]},
    "an id of 10 KB": {"ids": ["x" * 10_240]},
    "too many": {"ids": ["x"] * 10_001},
    "a filter that is everything": {"filter": {}},
    "a filter that is a list": {"filter": [1]},
    "a filter of an unknown operator": {"filter": {"$where": "1"}},
}


@pytest.mark.parametrize("what", DELETIONS)
def test_a_bad_deletion_is_refused_and_deletes_nothing(call: Caller, key: str, what: str) -> None:
    assert problem(call("POST", f"{DOCUMENTS}:delete", key, json=DELETIONS[what]), 400)["field"]
    assert call("GET", f"{DOCUMENTS}/a", key).status_code == 200


@pytest.mark.parametrize("name", ["", "%00", "a%07b", "x" * 10_240])
def test_an_id_that_no_document_can_have_is_not_found_and_not_deleted(
    call: Caller, key: str, name: str
) -> None:
    problem(call("GET", f"{DOCUMENTS}/{name}", key), 404, "not-found")
    problem(call("DELETE", f"{DOCUMENTS}/{name}", key), 400, field="id")


COLLECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"dimension": 4}, "name"),
    "a name with a slash": ({"name": "a/b", "dimension": 4}, "name"),
    "a name of 64": ({"name": "x" * 64, "dimension": 4}, "name"),
    "a name with a line end": ({"name": "x\n", "dimension": 4}, "name"),
    "no dimension at all": ({"name": "x", "dimension": 0}, "dimension"),
    "a dimension too great": ({"name": "x", "dimension": 4_097}, "dimension"),
    "a dimension of a half": ({"name": "x", "dimension": 1.5}, "dimension"),
    "model and dimension at odds": (
        {"name": "x", "model": "all-minilm-l6-v2", "dimension": 3},
        "dimension",
    ),
    "an unknown metric": ({"name": "x", "dimension": 4, "metric": "hamming"}, "metric"),
    "an unknown index": ({"name": "x", "dimension": 4, "index": "magic"}, "index"),
    "no shards": ({"name": "x", "dimension": 4, "shards": 0}, "shards"),
    "more shards than slots": ({"name": "x", "dimension": 4, "shards": 9}, "shards"),
    "an unknown objective": (
        {"name": "x", "dimension": 4, "objectives": {"cost": 1}},
        "objectives",
    ),
    "recall beyond one": (
        {"name": "x", "dimension": 4, "objectives": {"recall": 1.1}},
        "objectives.recall",
    ),
    "an unknown field": ({"name": "x", "dimension": 4, "shade": "red"}, "shade"),
}


@pytest.mark.parametrize("what", COLLECTIONS)
def test_a_bad_collection_is_refused_with_the_field(call: Caller, key: str, what: str) -> None:
    body, name = COLLECTIONS[what]
    problem(call("POST", "/v1/collections", key, json=body), 400, field=name)


def test_an_unregistered_model_is_not_found(call: Caller, key: str) -> None:
    problem(
        call("POST", "/v1/collections", key, json={"name": "x", "model": "gpt-9"}), 404, "not-found"
    )


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=²", "limit=x", "after=--1", "after=" + "9" * 5_000]
)
@pytest.mark.parametrize("path", ["/v1/dead-letters", "/v1/admin/audit"])
def test_a_bad_page_is_refused(call: Caller, key: str, path: str, query: str) -> None:
    caller_key = call.operator if "admin" in path else key
    problem(call("GET", f"{path}?{query}", caller_key), 400, field=query.split("=", maxsplit=1)[0])


MODEL = {
    "name": "m",
    "kind": "openai",
    "location": "http://127.0.0.1:9/v1",
    "dimension": 4,
    "window_tokens": 100,
}
OPERATIONS: list[tuple[str, Any, int]] = [
    ("/tenants", {}, 400),
    ("/tenants", {"name": "Not Good"}, 400),
    ("/tenants", {"name": "-x"}, 400),
    ("/tenants", {"name": "x", "class": "platinum"}, 400),
    ("/tenants", {"name": ["x"]}, 400),
    ("/tenants/absent/suspend", None, 404),
    ("/tenants/absent/collections", {"name": "x", "dimension": 2}, 404),
    ("/keys", {"tenant": "absent", "scopes": ["read"]}, 404),
    ("/keys", {"tenant": None, "scopes": ["read"]}, 400),
    ("/keys", {"tenant": "t1", "scopes": ["operate"]}, 400),
    ("/keys", {"tenant": "t1", "scopes": []}, 400),
    ("/keys", {"tenant": "t1", "scopes": "read"}, 400),
    ("/keys", {"tenant": "t1", "scopes": [{}]}, 400),
    ("/keys", {"tenant": "t1", "scopes": ["read"], "expires_s": -1}, 400),
    ("/reindex", {"tenant": "t1"}, 400),
    ("/reindex", {"tenant": "t1", "collection": "nope"}, 404),
    ("/reindex", {"tenant": "t1", "collection": "c", "index": "magic"}, 400),
    ("/reindex", {"tenant": "t1", "collection": "c", "shards": 10**6}, 400),
    ("/reindex", {"tenant": "t1", "collection": "c", "model": "all-minilm-l6-v2"}, 400),
    ("/reindex/nope/cancel", None, 404),
    ("/models", {"name": "m"}, 400),
    ("/models", {**MODEL, "name": "-"}, 400),
    ("/models", {**MODEL, "kind": "oip"}, 400),
    ("/models", {**MODEL, "kind": "magic"}, 400),
    ("/models", {**MODEL, "location": ""}, 400),
    ("/models", {**MODEL, "location": "models/mine"}, 400),
    ("/models", {**MODEL, "location": "http://["}, 400),
    ("/models", {**MODEL, "location": "http://me:secret@server/v1"}, 400),
    ("/models", {**MODEL, "kind": "local", "location": "package:"}, 400),
    ("/models", {**MODEL, "kind": "local", "location": "package:no.such"}, 400),
    ("/models", {**MODEL, "dimension": 0}, 400),
    ("/models", {**MODEL, "dimension": 4.5}, 400),
    ("/models", {**MODEL, "window_tokens": 1}, 400),
    ("/models", {**MODEL, "normalized": "yes"}, 400),
    ("/models", {**MODEL, "name": "all-minilm-l6-v2"}, 409),
    ("/reindex/%00/cancel", None, 404),
]


@pytest.mark.parametrize(("path", "body", "status"), OPERATIONS, ids=lambda v: str(v)[:60])
def test_a_bad_operation_is_refused(
    call: Caller, key: str, path: str, body: Any, status: int
) -> None:
    problem(call("POST", f"/v1/admin{path}", call.operator, json=body), status)


@pytest.mark.parametrize("path", ["/keys/%00", "/keys/nope", "/tenants/absent"])
def test_deleting_what_does_not_exist_is_not_found(call: Caller, path: str) -> None:
    problem(call("DELETE", f"/v1/admin{path}", call.operator), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/nowhere", 404),
        ("PUT", DOCUMENTS, 405),
        ("GET", SEARCH, 405),
    ],
)
def test_errors_of_http_itself_are_problem_documents(
    call: Caller, key: str, method: str, path: str, status: int
) -> None:
    problem(call(method, path, key), status)


# arbitrary input

Json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=12,
)
Vector = st.lists(st.floats(-10, 10) | Json, min_size=3, max_size=5) | st.just(GOOD)
Filter = st.recursive(
    st.dictionaries(st.sampled_from(["n", "a.b", "$and", "$not", "$or", ""]), Json, max_size=3),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "$and": st.lists(inner, max_size=3),
            "$or": st.lists(inner, max_size=3),
            "$not": inner,
            "n": Json,
        },
    ),
    max_leaves=6,
)
SearchRequest = st.fixed_dictionaries(
    {"vector": Vector},
    optional={
        "k": Json | st.integers(-1, 101),
        "filter": Filter | Json,
        "wait_for": Json
        | st.just({"partition": 0, "offset": 0})
        | st.from_regex(r"[0-9]{1,4}-[0-9]{1,16}", fullmatch=True),
        "timeout_ms": Json | st.integers(1, 100),
        "include": Json | st.lists(st.sampled_from(["text", "metadata", "vector", "x"])),
        "exact": Json | st.booleans(),
        "text": Json,
        "vector_base64": Json,
    },
)
Doc = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=8) | Json,
        "text": Json,
        "passages": Json | st.lists(st.text(max_size=5), max_size=3),
        "vector": Vector,
        "vectors": Json | st.lists(Vector, max_size=2),
        "metadata": Json,
    },
)
fuzz = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


def dumped(value: object) -> bytes | None:
    try:
        return orjson.dumps(value)
    except (
        orjson.JSONEncodeError,
        TypeError,
    ):  # an integer or half a character that JSON cannot hold
        return None


def understood(call: Caller, key: str, path: str, value: object, good: tuple[int, ...]) -> None:
    """The request gets an answer or a problem document, and never an internal error."""
    data = dumped(value)
    if data is None:
        return
    found = call("POST", path, key, content=data, headers={"content-type": "application/json"})
    if found.status_code in good:
        assert found.headers["content-type"] in ("application/json", "application/x-ndjson")
    else:
        problem(found, found.status_code)
        assert found.status_code in (400, 404, 409, 413, 429, 504), found.text


@fuzz
@given(body=SearchRequest)
def test_any_search_is_answered_or_refused(call: Caller, key: str, body: Any) -> None:
    understood(call, key, SEARCH, body, (200,))


@fuzz
@given(searches=st.lists(SearchRequest | Json, max_size=3) | Json)
def test_any_batch_is_answered_or_refused_line_by_line(
    call: Caller, key: str, searches: Any
) -> None:
    understood(call, key, f"{SEARCH}:batch", {"searches": searches}, (200,))


@fuzz
@given(
    documents=st.lists(Doc | Json, max_size=4) | Json, name=st.sampled_from(["c", "words", "dots"])
)
def test_any_documents_are_accepted_or_rejected(
    call: Caller, key: str, documents: Any, name: str
) -> None:
    understood(call, key, f"/v1/collections/{name}/documents", {"documents": documents}, (202,))


@fuzz
@given(
    value=st.fixed_dictionaries(
        {}, optional={"ids": Json | st.lists(st.text(max_size=5)), "filter": Filter | Json}
    )
)
def test_any_deletion_is_accepted_or_refused(call: Caller, key: str, value: Any) -> None:
    understood(call, key, "/v1/collections/dots/documents:delete", value, (202,))


@fuzz
@given(
    value=Json,
    path=st.sampled_from([*POSTS, "/v1/admin/tenants", "/v1/admin/keys", "/v1/admin/reindex"]),
)
def test_any_json_on_any_route_is_answered_or_refused(
    call: Caller, key: str, value: Any, path: str
) -> None:
    understood(call, call.operator if "admin" in path else key, path, value, (200, 201, 202))


@fuzz
@given(
    data=st.binary(max_size=200),
    kind=st.sampled_from(
        ["application/json", "application/x-ndjson", ARROW, "application/octet-stream"]
    ),
)
def test_any_bytes_are_answered_or_refused(call: Caller, key: str, data: bytes, kind: str) -> None:
    for path in (SEARCH, DOCUMENTS):
        found = call("POST", path, key, content=data, headers={"content-type": kind})
        assert (
            found.status_code in (200, 202) or problem(found, found.status_code)["status"] == 400
        ), found.text


@fuzz
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_an_arrow_stream_with_flipped_bytes_is_accepted_or_refused(
    call: Caller, key: str, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(arrow({"id": ["f"], "vector": VECTORS, "metadata": ["{}"]}))
    for at, value in flips:
        data[at % len(data)] = value
    found = call("POST", DOCUMENTS, key, content=bytes(data), headers={"content-type": ARROW})
    assert found.status_code == 202 or problem(found, 400)


def test_afterwards_everything_still_works(call: Caller, key: str) -> None:
    token = call.write(key, [{"id": "last", "vector": [0, 0, 0, 1]}])
    assert call.search(key, vector=[0, 0, 0, 1], wait_for=token, k=1)["hits"][0][
        "score"
    ] == pytest.approx(1)
