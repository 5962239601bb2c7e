"""Requests of the local embedder, and the model calls that serve them."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ingest.embedding.batcher import Item
from ingest.embedding.model_input import mean_of_windows
from ingest.embedding.model_worker import settle
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded
from vicinage.records import Floats

PADDING_TOKENS: Final = 40
"""Tokens of padding that never split a call.

Computing them takes about as long as the fixed part of another call.
"""


@dataclass(slots=True)
class EmbedRequest:
    """Texts of one caller; done when every row is embedded.

    `vectors` is float32 [rows, d]. A text has one row, or several if it is longer than the window.
    `windows[i]` has the number of tokens of each row of text i. `n_left` counts the rows that are
    not embedded yet.
    """

    vectors: Floats
    n_left: int
    deadline: Deadline | None
    windows: Sequence[Sequence[int]] = ()
    normalized: bool = True
    done: Future[Floats] = field(default_factory=Future)

    def text_of(self, row: int) -> int:
        """Returns the text that a row belongs to."""
        ends = np.cumsum([len(each) for each in self.windows])
        return int(np.searchsorted(ends, row, side="right"))

    def is_late(self) -> bool:
        """Returns whether the deadline passed."""
        return self.deadline is not None and self.deadline.passed()

    def set_row(self, row: int, vector: Floats) -> None:
        """Stores the vector of a row; the last one completes the request."""
        self.vectors[row] = vector
        self.n_left -= 1
        if self.n_left == 0:
            self.finish()

    def finish(self) -> None:
        """Completes the request with its vectors."""
        settle(self.done, mean_of_windows(self.vectors, self.windows, normalized=self.normalized))


@dataclass(frozen=True, slots=True)
class Pending:
    """A request in progress: the future of its vectors, and its tokens, special ones included."""

    vectors: Future[Floats]
    tokens: int


def still_pending(items: list[Item]) -> list[Item]:
    """Returns the items of pending requests; fails requests whose deadline passed."""
    for item in items:
        if item.request.is_late():
            settle(
                item.request.done,
                DeadlineExceeded("the deadline passed in the queue", dependency="embedder"),
            )
    return [item for item in items if not item.request.done.done()]


def split_calls(items: list[Item], pad_share: float) -> list[list[Item]]:
    """Splits items, ordered by length, into model calls without too much padding.

    A call is split if padding exceeds both `pad_share` and PADDING_TOKENS.
    """
    calls: list[list[Item]] = []
    tokens = 0
    for item in items:
        n = len(item.tokens)
        padded = n * (len(calls[-1]) + 1) if calls else 0
        if calls and padded <= max(pad_share * (tokens + n), tokens + n + PADDING_TOKENS):
            calls[-1].append(item)
            tokens += n
        else:
            calls.append([item])
            tokens = n
    return calls
