"""Notes on rows of unloaded shards: within a bound, and enough for a shard to load."""

from resources import eventually
from searching import ask, collection, one, reach, searching, send, shard_of

from cluster.wiring import Resources
from query.searcher.passed import Passed
from tenants import provisioning
from tenants.provisioning import VECTORS_TOPIC
from vicinage.log import Record
from vicinage.records import ShardId

NEAR, FAR = ShardId("acme", "docs", 1, 0), ShardId("acme", "docs", 1, 1)


def test_a_slot_with_too_many_notes_restarts_and_others_do_not() -> None:
    passed = Passed(noted_max=3)
    passed.begin({0: 5, 1: 7})
    for offset in range(5, 9):
        passed.add(NEAR, offset)
    passed.add(FAR, 7)
    passed.bound({0: 9, 1: 8})
    assert (passed.of(NEAR), passed.begun(0, -1)) == ((), 9)
    assert (passed.of(FAR), passed.begun(1, -1)) == ((7,), 7)


def test_sealed_and_loaded_rows_are_not_counted() -> None:
    passed = Passed(noted_max=3)
    passed.begin({0: 0})
    for offset in range(4):
        passed.add(NEAR, offset)
    passed.sealed(NEAR, 2)
    passed.put(NEAR, [2, 3])
    passed.bound({0: 4})
    assert passed.of(NEAR) == (2, 3)
    passed.forget(NEAR)
    passed.forget(NEAR)
    assert passed.noted(NEAR) == (0, -1)


def test_a_shard_finds_every_row_though_unknown_shards_filled_the_notes(base: Resources) -> None:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        searcher.tail._passed._noted_max = 10
        send(base, docs, one("a", 1))
        unknown = [Record(b"whatever", f"absent/here/{i}".encode()) for i in range(50)]
        base.log.append(VECTORS_TOPIC, docs.slot, unknown)
        end = send(base, docs, one("b", 2))
        reach(searcher, {docs.slot: end})
        eventually(lambda: sum(searcher.tail._passed._counts.values()) <= 10)
        assert ask(searcher, docs) == [("a", 1), ("b", 2)]


def test_nothing_is_kept_of_a_deleted_tenant(base: Resources) -> None:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    docs = shard_of(collection(base))
    with searching(base) as searcher:
        reach(searcher, {docs.slot: send(base, docs, one("a", 1))})
        assert searcher.tail.lags_ms() != {}
        base.registry.delete_collection("acme", "docs", actor="test")
        searcher.shards.look()
        assert searcher.tail.lags_ms() == {}
