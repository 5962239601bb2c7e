"""The cost of an unused empty collection: published in the measurements, and bounded here."""

import gc
import tracemalloc

from searching import collection, searching

from cluster.wiring import Resources
from tenants import provisioning

N = 100
BYTES_MAX = 4_096


def make(base: Resources, names: list[str]) -> None:
    for name in names:
        provisioning.create_tenant(base.registry, base.log, name, actor="test")
        collection(base, dimension=384, tenant=name)


def test_an_idle_tenant_with_an_empty_collection_takes_at_most_four_kilobytes(
    base: Resources,
) -> None:
    with searching(base) as searcher:
        make(
            base, [f"first-{i}" for i in range(N)]
        )  # after these, one more costs as much as every further one
        searcher.shards.refresh()
        tracemalloc.start()
        try:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            make(base, [f"idle-{i}" for i in range(N)])
            searcher.shards.refresh()
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - before) / N
        finally:
            tracemalloc.stop()
        assert 200 < each < BYTES_MAX, (
            "its tenant, collection and generation in the catalog's memory, at least"
        )
