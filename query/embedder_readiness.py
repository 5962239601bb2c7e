"""Asks over one persistent connection whether the embedder is ready."""

from typing import Final

import httpx2

ANSWER_S: Final = 2.0


class EmbedderReadiness:
    """A readiness check of the embedder. Belongs to one event loop."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/readyz"
        self._http: httpx2.AsyncClient | None = None

    async def ready(self) -> bool:
        """Returns whether the embedder is ready; False if it does not answer within ANSWER_S."""
        if self._http is None:
            self._http = httpx2.AsyncClient(
                timeout=ANSWER_S,
                trust_env=False,
                limits=httpx2.Limits(max_connections=2, max_keepalive_connections=1),
            )
        try:
            answer = await self._http.get(self._url)
        except httpx2.HTTPError:
            return False
        return answer.status_code == httpx2.codes.OK

    async def aclose(self) -> None:
        """Closes the connection. Idempotent."""
        if self._http is not None:
            await self._http.aclose()
