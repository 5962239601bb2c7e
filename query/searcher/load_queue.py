"""Which shard is loaded next. Pure: no clock, no I/O; the shard table's lock guards it.

Law 7: of shards that searches wait for, the one whose tenant has had its turn longest ago comes first, and a tenant without a
load under way before one with.
"""

from collections.abc import Collection, Iterable

from vicinage.records import ShardId


class LoadQueue:
    """Shards to be loaded, or brought up to their manifest, and when (monotonic seconds), oldest first."""

    def __init__(self) -> None:
        self.due: dict[ShardId, float] = {}
        self.loading: set[ShardId] = set()
        """Those that a thread is loading."""
        self._turn = 0
        self._turns: dict[str, int] = {}
        """When each tenant that waits had its last turn, as a number that rises."""

    def want(self, shard: ShardId) -> None:
        """Has it loaded now, unless it is queued already."""
        self.due.setdefault(shard, 0.0)

    def at(self, shard: ShardId, when: float = 0.0) -> None:
        """Has it loaded from `when` on; a place in the queue is kept."""
        self.due[shard] = when

    def drop(self, shard: ShardId) -> None:
        """Has it loaded no more."""
        self.due.pop(shard, None)

    def take(self, waited_for: Iterable[ShardId], unwell: Collection[ShardId], now: float) -> ShardId | None:
        """Returns the shard to load now; the caller must say `done`. Shards that are `unwell` are not hurried by waits."""
        found = self._wanted(waited_for, unwell)
        if found is None:
            self._turns.clear()
            found = next((s for s, at in self.due.items() if at <= now and s not in self.loading), None)
        if found is not None:
            self.loading.add(found)
        return found

    def _wanted(self, waited_for: Iterable[ShardId], unwell: Collection[ShardId]) -> ShardId | None:
        wanted = [s for s in waited_for if s in self.due and s not in unwell and s not in self.loading]
        if not wanted:
            return None
        busy = {s.tenant for s in self.loading}
        found = min(wanted, key=lambda s: (s.tenant in busy, self._turns.get(s.tenant, 0)))
        self._turns[found.tenant] = self._turn = self._turn + 1
        return found

    def done(self, shard: ShardId) -> None:
        """Its load ended, well or not."""
        self.loading.discard(shard)
