"""Texts to vectors: one protocol, local or remote."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from vicinage.clock import Deadline
from vicinage.records import Floats


class Lane(StrEnum):
    """Which queue a text waits in: questions go before documents."""

    QUERY = "query"
    DOCUMENT = "document"


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

        Raises Overloaded when its queue is full, Unavailable when it is away, DeadlineExceeded, and Refused (naming
        the text's number) for a text over the window: it never truncates.
        """
        ...

    def close(self) -> None:
        """Free what it holds. Idempotent."""
        ...
