"""Embeds texts: one protocol for local and remote models."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from tenants.entities import EmbeddingModel
from vicinage.clock import Deadline
from vicinage.errors import Refused, Unavailable
from vicinage.records import Floats
from vicinage.tenant_context import TenantContext


class Lane(StrEnum):
    """The queue that a text waits in: query texts are embedded before documents."""

    QUERY = "query"
    DOCUMENT = "document"


class ServerFailed(Unavailable):
    """The server returned 500: the server is at fault, or it fails on one of these texts."""


class Embedder(Protocol):
    """One embedding model. Safe for many threads."""

    @property
    def model(self) -> str:
        """Name of the model in the registry."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    @property
    def window_tokens(self) -> int:
        """Longest text that the model takes, in its own tokens (special tokens not counted)."""
        ...

    def embed(
        self,
        texts: Sequence[str],
        *,
        tenant: TenantContext,
        lane: Lane = Lane.DOCUMENT,
        deadline: Deadline | None = None,
    ) -> Floats:
        """Returns float32 [n, d] in the order of `texts`, L2-normalized if the model normalizes.

        Raises Overloaded if its queue is full, and DeadlineExceeded. Raises Unavailable if the
        server is down, ServerFailed if the server returned 500. Raises Refused (field
        `input.<number>`) for a text over the window: it never truncates.
        """
        ...

    def close(self) -> None:
        """Releases its resources. Idempotent."""
        ...


def open_embedder(
    model: EmbeddingModel,
    *,
    url: str,
    key: str | None = None,
    model_key: str | None = None,
    timeout_s: float = 60.0,
) -> Embedder:
    """Returns the client of a model.

    A local model is served by the platform's embedder role at `url`, another model by its own
    server. `key` is sent to the embedder role only; `model_key` is sent to the model's own server.
    Raises Refused for an unsupported kind.
    """
    from ingest.embedding.openai import OpenAIEmbedder

    match model.kind:
        case "local":
            return OpenAIEmbedder(
                model, base_url=f"{url}/v1", key=key, timeout_s=timeout_s, ours=True
            )
        case "openai":
            return OpenAIEmbedder(
                model, base_url=model.location, key=model_key, timeout_s=timeout_s
            )
        case _:
            raise Refused(
                f"model {model.name}: kind {model.kind} is not supported yet", field="model"
            )
