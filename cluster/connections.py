"""Bounds of connections: size and time of request heads, time of answers, and their number.

Guarantee 6: uvicorn with httptools has no such bounds, and a connection needs no key. An endless
head would grow in memory. A slow or absent head, an answer that is not read, or a body that
continues after its answer would occupy the connection's descriptor.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from query.problems import HTTP_KINDS, MEDIA_TYPE, http_body


class BoundedHeads(HttpToolsProtocol):
    """One connection, closed if a head is too large (431) or late (408).

    The client gets that status unless another answer is in progress.
    """

    head_bytes_max: ClassVar[int] = 64 << 10
    """Largest size of request line and headers together."""
    head_s: ClassVar[float] = 15.0
    """Time for a head, from the connection or the first byte of the next request."""
    send_s: ClassVar[float] = 15.0
    """Interval in which a slow reader must read `send_bytes_min` of its answer."""
    send_bytes_min: ClassVar[int] = 256 << 10
    linger_s: ClassVar[float] = 2.0
    """Time for which the rest of a body is discarded after its answer, which the client reads."""
    connections_max: ClassVar[int] = 4_096
    """Largest number of connections of one server.

    A further connection replaces the one that has been idle longest, or else gets 503.
    """

    _open = True
    """A head is awaited or in progress."""
    _between = False
    """Between two requests: uvicorn's own timeout runs until a byte comes."""
    _bytes = 0
    """Bytes received since the head began; for a body, only its trailers."""
    _due: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _unsent = 0
    """Unsent bytes of answers at the last check of the reader."""
    idle_since = 0.0
    """Time of the connection, or of the end of its last answer, by the event loop's clock."""
    _last: RequestResponseCycle | None = None
    """The request after whose answer the connection closes."""
    _discarding = False
    """The connection closes as soon as its answer is read; further input is discarded."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        """Starts the timer of the first head; refuses a connection beyond the bound."""
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        if len(self.connections) > self.connections_max and not self._close_idlest():
            self._discarding = True
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self._due = self.loop.call_later(self.head_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels all timers."""
        self._end_head()
        self._stop_checking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses the data, and starts a timer if a head is incomplete.

        A head that comes in one piece costs no timer.
        """
        if self._discarding:
            return
        if self._between:
            self._between, self._open = False, True
        self._bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._bytes > self.head_bytes_max:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._open and self._due is None:
            self._due = self.loop.call_later(self.head_s, self._late)

    def on_message_begin(self) -> None:
        """Marks the beginning of a head, possibly directly after the previous request."""
        self._between, self._open = False, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Marks the end of the head.

        If it is too large, raises an error to the parser, which then calls `send_400_response`.
        """
        if self._bytes > self.head_bytes_max and self._head_bytes() > self.head_bytes_max:
            raise ValueError("the head is too large")
        self._open = False
        self._end_head()
        super().on_headers_complete()
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.send = partial(self._send, self.cycle, self.cycle.send)  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        """Passes a piece of the body on; the application bounds bodies."""
        self._bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Marks the end of the request."""
        self._between, self._bytes = True, 0
        super().on_message_complete()

    async def _send(
        self, cycle: RequestResponseCycle, send: Callable[..., Awaitable[None]], message: Any
    ) -> None:
        """Sends a part of an answer.

        An answer that begins before the end of its request has `connection: close`.
        """
        early = message["type"] == "http.response.start" and cycle.more_body
        if early:
            cycle.keep_alive = False
        await send(message)
        # uvicorn would close with unread input, and lose the answer: `on_response_complete` closes
        if early:
            cycle.keep_alive, self._last = True, cycle

    def on_response_complete(self) -> None:
        """Marks the end of the answer; discards the rest of a request that has not ended."""
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if (
            self._last is not None
            and self._last.response_complete
            and not self.transport.is_closing()
        ):
            self._discard()

    def pause_writing(self) -> None:
        """Starts to check the reader, which is slower than the answer."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        if self._sending is None:
            self._sending = self.loop.call_later(self.send_s, self._check_reader)

    def resume_writing(self) -> None:
        """Stops checking the reader, which has caught up."""
        self._stop_checking()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (as uvicorn declares it)
        """Refuses input that the parser rejected."""
        if self._open and self._bytes > self.head_bytes_max:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST)

    def _close_idlest(self) -> bool:
        """Closes the connection that has been idle longest; returns False if none is idle."""
        idle = [
            c
            for c in self.connections
            if c is not self and isinstance(c, BoundedHeads) and c.is_idle()
        ]
        if not idle:
            return False
        longest = min(idle, key=lambda c: c.idle_since)
        longest.connections.discard(longest)
        longest.transport.abort()
        return True

    def is_idle(self) -> bool:
        """Returns whether no request is in progress and no answer waits for its reader."""
        answered = self.cycle is None or self.cycle.response_complete
        return (
            answered
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )

    def _discard(self) -> None:
        """Sends the rest of the answer, and closes after `linger_s`.

        Closing at once, with unread input, would lose the answer.
        """
        self._discarding = True
        self._end_head()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(self.linger_s, self.transport.close)

    def _check_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._sending = None
        if self._unsent - left < self.send_bytes_min:
            self.transport.abort()
            return
        self._unsent = left
        self._sending = self.loop.call_later(self.send_s, self._check_reader)

    def _stop_checking(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _head_bytes(self) -> int:
        """Returns the bytes of the head alone: a body may have come in the same piece."""
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _end_head(self) -> None:
        self._bytes = 0
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _late(self) -> None:
        self._due = None
        if self._bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        """Answers, unless another answer is in progress or due first, and closes."""
        cycle = self.cycle
        if (
            cycle is None
            or cycle.response_complete
            or (cycle.more_body and not cycle.response_started)
        ):
            self.transport.write(_problem(status))
        self.transport.close()


def _problem(status: HTTPStatus) -> bytes:
    """Returns the complete answer that refuses a connection: a problem document, as every error."""
    body = orjson.dumps(http_body(status, status.phrase, HTTP_KINDS[status][1]))
    retry = "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\n"
        f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        f"{retry}connection: close\r\n\r\n"
    )
    return head.encode() + body


def bounded(connections_max: int) -> type[BoundedHeads]:
    """Returns the protocol of a server with at most `connections_max` connections."""
    return type("Bounded", (BoundedHeads,), {"connections_max": connections_max})


class DrainingServer(uvicorn.Server):
    """A server that calls `on_stop` when it begins to stop, before it waits for requests."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        self._on_stop()
        await super().shutdown(sockets)
