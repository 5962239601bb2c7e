"""Sizes the calls of a model, in passages. Pure: no clock, no I/O.

A call that its server cannot complete within the deadline is lost whole. On a slow or busy machine,
calls of a fixed size would all be lost. A long call halves the size of the next one; a short call
doubles it.
"""

from typing import Final

LONG_S: Final = 15.0
"""A call of at least this many seconds is long; it is a quarter of a call's timeout."""
SHORT_S: Final = 3.0


class BatchSizer:
    """Sizes of calls, by model; at most `most`. Safe for many threads.

    Among concurrent calls, none reverts the adjustment of another.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._sizes: dict[str, int] = {}

    def size(self, model: str) -> int:
        """Returns the number of passages for the model's next call."""
        return self._sizes.get(model, self._most)

    def took(self, model: str, n: int, seconds: float) -> None:
        """Records a completed call of `n` passages, and adjusts the size."""
        if seconds >= LONG_S:
            self.late(model, n)
        elif seconds <= SHORT_S and n == self.size(model):
            self._sizes[model] = min(2 * n, self._most)

    def late(self, model: str, n: int) -> None:
        """Records a call of `n` passages that was not completed in time; halves the size."""
        self._sizes[model] = min(self.size(model), max(1, n // 2))
