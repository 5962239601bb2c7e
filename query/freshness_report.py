"""Reports each tenant's freshness: its lag now, recent index lags, and waits for a model."""

from collections.abc import Sequence

import numpy as np
from starlette.concurrency import run_in_threadpool

from query.state import GatewayState
from query.waiting import Waiting, waiting
from tenants.entities import Collection
from tenants.positions import PartitionState
from vicinage.stats import SearcherStats


async def freshness_report(state: GatewayState, tenant: str | None) -> list[dict[str, object]]:
    """Returns the freshness of one tenant, or of all if `tenant` is None.

    Each row has the lag now, percentiles of n recent index lags, and messages replayed at a start.
    It also has waits for a model and the state of ingest.
    """
    stats = await state.searchers.stats(tenant)
    waits_of: dict[str, list[Waiting]] = {}
    for fact in await run_in_threadpool(waiting, state.registry, state.log, tenant):
        waits_of.setdefault(fact["tenant"], []).append(fact)
    not_reading = await run_in_threadpool(state.registry.positions.not_reading, tenant)
    lags_of: dict[str, list[int | None]] = {}
    for c in state.registry.collections(tenant):
        lags_of.setdefault(c.tenant, []).append(await _lag(state, c, stats))
    rows = []
    for t in [t for t in state.registry.tenants() if tenant in (None, t.name)]:
        recent = [lag for s in stats for lag in s.index_lag_ms.get(t.name, ())]
        lags = lags_of.get(t.name, [])
        known = [lag for lag in lags if lag is not None]
        lag_ms = max(known, default=0) if len(known) == len(lags) else None
        p50, p99 = (
            (round(float(np.percentile(recent, q)), 1) for q in (50, 99))
            if recent
            else (None, None)
        )
        replayed = sum(s.replayed.get(t.name, 0) for s in stats)
        rows.append(
            {
                "tenant": t.name,
                "lag_ms": lag_ms,
                "p50_ms": p50,
                "p99_ms": p99,
                "n": len(recent),
                "replayed": replayed,
                "waiting": waits_of.get(t.name, []),
                **_ingest(t.name, not_reading),
            }
        )
    return rows


async def _lag(
    state: GatewayState, collection: Collection, stats: list[SearcherStats]
) -> int | None:
    live = collection.generation()
    watermarks = {
        slot: at for s in stats for slot, at in s.watermarks.items() if slot in live.slots
    }
    return await state.freshness.lag_ms(state.registry.tenant(collection.tenant), live, watermarks)


def _ingest(tenant: str, not_reading: Sequence[PartitionState]) -> dict[str, object]:
    """Returns whether ingest reads the tenant's topic, and each partition that it does not read."""
    own = [s for s in not_reading if s.tenant == tenant]
    state = next(
        (each for each in ("halted", "resuming", "waiting") if any(s.state == each for s in own)),
        "reading",
    )
    named = [
        {
            name: getattr(s, name)
            for name in ("partition", "state", "kind", "reason", "since_ms", "position")
        }
        for s in own
    ]
    return {"ingest": state, "partitions": named}
