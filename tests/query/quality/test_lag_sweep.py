"""The freshness lag of all tenants is measured, whichever tenant is requested."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from resources import resources_in, running

from query.quality.lag_reader import LagReader
from query.quality.lag_sweep import LagSweep
from query.scatter import Searchers
from tenants import provisioning
from vicinage.log import Log, Record
from vicinage.metrics import REGISTRY


def test_the_gauge_covers_tenants_without_requests(tmp_path: Path) -> None:
    base = resources_in(tmp_path / "data")
    for tenant in ("quiet", "behind"):
        provisioning.create_tenant(base.registry, base.log, tenant, actor="test")
    with running(base, indexing=False) as searcher:
        sweep = LagSweep(base.log, base.registry, Searchers([searcher]), base.clock)
        assert asyncio.run(sweep.sweep()) == 0
    # Ingest has stopped: what is written from here on waits.
    now_ms = base.clock.now_ms()
    base.log.append("vicinage.docs.behind", 0, [Record(b"{}", event_time_ms=now_ms - 90_000)])
    sweep = LagSweep(base.log, base.registry, Searchers([searcher]), base.clock)
    lag_ms = asyncio.run(sweep.sweep())
    assert 90_000 <= lag_ms < 150_000
    assert REGISTRY.get_sample_value("vicinage_query_freshness_lag_seconds") == lag_ms / 1000
    measured_s = REGISTRY.get_sample_value("vicinage_query_freshness_measured_timestamp_seconds")
    assert measured_s == pytest.approx(now_ms / 1_000, abs=60)
    base.close()


class Counting:
    """The real log, with a count of its calls."""

    def __init__(self, log: Log) -> None:
        self._log, self.asked = log, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._log, name)


def test_the_partitions_of_a_tenant_are_looked_up_together(
    tmp_path: Path,
) -> None:
    base = resources_in(tmp_path / "data")
    provisioning.create_tenant(base.registry, base.log, "wide", partitions=64, actor="test")
    made = provisioning.create_collection(
        base.registry,
        base.log,
        "wide",
        "docs",
        dimension=4,
        slots_total=base.settings.slots,
        actor="test",
    )
    log = Counting(base.log)
    tenant = base.registry.tenant("wide")
    reader = LagReader(log, base.registry, base.clock)
    assert reader.lag_ms(tenant, made.generation(), {}) == 0
    assert log.asked["extents"] == 1
    assert not log.asked["begin"] + log.asked["end"]
    assert asyncio.run(LagSweep(log, base.registry, Searchers([]), base.clock).sweep()) == 0
    assert not log.asked["begin"] + log.asked["end"]
    base.close()
