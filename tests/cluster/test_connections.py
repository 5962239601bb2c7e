"""Heads of requests over a real socket: bounded in size and time; everything else goes through as ever."""

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
    """Answers with the number of the body's bytes."""
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
    """Read up to `end`, which must come."""
    found = b""
    while end not in found:
        chunk = line.recv(65_536)
        assert chunk, found
        found += chunk


def rest(line: socket.socket) -> bytes:
    """All that comes until the connection is closed from the other side."""
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


@pytest.mark.parametrize("whole", [b"x: " + b"a" * (66 << 10) + b"\r\n", b"a: b\r\n" * 40_000], ids=["long", "many"])
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
        for piece in (b"PO", b"ST / HTTP/1.1\r\nho", b"st: x\r\ncontent-length: 3\r\n\r", b"\nab", b"c"):
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
        line.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
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
