"""The offsets of rows that the tail skipped because their shard was not in memory.

Not thread-safe: `Tail` guards it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from vicinage.records import ShardId

OFFSETS_MAX: Final = 200_000
"""Maximum offsets kept per slot: 16 MB.

Beyond it, all offsets of the slot are dropped, and a shard that joins reads every record instead.
"""


class Skipped(NamedTuple):
    """The number of skipped rows of a shard, and the offset of the last (-1 without any)."""

    n_rows: int
    last: int


NONE_SKIPPED: Final = Skipped(0, -1)


class SkippedRows:
    """Ascending offsets of each shard's rows, complete from an offset per slot (`start`)."""

    def __init__(self, offsets_max: int = OFFSETS_MAX) -> None:
        self._offsets_max = offsets_max
        self._offsets: dict[ShardId, list[int]] = {}
        self._counts: Counter[int] = Counter()
        """Slot → number of its offsets."""
        self._starts: dict[int, int] = {}
        """Slot → the offset from which all rows that no segment has are kept."""

    def reset(self, starts: Mapping[int, int]) -> None:
        """Drops all offsets; from `starts` on, rows are added."""
        self._offsets.clear()
        self._counts.clear()
        self._starts = dict(starts)

    def start(self, slot: int, default: int) -> int:
        """Returns the offset from which the rows of the slot are kept."""
        return self._starts.get(slot, default)

    def add(self, shard: ShardId, offset: int) -> None:
        """Adds an offset higher than those before."""
        self._offsets.setdefault(shard, []).append(offset)
        self._counts[shard.slot] += 1

    def replace(self, shard: ShardId, offsets: list[int]) -> None:
        """Replaces the shard's offsets by these."""
        self.drop(shard)
        if offsets:
            self._offsets[shard] = offsets
            self._counts[shard.slot] += len(offsets)

    def drop_below(self, shard: ShardId, offset: int) -> None:
        """Drops the shard's offsets below `offset`: segments have those rows."""
        if shard in self._offsets:
            self.replace(shard, [at for at in self._offsets[shard] if at >= offset])

    def drop(self, shard: ShardId) -> None:
        """Drops the shard's offsets: it is in memory, or no longer served."""
        self._counts[shard.slot] -= len(self._offsets.pop(shard, ()))

    def drop_where(self, condition: Callable[[ShardId], bool]) -> None:
        """Drops the offsets of all shards for which `condition` is true."""
        for shard in [s for s in self._offsets if condition(s)]:
            self.drop(shard)

    def enforce_bound(self, watermarks: Mapping[int, int]) -> None:
        """Drops all offsets of slots that have too many; their rows are kept from the watermark on.

        No row from the watermark on may have been added: it would be lost.
        """
        for slot in [slot for slot, n in self._counts.items() if n > self._offsets_max]:
            self.drop_where(lambda shard, slot=slot: shard.slot == slot)  # type: ignore[misc]
            self._starts[slot] = watermarks[slot]

    def offsets(self, shard: ShardId) -> tuple[int, ...]:
        """Returns a copy of the shard's offsets."""
        return tuple(self._offsets.get(shard, ()))

    def summary(self, shard: ShardId) -> Skipped:
        """Returns the number of the shard's offsets, and the last one."""
        offsets = self._offsets.get(shard)
        return Skipped(len(offsets), offsets[-1]) if offsets else NONE_SKIPPED
