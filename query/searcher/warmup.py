"""Warm-up: loads lexical indexes and metadata columns for filters, off the threads that search.

Only the requests that are the first to need them wait for the store, or for the read of every row's
metadata (law 7).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

from indexer.index.shard import Shard
from vicinage.errors import Overloaded, Unavailable
from vicinage.records import ShardId

THREADS: Final = 2
"""Number of warm-up threads: while one loads for a large shard, the other serves small ones."""


class Waiting(Protocol):
    """A waiting request; `answer` is the caller's future."""

    answer: Future[Any]


W = TypeVar("W", bound=Waiting)
_Needed = tuple[ShardId, frozenset[str]]


class WarmUps(Generic[W]):
    """Requests that wait for what `Shard.needs` named; `again` requeues them. Thread-safe.

    At most `waiting_max` requests wait, and at most half as many of one tenant.
    """

    def __init__(self, again: Callable[[Sequence[W]], None], *, waiting_max: int) -> None:
        self._again = again
        self._waiting_max = waiting_max
        self._lock = threading.Lock()
        self._waiting: dict[_Needed, list[W]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="searcher-open")

    def wait(self, shard: Shard, names: frozenset[str], asked: Sequence[W]) -> None:
        """Loads `names`, once for all requests that need the same, then requeues the requests.

        Refuses requests beyond the bounds with Overloaded.
        """
        needed = shard.id, names
        with self._lock:
            room = self._room(shard.id.tenant)
            known = needed in self._waiting
            if room > 0:
                self._waiting.setdefault(needed, []).extend(asked[:room])
        for each in asked[max(0, room) :]:
            refuse(
                each.answer,
                Overloaded("too many searches wait for what they need", retry_after_s=1.0),
            )
        if room > 0 and not known:
            try:
                self._pool.submit(shard.load_needed, names).add_done_callback(
                    lambda done: self._opened(needed, done)
                )
            except RuntimeError:  # stopped meanwhile
                self._refuse_all(
                    needed, Unavailable("the searcher is stopping", dependency="searcher")
                )

    def _room(self, tenant: str) -> int:
        waiting = sum(map(len, self._waiting.values()))
        own = sum(
            len(asked) for (shard, _), asked in self._waiting.items() if shard.tenant == tenant
        )
        return min(self._waiting_max - waiting, max(1, self._waiting_max // 2) - own)

    def _opened(self, needed: _Needed, done: Future[None]) -> None:
        error = CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            self._refuse_all(needed, error)
            return
        if asked := self._take(needed):
            self._again(asked)

    def _refuse_all(self, needed: _Needed, error: BaseException) -> None:
        for each in self._take(needed):
            refuse(each.answer, error)

    def _take(self, needed: _Needed) -> list[W]:
        with self._lock:
            return self._waiting.pop(needed, [])

    def stop(self, error: BaseException) -> None:
        """Stops the threads; waiting requests fail with `error`."""
        with self._lock:
            waiting = list(self._waiting)
        for needed in waiting:
            self._refuse_all(needed, error)
        self._pool.shutdown(wait=True, cancel_futures=True)


def refuse(future: Future[Any], error: BaseException) -> None:
    """Fails the future, unless it is done or canceled."""
    with suppress(InvalidStateError):  # a check first would race with a cancel
        future.set_exception(error)
