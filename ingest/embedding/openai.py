"""A client of any server with the OpenAI embeddings API, such as the platform's embedder role.

Threads use httpx2; the gateway's event loop uses `http_client.py`.
"""

import base64
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Final

import aiohttp
import httpx2
import numpy as np
import orjson

from ingest.embedding import Lane, ServerFailed
from ingest.embedding.http_client import Requests, embedder_headers, headers_of
from tenants.entities import EmbeddingModel
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Overloaded, Refused, Unavailable
from vicinage.records import Floats
from vicinage.tenant_context import TenantContext

INPUTS_MAX: Final = 2_048
"""Texts that the API takes in one request."""
RETRY_S_MAX: Final = 60.0


class OpenAIEmbedder:
    """One model behind HTTP. Safe for many threads; `embed_async` belongs to one event loop.

    `ours`: the server is the platform's embedder role. Only this role gets the tenant, lane, weight
    and deadline.
    """

    def __init__(
        self,
        entry: EmbeddingModel,
        *,
        base_url: str,
        key: str | None,
        timeout_s: float,
        ours: bool = False,
    ) -> None:
        self._entry = entry
        self._ours = ours
        self._url = f"{base_url.rstrip('/')}/embeddings"
        self._timeout_s = timeout_s
        self._http = httpx2.Client(headers=headers_of(key), timeout=timeout_s, trust_env=False)
        self._requests = Requests(self._url, key)

    @property
    def model(self) -> str:
        """The model's name in the registry."""
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
        tenant: TenantContext,
        lane: Lane = Lane.DOCUMENT,
        deadline: Deadline | None = None,
    ) -> Floats:
        """See Embedder."""
        parts = []
        for i in range(0, len(texts), INPUTS_MAX):
            body, headers, timeout = self._request(
                texts[i : i + INPUTS_MAX], tenant, lane, deadline
            )
            try:
                response = self._http.post(
                    self._url, content=body, headers=headers, timeout=timeout
                )
            except httpx2.TimeoutException as error:
                raise DeadlineExceeded(
                    "the embedder did not respond in time", dependency="embedder"
                ) from error
            except httpx2.HTTPError as error:
                raise self._unreachable(error) from error
            n = len(texts[i : i + INPUTS_MAX])
            parts.append(self._vectors(response.status_code, response.headers, response.content, n))
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    async def embed_async(
        self,
        texts: Sequence[str],
        *,
        tenant: TenantContext,
        lane: Lane = Lane.QUERY,
        deadline: Deadline | None = None,
    ) -> Floats:
        """Embeds as `embed` does, without blocking the event loop; at most INPUTS_MAX texts."""
        assert len(texts) <= INPUTS_MAX
        body, headers, timeout = self._request(texts, tenant, lane, deadline)
        try:
            status, response_headers, content = await self._requests.post(body, headers, timeout)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the embedder did not respond in time", dependency="embedder"
            ) from error
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error
        return self._vectors(status, response_headers, content, len(texts))

    def close(self) -> None:
        """Closes the synchronous connections. Idempotent."""
        self._http.close()

    async def aclose(self) -> None:
        """Closes the synchronous and the asynchronous connections. Idempotent."""
        self.close()
        await self._requests.aclose()

    def _request(
        self, texts: Sequence[str], tenant: TenantContext, lane: Lane, deadline: Deadline | None
    ) -> tuple[bytes, Mapping[str, str], float]:
        timeout = min(self._timeout_s, deadline.left_s()) if deadline else self._timeout_s
        if timeout <= 0:
            raise DeadlineExceeded(
                "the deadline passed before the text was embedded", dependency="embedder"
            )
        # The embedder role adds the prompts of its models; another server gets them in the text.
        before = self._entry.query_prompt if lane is Lane.QUERY else self._entry.document_prompt
        sent = list(texts) if self._ours or not before else [before + text for text in texts]
        body = orjson.dumps({"model": self._entry.name, "input": sent, "encoding_format": "base64"})
        if not self._ours:
            return body, {}, timeout
        return body, embedder_headers(tenant, timeout) | {"x-vicinage-lane": lane.value}, timeout

    def _vectors(self, status: int, headers: Mapping[str, str], content: bytes, n: int) -> Floats:
        """Returns the n vectors of a response.

        Raises the error for the response's status. An invalid response with status 200 raises
        Unavailable, because the server is at fault, not the texts.
        """
        if status != httpx2.codes.OK:
            raise self._refusal(status, headers.get("retry-after"), content)
        try:
            data = sorted(orjson.loads(content)["data"], key=itemgetter("index"))
            vectors = np.stack([_floats(d["embedding"]) for d in data])
        except (ValueError, KeyError, TypeError) as error:
            raise self._invalid(f"returned no embeddings: {error!r}") from error
        if vectors.shape != (n, self.dimension) or not np.isfinite(vectors).all():
            raise self._invalid(
                f"returned {vectors.shape[0]} vectors of dimension {vectors.shape[-1]}; "
                f"{n} finite vectors of dimension {self.dimension} were requested"
            )
        return vectors if self._ours or not self._entry.normalized else _unit_length(vectors)

    def _unreachable(self, error: Exception) -> Unavailable:
        """Returns the error of a server that cannot be reached.

        The server's address and the cause are for operators; a tenant sees only the model's name.
        """
        return Unavailable(
            f"the embedding model {self.model} is unavailable",
            dependency="embedder",
            operator_detail=f"{self._url}: {error or type(error).__name__}",
        )

    def _invalid(self, what: str) -> Unavailable:
        return Unavailable(
            f"the server of the embedding model {self.model} returned an invalid response",
            dependency="embedder",
            operator_detail=f"{self._url} {what}",
        )

    def _refusal(self, status: int, retry_after: str | None, content: bytes) -> Exception:
        message, param = _error_of(content)
        retry_s = _retry_s(retry_after)
        match status:
            case 429:
                return Overloaded(
                    message if self._ours else f"the embedding model {self.model} is overloaded",
                    retry_after_s=retry_s,
                )
            case 400 | 413 | 422 if param != "model":
                return Refused(message, field=param or "text")
            case 504:
                return DeadlineExceeded(
                    "the embedder did not respond in time", dependency="embedder"
                )
            case _:
                kind = ServerFailed if status == httpx2.codes.INTERNAL_SERVER_ERROR else Unavailable
                return kind(
                    f"the embedding model {self.model} is unavailable",
                    dependency="embedder",
                    retry_after_s=retry_s,
                    operator_detail=f"{self._url} returned {status}: {message}",
                )


def _unit_length(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _floats(embedding: str | list[float]) -> Floats:
    if isinstance(embedding, str):
        decoded: Floats = np.frombuffer(base64.b64decode(embedding), dtype="<f4")
        return decoded
    return np.asarray(embedding, np.float32)


def _error_of(content: bytes) -> tuple[str, str | None]:
    """Returns the message and the parameter of an error in the API's form.

    Returns the beginning of the content if it has another form.
    """
    try:
        error = orjson.loads(content)["error"]
        return str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return content[:200].decode(errors="replace"), None


def _retry_s(header: str | None) -> float:
    """Returns the seconds of a Retry-After, at most RETRY_S_MAX; a date counts as one second."""
    try:
        return min(RETRY_S_MAX, max(0.0, float(header or 1)))
    except ValueError:
        return 1.0
