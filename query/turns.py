"""Schedules requests of unknown cost: a few run at once, and each tenant is charged their time.

Law 7: the tenant that has used the least time for its weight goes next. This is start-time fair
queueing (Goyal, Vin and Cheng, 1996), with the measured time in place of a known length. The cost
of a request is measured, never estimated.
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
class _Line:
    """One tenant's waiting requests, oldest first.

    `used_s` is the seconds that the tenant used, divided by its weight.
    """

    used_s: float
    waiting: "deque[asyncio.Future[None]]" = field(default_factory=deque)
    running: int = 0


class Turns:
    """Grants at most `at_once` turns at once, at most `of_one_max` of them to one tenant.

    Admission bounds how many requests wait. Belongs to one event loop.
    """

    def __init__(self, at_once: int, of_one_max: int | None = None) -> None:
        self._free = at_once
        self._of_one_max = at_once if of_one_max is None else of_one_max
        self._lines: dict[str, _Line] = {}
        self._now_s = 0.0
        """Highest `used_s` of a tenant when it was granted a turn.

        A new or idle tenant starts there, so it has no credit from the time without requests.
        """

    @asynccontextmanager
    async def take(self, tenant: TenantContext, deadline: Deadline) -> AsyncIterator[None]:
        """Holds a turn while the block runs. Raises DeadlineExceeded if none is granted in time."""
        line = self._line(tenant.name)
        await self._wait(line, deadline)
        began_s = time.monotonic()
        try:
            yield
        finally:
            line.used_s += (time.monotonic() - began_s) / tenant.weight
            self._give_back(line)

    async def _wait(self, line: _Line, deadline: Deadline) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append(turn)
        self._next()
        try:
            async with asyncio.timeout(deadline.left_s()):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give_back(line)
            else:
                with suppress(ValueError):  # `_next` may have removed it already
                    line.waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    "others were served until the deadline passed", dependency="gateway"
                ) from None
            raise

    def _next(self) -> None:
        while self._free and (
            waiting := [line for line in self._lines.values() if self._may_run(line)]
        ):
            line = min(waiting, key=lambda each: (each.running, each.used_s))
            turn = line.waiting.popleft()
            if turn.done():  # canceled while it waited
                continue
            self._now_s = max(self._now_s, line.used_s)
            self._free -= 1
            line.running += 1
            turn.set_result(None)

    def _may_run(self, line: _Line) -> bool:
        return bool(line.waiting) and line.running < self._of_one_max

    def _give_back(self, line: _Line) -> None:
        line.running -= 1
        self._free += 1
        self._next()

    def _line(self, tenant: str) -> _Line:
        if len(self._lines) >= FORGET_AT:
            self._lines = {
                name: line for name, line in self._lines.items() if line.waiting or line.running
            }
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = _Line(self._now_s)
        elif not line.waiting and not line.running:
            line.used_s = max(line.used_s, self._now_s)
        return line
