"""Bounds of a connection: size and time of request heads, time of answers, and the number of connections.

Law 6: uvicorn with httptools has no such bounds, and a connection needs no key. A head without an end would
grow in memory. A head that trickles or never begins, an answer that is not read, or a body that goes on
after its answer would hold the connection's descriptor.
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
    """One connection, closed when a head is too large (431) or late (408); told so where no other answer is under way."""

    head_bytes_max: ClassVar[int] = 64 << 10
    """Request line and headers together."""
    head_s: ClassVar[float] = 15.0
    """From the connection, or the next request's first byte, to the end of its head."""
    send_s: ClassVar[float] = 15.0
    """How often a reader that lets an answer wait must have taken `send_bytes_min` of it."""
    send_bytes_min: ClassVar[int] = 256 << 10
    linger_s: ClassVar[float] = 2.0
    """How long the rest of a body is thrown away after its answer: the sender reads the answer meanwhile."""
    connections_max: ClassVar[int] = 4_096
    """Connections of one server at once.

    One more takes the place of the one that has been idle longest; else it gets 503.
    """

    _open = True
    """A head is awaited or has begun, and has not ended."""
    _between = False
    """A request has ended and the next has not begun: uvicorn's own timeout runs, until a byte comes."""
    _bytes = 0
    """What has come since the head was opened; of a body, what was none of it: the trailers behind its chunks."""
    _due: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _unsent = 0
    """Bytes of answers that waited for the reader when that was last looked at."""
    idle_since = 0.0
    """When it was opened, or its last answer ended, by the event loop's clock."""
    _last: RequestResponseCycle | None = None
    """The request after whose answer the connection closes."""
    _discarding = False
    """The connection closes as soon as its answer is read; what comes is thrown away."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        """The first head is due, if there is a place for the connection."""
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        if len(self.connections) > self.connections_max and not self._take_place():
            self._discarding = True
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self._due = self.loop.call_later(self.head_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._forget()
        self._stop_looking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it, and see whether a head is still open.

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
        """A head begins, maybe right behind the request before it."""
        self._between, self._open = False, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head has ended. What the parser is told by raising it tells `send_400_response`."""
        if self._bytes > self.head_bytes_max and self._head_bytes() > self.head_bytes_max:
            raise ValueError("the head is too large")
        self._open = False
        self._forget()
        super().on_headers_complete()
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.send = partial(self._send, self.cycle, self.cycle.send)  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which is the application's to bound."""
        self._bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has ended."""
        self._between, self._bytes = True, 0
        super().on_message_complete()

    async def _send(
        self, cycle: RequestResponseCycle, send: Callable[..., Awaitable[None]], message: Any
    ) -> None:
        """Sends a part of an answer.

        One that begins before its request has ended says that the connection closes.
        """
        early = message["type"] == "http.response.start" and cycle.more_body
        if early:
            cycle.keep_alive = False
        await send(message)
        # uvicorn would close with unread bytes, and lose the answer: `on_response_complete` closes
        if early:
            cycle.keep_alive, self._last = True, cycle

    def on_response_complete(self) -> None:
        """The answer has ended. Of a request that had not, nothing more is read."""
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if (
            self._last is not None
            and self._last.response_complete
            and not self.transport.is_closing()
        ):
            self._discard()

    def pause_writing(self) -> None:
        """The reader is slower than the answer: see that it reads on."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        if self._sending is None:
            self._sending = self.loop.call_later(self.send_s, self._look_at_reader)

    def resume_writing(self) -> None:
        """The reader has caught up."""
        self._stop_looking()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (as uvicorn declares it)
        """Refuse what the parser stopped at."""
        if self._open and self._bytes > self.head_bytes_max:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST)

    def _take_place(self) -> bool:
        """Closes the connection that has been idle longest; False where none is."""
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
        """No request is under way, and no answer waits for its reader."""
        answered = self.cycle is None or self.cycle.response_complete
        return (
            answered
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )

    def _discard(self) -> None:
        """Sends what is left of the answer, and closes a little later: closing with unread bytes would lose the answer."""
        self._discarding = True
        self._forget()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(self.linger_s, self.transport.close)

    def _look_at_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._sending = None
        if self._unsent - left < self.send_bytes_min:
            self.transport.abort()
            return
        self._unsent = left
        self._sending = self.loop.call_later(self.send_s, self._look_at_reader)

    def _stop_looking(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _head_bytes(self) -> int:
        """Of the head alone: a body may have come in the same piece."""
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _forget(self) -> None:
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
        """Answers, unless another answer is under way or due first, and closes."""
        cycle = self.cycle
        if (
            cycle is None
            or cycle.response_complete
            or (cycle.more_body and not cycle.response_started)
        ):
            self.transport.write(_problem(status))
        self.transport.close()


def _problem(status: HTTPStatus) -> bytes:
    """Returns the whole answer that refuses a connection: a problem document, as every error is."""
    body = orjson.dumps(http_body(status, status.phrase, HTTP_KINDS[status][1]))
    again = "retry-after: 1\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        f"{again}connection: close\r\n\r\n"
    )
    return head.encode() + body


def bounded(connections_max: int) -> type[BoundedHeads]:
    """Returns the protocol of a server that holds so many connections."""
    return type("Bounded", (BoundedHeads,), {"connections_max": connections_max})


class DrainingServer(uvicorn.Server):
    """Tells `on_stop` as soon as it was told to stop, and only then waits for the requests under way."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        self._on_stop()
        await super().shutdown(sockets)
