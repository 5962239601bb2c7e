"""Schedules requests of unknown cost: a few run at once, and each tenant is charged their time.

Guarantee 7: the tenant that has used the least time for its weight goes next. This is start-time
fair queueing (Goyal, Vin and Cheng, 1996), with the measured time in place of a known length. The
cost of a request is measured, never estimated.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded
from vicinage.tenant_context import TenantContext

FORGET_AT: Final = 1_024
"""At this number of tenants, those without a waiting or running request are removed."""


@dataclass(slots=True)
class _TenantQueue:
    """One tenant's waiting requests, oldest first.

    `used_s` is the seconds that the tenant used, divided by its weight.
    """

    used_s: float
    waiting: "deque[asyncio.Future[None]]" = field(default_factory=deque)
    running: int = 0


class Turns:
    """Grants at most `at_once` turns at once, at most `tenant_max` of them to one tenant.

    Admission bounds how many requests wait. Belongs to one event loop.
    """

    def __init__(self, at_once: int, tenant_max: int | None = None) -> None:
        self._free = at_once
        self._tenant_max = at_once if tenant_max is None else tenant_max
        self._queues: dict[str, _TenantQueue] = {}
        self._now_s = 0.0
        """Highest `used_s` of a tenant when it was granted a turn.

        A new or idle tenant starts there, so it has no credit from the time without requests.
        """

    @asynccontextmanager
    async def take(self, tenant: TenantContext, deadline: Deadline) -> AsyncIterator[None]:
        """Holds a turn while the block runs. Raises DeadlineExceeded if none is granted in time."""
        queue = self._queue_of(tenant.name)
        await self._wait(queue, deadline)
        started_s = time.monotonic()
        try:
            yield
        finally:
            queue.used_s += (time.monotonic() - started_s) / tenant.weight
            self._release(queue)

    async def _wait(self, queue: _TenantQueue, deadline: Deadline) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting.append(turn)
        self._next()
        try:
            async with asyncio.timeout(deadline.left_s()):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._release(queue)
            else:
                with suppress(ValueError):  # `_next` may have removed it already
                    queue.waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    "other requests were served until the deadline passed", dependency="gateway"
                ) from None
            raise

    def _next(self) -> None:
        while self._free and (
            waiting := [queue for queue in self._queues.values() if self._may_run(queue)]
        ):
            queue = min(waiting, key=lambda each: (each.running, each.used_s))
            turn = queue.waiting.popleft()
            if turn.done():  # canceled while it waited
                continue
            self._now_s = max(self._now_s, queue.used_s)
            self._free -= 1
            queue.running += 1
            turn.set_result(None)

    def _may_run(self, queue: _TenantQueue) -> bool:
        return bool(queue.waiting) and queue.running < self._tenant_max

    def _release(self, queue: _TenantQueue) -> None:
        queue.running -= 1
        self._free += 1
        self._next()

    def _queue_of(self, tenant: str) -> _TenantQueue:
        if len(self._queues) >= FORGET_AT:
            self._queues = {
                name: queue
                for name, queue in self._queues.items()
                if queue.waiting or queue.running
            }
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = _TenantQueue(self._now_s)
        elif not queue.waiting and not queue.running:
            queue.used_s = max(queue.used_s, self._now_s)
        return queue
