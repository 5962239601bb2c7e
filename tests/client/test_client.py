"""The clients against a small real server that answers as the API does."""

import asyncio
import base64
import json
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import uvicorn
from resources import eventually
from servers import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from vicinage_client import (
    AsyncClient,
    Client,
    Conflict,
    Denied,
    DocumentsRejected,
    InvalidArgument,
    NotFound,
    Overloaded,
    Refused,
    Timeout,
    TooLarge,
    Unavailable,
    Unreachable,
    VicinageError,
)
from vicinage_client import requests as make
from vicinage_client import results as read

ANSWER = {
    "hits": [
        {
            "document_id": "a",
            "passage": 0,
            "score": 0.5,
            "text": "red",
            "start": 0,
            "end": 3,
            "new_field": 1,
        }
    ],
    "freshness": {"watermark": "0-4", "lag_ms": 0},
    "generation": 1,
    "effort": 16,
    "degraded": None,
}
FACTS = {
    "name": "docs",
    "counts": {"documents": 2, "passages": 3},
    "generation": 1,
    "metric": "cosine",
}


class Platform:
    """The requests so far, and the answers: first those of `refusals`, one per request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any, dict[str, str]]] = []
        self.refusals: list[Response] = []
        self.written = 0

    async def serve(self, request: Request) -> Response:
        body = await request.body()
        path = request.scope["raw_path"].decode() + (
            f"?{request.url.query}" if request.url.query else ""
        )
        self.requests.append(
            (request.method, path, json.loads(body) if body else None, dict(request.headers))
        )
        if self.refusals:
            return self.refusals.pop(0)
        return self.answer(request.method, path, self.requests[-1][2])

    def answer(self, method: str, path: str, body: Any) -> Response:
        if path.endswith("/search"):
            return JSONResponse(ANSWER)
        if path.endswith("/documents"):
            self.written += len(body["documents"])
            bad = [
                {"id": d["id"], "reason": "text is empty", "field": "text"}
                for d in body["documents"]
                if not d["text"]
            ]
            token = f"{len(self.requests) % 2}-{self.written}"
            return JSONResponse(
                {"accepted": len(body["documents"]) - len(bad), "rejected": bad, "token": token},
                202,
            )
        if path.endswith("/documents:delete") and "filter" in body:
            return JSONResponse({"accepted": 2, "matched": 2, "judged": "0-7", "token": "0-9"}, 202)
        if path.endswith("/documents:delete"):
            return JSONResponse(
                {"accepted": len(body["ids"]), "token": f"0-{len(self.requests)}"}, 202
            )
        if path.endswith("/search:batch"):
            lines = [
                json.dumps({"index": i, **ANSWER, "effort": i})
                for i in range(len(body["searches"]))
            ]
            return Response("\n".join(reversed(lines)) + "\n", media_type="application/x-ndjson")
        if "/documents/" in path:
            passages = [{"passage": 0, "text": "red", "start": 0, "end": 3}]
            return JSONResponse({"id": "a", "version": 7, "metadata": {}, "passages": passages})
        if path.startswith("/v1/dead-letters"):
            return JSONResponse({"letters": [{"position": 0, "reason": "no id"}], "next": 0})
        if path == "/v1/collections" and method == "GET":
            return JSONResponse({"collections": [FACTS]})
        return JSONResponse(FACTS, 201 if method == "POST" else 200)


def problem(status: int, kind: str, retry_after: str | None = None, **facts: Any) -> Response:
    body = {
        "type": f"urn:vicinage:problem:{kind}",
        "title": kind,
        "status": status,
        "detail": f"{kind} it is",
        **facts,
    }
    headers = {"retry-after": retry_after} if retry_after else {}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def url(platform: Platform) -> Iterator[str]:
    app = Starlette(
        routes=[Route("/{path:path}", platform.serve, methods=["GET", "POST", "DELETE"])]
    )
    config = uvicorn.Config(app, port=free_port(), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{config.port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, url: str) -> Callable[..., Any]:
    """Returns `call("search", "docs", "red")` for each client: both behave the same."""

    def through_sync(name: str, *given: Any, timeout_s: float = 5.0, **named: Any) -> Any:
        with Client(url, "vk_key", timeout_s=timeout_s) as client:
            return getattr(client, name)(*given, **named)

    def through_async(name: str, *given: Any, timeout_s: float = 5.0, **named: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(url, "vk_key", timeout_s=timeout_s) as client:
                return await getattr(client, name)(*given, **named)

        return asyncio.run(run())

    return through_sync if request.param == "sync" else through_async


def test_a_search_sends_what_was_said_and_nothing_else(call: Callable, platform: Platform) -> None:
    found = call(
        "search",
        "my docs",
        "red things",
        k=3,
        filter={"lang": "en"},
        wait_for="0-4",
        include=["text"],
    )
    [(method, path, body, headers)] = platform.requests
    assert (method, path, headers["authorization"]) == (
        "POST",
        "/v1/collections/my%20docs/search",
        "Bearer vk_key",
    )
    assert body == {
        "text": "red things",
        "k": 3,
        "filter": {"lang": "en"},
        "wait_for": "0-4",
        "include": ["text"],
    }
    [hit] = found.hits
    assert (hit.document_id, hit.score, hit.text, found.freshness["lag_ms"]) == ("a", 0.5, "red", 0)
    assert found.degraded is None and found.effort == 16


def test_a_mode_is_sent_as_it_was_said(call: Callable, platform: Platform) -> None:
    call("search", "docs", "red", mode="lexical")
    fusion = {"method": "weighted", "dense_weight": 0.3}
    call("search", "docs", "red", vector=[1.0, 0.0], mode="hybrid", fusion=fusion)
    call("search", "docs", "red", rerank=50)
    assert [body for _, _, body, _ in platform.requests] == [
        {"text": "red", "k": 10, "mode": "lexical"},
        {"text": "red", "k": 10, "mode": "hybrid", "fusion": fusion, "vector": [1.0, 0.0]},
        {"text": "red", "k": 10, "rerank": 50},
    ]


def test_each_lists_score_is_read_where_there_is_one() -> None:
    hit = {"document_id": "a", "passage": 0, "score": 0.03, "lexical_score": 4.5}
    body = {"hits": [hit], "freshness": {}, "generation": 1, "effort": 0, "degraded": None}
    [found] = read.search_result(body).hits
    assert (found.score, found.dense_score, found.lexical_score) == (0.03, None, 4.5)


def test_a_numpy_vector_goes_as_binary(call: Callable, platform: Platform) -> None:
    vector = np.arange(4, dtype=np.float64) / 3
    call("search", "docs", vector=vector, exact=True)
    body = platform.requests[0][2]
    sent = np.frombuffer(base64.b64decode(body.pop("vector_base64")), "<f4")
    np.testing.assert_array_equal(sent, vector.astype(np.float32))
    assert body == {"k": 10, "exact": True}


RecordMetadata = namedtuple("RecordMetadata", ["topic", "partition", "offset"])  # noqa: PYI024  (as kafka-python has it)


@pytest.mark.parametrize(
    ("wait_for", "sent"),
    [
        ("0-41", "0-41"),
        ({"partition": 0, "offset": 41}, {"partition": 0, "offset": 41}),
        (RecordMetadata("t", 2, 41), {"partition": 2, "offset": 41}),
        (read.Written(1, (), "0-7"), "0-7"),
        (read.NOTHING, None),
        (None, None),
    ],
)
def test_wait_for_takes_whatever_a_write_gave(
    wait_for: Any, sent: Any, url: str, platform: Platform
) -> None:
    with Client(url, "k") as client:
        client.search("docs", "red", wait_for=wait_for)
        client.get("docs", "a", wait_for=wait_for)
    assert platform.requests[0][2].get("wait_for") == sent
    text = f"{sent['partition']}-{sent['offset']}" if isinstance(sent, dict) else sent
    assert platform.requests[1][1].partition("?")[2] == (f"wait_for={text}" if text else "")


def test_an_upsert_draws_from_any_iterable_in_batches(call: Callable, platform: Platform) -> None:
    drawn = []

    def endless() -> Iterator[dict[str, Any]]:
        for i in range(25):
            drawn.append((i, len(platform.requests)))
            yield {
                "id": str(i),
                "text": "" if i == 3 else f"text {i}",
                "vector": np.zeros(2, np.float32),
            }

    written = call("upsert", "docs", endless(), batch=10, on_rejected="return")
    assert [len(body["documents"]) for _, _, body, _ in platform.requests] == [10, 10, 5]
    assert (drawn[9][1], drawn[10][1], drawn[24][1]) == (0, 1, 2), "drawn as they are sent"
    assert written.accepted == 24
    assert [(r.id, r.field) for r in written.rejected] == [("3", "text")]
    assert written.token == "0-20.1-25", "the last position of each partition"
    assert platform.requests[0][2]["documents"][0]["vector"] == [0.0, 0.0]


def test_a_bar_shows_progress_on_stderr(call: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    call("upsert", "docs", [{"id": str(i), "text": "x"} for i in range(3)], batch=2, progress=True)
    out, err = capsys.readouterr()
    assert (out, "3/3" in err) == ("", True)


def test_the_other_calls(call: Callable, platform: Platform) -> None:
    assert call("create_collection", "docs", dimension=3, metric="dot").counts["passages"] == 3
    assert [c.name for c in call("collections")] == ["docs"]
    assert call("collection", "docs").raw["metric"] == "cosine"
    assert call("get", "docs", "a/b ?é").passages[0].text == "red"
    assert call("delete", "docs", ["a", "b"]) == read.Deleted(2, "0-5")
    assert call("dead_letters", after=3)[0]["reason"] == "no id"
    assert call("delete_collection", "docs") is None
    assert [(method, path, body) for method, path, body, _ in platform.requests] == [
        ("POST", "/v1/collections", {"name": "docs", "dimension": 3, "metric": "dot"}),
        ("GET", "/v1/collections", None),
        ("GET", "/v1/collections/docs", None),
        ("GET", "/v1/collections/docs/documents/a%2Fb%20%3F%C3%A9", None),
        ("POST", "/v1/collections/docs/documents:delete", {"ids": ["a", "b"]}),
        ("GET", "/v1/dead-letters?after=3&limit=100", None),
        ("DELETE", "/v1/collections/docs?confirm=docs", None),
    ]


@pytest.mark.parametrize("name", ["..", ".", "../../other", "...", "a/../b"])
def test_a_path_is_sent_as_it_was_meant(call: Callable, platform: Platform, name: str) -> None:
    call("get", "docs", name)
    call("collection", name)
    sent = [path for _, path, _, _ in platform.requests]
    assert [unquote(path) for path in sent] == [
        f"/v1/collections/docs/documents/{name}",
        f"/v1/collections/{name}",
    ]
    assert [path.count("/") for path in sent] == [5, 3]


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "refused", Refused),
        (401, "unauthenticated", Denied),
        (403, "forbidden", Denied),
        (404, "not-found", NotFound),
        (409, "conflict", Conflict),
        (413, "too-large", TooLarge),
        (415, "refused", Refused),
        (500, "internal", VicinageError),
        (504, "deadline-exceeded", Timeout),
    ],
)
def test_an_error_says_what_to_do_next_and_is_not_tried_again(
    call: Callable, platform: Platform, status: int, kind: str, error: type[VicinageError]
) -> None:
    platform.refusals = [problem(status, kind, field="k", limit=1000)]
    with pytest.raises(error, match=f"{kind} it is") as raised:
        call("search", "docs", "red")
    e = raised.value
    assert type(e) is error
    assert (e.type, e.status, e.field, e.limit) == (
        f"urn:vicinage:problem:{kind}",
        status,
        "k",
        1000,
    )
    assert len(platform.requests) == 1


def test_load_is_waited_out_as_long_as_the_platform_asks(
    call: Callable, platform: Platform
) -> None:
    platform.refusals = [problem(429, "overloaded", "1"), problem(503, "unavailable")]
    start = time.monotonic()
    assert call("search", "docs", "red").generation == 1
    assert 1.1 <= time.monotonic() - start < 4
    assert len(platform.requests) == 3


def test_when_its_time_is_up_the_refusal_is_handed_over_at_once(
    call: Callable, platform: Platform
) -> None:
    platform.refusals = [problem(429, "overloaded", "30", retry_after_s=30)] * 5
    start = time.monotonic()
    with pytest.raises(Overloaded) as raised:
        call("search", "docs", "red", timeout_s=1.0)
    assert raised.value.retry_after_s == 30
    assert time.monotonic() - start < 0.9, "waiting could not have helped"
    assert len(platform.requests) == 1


def test_a_platform_that_comes_back_is_found_again() -> None:
    platform, port = Platform(), free_port()
    app = Starlette(routes=[Route("/{path:path}", platform.serve, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))
    late = threading.Timer(0.4, server.run)
    late.start()
    try:
        with Client(f"http://127.0.0.1:{port}", "k") as client:
            assert client.upsert("docs", [{"id": "a", "text": "x"}]).accepted == 1
    finally:
        server.should_exit = True
        late.join(10)


def test_an_unreachable_platform_is_reported_after_the_timeout(call: Callable) -> None:
    port = free_port()
    start = time.monotonic()
    with (
        Client(f"http://127.0.0.1:{port}", "k", timeout_s=0.5) as client,
        pytest.raises(Unreachable, match=str(port)),
    ):
        client.collections()
    assert time.monotonic() - start < 2


def test_an_address_that_is_none_is_said_at_once() -> None:
    start = time.monotonic()
    with Client("gopher://127.0.0.1", "k", timeout_s=20) as client, pytest.raises(Unreachable):
        client.collections()
    assert time.monotonic() - start < 2


def silent_server() -> tuple[int, list[bytes], Callable[[], None]]:
    """Accepts each request and closes without an answer, as a gateway that is killed does."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def run() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                heard.append(peer.recv(65_536))

    threading.Thread(target=run, daemon=True).start()

    def stop() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()

    return listener.getsockname()[1], heard, stop


def test_what_must_not_be_done_twice_is_not_sent_twice() -> None:
    port, heard, stop = silent_server()
    with Client(f"http://127.0.0.1:{port}", "k", timeout_s=1.0) as client:
        with pytest.raises(Unreachable):
            client.create_collection("docs")
        assert len(heard) == 1
        with pytest.raises(Unreachable):
            client.upsert("docs", [{"id": "a", "text": "x"}])
        assert len(heard) > 2, "a document replaces the one of its id: sent again"
    stop()


def test_what_json_cannot_say_is_refused_here(url: str, platform: Platform) -> None:
    with Client(url, "k") as client:
        with pytest.raises(InvalidArgument, match="NaN"):
            client.search("docs", vector=[float("nan")])
        with pytest.raises(InvalidArgument, match="JSON"):
            client.search("docs", "red", filter={"at": object()})
    assert platform.requests == []


def test_an_answer_that_is_no_problem_document_is_an_error_all_the_same(
    call: Callable, platform: Platform
) -> None:
    platform.refusals = [Response("<html>proxy says no</html>", 413)]
    with pytest.raises(Refused, match="proxy says no"):
        call("search", "docs", "red")


def test_tokens_of_several_batches_wait_for_all_of_them() -> None:
    assert read.latest(["0-5.1-2", None, "1-9", "0-3", "2-0"]) == "0-5.1-9.2-0"
    assert read.latest([None]) is None


def test_a_date_in_retry_after_is_left_to_the_backoff() -> None:
    attempts = make.Attempts(make.Call("GET", "/"), 30)
    pause_s = attempts.answered(503, "Tue, 24 Nov 2026 10:00:00 GMT")
    assert pause_s is not None and 0.1 <= pause_s <= 0.15


# arguments that no platform can accept


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda c: c("upsert", "docs", [{"id": "a", "text": "x"}], batch=0), "batch is 0"),
        (lambda c: c("upsert", "docs", [{"id": "a", "text": "x"}], batch=True), "batch is True"),
        (
            lambda c: c("upsert", "docs", [{"id": "a", "text": "x"}], on_rejected="ignore"),
            "on_rejected",
        ),
        (lambda c: c("upsert", "docs", [{"text": "x"}]), "id is a text"),
        (lambda c: c("upsert", "docs", ["a"]), "a document is a mapping"),
        (lambda c: c("upsert", "docs", {"id": "a", "text": "x"}), "documents is a list"),
        (lambda c: c("upsert", "docs", None), "documents is a list"),
        (lambda c: c("search", "docs", "red", wait_for=3), "wait_for is a token"),
        (
            lambda c: c("search", "docs", "red", k=np.int64(3)),
            r"k is a numpy int64: send k\.tolist",
        ),
        (
            lambda c: c("search", "docs", "red", filter={"n": {"$in": np.ones(2)}}),
            r"filter\.n\.\$in is a numpy ndarray",
        ),
        (lambda c: c("search_batch", "docs", "red"), "searches is a list"),
        (lambda c: c("delete", "docs", "nope"), "list of ids"),
        (lambda c: c("delete", "docs", [1]), "an id is a text"),
        (lambda c: c("delete", "docs"), "ids or a filter"),
        (lambda c: c("delete", "docs", ["a"], filter={"lang": "en"}), "ids or a filter"),
        (lambda c: c("get_many", "docs", "nope"), "list of ids"),
        (lambda c: c("search", "docs", vector=np.zeros((2, 192), np.float32)), r"shape \(2, 192\)"),
        (lambda c: c("search", "docs", vector=[[0.0] * 3]), "vector is a list of numbers"),
        (lambda c: c("search", "docs", vector="0.1"), "vector is a list of numbers"),
        (
            lambda c: c("search_batch", "docs", [{"txt": "red"}]),
            "search 0 has the unknown field 'txt'",
        ),
        (
            lambda c: c("search_batch", "docs", ["red", {"vector": np.zeros((2, 2))}]),
            r"shape \(2, 2\)",
        ),
    ],
)
def test_an_invalid_argument_is_refused_before_anything_is_sent(
    call: Callable, platform: Platform, given: Callable, says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says) as raised:
        given(call)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, VicinageError)
    assert platform.requests == []


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (
            {"at": datetime(2026, 1, 1)},  # noqa: DTZ001
            r"metadata\.at is a datetime: send metadata\.at\.isoformat\(\)",
        ),
        ({"n": [1, np.float32(2)]}, r"metadata\.n\[1\] is a numpy float32"),
        ({"a": {"b": {1}}}, r"metadata\.a\.b is a value of type set"),
        ({"price": float("inf")}, r"metadata\.price is NaN or infinity"),
        ({"raw": b"x"}, r"metadata\.raw is bytes"),
        ({"name": "\udcff"}, r"metadata\.name has half"),
    ],
)
def test_what_cannot_be_sent_is_named_with_its_field(
    call: Callable, metadata: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        call("upsert", "docs", [{"id": "a", "text": "x", "metadata": metadata}])


def test_progress_without_its_library_is_refused_before_anything_is_sent(
    call: Callable, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for method in (("upsert", "docs", [{"id": "a", "text": "x"}]), ("wait", "docs")):
        with pytest.raises(InvalidArgument, match=r"vicinage-client\[progress\]"):
            call(*method, progress=True)
    assert platform.requests == []


def test_a_closed_client_says_so(url: str) -> None:
    client = Client(url, "k")
    client.close()
    with pytest.raises(InvalidArgument, match="closed"):
        client.collections()


CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR


@pytest.mark.parametrize(
    "bad",
    [
        {"metadata": {"at": object()}},
        {"metadata": {"price": float("nan")}},
        {"metadata": CIRCULAR},
        {"metadata": {("a", "b"): 1}},
        {"text": "\ud800"},
        {"vector": [0.1, None]},
        {"vector": "0.1"},
        {"vectors": [0.1, 0.2]},
        {"vector": np.array([1.0, np.inf])},
    ],
)
def test_a_document_that_cannot_be_sent_is_named(
    call: Callable, bad: dict[str, Any], platform: Platform
) -> None:
    documents = [{"id": "good", "text": "x"}, {"id": "wrong", **bad}, {"id": "later", "text": "x"}]
    with pytest.raises(InvalidArgument, match="'wrong'") as raised:
        call("upsert", "docs", documents, batch=1)
    assert raised.value.document_id == "wrong"
    assert raised.value.written is not None
    assert (raised.value.written.accepted, raised.value.written.token) == (1, "1-1")
    assert len(platform.requests) == 1


def test_vectors_are_checked_with_optimization_too(url: str) -> None:
    import subprocess
    import sys

    program = f"""
from vicinage_client import Client, InvalidArgument
try:
    Client({url!r}, "k").delete("docs", "nope")
except InvalidArgument:
    print("refused")
"""
    found = subprocess.run(
        [sys.executable, "-O", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == "refused"


# the key is never shown


@pytest.mark.parametrize(
    "key", ["vk_secret\nx-other: 1", "vk_secret x", "vk_secrét", "", " \n", None, 7]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
    kind: type, key: Any
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        kind("http://127.0.0.1:1", key)
    assert "vk_" not in str(raised.value) + repr(raised.value) + repr(raised.value.__cause__)


def test_a_key_with_the_line_end_of_its_file_is_good(url: str, platform: Platform) -> None:
    with Client(url, "vk_key\n") as client:
        client.collections()
    assert platform.requests[0][3]["authorization"] == "Bearer vk_key"


def test_neither_repr_nor_errors_hold_the_key(call: Callable) -> None:
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}", "vk_secret", timeout_s=0.1)
    with pytest.raises(Unreachable) as raised:
        client.collections()
    seen = repr(client) + repr(AsyncClient("http://127.0.0.1:1", "vk_secret")) + repr(raised.value)
    assert "vk_secret" not in seen + repr(vars(raised.value)) + repr(raised.value.__cause__)


# bulk writes


def test_rejected_documents_raise_after_everything_else_is_written(
    call: Callable, platform: Platform
) -> None:
    documents = [{"id": str(i), "text": "" if i == 1 else "x"} for i in range(5)]
    with pytest.raises(
        DocumentsRejected, match=r"1 rejected, 4 accepted.*'1': text is empty"
    ) as raised:
        call("upsert", "docs", documents, batch=2)
    written = raised.value.written
    assert (written.accepted, written.n_rejected, [r.id for r in written.rejected]) == (4, 1, ["1"])
    assert written.token == "0-4.1-5"
    assert len(platform.requests) == 3


def test_a_bulk_write_that_fails_says_what_was_written(call: Callable, platform: Platform) -> None:
    seen = []

    def documents() -> Iterator[dict[str, Any]]:
        for i in range(6):
            if len(platform.requests) == 2:
                platform.refusals = [problem(413, "too-large")]
            seen.append(i)
            yield {"id": str(i), "text": "x"}

    with pytest.raises(TooLarge) as raised:
        call("upsert", "docs", documents(), batch=2)
    assert raised.value.written is not None
    assert (raised.value.written.accepted, raised.value.written.token) == (4, "0-4.1-2")


def test_a_batch_is_bounded_in_bytes_too(call: Callable, platform: Platform) -> None:
    call("upsert", "docs", ({"id": str(i), "text": "x" * (3 << 20)} for i in range(4)))
    assert [len(body["documents"]) for _, _, body, _ in platform.requests] == [3, 1]


def test_an_asynchronous_iterable_is_drawn_from_as_it_is_sent(url: str, platform: Platform) -> None:
    async def drawn() -> Any:
        for i in range(5):
            yield {"id": str(i), "text": "x"}
            await asyncio.sleep(0)

    async def run() -> read.Written:
        async with AsyncClient(url, "k") as client:
            return await client.upsert("docs", drawn(), batch=2)

    written = asyncio.run(run())
    assert (written.accepted, written.token) == (5, "0-4.1-5")
    assert [len(body["documents"]) for _, _, body, _ in platform.requests] == [2, 2, 1]


def test_an_asynchronous_write_that_fails_says_what_was_written(url: str) -> None:
    async def drawn() -> Any:
        yield {"id": "a", "text": "x"}
        yield {"id": "b", "text": object()}

    async def run() -> None:
        async with AsyncClient(url, "k") as client:
            await client.upsert("docs", drawn(), batch=1)

    with pytest.raises(InvalidArgument, match="'b'") as raised:
        asyncio.run(run())
    assert raised.value.written is not None
    assert raised.value.written.accepted == 1


def test_an_async_client_works_in_a_second_event_loop(url: str) -> None:
    client = AsyncClient(url, "k")

    async def once() -> str:
        return (await client.collection("docs")).name

    assert [asyncio.run(once()) for _ in range(3)] == ["docs"] * 3


# deletions, many reads, many searches


def test_a_deletion_by_filter_says_what_it_matched_and_until_when_it_judged(
    call: Callable, platform: Platform
) -> None:
    found = call("delete", "docs", filter={"lang": "en"}, wait_for="0-5")
    assert found == read.Deleted(2, "0-9", 2, "0-7")
    assert platform.requests[0][2] == {"filter": {"lang": "en"}, "wait_for": "0-5"}


def test_many_ids_are_deleted_in_several_calls(call: Callable, platform: Platform) -> None:
    found = call("delete", "docs", (str(i) for i in range(10_001)))
    assert found == read.Deleted(10_001, "0-2")
    assert [len(body["ids"]) for _, _, body, _ in platform.requests] == [10_000, 1]
    assert call("delete", "docs", []) == read.NOTHING_DELETED


def test_many_documents_are_read_and_those_that_are_not_there_are_left_out(
    call: Callable, platform: Platform
) -> None:
    platform.refusals = [problem(404, "not-found")]
    found = call("get_many", "docs", ["gone", "a"])
    assert {name: d.version for name, d in found.items()} == {"a": 7}


def test_many_searches_are_answered_in_their_order(call: Callable, platform: Platform) -> None:
    found = call(
        "search_batch",
        "docs",
        ["red", {"vector": np.zeros(2), "k": 3, "wait_for": read.Written(1, (), "0-7")}],
    )
    assert [r.effort for r in found] == [0, 1]
    assert platform.requests[0][2]["searches"] == [
        {"text": "red"},
        {"k": 3, "wait_for": "0-7", "vector_base64": base64.b64encode(bytes(8)).decode()},
    ]
    assert len(call("search_batch", "docs", ["red"] * 1_001)) == 1_001
    assert call("search_batch", "docs", []) == []


def test_one_search_of_many_that_fails_is_raised(call: Callable, platform: Platform) -> None:
    bad = {
        "index": 1,
        "problem": {
            "status": 504,
            "type": "urn:vicinage:problem:deadline-exceeded",
            "detail": "late",
        },
    }
    lines = [json.dumps({"index": 0, **ANSWER}), json.dumps(bad)]
    platform.refusals = [Response("\n".join(lines), media_type="application/x-ndjson")]
    with pytest.raises(Timeout, match="late"):
        call("search_batch", "docs", ["red", "blue"])
    platform.refusals = [Response(lines[0], media_type="application/x-ndjson")]
    with pytest.raises(Unavailable, match="did not arrive"):
        call("search_batch", "docs", ["red", "blue"])


# collections that are there already


def test_a_collection_that_is_there_as_described_is_returned(
    call: Callable, platform: Platform
) -> None:
    platform.refusals = [problem(409, "conflict")]
    assert call("create_collection", "docs", metric="cosine", exist_ok=True).name == "docs"
    platform.refusals = [problem(409, "conflict")]
    with pytest.raises(Conflict, match="differs in dimension, metric"):
        call("create_collection", "docs", dimension=3, metric="dot", exist_ok=True)
    platform.refusals = [problem(409, "conflict")]
    with pytest.raises(Conflict, match="conflict it is"):
        call("create_collection", "docs")


def test_a_wait_asks_again_until_the_write_is_searchable(
    call: Callable, platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    late = [problem(504, "deadline-exceeded", ahead=n) for n in (7, 3)]
    platform.refusals = list(late)
    assert call("wait", "docs", read.Written(1, (), "0-7"), progress=True).name == "docs"
    assert [path for _, path, _, _ in platform.requests] == [
        "/v1/collections/docs?wait_for=0-7&timeout_ms=2000"
    ] * 3
    assert "4/7" in capsys.readouterr().err


def test_a_wait_for_the_latest_write_does_not_move_on_with_later_writes(
    call: Callable, platform: Platform
) -> None:
    platform.refusals = [
        problem(504, "deadline-exceeded", ahead=n, wait_for="0-7.1-3") for n in (7, 3)
    ]
    call("wait", "docs")
    requests = [path.split("?")[1].split("&")[0] for _, path, _, _ in platform.requests]
    assert requests == ["wait_for=latest", "wait_for=0-7.1-3", "wait_for=0-7.1-3"]


def test_a_wait_that_runs_out_says_what_is_before_the_write(url: str, platform: Platform) -> None:
    platform.refusals = [problem(504, "deadline-exceeded", ahead=7)]
    with Client(url, "k") as client, pytest.raises(Timeout) as raised:
        client.wait("docs", timeout_s=0.0)
    assert raised.value.problem["ahead"] == 7
    assert "wait_for=latest" in platform.requests[0][1]
