"""Heads of requests over a real socket are bounded in size and time; other requests succeed."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gate import serving

from cluster.connections import BoundedHeads


class Quick(BoundedHeads):
    """The same, in less time."""

    head_s = 0.5


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the size of the body."""
    if scope["type"] == "lifespan":
        while (event := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{event['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    size, more = 0, True
    while more:
        event = await receive()
        size, more = size + len(event.get("body", b"")), event.get("more_body", False)
    answer = f"<{size}>".encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(echo, http=Quick) as url:
        yield int(url.rpartition(":")[2])


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        yield line


def until(line: socket.socket, end: bytes) -> None:
    """Reads up to `end`; fails if it does not come."""
    found = b""
    while end not in found:
        chunk = line.recv(65_536)
        assert chunk, found
        found += chunk


def rest(line: socket.socket) -> bytes:
    """Returns everything until the server closes the connection."""
    found = b""
    try:
        while chunk := line.recv(65_536):
            found += chunk
    except ConnectionResetError:
        pass  # closed while we were still sending
    return found


GET = b"GET / HTTP/1.1\r\nhost: x\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
CLOSE = b"connection: close\r\n\r\n"


def test_a_header_without_end_is_refused_when_it_is_over_the_bound(port: int) -> None:
    with connected(port) as line:
        line.sendall(GET + b"x: " + b"a" * (66 << 10))
        assert rest(line).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "whole", [b"x: " + b"a" * (66 << 10) + b"\r\n", b"a: b\r\n" * 40_000], ids=["long", "many"]
)
def test_a_whole_head_over_the_bound_is_refused(port: int, whole: bytes) -> None:
    with connected(port) as line:
        line.sendall(GET + whole + b"\r\n")
        assert rest(line).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("start", [b"", b"G", GET, b"\r\n"])
def test_a_head_that_does_not_end_in_time_closes_the_connection(port: int, start: bytes) -> None:
    with connected(port) as line:
        line.sendall(start)
        began = time.monotonic()
        assert rest(line).startswith(b"HTTP/1.1 408 " if start else b"")
        assert 0.3 < time.monotonic() - began < 3


@pytest.mark.parametrize("drip", [b"a: b\r\n", b"\r\n"])
def test_neither_does_dripping_prolong_it_nor_a_good_request_before(port: int, drip: bytes) -> None:
    with connected(port) as line:
        line.sendall(GET + b"\r\n")
        until(line, b"<0>")
        line.sendall(b"\r\n" if drip == b"\r\n" else GET)
        began = time.monotonic()
        with pytest.raises(OSError, match=r"(?i)broken pipe|reset"):
            while time.monotonic() - began < 5:
                line.sendall(drip)
                time.sleep(0.05)
        assert time.monotonic() - began < 3


def test_heads_in_pieces_large_bodies_and_requests_behind_one_another_go_through(port: int) -> None:
    with connected(port) as line:
        for piece in (
            b"PO",
            b"ST / HTTP/1.1\r\nho",
            b"st: x\r\ncontent-length: 3\r\n\r",
            b"\nab",
            b"c",
        ):
            line.sendall(piece)
            time.sleep(0.02)
        until(line, b"<3>")
        line.sendall(POST % 1_000_000 + b"x" * 1_000_000)
        until(line, b"<1000000>")
        line.sendall(POST % 200_000 + b"x" * 200_000 + GET + b"\r\n" + GET + CLOSE)
        found = rest(line)
        assert (found.count(b"<200000>"), found.count(b"<0>")) == (1, 2)


def test_trailers_without_end_close_the_connection(port: int) -> None:
    with connected(port) as line, pytest.raises(OSError, match=r"(?i)broken pipe|reset"):
        line.sendall(
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        )
        for _ in range(200):
            line.sendall(b"t: " + b"v" * 50_000 + b"\r\n")
            time.sleep(0.01)


def test_chunks_and_their_trailers_go_through(port: int) -> None:
    with connected(port) as line:
        line.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        line.sendall(b"1\r\na\r\n" * 50_000)
        line.sendall(b"0\r\nt: v\r\n\r\n")
        until(line, b"<50000>")


def test_a_slow_body_is_the_applications_own_affair(port: int) -> None:
    with connected(port) as line:
        line.sendall(POST % 3 + b"ab")
        time.sleep(0.8)
        line.sendall(b"c")
        until(line, b"<3>")


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answers before it has read the body, as for a request without a key."""
    if scope["type"] == "lifespan":
        await echo(scope, receive, send)
        return
    await send(
        {"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"no"})


async def large(scope: Any, receive: Any, send: Any) -> None:
    """Answers with 32 MiB."""
    if scope["type"] == "lifespan":
        await echo(scope, receive, send)
        return
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % (32 << 20))],
        }
    )
    await send({"type": "http.response.body", "body": b"x" * (32 << 20)})


class Impatient(BoundedHeads):
    """The same, in less time and with few places."""

    send_s = 0.3
    linger_s = 0.3
    connections_max = 3


def number(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_a_body_that_goes_on_after_its_answer_ends_the_connection() -> None:
    with serving(refuse, http=Impatient) as url, connected(number(url)) as line:
        line.sendall(POST % 1_000_000 + b"x")
        until(line, b"no")
        began = time.monotonic()
        with pytest.raises(OSError, match=r"(?i)broken pipe|reset"):
            while time.monotonic() - began < 10:
                line.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - began < 5


def test_the_answer_to_a_body_that_is_not_read_arrives_and_says_that_the_connection_closes() -> (
    None
):
    with serving(refuse, http=Impatient) as url, connected(number(url)) as line:
        line.sendall(POST % 200_000 + b"x" * 100_000)
        found = rest(line)
        assert found.startswith(b"HTTP/1.1 401 ") and found.endswith(b"no")
        assert b"connection: close" in found


def test_a_request_whose_body_has_come_keeps_its_connection_although_it_is_not_read() -> None:
    with serving(refuse, http=Impatient) as url, connected(number(url)) as line:
        for _ in range(3):
            line.sendall(POST % 3 + b"abc")
            until(line, b"no")


def test_an_answer_that_is_not_read_is_given_up() -> None:
    with serving(large, http=Impatient) as url, socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        line.settimeout(10)
        line.connect(("127.0.0.1", number(url)))
        line.sendall(GET + b"\r\n")
        time.sleep(1.5)
        assert len(rest(line)) < 32 << 20


def test_an_answer_that_is_read_slowly_but_steadily_is_sent_whole() -> None:
    with serving(large, http=Impatient) as url, connected(number(url)) as line:
        line.sendall(GET + CLOSE)
        size = 0
        while chunk := line.recv(1 << 20):
            size += len(chunk)
            time.sleep(0.02)
        assert size > 32 << 20


def test_one_connection_too_many_takes_the_place_of_the_one_idle_longest() -> None:
    with serving(echo, http=Impatient) as url:
        port = number(url)
        with connected(port) as first, connected(port) as second, connected(port) as third:
            for line in (second, third, first):
                line.sendall(GET + b"\r\n")
                until(line, b"<0>")
            with connected(port) as fourth:
                fourth.sendall(GET + b"\r\n")
                until(fourth, b"<0>")
                assert rest(second) == b""
                for line in (first, third, fourth):
                    line.sendall(GET + b"\r\n")
                    until(line, b"<0>")


def test_where_every_connection_is_at_work_one_more_is_refused() -> None:
    with serving(echo, http=Impatient) as url:
        port = number(url)
        with connected(port) as first, connected(port) as second, connected(port) as third:
            for line in (first, second, third):
                line.sendall(POST % 3 + b"ab")
            time.sleep(0.3)
            with connected(port) as fourth:
                assert rest(fourth).startswith(b"HTTP/1.1 503 ")
            for line in (first, second, third):
                line.sendall(b"c")
                until(line, b"<3>")
