"""Accounting and headroom say what the snapshot holds, and no more."""

from capacity.accounting import holdings, total
from capacity.headroom import host_memory
from capacity.report import report
from capacity.snapshot import Rate, Snapshot, each_once
from indexer.host import Host
from indexer.shard import ShardStats
from tenants.entities import Tenant
from vicinage.records import ShardId


def shard(tenant: str, collection: str, generation: int, slot: int, passages: int) -> ShardStats:
    return ShardStats(
        ShardId(tenant, collection, generation, slot),
        passages // 2,
        passages,
        1,
        1,
        ("flat",),
        passages * 100,
        passages * 50,
        9,
        1,
    )


def snapshot(*shards: ShardStats) -> Snapshot:
    return Snapshot(
        at_ms=1,
        tenants=(Tenant("acme"), Tenant("empty", "gold")),
        collections=(("acme", "docs"), ("acme", "bare")),
        shards=shards,
        documents_logged={"acme": 7},
        hosts=(Host("one", 10_000_000, 1_000_000, 50_000), Host("two", 20_000_000, 3_000_000, 70_000)),
        searches=Rate(2.5, 60),
        applied=Rate(0, 60),
    )


def test_a_collections_shards_are_added_and_a_next_generation_counts_in_bytes_only() -> None:
    taken = snapshot(shard("acme", "docs", 1, 0, 10), shard("acme", "docs", 1, 1, 20), shard("acme", "docs", 2, 0, 30))
    docs, bare = holdings(taken)
    assert (docs.documents, docs.passages, docs.host_bytes, docs.store_bytes) == (15, 30, 6_000, 3_000)
    assert (bare.passages, bare.host_bytes) == (0, 0)
    assert total([docs, bare]).passages == 30


def test_headroom_divides_what_is_left_by_what_a_passage_took() -> None:
    rows = host_memory(snapshot(shard("acme", "docs", 1, 0, 10)))
    assert [(r.host, r.bytes_per_passage, r.n, r.passages_left) for r in rows] == [
        ("one", 100, 10, 10_000),
        ("two", 100, 10, 30_000),
    ]
    assert {r.passages_left for r in host_memory(snapshot())} == {None}, "nothing measured, nothing said"


def test_a_host_with_several_searchers_is_one_row() -> None:
    seen = [Host("b", 100, 40, 7), Host("a", 50, 20, 3), Host("b", 100, 39, 5)]
    assert each_once(seen) == (Host("a", 50, 20, 3), Host("b", 100, 39, 12))


def test_the_report_names_every_tenant_and_how_each_figure_was_measured() -> None:
    whole = report(snapshot(shard("acme", "docs", 1, 0, 10)))
    assert [(t["tenant"], t["class"], t["records"]) for t in whole["tenants"]] == [
        ("acme", "silver", 7),
        ("empty", "gold", 0),
    ]
    assert set(whole["methods"]) >= set(whole["collections"][0]) - {"tenant", "collection"}
    assert whole["rates"]["searches"] == {"per_s": 2.5, "window_s": 60}
