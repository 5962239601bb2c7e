"""The connection of operator commands: HTTP to /v1/admin.

It goes to a running platform, or to the same app in this process.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

import httpx2

from cluster import local
from cluster.configuration import load, usable_data
from cluster.identity import check_identity
from vicinage.errors import Refused, Unavailable, VicinageError

TIMEOUT_S: Final = 330.0
"""Long enough to register a local model, which loads it."""


class Answered(VicinageError):
    """The platform's refusal, from its problem document."""

    def __init__(self, body: dict[str, Any]) -> None:
        field = f" (field {body['field']})" if "field" in body else ""
        super().__init__(f"{body.get('title', 'Refused')}: {body.get('detail', '')}{field}")
        self.body = body


class Operator:
    """Calls /v1/admin at `url` with `key`, else of the platform on `data`, else in this process."""

    def __init__(self, data: Path, url: str | None, key: str | None) -> None:
        self._data = data.absolute()
        state = local.running(self._data)
        local_url = state["url"] if state else None
        self._url = url.rstrip("/") if url else local_url
        self._key = key
        self._renews = False
        """The key is that of DATA's operator: it is replaced if it was revoked."""
        if self._url and not key:
            self._renews = self._url == local_url
            self._key = self._local_key() if self._renews else None
            if self._key is None and self._url != local_url:
                raise Refused(
                    f"no key for {self._url}: give its operator key with --key or VICINAGE_KEY",
                    field="key",
                )

    def _local_key(self) -> str | None:
        """Returns the operator key of the platform on DATA, which is sent only to that platform."""
        path = self._data / "run" / "operator.key"
        return path.read_text().strip() if path.exists() else None

    @property
    def live(self) -> bool:
        """Whether calls go to a running platform."""
        return self._url is not None

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Returns the answer's JSON. Raises Answered, or Unavailable if no platform answers."""
        response = (
            self._remote(method, path, body)
            if self._url
            else asyncio.run(self._inside(method, path, body))
        )
        if response.status_code == httpx2.codes.UNAUTHORIZED and self._renews:
            self._renews = False
            local.renew_operator_key(load(data=self._data))
            self._key = self._local_key()
            return self.call(method, path, body)
        try:
            value = response.json()
        except ValueError:
            raise Unavailable(
                f"the server at {self._url} is not a Vicinage platform (status"
                f" {response.status_code}, no JSON): see --url",
                dependency="gateway",
            ) from None
        if response.status_code >= httpx2.codes.BAD_REQUEST:
            raise Answered(value)
        return value

    def _remote(self, method: str, path: str, body: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            return httpx2.request(
                method,
                f"{self._url}/v1/admin{path}",
                json=body,
                headers=headers,
                timeout=TIMEOUT_S,
                trust_env=False,
            )
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"no platform answers at {self._url} ({error}): see `vicinage status`",
                dependency="gateway",
            ) from error

    async def _inside(self, method: str, path: str, body: Any) -> httpx2.Response:
        from cluster.wiring import build_gateway, open_resources

        settings = load(data=self._data)
        usable_data(self._data)
        check_identity(settings)
        resources = open_resources(settings, audit_key_optional=True)
        try:
            app = build_gateway(resources, [], embedder_key=None, local_operator=True)
            async with httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app), base_url="http://vicinage"
            ) as http:
                return await http.request(method, f"/v1/admin{path}", json=body)
        finally:
            resources.close()
