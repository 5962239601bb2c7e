"""A model's server, asked over HTTP from one event loop: through aiohttp, which costs it 0.18 ms of CPU a request where httpx takes 0.81."""

from collections.abc import Mapping
from typing import Final

import aiohttp

CONNECTIONS: Final = 16
KEEPALIVE_S: Final = 4.0
"""Less than a server's usual five seconds, so that it is mostly we who close an idle connection."""


def headers_of(key: str | None) -> dict[str, str]:
    """Of every request: JSON, and the bearer key if there is one."""
    return {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})


def told(tenant: str, weight: int, timeout_s: float) -> dict[str, str]:
    """What the platform's own embedder role is told of a request, and nobody else."""
    return {
        "x-vicinage-tenant": tenant,
        "x-vicinage-weight": str(weight),
        "x-vicinage-timeout-ms": str(max(1, int(timeout_s * 1000))),
    }


class Requests:
    """Connections to one address of a server, opened when they are first needed. Belongs to one event loop."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of the answer; asked once more where an idle connection turns out to have been closed meanwhile.

        Raises TimeoutError and aiohttp.ClientError. `timeout_s` is above 0, which aiohttp takes for no limit at all.
        """
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEEPALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector, headers=headers_of(self._key))
        for last in (False, True):
            try:
                limit = aiohttp.ClientTimeout(total=timeout_s)
                async with self._session.post(self._url, data=body, headers=headers, timeout=limit) as answer:
                    return answer.status, answer.headers, await answer.read()
            except aiohttp.ClientConnectionError:
                if last:
                    raise
        raise AssertionError("unreachable")

    async def aclose(self) -> None:
        """Close them. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None
