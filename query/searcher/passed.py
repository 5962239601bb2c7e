"""Where the rows stand that passed by in the log while their shard was not in memory.

Not safe for many threads: `Tail` guards it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from vicinage.records import ShardId

NOTED_MAX: Final = 200_000
"""Offsets noted of one slot at most: 16 MB.

Beyond, none is noted, and a shard that joins reads every record instead.
"""
Noted = tuple[int, int]
"""How many rows of a shard were noted as they passed by, and the offset of the last; (0, -1) without any."""


class Passed:
    """Of shards that are not in memory: the offsets of their rows, rising, from where the slot began on."""

    def __init__(self, noted_max: int = NOTED_MAX) -> None:
        self._noted_max = noted_max
        self._offsets: dict[ShardId, list[int]] = {}
        self._counts: Counter[int] = Counter()
        """Slot → offsets noted of it."""
        self._begun: dict[int, int] = {}
        """Slot → the offset from which on all were noted that no segment has."""

    def begin(self, starts: Mapping[int, int]) -> None:
        """Forgets everything; from these offsets on, rows are noted."""
        self._offsets.clear()
        self._counts.clear()
        self._begun = dict(starts)

    def begun(self, slot: int, default: int) -> int:
        """Returns the offset from which on the rows of the slot are noted."""
        return self._begun.get(slot, default)

    def add(self, shard: ShardId, offset: int) -> None:
        """Notes one more, higher than those before."""
        self._offsets.setdefault(shard, []).append(offset)
        self._counts[shard.slot] += 1

    def put(self, shard: ShardId, offsets: list[int]) -> None:
        """Notes these in the place of what was noted."""
        self.forget(shard)
        if offsets:
            self._offsets[shard] = offsets
            self._counts[shard.slot] += len(offsets)

    def sealed(self, shard: ShardId, below: int) -> None:
        """Forgets what is below that offset: segments have it."""
        if shard in self._offsets:
            self.put(shard, [at for at in self._offsets[shard] if at >= below])

    def forget(self, shard: ShardId) -> None:
        """Forgets what was noted of the shard: it is in memory, or no longer served."""
        self._counts[shard.slot] -= len(self._offsets.pop(shard, ()))

    def forget_where(self, is_over: Callable[[ShardId], bool]) -> None:
        """Forgets shards that are over."""
        for shard in [s for s in self._offsets if is_over(s)]:
            self.forget(shard)

    def bound(self, watermarks: Mapping[int, int]) -> None:
        """Forgets slots of which too much is noted: their rows are noted from the watermark on.

        Call it with nothing noted from the watermark on: that would be lost.
        """
        for slot in [slot for slot, n in self._counts.items() if n > self._noted_max]:
            self.forget_where(lambda shard, slot=slot: shard.slot == slot)  # type: ignore[misc]
            self._begun[slot] = watermarks[slot]

    def of(self, shard: ShardId) -> Iterable[int]:
        """Returns the offsets of the shard's rows, as of now."""
        return tuple(self._offsets.get(shard, ()))

    def noted(self, shard: ShardId) -> Noted:
        """Returns what was noted of the shard."""
        offsets = self._offsets.get(shard)
        return (len(offsets), offsets[-1]) if offsets else (0, -1)
