"""Edge cases of HTTP: HEAD, compressed bodies, unknown methods, refusals below the application."""

import gzip
import socket
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import orjson
import pyarrow as pa
import pytest
from gate import PROBLEM, Caller, platform, problem, serving

from vicinage.settings import GatewaySettings

DOCUMENTS = "/v1/collections/c/documents"
SEARCH = "/v1/collections/c/search"


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    gateway = GatewaySettings(timeout_ms=5_000, body_bytes_max=8 << 20)
    with platform(tmp_path_factory.mktemp("edges"), gateway) as caller:
        yield caller


@pytest.fixture(scope="module")
def key(call: Caller) -> str:
    made = call.tenant()[1]
    call.collection(made)
    token = call.write(made, [{"id": "a", "vector": [1, 0, 0, 0]}])
    call.search(made, vector=[1, 0, 0, 0], wait_for=token)
    return made


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


PACKED = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "zstd": zstd,
    "identity": bytes,
    "GZIP": gzip.compress,
}


@pytest.mark.parametrize("encoding", PACKED)
def test_bodies_may_be_compressed(call: Caller, key: str, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    body = orjson.dumps(
        {"documents": [{"id": f"{encoding}{i}", "vector": [1, i, 0, 0]} for i in range(50)]}
    )
    found = call("POST", DOCUMENTS, key, content=PACKED[encoding](body), headers=headers)
    assert (found.status_code, found.json()["accepted"]) == (202, 50)
    body = orjson.dumps({"vector": [1, 0, 0, 0], "k": 1})
    found = call("POST", SEARCH, key, content=PACKED[encoding](body), headers=headers)
    assert (found.status_code, len(found.json()["hits"])) == (200, 1)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "compress", "nonsense"])
def test_another_encoding_is_415(call: Caller, key: str, encoding: str) -> None:
    for path in (DOCUMENTS, SEARCH, f"{SEARCH}:batch", f"{DOCUMENTS}:delete"):
        found = call("POST", path, key, content=b"{}", headers={"content-encoding": encoding})
        problem(found, 415, "unsupported-media", "content-encoding")


@pytest.mark.parametrize(
    "data",
    [b"", b"no gzip", gzip.compress(b"{}" * 1_000, mtime=0)[:-9], zlib.compress(b"{}")],
    ids=["empty", "no gzip", "cut off", "zlib"],
)
def test_a_compressed_body_that_is_damaged_is_refused(call: Caller, key: str, data: bytes) -> None:
    problem(call("POST", DOCUMENTS, key, content=data, headers={"content-encoding": "gzip"}), 400)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_body_that_grows_beyond_its_limit_is_refused_before_it_has(
    call: Caller, key: str, pack
) -> None:
    encoding = "gzip" if pack is gzip.compress else "zstd"
    bomb = pack(b" " * (256 << 20))
    found = call("POST", DOCUMENTS, key, content=bomb, headers={"content-encoding": encoding})
    assert problem(found, 413, "too-large", "body")["limit"] == 8 << 20
    found = call("POST", SEARCH, key, content=bomb, headers={"content-encoding": encoding})
    assert problem(found, 413, "too-large", "body")["limit"] == 1 << 20
    assert call.state.pipeline.admission.bodies_bytes == 0


@pytest.mark.parametrize(
    "path",
    [
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/v1/collections",
        "/v1/collections/c",
        f"{DOCUMENTS}/a",
    ],
)
def test_head_is_get_without_the_body(call: Caller, key: str, path: str) -> None:
    head, get = call("HEAD", path, key), call("GET", path, key)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_head_of_missing_resources_and_of_post_routes(call: Caller, key: str) -> None:
    assert call("HEAD", f"{DOCUMENTS}/absent", key).status_code == 404
    assert call("HEAD", "/v1/collections").status_code == 401
    assert call("HEAD", SEARCH, key).status_code == 405


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/collections/c", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("GET", SEARCH, {"POST"}),
        ("PATCH", "/healthz", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_is_not_allowed_is_a_problem_with_the_allowed_ones(
    call: Caller, key: str, method: str, path: str, allowed: set[str]
) -> None:
    found = call(method, path, key)
    problem(found, 405, "method-not-allowed")
    assert set(found.headers["allow"].replace(" ", "").split(",")) == allowed


POST = b"POST /v1/collections/c/documents HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        (b"nonsense\r\n\r\n", 400, "http"),
        (
            b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * (80 << 10) + b"\r\n\r\n",
            431,
            "head-too-large",
        ),
        (b"GET /v1/\xff\xfe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 400, "http"),
        (b"GET /" + b"y" * (80 << 10) + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431, "head-too-large"),
        (b"FETCH /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 400, "http"),
        (b"GET /healthz HTTP/9.9\r\nhost: x\r\n\r\n", 400, "http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "http"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "http"),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\na\x00b: c\r\n\r\n", 400, "http"),
        (POST + b"content-length: abc\r\n\r\n", 400, "http"),
        (POST + b"content-length: -1\r\n\r\n", 400, "http"),
        (POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab", 400, "http"),
        (POST + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "http"),
        (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400, "http"),
        (
            b"TRACE /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            405,
            "method-not-allowed",
        ),
        (b"GET /v1/collections HTTP/1.1\r\nconnection: close\r\n\r\n", 401, "unauthenticated"),
        (
            (
                b"GET /v1/collections HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n"
                b"connection: upgrade, close\r\n\r\n"
            ),
            401,
            "unauthenticated",
        ),
    ],
)
def test_refusals_of_the_server_itself_are_problem_documents(
    call: Caller, sent: bytes, status: int, kind: str
) -> None:
    with serving(call.another()) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
            connection.sendall(sent)
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert f"content-type: {PROBLEM}".encode() in head.lower()
    assert orjson.loads(body)["type"] == f"urn:vicinage:problem:{kind}"
