"""The freshness lag of all tenants is measured, whoever is asked about."""

import asyncio
from pathlib import Path

import pytest
from house import open_ground, running

from query.lag_sweep import LagSweep
from query.scatter import Searchers
from tenants import provisioning
from vicinage.log import Record
from vicinage.telemetry import REGISTRY


def test_the_gauge_covers_tenants_that_nobody_asks_about(tmp_path: Path) -> None:
    base = open_ground(tmp_path / "data")
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
    assert REGISTRY.get_sample_value("vicinage_query_freshness_lag_ms") == lag_ms
    measured_s = REGISTRY.get_sample_value("vicinage_query_freshness_measured_seconds")
    assert measured_s == pytest.approx(now_ms / 1_000, abs=60)
    base.close()
