"""The freshness lag of each collection as measured a moment ago, so that searches do not wait."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from query.quality.lag_reader import LagReader
from tenants.entities import Generation, Tenant
from vicinage.errors import VicinageError
from vicinage.telemetry import events

FRESH_S: Final = 0.2
"""A lag measured within it is returned as it is; an older one is measured again meanwhile."""
COST_TIMES: Final = 10
"""Measuring takes at most 1/COST_TIMES of the time, while that does not make lags stale."""
STALE_S: Final = 1.0
"""A lag older than this is not returned: the caller waits for a new one."""
WAIT_S: Final = 0.25
"""Seconds that a caller waits for a new lag; the lag is then reported as not known."""
_event = events("query")

_Name = tuple[str, str]
"""Tenant and collection."""


@dataclass(frozen=True, slots=True)
class _Measured:
    lag_ms: int | None
    at: float
    cost_s: float

    def age_s(self) -> float:
        return time.monotonic() - self.at

    def is_fresh(self) -> bool:
        """Returns whether no new measurement is needed.

        An expensive one (on Kafka, while there is a backlog) is repeated less often.
        """
        return self.age_s() < min(max(FRESH_S, COST_TIMES * self.cost_s), STALE_S * 0.8)


class LagCache:
    """Measures lags on threads of its own. Belongs to one event loop."""

    def __init__(self, reader: LagReader) -> None:
        self._reader = reader
        self._measured: dict[_Name, _Measured] = {}
        self._running: dict[_Name, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="freshness")

    async def lag_ms(
        self, tenant: Tenant, generation: Generation, watermarks: Mapping[int, int]
    ) -> int | None:
        """Returns the tenant's lag in this collection, measured at most STALE_S ago.

        Returns None while it cannot be measured: the log is unavailable, or a slot of the
        collection has no watermark.
        """
        if any(slot not in watermarks for slot in generation.slots):
            return None
        name = (tenant.name, generation.collection)
        measured = self._measured.get(name)
        if measured is not None and measured.is_fresh():
            return measured.lag_ms
        running = self._running.get(name)
        if running is None:
            running = asyncio.create_task(self._measure(tenant, generation, watermarks))
            self._running[name] = running
        if measured is None or measured.age_s() > STALE_S:
            await asyncio.wait((running,), timeout=WAIT_S)
            measured = self._measured.get(name)
        return measured.lag_ms if measured is not None and measured.age_s() < STALE_S else None

    async def lags_ms(
        self, tenant: Tenant, generations: Sequence[Generation], watermarks: Mapping[int, int]
    ) -> list[int | None]:
        """Returns the lag in each of the tenant's collections, as `lag_ms` does.

        Reads the log once for all of them.
        """
        names = [(tenant.name, g.collection) for g in generations]
        measured = [self._measured.get(name) for name in names]
        if len(generations) == 1 or all(m is not None and m.is_fresh() for m in measured):
            return [await self.lag_ms(tenant, g, watermarks) for g in generations]
        started = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(
            self._threads, self._reader.lags_ms, tenant, generations, watermarks
        )
        try:
            async with asyncio.timeout(STALE_S):
                lags = await running
        except (VicinageError, TimeoutError) as error:
            _event.warning("lag.not_measured", tenant=tenant.name, reason=str(error))
            return [None] * len(generations)
        now = time.monotonic()
        cost_s = (now - started) / len(generations)
        self._keep(
            {name: _Measured(lag, now, cost_s) for name, lag in zip(names, lags, strict=True)}
        )
        return [
            lag if all(slot in watermarks for slot in g.slots) else None
            for g, lag in zip(generations, lags, strict=True)
        ]

    async def _measure(
        self, tenant: Tenant, generation: Generation, watermarks: Mapping[int, int]
    ) -> None:
        name = (tenant.name, generation.collection)
        lag: int | None = None
        started = time.monotonic()
        try:
            lag = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._reader.lag_ms, tenant, generation, watermarks
            )
        except VicinageError as error:
            _event.warning("lag.not_measured", tenant=tenant.name, reason=str(error))
        finally:
            del self._running[name]
        now = time.monotonic()
        self._keep({name: _Measured(lag, now, now - started)})

    def _keep(self, measured: Mapping[_Name, _Measured]) -> None:
        """Adds measurements, and removes those that are stale."""
        every = {**self._measured, **measured}
        self._measured = {name: m for name, m in every.items() if m.age_s() < STALE_S}

    def close(self) -> None:
        """Ends the threads. No measurement runs any more on return. Idempotent."""
        self._threads.shutdown(wait=True, cancel_futures=True)
