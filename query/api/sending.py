"""Writes and sends large answers in slices; the tenant's account holds their bytes until then.

`cluster/connections.py` bounds how long a client may take.
"""

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from query.admission import Permit

SLICE_BYTES: Final = 256 << 10
"""Bytes of an answer that are written or sent at once: a millisecond of the event loop."""
JSON: Final = "application/json"


async def joined(pieces: Iterable[bytes], *, first: bytes, last: bytes) -> memoryview:
    """Returns the pieces, joined by commas, between `first` and `last`.

    Other requests run between slices of SLICE_BYTES. Keeps no piece in addition to the result.
    """
    made, size = bytearray(first), 0
    for i, piece in enumerate(pieces):
        if i:
            made += b","
        made += piece
        size += len(piece)
        if size > SLICE_BYTES:
            size = 0
            await asyncio.sleep(0)
    made += last
    return memoryview(made)


def sent(data: bytes | memoryview, permit: Permit, held: ExitStack) -> Response:
    """Returns the response of a request that holds `permit` by `held`.

    A large response releases the permit, and holds its bytes until the client has read them or has
    disconnected. Raises Overloaded if the tenant's unread answers exceed its share.
    """
    if len(data) <= SLICE_BYTES:
        return Response(bytes(data), media_type=JSON)
    permit.hold_answer(len(data))
    permit.leave()
    return _Slices(data, held.pop_all())


class _Slices(Response):
    """Sends a body slice by slice, each after the client took most of the previous one."""

    def __init__(self, data: bytes | memoryview, held: ExitStack) -> None:
        super().__init__(data, media_type=JSON)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (as ASGI has it)
        """Sends it."""
        with self._held:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            view = memoryview(self.body)
            for at in range(0, len(view), SLICE_BYTES):
                more = at + SLICE_BYTES < len(view)
                await send(
                    {
                        "type": "http.response.body",
                        "body": bytes(view[at : at + SLICE_BYTES]),
                        "more_body": more,
                    }
                )
