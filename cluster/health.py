"""The listener for health and metrics.

It has its own port and thread, so that it and the API do not delay each other.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from cluster.descriptors import HEALTH
from vicinage.metrics import metrics_text
from vicinage.telemetry import events
from vicinage.threads import EssentialThread

ANSWER_S: Final = 6.0
"""Time for the role to report whether it is ready; after that, it counts as not ready."""
Ready = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]
_event = events("cluster")


async def alive() -> tuple[bool, dict[str, Any]]:
    """Returns True: a running role is ready, because the death of an essential thread ends it."""
    return True, {}


def serve_health(host: str, port: int, ready: Ready = alive) -> None:
    """Serves /healthz, /readyz and /metrics of this process; returns at once.

    If the port is taken, writes an event and serves nothing. A connection beyond the bound replaces
    the one that has been idle longest.
    """
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        _event.error("health.not_served", host=host, port=port, error=str(error))
        return
    EssentialThread("health", lambda: _serve(listener, ready)).start()


def _serve(listener: socket.socket, ready: Ready) -> None:
    import uvicorn

    from cluster.connections import bounded

    config = uvicorn.Config(
        _App(ready),
        http=bounded(HEALTH),
        ws="none",
        lifespan="off",
        backlog=HEALTH,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])


class _App:
    """The ASGI app of the three paths."""

    def __init__(self, ready: Ready) -> None:
        self._ready = ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        status, kind, body = await self._answer(scope["path"])
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, path: str) -> tuple[int, bytes, bytes]:
        import orjson

        json = b"application/json"
        match path:
            case "/healthz":
                return 200, json, b'{"status":"ok"}'
            case "/metrics":
                return 200, b"text/plain; version=0.0.4", await asyncio.to_thread(metrics_text)
            case "/readyz":
                try:
                    ready, parts = await asyncio.wait_for(self._ready(), ANSWER_S)
                except TimeoutError:
                    ready, parts = False, {}
                return (200 if ready else 503), json, orjson.dumps({"ready": ready, "parts": parts})
            case _:
                return 404, json, b'{"title":"no such path"}'
