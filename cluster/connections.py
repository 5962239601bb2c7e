"""How large and how late the head of a request may be, and what a stop tells the application first: what we add to uvicorn.

Law 6: uvicorn with httptools bounds neither. A head that never ends would grow in memory, and one that trickles, or never begins,
would hold its connection; nobody needs a key for that.
"""

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedHeads(HttpToolsProtocol):
    """One connection, closed when a head is too large (431) or late (408); told so where no other answer is under way."""

    head_bytes_max: ClassVar[int] = 64 << 10
    """Request line and headers together."""
    head_s: ClassVar[float] = 15.0
    """From the connection, or the next request's first byte, to the end of its head."""

    _open = True
    """A head is awaited or has begun, and has not ended."""
    _between = False
    """A request has ended and the next has not begun: uvicorn's own timeout runs, until a byte comes."""
    _bytes = 0
    """What has come since the head was opened; of a body, what was none of it: the trailers behind its chunks."""
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        """The first head is due."""
        super().connection_made(transport)
        self._due = self.loop.call_later(self.head_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it, and see whether a head is still open. A head that comes in one piece costs no timer."""
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

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which is the application's to bound."""
        self._bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has ended."""
        self._between, self._bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser stopped at."""
        if self._open and self._bytes > self.head_bytes_max:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            super().send_400_response(msg)

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
        if self.cycle is None or self.cycle.response_complete:
            head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode())
        self.transport.close()


class DrainingServer(uvicorn.Server):
    """Tells `on_stop` as soon as it was told to stop, and only then waits for the requests under way."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        self._on_stop()
        await super().shutdown(sockets)
