"""Paths: a URL parser that shortens one deletes nothing, and no route redirects."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import pytest
from gate import Caller, platform, problem, serving

from vicinage.settings import GatewaySettings


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with platform(tmp_path_factory.mktemp("paths"), GatewaySettings(timeout_ms=5_000)) as caller:
        yield caller


@pytest.fixture(scope="module")
def key(call: Caller) -> str:
    made = call.tenant()[1]
    call.collection(made)
    call.collection(made, "other")
    token = call.write(made, [{"id": "a", "vector": [1, 0, 0, 0]}])
    call.search(made, vector=[1, 0, 0, 0], wait_for=token)
    return made


@pytest.fixture(scope="module")
def url(call: Caller) -> Iterator[str]:
    with serving(call.another()) as found:
        yield found


def whole(call: Caller, key: str) -> bool:
    """Returns whether both collections and the document still exist."""
    return all(
        call("GET", path, key).status_code == 200
        for path in ("/v1/collections/c", "/v1/collections/other", "/v1/collections/c/documents/a")
    )


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../",
        "../../other",
        "../../c",
        "../../c/",
        "../../other/.",
        "%2e%2e",
        "..%2f..%2fother",
        "",
    ],
)
def test_deleting_a_document_whose_id_shortens_the_path_deletes_nothing(
    call: Caller, key: str, url: str, name: str
) -> None:
    with httpx2.Client(
        base_url=url, headers={"authorization": f"Bearer {key}"}, trust_env=False
    ) as client:
        for path in (name, quote(name)):
            found = client.delete(f"/v1/collections/c/documents/{path}", follow_redirects=True)
            assert problem(found, found.status_code)["status"] in (400, 404, 405)
            assert not found.history
    assert whole(call, key)


@pytest.mark.parametrize(
    "target", ["documents/..", "documents/../../other", "documents/..\\..\\other", "documents/."]
)
def test_an_unshortened_path_is_refused_too(call: Caller, key: str, url: str, target: str) -> None:
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
        head = (
            f"DELETE /v1/collections/c/{target} HTTP/1.1\r\nhost: x\r\n"
            f"authorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 400 ")
    assert whole(call, key)


def test_an_id_with_a_question_mark_that_is_not_encoded_names_no_shorter_one(
    call: Caller, key: str
) -> None:
    for method in ("GET", "DELETE"):
        problem(call(method, "/v1/collections/c/documents/a?b", key), 400, field="b")
    assert whole(call, key)


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
@pytest.mark.parametrize(
    "tail",
    [
        b"documents/%ff",
        b"documents/a%C3",
        b"documents/a\xff",
        b"?confirm=%ff",
        b"?confirm=\xc3\xbc",
    ],
)
def test_a_path_or_query_that_is_not_utf8_names_nothing(
    call: Caller, key: str, url: str, method: str, tail: bytes
) -> None:
    server = urlsplit(url)
    with socket.create_connection(
        (server.hostname or "", server.port or 0), timeout=10
    ) as connection:
        head = (
            f"\r\nauthorization: Bearer {key}\r\nhost: gateway\r\nconnection: close\r\n\r\n"
        ).encode()
        path = b"/v1/collections/c" + (tail if tail.startswith(b"?") else b"/" + tail)
        connection.sendall(method.encode() + b" " + path + b" HTTP/1.1" + head)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert method == "HEAD" or b"UTF-8" in answer or b"problem:" in answer
    assert whole(call, key)


@pytest.mark.parametrize("name", ["..", "a/../b", "%2E%2E"])
def test_such_an_id_is_rejected_for_documents_and_accepted_for_deletions_in_a_body(
    call: Caller, key: str, name: str
) -> None:
    body: dict[str, Any] = {"documents": [{"id": name, "vector": [1, 0, 0, 0]}]}
    found = call("POST", "/v1/collections/c/documents", key, json=body).json()
    assert (found["accepted"], found["rejected"][0]["field"]) == (0, "id")
    assert (
        call("POST", "/v1/collections/c/documents:delete", key, json={"ids": [name]}).status_code
        == 202
    )


def every_path(call: Caller) -> list[tuple[str, str]]:
    found = call("GET", "/openapi.json").json()["paths"]
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, of in found.items()
        for method in of
    ]


def test_no_route_redirects(call: Caller, key: str) -> None:
    paths = every_path(call)
    assert len(paths) > 30
    for method, path in [*paths, ("GET", "/docs"), ("GET", "/")]:
        for shape in (f"{path}/", f"{path}//", f"/{path}", path.upper()):
            found = call(method, f"http://gateway{shape}", key, headers={"host": "evil.example"})
            assert not 300 <= found.status_code < 400, (method, shape)
            assert "evil.example" not in str(found.headers) + found.text


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_a_collection_path_with_a_trailing_slash_does_not_exist(
    call: Caller, key: str, method: str
) -> None:
    problem(call(method, "/v1/collections/c/?confirm=c", key), 404, "not-found")
    assert whole(call, key)
