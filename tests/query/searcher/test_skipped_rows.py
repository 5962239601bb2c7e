"""Offsets of skipped rows: within a bound, and enough for a shard to load."""

from resources import eventually
from searching import ask, collection, one, reach, searching, send, shard_of

from cluster.wiring import Resources
from query.searcher.skipped_rows import SkippedRows
from tenants import provisioning
from tenants.provisioning import VECTORS_TOPIC
from vicinage.log import Record
from vicinage.records import ShardId

NEAR, FAR = ShardId("acme", "docs", 1, 0), ShardId("acme", "docs", 1, 1)


def test_a_slot_with_too_many_offsets_is_reset_and_others_are_not() -> None:
    rows = SkippedRows(offsets_max=3)
    rows.reset({0: 5, 1: 7})
    for offset in range(5, 9):
        rows.add(NEAR, offset)
    rows.add(FAR, 7)
    rows.enforce_bound({0: 9, 1: 8})
    assert (rows.offsets(NEAR), rows.start(0, -1)) == ((), 9)
    assert (rows.offsets(FAR), rows.start(1, -1)) == ((7,), 7)


def test_sealed_and_loaded_rows_are_not_counted() -> None:
    rows = SkippedRows(offsets_max=3)
    rows.reset({0: 0})
    for offset in range(4):
        rows.add(NEAR, offset)
    rows.drop_below(NEAR, 2)
    rows.replace(NEAR, [2, 3])
    rows.enforce_bound({0: 4})
    assert rows.offsets(NEAR) == (2, 3)
    rows.drop(NEAR)
    rows.drop(NEAR)
    assert rows.summary(NEAR) == (0, -1)


def test_a_shard_finds_every_row_though_unknown_shards_exceed_the_bound(base: Resources) -> None:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        searcher.tail._skipped._offsets_max = 10
        send(base, docs, one("a", 1))
        unknown = [Record(b"whatever", f"absent/here/{i}".encode()) for i in range(50)]
        base.log.append(VECTORS_TOPIC, docs.slot, unknown)
        end = send(base, docs, one("b", 2))
        reach(searcher, {docs.slot: end})
        eventually(lambda: sum(searcher.tail._skipped._counts.values()) <= 10)
        assert ask(searcher, docs) == [("a", 1), ("b", 2)]


def test_nothing_is_kept_of_a_deleted_tenant(base: Resources) -> None:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        reach(searcher, {docs.slot: send(base, docs, one("a", 1))})
        assert searcher.tail.lags_ms() != {}
        base.registry.delete_collection("acme", "docs", actor="test")
        searcher.shards.refresh()
        assert searcher.tail.lags_ms() == {}
