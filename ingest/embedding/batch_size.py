"""How many passages a model is asked for at once. What decides: no clock, no I/O.

A call that its server cannot answer within its deadline is lost whole, and the next as large would be too: on a slow machine, or
one whose cores many want, a fixed size would come to nothing for ever. A call that took long halves the next; a short one doubles it.
"""

from typing import Final

LONG_S: Final = 15.0
"""From here on a call took long; a quarter of the time that one is given."""
SHORT_S: Final = 3.0


class BatchSizer:
    """The sizes of calls, by model; at most `most`. Safe for many threads: of calls under way at once, none undoes what another taught."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sizes: dict[str, int] = {}

    def size(self, model: str) -> int:
        """Passages for its next call."""
        return self._sizes.get(model, self._most)

    def took(self, model: str, n: int, seconds: float) -> None:
        """A call of `n` passages was answered."""
        if seconds >= LONG_S:
            self.late(model, n)
        elif seconds <= SHORT_S and n == self.size(model):
            self._sizes[model] = min(2 * n, self._most)

    def late(self, model: str, n: int) -> None:
        """A call of `n` passages was not answered in time."""
        self._sizes[model] = min(self.size(model), max(1, n // 2))
