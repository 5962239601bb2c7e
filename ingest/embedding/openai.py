"""A client of any server that speaks the OpenAI embeddings API; our own embedder role is one."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import numpy as np
import orjson

from ingest.embedding import Lane
from tenants.entities import EmbeddingModel
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Overloaded, Refused, Unavailable
from vicinage.records import Floats

INPUTS_MAX: Final = 2_048
"""What the API takes in one request."""


class OpenAIEmbedder:
    """One model behind HTTP. Safe for many threads; `embed_async` belongs to one event loop."""

    def __init__(self, entry: EmbeddingModel, *, base_url: str, key: str | None, timeout_s: float) -> None:
        self._entry = entry
        self._url = f"{base_url.rstrip('/')}/embeddings"
        self._timeout_s = timeout_s
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._http = httpx.Client(headers=headers, timeout=timeout_s, trust_env=False)
        self._headers = headers
        self._async: httpx.AsyncClient | None = None

    @property
    def model(self) -> str:
        """Its name in the registry."""
        return self._entry.name

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._entry.dimension

    @property
    def window_tokens(self) -> int:
        """Longest text, special tokens not counted."""
        return self._entry.window_tokens - 2

    def embed(
        self,
        texts: Sequence[str],
        *,
        tenant: str,
        lane: Lane = Lane.DOCUMENT,
        weight: int = 1,
        deadline: Deadline | None = None,
    ) -> Floats:
        """See Embedder."""
        parts = []
        for i in range(0, len(texts), INPUTS_MAX):
            body, headers, timeout = self._request(texts[i : i + INPUTS_MAX], tenant, lane, weight, deadline)
            try:
                response = self._http.post(self._url, content=body, headers=headers, timeout=timeout)
            except httpx.HTTPError as error:
                raise _away(error) from error
            parts.append(self._vectors(response))
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    async def embed_async(
        self,
        texts: Sequence[str],
        *,
        tenant: str,
        lane: Lane = Lane.QUERY,
        weight: int = 1,
        deadline: Deadline | None = None,
    ) -> Floats:
        """The same without blocking the event loop; at most INPUTS_MAX texts."""
        if self._async is None:
            self._async = httpx.AsyncClient(headers=self._headers, timeout=self._timeout_s, trust_env=False)
        body, headers, timeout = self._request(texts, tenant, lane, weight, deadline)
        try:
            response = await self._async.post(self._url, content=body, headers=headers, timeout=timeout)
        except httpx.HTTPError as error:
            raise _away(error) from error
        return self._vectors(response)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._http.close()

    async def aclose(self) -> None:
        """Close the asynchronous ones too. Idempotent."""
        self.close()
        if self._async is not None:
            await self._async.aclose()
            self._async = None

    def _request(
        self, texts: Sequence[str], tenant: str, lane: Lane, weight: int, deadline: Deadline | None
    ) -> tuple[bytes, Mapping[str, str], float]:
        timeout = min(self._timeout_s, deadline.left_s()) if deadline else self._timeout_s
        if timeout <= 0:
            raise DeadlineExceeded("the deadline passed before the text was embedded", dependency="embedder")
        headers = {
            "x-vicinage-tenant": tenant,
            "x-vicinage-lane": lane.value,
            "x-vicinage-weight": str(weight),
            "x-vicinage-timeout-ms": str(int(timeout * 1000)),
        }
        body = orjson.dumps({"model": self._entry.name, "input": list(texts), "encoding_format": "base64"})
        return body, headers, timeout

    def _vectors(self, response: httpx.Response) -> Floats:
        if response.status_code != httpx.codes.OK:
            raise _refusal(response)
        data: list[dict[str, Any]] = sorted(orjson.loads(response.content)["data"], key=lambda d: int(d["index"]))
        rows = [_floats(d["embedding"]) for d in data]
        vectors: Floats = np.stack(rows)
        if vectors.shape[1] != self.dimension:
            raise Unavailable(
                f"{self._url} answered dimension {vectors.shape[1]}, not {self.dimension}", dependency="embedder"
            )
        return vectors


def _floats(embedding: str | list[float]) -> Floats:
    if isinstance(embedding, str):
        decoded: Floats = np.frombuffer(base64.b64decode(embedding), dtype="<f4")
        return decoded
    return np.asarray(embedding, np.float32)


def _away(error: httpx.HTTPError) -> Unavailable:
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded("the embedder did not answer in time", dependency="embedder")
    return Unavailable(f"the embedder is away: {error or type(error).__name__}", dependency="embedder")


def _refusal(response: httpx.Response) -> Exception:
    try:
        said = str(orjson.loads(response.content)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        said = response.text[:200]
    retry = float(response.headers.get("retry-after", "1") or 1)
    match response.status_code:
        case 429:
            return Overloaded(said, retry_after_s=retry)
        case 400 | 413 | 422:
            return Refused(said, field="text")
        case 504:
            return DeadlineExceeded(said, dependency="embedder")
        case _:
            return Unavailable(
                f"the embedder answered {response.status_code}: {said}", dependency="embedder", retry_after_s=retry
            )
