"""Accounting and headroom of a snapshot."""

from dataclasses import replace

from capacity.accounting import collection_usage, total
from capacity.headroom import host_memory
from capacity.report import report, retention
from capacity.snapshot import Rate, SearcherMemory, Snapshot, each_once
from tenants.entities import Tenant
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings
from vicinage.stats import Host, ShardStats

ONE, TWO = ShardId("acme", "docs", 1, 0), ShardId("acme", "docs", 1, 1)


def shard(
    tenant: str, collection: str, generation: int, slot: int, passages: int, each: int = 100
) -> ShardStats:
    """Returns a shard in memory with this many bytes per passage."""
    return ShardStats(
        ShardId(tenant, collection, generation, slot),
        passages // 2,
        passages,
        1,
        1,
        ("flat",),
        passages * each,
        passages * 50,
        9,
        1,
    )


def memory(
    host: str, held: int, limit: int, waiting: int = 0, *, at_least: bool = False
) -> SearcherMemory:
    return SearcherMemory(host, held, limit, waiting, at_least)


def snapshot(*shards: ShardStats, dimensions: dict[ShardId, int] | None = None) -> Snapshot:
    return Snapshot(
        at_ms=1,
        tenants=(Tenant("acme"), Tenant("empty", "gold")),
        live={("acme", "docs"): (ONE, TWO), ("acme", "bare"): ()},
        dimensions={s.shard: 384 for s in shards} if dimensions is None else dimensions,
        shards=shards,
        memory=(memory("one", 1_000, 10_000_000), memory("two", 0, 100_000)),
        documents_logged={"acme": 7},
        hosts=(
            Host("one", 10_000_000, 1_000_000, 50_000),
            Host("two", 20_000_000, 3_000_000, 70_000),
        ),
        searches=Rate(2.5, 60),
        applied=Rate(0, 60),
    )


def test_a_collections_shards_are_added_and_a_next_generation_counts_in_bytes_only() -> None:
    taken = snapshot(
        shard("acme", "docs", 1, 0, 10),
        shard("acme", "docs", 1, 1, 20),
        shard("acme", "docs", 2, 0, 30),
    )
    docs, bare = collection_usage(taken)
    assert (docs.documents, docs.passages, docs.at_least) == (15, 30, False)
    assert (docs.host_bytes, docs.store_bytes, docs.bytes_per_passage) == (6_000, 3_000, 100)
    assert (bare.passages, bare.host_bytes, bare.bytes_per_passage) == (0, 0, None)
    assert total([docs, bare]).passages == 30


def test_counts_of_which_a_shard_is_missing_or_was_not_counted_are_lower_bounds() -> None:
    one, two = shard("acme", "docs", 1, 0, 10), shard("acme", "docs", 1, 1, 20)
    assert collection_usage(snapshot(one))[0].at_least, "the other shard did not answer"
    assert collection_usage(snapshot(one, replace(two, resident=False, exact=False)))[0].at_least
    whole = collection_usage(snapshot(one, two))
    assert not total(whole).at_least
    assert total([*whole, replace(whole[0], at_least=True)]).at_least
    building = shard("acme", "docs", 2, 0, 30)
    assert collection_usage(snapshot(one, two, replace(building, exact=False)))[0].at_least is False


def test_headroom_divides_what_is_left_by_what_a_passage_of_each_dimension_took() -> None:
    small, large = shard("acme", "docs", 1, 0, 10), shard("acme", "docs", 1, 1, 20, each=400)
    taken = snapshot(small, large, dimensions={ONE: 96, TWO: 384})
    one, two = host_memory(taken)
    assert [(d.dimension, d.n, d.bytes_per_passage, d.passages_left) for d in one.by_dimension] == [
        (96, 10, 100, 10_000),
        (384, 20, 400, 2_500),
    ]
    assert one.passages_left == 2_500, "as many at least, whatever comes"
    assert (two.left_bytes, two.passages_left) == (100_000, 250), (
        "no more than the searchers may hold"
    )
    assert {r.passages_left for r in host_memory(snapshot())} == {None}, (
        "nothing measured, nothing said"
    )


def test_headroom_leaves_room_for_what_is_not_in_memory() -> None:
    away = replace(
        shard("acme", "docs", 1, 1, 20), resident=False, host_bytes=0, segment_passages=10
    )
    taken = replace(
        snapshot(away), memory=(memory("one", 30_000, 100_000, 50_000), memory("one", 0, 5_000))
    )
    one = host_memory(taken)[0]
    assert (one.limit_bytes, one.held_bytes, one.not_resident_bytes) == (105_000, 30_000, 50_000)
    assert (one.left_bytes, one.at_most) == (25_000, False)
    assert [(d.n, d.bytes_per_passage) for d in one.by_dimension] == [(10, 100)], (
        "as its segments say"
    )
    crowded = replace(taken, memory=(memory("one", 30_000, 60_000, 50_000, at_least=True),))
    assert (host_memory(crowded)[0].left_bytes, host_memory(crowded)[0].at_most) == (0, True)


def test_a_host_with_several_searchers_is_one_row() -> None:
    seen = [Host("b", 100, 40, 7), Host("a", 50, 20, 3), Host("b", 100, 39, 5)]
    assert each_once(seen) == (Host("a", 50, 20, 3), Host("b", 100, 39, 12))


def test_the_report_names_every_tenant_and_how_each_figure_was_measured() -> None:
    whole = report(snapshot(shard("acme", "docs", 1, 0, 10)), IndexerSettings())
    assert [(t["tenant"], t["class"], t["records"]) for t in whole["tenants"]] == [
        ("acme", "silver", 7),
        ("empty", "gold", 0),
    ]
    assert set(whole["methods"]) >= set(whole["collections"][0]) - {"tenant", "collection"}
    assert set(whole["methods"]) >= set(whole["headroom"][0]) - {
        "resource",
        "host",
        "total_bytes",
        "by_dimension",
    }
    assert whole["rates"]["searches"] == {"per_s": 2.5, "window_s": 60}


def test_what_is_kept_has_a_bound_in_age_and_where_the_log_is_here_in_bytes() -> None:
    taken = snapshot(shard("acme", "docs", 1, 0, 1_000), shard("acme", "docs", 1, 1, 10))
    settings = IndexerSettings(
        keep_documents_s=600,
        keep_documents_bytes=7,
        keep_sealed_bytes=2_000,
        keep_sealed_share=0.5,
        superseded_age_s=9,
    )
    bounds = {
        "documents log, each partition": (600, 7),
        "vectors log, sealed": (86_400, 25_000 + 2_000),
        "dead letters": (30 * 86_400, None),
        "superseded segments": (9, None),
    }
    rows = retention(replace(taken, log_bytes=1), settings)
    assert {row["kept"]: (row["age_s"], row["bytes_max"]) for row in rows} == bounds
    assert all(row["bytes_max"] is None for row in retention(taken, settings))
