"""Authenticates requests at a cost that unknown keys cannot raise.

Keys that are not in memory are looked up together: one catalog query at a time, for all requests
that wait. Failures are counted by address; those beyond a rate get status 429. A known key is never
refused for the failures of others.
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
"""Maximum keys in one catalog query."""
WAITING_MAX: Final = 5_000
"""Maximum different keys that wait to be looked up."""
BURST_S: Final = 10
"""Burst of failures that an address may have, in seconds of its rate."""
HOLD_S: Final = 1.0
"""Seconds by which a response 429 is delayed."""
HELD_MAX: Final = 128
"""Maximum responses that are delayed at once; further ones are sent without delay."""
ADDRESSES_MAX: Final = 10_000
"""Maximum addresses whose failures are kept; the least recent ones are removed (LRU)."""


class Failures:
    """A token bucket for each address, over the given clock."""

    def __init__(self, per_s: float, now: Callable[[], float]) -> None:
        self._per_s = per_s
        self._now = now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Address → failures that it has left, and the time of that count."""

    def wait_s(self, address: str) -> float:
        """Counts a failure. Returns 0 if the address may fail now, else the seconds until then."""
        now, most = self._now(), self._per_s * BURST_S
        left, at = self._left.pop(address, (most, now))
        left = min(most, left + (now - at) * self._per_s)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left), now
        if len(self._left) > ADDRESSES_MAX:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_s


class KeyGate:
    """Authenticates keys and limits failures. Belongs to one event loop."""

    def __init__(self, keys: Keys, failures: Failures) -> None:
        self._keys = keys
        self._failures = failures
        self._wanted: dict[str, asyncio.Future[None]] = {}
        """Key id → future that is settled once the key was looked up."""
        self._lookup: asyncio.Task[None] | None = None
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
                    f"too many requests without a valid key: {error.detail}; "
                    "send a valid one, or wait",
                    retry_after_s=math.ceil(wait_s),
                ) from None
            raise

    async def _hold(self) -> None:
        """Delays a refusal, so that a client that retries at once costs little."""
        if self._held < HELD_MAX:
            self._held += 1
            try:
                await asyncio.sleep(HOLD_S)
            finally:
                self._held -= 1

    async def _look_up(self, text: str | None) -> None:
        """Looks the key up together with all others that wait; returns even if the lookup fails.

        Raises Overloaded if WAITING_MAX keys wait.
        """
        wanted = key_id(text)
        if wanted is None:
            return
        if len(self._wanted) >= WAITING_MAX:
            raise Overloaded("too many unknown keys wait to be looked up", retry_after_s=1.0)
        settled = self._wanted.setdefault(wanted, asyncio.get_running_loop().create_future())
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.create_task(self._run_lookups())
        await asyncio.shield(settled)

    async def _run_lookups(self) -> None:
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
    """Returns the address that failures are counted by: for IPv6, the /64 network of a customer."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
