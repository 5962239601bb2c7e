"""Which shard is loaded next. Pure: no clock, no I/O; the shard table's lock guards it.

Guarantee 7: among shards that searches wait for, tenants without a running load come first. Among
those, the tenant whose last turn is oldest comes first.
"""

from collections.abc import Collection, Iterable

from vicinage.records import ShardId


class LoadQueue:
    """Shards to load or update, and their due times (monotonic seconds), in queue order."""

    def __init__(self) -> None:
        self.due: dict[ShardId, float] = {}
        self.loading: set[ShardId] = set()
        """Shards that a thread is loading."""
        self._turn = 0
        self._turns: dict[str, int] = {}
        """Waiting tenant → an increasing number of its last turn."""

    def add(self, shard: ShardId) -> None:
        """Queues the shard to load now, unless it is queued already."""
        self.due.setdefault(shard, 0.0)

    def schedule(self, shard: ShardId, when: float = 0.0) -> None:
        """Queues the shard to load from `when` on; a queued shard keeps its position."""
        self.due[shard] = when

    def remove(self, shard: ShardId) -> None:
        """Removes the shard from the queue."""
        self.due.pop(shard, None)

    def take(
        self, waited_for: Iterable[ShardId], backing_off: Collection[ShardId], now: float
    ) -> ShardId | None:
        """Returns the shard to load now, or None; the caller must call `done`.

        Waits do not shorten the backoff of `backing_off` shards.
        """
        found = self._wanted(waited_for, backing_off)
        if found is None:
            self._turns.clear()
            found = next(
                (s for s, at in self.due.items() if at <= now and s not in self.loading), None
            )
        if found is not None:
            self.loading.add(found)
        return found

    def _wanted(
        self, waited_for: Iterable[ShardId], backing_off: Collection[ShardId]
    ) -> ShardId | None:
        wanted = [
            s
            for s in waited_for
            if s in self.due and s not in backing_off and s not in self.loading
        ]
        if not wanted:
            return None
        busy = {s.tenant for s in self.loading}
        found = min(wanted, key=lambda s: (s.tenant in busy, self._turns.get(s.tenant, 0)))
        self._turns[found.tenant] = self._turn = self._turn + 1
        return found

    def done(self, shard: ShardId) -> None:
        """Marks the shard's load as ended, successful or not."""
        self.loading.discard(shard)
