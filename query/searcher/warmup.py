"""Warm-up: loads lexical indexes and metadata columns for filters, off the threads that search.

Only the requests that are the first to need them wait for the store, or for the read of every row's
metadata (guarantee 7).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Final

from indexer.index.shard import Shard
from query.searcher.batch import QueuedSearch
from query.searcher.futures import fail
from vicinage.errors import Overloaded, Unavailable
from vicinage.records import ShardId

THREADS: Final = 2
"""Number of warm-up threads: while one loads for a large shard, the other serves small ones."""


_Needed = tuple[ShardId, frozenset[str]]


class WarmUps:
    """Requests that wait for what `Shard.needs` named; `requeue` takes them back. Thread-safe.

    At most `waiting_max` requests wait, and at most half as many of one tenant.
    """

    def __init__(
        self, requeue: Callable[[Sequence[QueuedSearch]], None], *, waiting_max: int
    ) -> None:
        self._requeue = requeue
        self._waiting_max = waiting_max
        self._lock = threading.Lock()
        self._waiting: dict[_Needed, list[QueuedSearch]] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="searcher-warmup")

    def load_then_requeue(
        self, shard: Shard, names: frozenset[str], batch: Sequence[QueuedSearch]
    ) -> None:
        """Loads `names`, once for all requests that need the same, then requeues the requests.

        Refuses requests beyond the bounds with Overloaded.
        """
        needed = shard.id, names
        with self._lock:
            n_free = self._n_free(shard.id.tenant)
            known = needed in self._waiting
            if n_free > 0:
                self._waiting.setdefault(needed, []).extend(batch[:n_free])
        for each in batch[max(0, n_free) :]:
            full = "too many searches wait for an index or for metadata to be loaded"
            fail(each.future, Overloaded(full, retry_after_s=1.0))
        if n_free > 0 and not known:
            try:
                self._pool.submit(shard.load_needed, names).add_done_callback(
                    lambda load: self._loaded(needed, load)
                )
            except RuntimeError:  # stopped meanwhile
                self._refuse_all(
                    needed, Unavailable("the searcher is stopping", dependency="searcher")
                )

    def _n_free(self, tenant: str) -> int:
        waiting = sum(map(len, self._waiting.values()))
        own = sum(
            len(batch) for (shard, _), batch in self._waiting.items() if shard.tenant == tenant
        )
        return min(self._waiting_max - waiting, max(1, self._waiting_max // 2) - own)

    def _loaded(self, needed: _Needed, load: Future[None]) -> None:
        error = CancelledError() if load.cancelled() else load.exception()
        if error is not None:
            self._refuse_all(needed, error)
            return
        if batch := self._take(needed):
            self._requeue(batch)

    def _refuse_all(self, needed: _Needed, error: BaseException) -> None:
        for each in self._take(needed):
            fail(each.future, error)

    def _take(self, needed: _Needed) -> list[QueuedSearch]:
        with self._lock:
            return self._waiting.pop(needed, [])

    def stop(self, error: BaseException) -> None:
        """Stops the threads; waiting requests fail with `error`."""
        with self._lock:
            waiting = list(self._waiting)
        for needed in waiting:
            self._refuse_all(needed, error)
        self._pool.shutdown(wait=True, cancel_futures=True)
