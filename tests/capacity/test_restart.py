"""After a restart the report is complete, although almost nothing is in memory."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from resources import DIMENSION, eventually, resources_in, running, write

from capacity.accounting import collection_usage
from capacity.headroom import host_memory
from capacity.snapshot import Rates, take
from cluster.wiring import build_searcher
from tenants import provisioning

LIMIT = 20 << 20


def test_counts_and_headroom_after_a_restart_are_those_of_before_or_bounds(tmp_path: Path) -> None:
    base = resources_in(tmp_path / "data", seal_passages=20)
    base = replace(
        base,
        settings=base.settings.model_copy(
            update={
                "searcher": base.settings.searcher.model_copy(update={"resident_bytes_max": LIMIT})
            }
        ),
    )
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", dimension=DIMENSION, slots_total=8, actor="test"
    )

    def taken(searcher: Any) -> Any:
        return take(base.registry, base.log, [asyncio.run(searcher.stats())], Rates(), now_ms=7)

    def documents(searcher: Any) -> tuple[int, bool]:
        [row] = collection_usage(taken(searcher))
        return row.documents, row.at_least

    with running(base) as searcher:
        for _ in range(3):  # the same documents again: segments replace each other's
            write(base, "acme", "docs", 32, 1)
        eventually(lambda: documents(searcher) == (32, False))
        eventually(lambda: sum(s.segments for s in asyncio.run(searcher.stats()).shards) > 0)
    later = build_searcher(base)
    later.start()
    try:
        eventually(later.ready)
        found, at_least = documents(later)
        assert found == 32 or at_least, "a count that is less is marked as a bound"
        assert found <= 32
        eventually(lambda: documents(later) == (32, False))
        [shard] = asyncio.run(later.stats()).shards
        assert not shard.resident, "it was counted without being loaded"
        [host] = host_memory(taken(later))
        assert host.limit_bytes == LIMIT
        assert host.not_resident_bytes > shard.store_bytes > 0
        assert host.left_bytes == LIMIT - host.held_bytes - host.not_resident_bytes
        [fits] = host.by_dimension
        assert (fits.dimension, host.passages_left) == (DIMENSION, fits.passages_left)
        assert 0 < fits.passages_left < LIMIT / (4 * DIMENSION)
    finally:
        later.stop()
        base.close()
