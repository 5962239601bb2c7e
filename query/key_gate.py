"""Authenticates requests at a cost that unknown keys cannot raise.

Keys that are not in memory are looked up together: one catalog query at a time, for all requests that wait. Failures are
counted by address, and beyond a rate they are answered 429. A known key is never refused for the failures of others.
"""

import asyncio
import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from starlette.concurrency import run_in_threadpool

from tenants.entities import Principal, Scope
from tenants.keys import Keys, key_id
from vicinage.errors import Overloaded, Unauthenticated, VicinageError

AT_ONCE: Final = 500
"""Keys in one query."""
WAITING_MAX: Final = 5_000
"""Different keys that may wait to be looked up."""
BURST_S: Final = 10
"""An address may fail this many seconds' worth at once."""
HOLD_S: Final = 1.0
"""How long an answer 429 waits."""
HELD_MAX: Final = 128
"""Answers that wait at once; more are given without waiting."""
ADDRESSES_MAX: Final = 10_000
"""Addresses whose failures are remembered: the least recent ones are forgotten."""


class Failures:
    """A token bucket for each address. Pure, but for the clock that it is given."""

    def __init__(self, per_s: float, now: Callable[[], float]) -> None:
        self._per_s = per_s
        self._now = now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Address → failures that are left to it, and when that was so."""

    def wait_s(self, address: str) -> float:
        """Counts a failure; 0 where the address may fail once more, else the seconds until it may."""
        now, most = self._now(), self._per_s * BURST_S
        left, at = self._left.pop(address, (most, now))
        left = min(most, left + (now - at) * self._per_s)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left), now
        if len(self._left) > ADDRESSES_MAX:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_s


class KeyGate:
    """Belongs to one event loop."""

    def __init__(self, keys: Keys, failures: Failures) -> None:
        self._keys = keys
        self._failures = failures
        self._wanted: dict[str, asyncio.Future[None]] = {}
        """Id → settled once it was looked up."""
        self._looking: asyncio.Task[None] | None = None
        self._held = 0

    async def principal(self, text: str | None, scope: Scope, address: str) -> Principal:
        """Returns the principal of the key `text`.

        Raises as Keys.authenticate does, and Overloaded for failures beyond the address's rate.
        """
        try:
            if not self._keys.remembers(text):
                await self._look_up(text)
            if self._keys.remembers(text):
                return self._keys.authenticate(text, scope)
            return await run_in_threadpool(self._keys.authenticate, text, scope)
        except Unauthenticated as error:
            if (wait_s := self._failures.wait_s(network(address))) > 0:
                await self._hold()
                raise Overloaded(
                    f"too many requests without a key that is known: {error.detail}; send a valid one, or wait",
                    retry_after_s=math.ceil(wait_s),
                ) from None
            raise

    async def _hold(self) -> None:
        """Delays a refusal, so that a client that repeats its request at once costs little."""
        if self._held < HELD_MAX:
            self._held += 1
            try:
                await asyncio.sleep(HOLD_S)
            finally:
                self._held -= 1

    async def _look_up(self, text: str | None) -> None:
        """Looks the key up together with all others that are not in memory. Returns also when that fails."""
        wanted = key_id(text)
        if wanted is None:
            return
        if len(self._wanted) >= WAITING_MAX:
            raise Overloaded("too many unknown keys wait to be looked up", retry_after_s=1.0)
        settled = self._wanted.setdefault(wanted, asyncio.get_running_loop().create_future())
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(settled)

    async def _look(self) -> None:
        while self._wanted:
            wanted = list(self._wanted)[:AT_ONCE]
            waiting = [self._wanted.pop(each) for each in wanted]
            try:
                await run_in_threadpool(self._keys.look_up, wanted)
            except VicinageError:
                pass  # `authenticate` raises it for each key
            finally:
                for each in waiting:
                    if not each.done():
                        each.set_result(None)


def network(address: str) -> str:
    """Returns what counts as one address: of IPv6, the 64 bits that a customer is given."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
