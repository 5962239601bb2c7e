"""Texts to vectors: one protocol, local or remote."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from tenants.entities import EmbeddingModel
from vicinage.clock import Deadline
from vicinage.errors import Refused, Unavailable
from vicinage.records import Floats


class Lane(StrEnum):
    """Which queue a text waits in: questions go before documents."""

    QUERY = "query"
    DOCUMENT = "document"


class ServerFailed(Unavailable):
    """The server answered 500: it is unwell, or it fails on one of these texts."""


class Embedder(Protocol):
    """One embedding model. Safe for many threads."""

    @property
    def model(self) -> str:
        """Name of the model, as the registry has it."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    @property
    def window_tokens(self) -> int:
        """The longest text it reads, in its own tokens (special tokens not counted)."""
        ...

    def embed(
        self,
        texts: Sequence[str],
        *,
        tenant: str,
        lane: Lane = Lane.DOCUMENT,
        weight: int = 1,
        deadline: Deadline | None = None,
    ) -> Floats:
        """float32 [n, d] in the order of `texts`, L2-normalised.

        Raises Overloaded when its queue is full, Unavailable when it is away (ServerFailed where it answered 500),
        DeadlineExceeded, and Refused (field
        `input.<number>`) for a text over the window: it never truncates.
        """
        ...

    def close(self) -> None:
        """Free what it holds. Idempotent."""
        ...


def open_embedder(
    model: EmbeddingModel, *, url: str, key: str | None = None, model_key: str | None = None, timeout_s: float = 60.0
) -> Embedder:
    """The client of a model: the platform's own embedder role at `url` for local models, else the model's own server.

    `key` opens the embedder role and is shown to nobody else; `model_key` is the one for the model's own server.
    Raises Refused for a kind that is not supported.
    """
    from ingest.embedding.openai import OpenAIEmbedder

    match model.kind:
        case "local":
            return OpenAIEmbedder(model, base_url=f"{url}/v1", key=key, timeout_s=timeout_s, ours=True)
        case "openai":
            return OpenAIEmbedder(model, base_url=model.location, key=model_key, timeout_s=timeout_s)
        case _:
            raise Refused(f"model {model.name}: kind {model.kind} is not supported yet", field="model")
