"""Bringing in lexical indexes, off the threads that search: the first question for words waits for the store, nobody else does (law 7)."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Final, Generic, Protocol, TypeVar

from indexer.shard import Shard
from vicinage.errors import Overloaded, Unavailable
from vicinage.records import ShardId

THREADS: Final = 2
"""While one has a large index in hand, the other brings in small ones."""


class Waiting(Protocol):
    """A question; `answer` is for whoever asked."""

    answer: Future[Any]


W = TypeVar("W", bound=Waiting)


class Opening(Generic[W]):
    """Questions that wait for their shard's lexical indexes; `again` asks them once more. Safe for many threads.

    At most `waiting_max` wait, and of one tenant half as many.
    """

    def __init__(self, again: Callable[[Sequence[W]], None], *, waiting_max: int) -> None:
        self._again = again
        self._waiting_max = waiting_max
        self._lock = threading.Lock()
        self._waiting: dict[ShardId, list[W]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="searcher-words")

    def wait(self, shard: Shard, asked: Sequence[W]) -> None:
        """Have the shard's indexes brought in, once for all who ask meanwhile, then ask again. Refused are those beyond the bounds."""
        with self._lock:
            room = self._room(shard.id.tenant)
            known = shard.id in self._waiting
            if room > 0:
                self._waiting.setdefault(shard.id, []).extend(asked[:room])
        for each in asked[max(0, room) :]:
            refuse(each.answer, Overloaded("too many questions wait for lexical indexes", retry_after_s=1.0))
        if room > 0 and not known:
            try:
                self._pool.submit(shard.open_lexical).add_done_callback(lambda done: self._opened(shard.id, done))
            except RuntimeError:  # stopped meanwhile
                self._refuse_all(shard.id, Unavailable("the searcher is stopping", dependency="searcher"))

    def _room(self, tenant: str) -> int:
        waiting = sum(map(len, self._waiting.values()))
        own = sum(len(asked) for shard, asked in self._waiting.items() if shard.tenant == tenant)
        return min(self._waiting_max - waiting, max(1, self._waiting_max // 2) - own)

    def _opened(self, shard: ShardId, done: Future[None]) -> None:
        error = CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            self._refuse_all(shard, error)
            return
        if asked := self._take(shard):
            self._again(asked)

    def _refuse_all(self, shard: ShardId, error: BaseException) -> None:
        for each in self._take(shard):
            refuse(each.answer, error)

    def _take(self, shard: ShardId) -> list[W]:
        with self._lock:
            return self._waiting.pop(shard, [])

    def stop(self, error: BaseException) -> None:
        """End the threads; whoever waits hears `error`."""
        with self._lock:
            shards = list(self._waiting)
        for shard in shards:
            self._refuse_all(shard, error)
        self._pool.shutdown(wait=True, cancel_futures=True)


def refuse(future: Future[Any], error: BaseException) -> None:
    """Tell whoever waits, unless it was told."""
    if not future.done():
        future.set_exception(error)
