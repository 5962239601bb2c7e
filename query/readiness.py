"""Measures in the background, on the real paths, whether a write, a wait and a search succeed now.

A probe appends a record to `vicinage.health` (the write path of the log). It waits until ingest has
passed the record (as `wait_for` does). It also waits until the searchers have applied what the
vectors log holds; then each searcher answers a search. So the probe detects a dead writer, a stuck
ingest or a searcher that does not advance, whatever the state of their processes.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from query.scatter import Searcher, Searchers
from query.searcher.shard_waits import NEWEST
from tenants.entities import Group
from tenants.provisioning import HEALTH_RETENTION_MS, HEALTH_TOPIC, VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Deadline
from vicinage.errors import NotFound, Overloaded, Unavailable, VicinageError
from vicinage.log import Log, Record
from vicinage.records import ShardId, ShardQuery
from vicinage.telemetry import events

T = TypeVar("T")
Part = dict[str, Any]
FRESH_S: Final = 1.0
"""A measurement younger than this is returned without a new probe."""
KEPT_S: Final = 3.0
"""A measurement younger than this is returned while the next probe runs."""
LIMIT_S: Final = 5.0
"""Deadline of one part in seconds; a part that takes longer is not ready."""
THREADS: Final = 4
"""Concurrent checks of the log and the catalog, in threads of their own.

A check that hangs blocks no other thread of the gateway.
"""
SLOTS_AT_ONCE: Final = 8
"""Slots that one probe checks; the next probe checks the following slots."""
ESSENTIAL: Final = ("catalog", "log", "ingest", "searcher")
"""The embedder is not essential: vector and lexical searches work without it."""
_event = events("query")


class Readiness:
    """Measures the readiness of the platform's parts, with one probe at a time for all callers.

    Belongs to one event loop; `parts_threadsafe` may be called from another.
    """

    def __init__(
        self,
        registry: Registry,
        log: Log,
        searchers: Searchers,
        slots_total: int,
        embedder_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        self._registry = registry
        self._log = log
        self._searchers = searchers
        self._slots_total = slots_total
        self._embedder_ready = embedder_ready
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="readiness")
        self._known: tuple[float, dict[str, Part]] | None = None
        self._probing: asyncio.Task[dict[str, Part]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_slot = 0
        self._topic_made = False
        self._unready: set[str] = set()
        """Parts that are not ready; each is logged once."""

    def begin(self) -> None:
        """Binds this to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Cancels the running probe. Idempotent."""
        if self._probing is not None:
            self._probing.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def parts_threadsafe(self) -> tuple[bool, dict[str, Part]]:
        """Returns whether the platform is ready, and its parts, from any event loop.

        Waits as long as this object's event loop is busy.
        """
        if self._loop is None:
            return False, {}
        parts = await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self.parts(), self._loop)
        )
        return ready(parts), parts

    async def parts(self) -> dict[str, Part]:
        """Returns each part's readiness as measured within KEPT_S; else measures it now."""
        age_s = time.monotonic() - self._known[0] if self._known else float("inf")
        if age_s < FRESH_S and self._known:
            return self._known[1]
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())
        if age_s < KEPT_S and self._known:
            return self._known[1]
        return await asyncio.shield(self._probing)

    async def _probe(self) -> dict[str, Part]:
        names = ("catalog", "log", "ingest", "searcher", "embedder")
        parts: dict[str, Part] = {name: {"ready": False} for name in names}
        parts["searcher"]["searchers"] = len(self._searchers.all)
        await asyncio.gather(
            self._part(parts["catalog"], "catalog", self._in_thread(self._registry.refresh)),
            self._part(parts["embedder"], "embedder", self._embedder()),
            self._write_and_wait(parts),
            self._part(parts["searcher"], "searcher", self._search()),
        )
        await self._count_halted(parts["ingest"])
        self._known = time.monotonic(), parts
        return parts

    async def _count_halted(self, part: Part) -> None:
        """Adds the number of halted partitions, which do not make the platform unready."""
        with contextlib.suppress(VicinageError, TimeoutError):
            present = {t.name for t in self._registry.tenants()}
            halted = await asyncio.wait_for(
                self._in_thread(partial(self._registry.positions.halted, present)), LIMIT_S
            )
            part["halted_partitions"] = len(halted)

    async def _part(self, part: Part, name: str, work: Coroutine[Any, Any, T]) -> T | None:
        """Returns the result of `work` and marks the part ready; None if it fails.

        Logs the reason of a failure and omits it from the answer, because the answer is public.
        """
        try:
            found = await asyncio.wait_for(work, LIMIT_S)
        except (VicinageError, TimeoutError) as error:
            if name not in self._unready:
                self._unready.add(name)
                _event.warning(
                    "part.lost", part=name, reason=str(error) or f"no answer within {LIMIT_S} s"
                )
            return None
        part["ready"] = True
        if name in self._unready:
            self._unready.remove(name)
            _event.info("part.recovered", part=name)
        return found

    async def _write_and_wait(self, parts: Mapping[str, Part]) -> None:
        offset = await self._part(parts["log"], "log", self._in_thread(self._write))
        if offset is not None:
            await self._part(parts["ingest"], "ingest", self._wait(offset))

    def _write(self) -> int:
        if not self._topic_made:
            self._log.ensure_topic(HEALTH_TOPIC, 2, retention_ms=HEALTH_RETENTION_MS)
            self._topic_made = True
        return self._log.append(HEALTH_TOPIC, 0, [Record(b"")])[0]

    async def _wait(self, offset: int) -> None:
        passed = partial(
            self._log.wait_committed, Group.INGEST, HEALTH_TOPIC, 0, offset, wait_s=LIMIT_S * 0.9
        )
        if not await self._in_thread(passed):
            raise TimeoutError("ingest did not pass a write in time")

    async def _search(self) -> None:
        held = {slot for s in self._searchers.all if s.ready() for slot in s.slots}
        if not held >= set(range(self._slots_total)):
            raise TimeoutError("a slot has no searcher that has caught up")
        deadline = Deadline.after(LIMIT_S * 0.9)
        slots = [
            (self._next_slot + i) % self._slots_total
            for i in range(min(SLOTS_AT_ONCE, self._slots_total))
        ]
        self._next_slot = (slots[-1] + 1) % self._slots_total
        await self._searchers.reach(await self._in_thread(partial(self._ends, slots)), deadline)
        await asyncio.gather(*(_searches(s, deadline) for s in self._searchers.all))

    def _ends(self, slots: Sequence[int]) -> dict[int, int]:
        return {slot: self._log.end(VECTORS_TOPIC, slot) for slot in slots}

    async def _embedder(self) -> None:
        if not await self._embedder_ready():
            raise TimeoutError("the embedder is not ready")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _searches(searcher: Searcher, deadline: Deadline) -> None:
    """Searches a shard that does not exist.

    The request passes the searcher's queue, and a search thread refuses it.
    """
    nowhere = ShardId("", "", 0, min(searcher.slots, default=0))
    query = ShardQuery(nowhere, np.zeros((0, 0), np.float32), 1, catalog=NEWEST)
    try:
        await searcher.search(query, deadline)
    except (NotFound, Overloaded):
        return  # the searcher answered
    except Unavailable as error:
        if error.dependency != "catalog":  # without the catalog, searches go on from memory
            raise


def ready(parts: Mapping[str, Part]) -> bool:
    """Returns whether all essential parts are ready."""
    return all(parts[name]["ready"] for name in ESSENTIAL)
