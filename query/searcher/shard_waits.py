"""Searches that wait for a shard to be loaded, or for the catalog to be read."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from indexer.index.shard import Shard
from vicinage.clock import Deadline
from vicinage.errors import Overloaded, VicinageError
from vicinage.records import ShardId

NEWEST: Final = 1 << 62
"""A version that no catalog has: a search planned on it waits for the next catalog read."""

Outcome = Shard | VicinageError


@dataclass(slots=True, eq=False)
class ShardWait:
    """A search that waits for a shard and for this version of the catalog (0: already read)."""

    shard: ShardId
    catalog: int
    deadline: Deadline
    future: Future[Shard] = field(default_factory=Future)

    def is_over(self) -> bool:
        """Returns whether no result is expected any more."""
        return self.deadline.passed() or self.future.cancelled()


class ShardWaits:
    """At most `waits_max` waits; the shard table's lock guards them."""

    def __init__(self, waits_max: int) -> None:
        self._waits_max = waits_max
        self._waits: list[ShardWait] = []

    def __iter__(self) -> Iterator[ShardWait]:
        return iter(self._waits)

    def add(self, wait: ShardWait) -> None:
        """Adds a wait, and removes those that are over.

        Raises Overloaded. One tenant may have at most half of all waits, so that others find room.
        """
        self._waits = [w for w in self._waits if not w.is_over()]
        own = sum(w.shard.tenant == wait.shard.tenant for w in self._waits)
        if len(self._waits) >= self._waits_max or own >= max(1, self._waits_max // 2):
            raise Overloaded(
                "too many searches wait for their shards to be loaded", retry_after_s=1.0
            )
        self._waits.append(wait)

    def is_waited_for(self, shard: ShardId) -> bool:
        """Returns whether a search waits for the shard. Needs no lock."""
        return any(wait.shard == shard for wait in self._waits)

    def take_settled(
        self, outcome_of: Callable[[ShardWait], Outcome | None]
    ) -> list[tuple[ShardWait, Outcome]]:
        """Removes and returns the waits that have an outcome; removes those that are over."""
        settled: list[tuple[ShardWait, Outcome]] = []
        waiting: list[ShardWait] = []
        for wait in self._waits:
            outcome = outcome_of(wait)
            if outcome is not None:
                settled.append((wait, outcome))
            elif not wait.is_over():
                waiting.append(wait)
        self._waits = waiting
        return settled


def settle(settled: Iterable[tuple[ShardWait, Outcome]]) -> None:
    """Sets the futures. Call it without a lock: a callback may request a shard at once."""
    for wait, outcome in settled:
        if wait.future.set_running_or_notify_cancel():
            if isinstance(outcome, Shard):
                wait.future.set_result(outcome)
            else:
                wait.future.set_exception(outcome)
