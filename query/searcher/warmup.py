"""Bringing in what a question is the first to need, off the threads that search: lexical indexes, and columns of metadata for filters.

It waits for the store, or for the reading of every row's metadata; nobody else does (law 7).
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
"""While one has a large shard in hand, the other sees to small ones."""


class Waiting(Protocol):
    """A question; `answer` is for whoever asked."""

    answer: Future[Any]


W = TypeVar("W", bound=Waiting)
_Needed = tuple[ShardId, frozenset[str]]


class Opening(Generic[W]):
    """Questions that wait for what `Shard.needs` named; `again` asks them once more. Safe for many threads.

    At most `waiting_max` wait, and of one tenant half as many.
    """

    def __init__(self, again: Callable[[Sequence[W]], None], *, waiting_max: int) -> None:
        self._again = again
        self._waiting_max = waiting_max
        self._lock = threading.Lock()
        self._waiting: dict[_Needed, list[W]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="searcher-open")

    def wait(self, shard: Shard, names: frozenset[str], asked: Sequence[W]) -> None:
        """Have it brought in, once for all who need the same of the shard meanwhile, then ask again. Refused are those beyond the bounds."""
        needed = shard.id, names
        with self._lock:
            room = self._room(shard.id.tenant)
            known = needed in self._waiting
            if room > 0:
                self._waiting.setdefault(needed, []).extend(asked[:room])
        for each in asked[max(0, room) :]:
            refuse(each.answer, Overloaded("too many questions wait for what they need", retry_after_s=1.0))
        if room > 0 and not known:
            try:
                self._pool.submit(shard.bring_in, names).add_done_callback(lambda done: self._opened(needed, done))
            except RuntimeError:  # stopped meanwhile
                self._refuse_all(needed, Unavailable("the searcher is stopping", dependency="searcher"))

    def _room(self, tenant: str) -> int:
        waiting = sum(map(len, self._waiting.values()))
        own = sum(len(asked) for (shard, _), asked in self._waiting.items() if shard.tenant == tenant)
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
        """End the threads; whoever waits hears `error`."""
        with self._lock:
            waiting = list(self._waiting)
        for needed in waiting:
            self._refuse_all(needed, error)
        self._pool.shutdown(wait=True, cancel_futures=True)


def refuse(future: Future[Any], error: BaseException) -> None:
    """Tell whoever waits, unless it was told, or has given up."""
    with suppress(InvalidStateError):  # asking first would not do: it may give up in between
        future.set_exception(error)
