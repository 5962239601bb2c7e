"""Halted partitions are visible, an operator resumes them, and expired positions are recovered."""

import json

import pytest
from resources import eventually, make_ingest
from sqlalchemy import select
from stepping import committed, make_tenant, send, stepping

from tenants import resuming, tables
from tenants.entities import Group, Tenant
from tenants.growth import sync_partition_map
from tenants.ingested import ingested
from vicinage.catalog import look
from vicinage.log import TopicPartition
from vicinage.routing import home_of
from vicinage.wire import decode_rows


def states(base, tenant) -> list[tuple]:
    return [
        (s.partition, s.state, s.kind, s.position) for s in base.registry.positions.of(tenant.name)
    ]


def standing(base) -> set[str]:
    newest: dict[str, tuple[int, int]] = {}
    for slot in range(8):
        for stored in base.log.read("vicinage.vectors", slot, 0, bytes_max=1 << 30):
            for row in decode_rows(stored.record.value).batch.to_pylist():
                newest[row["document_id"]] = max(
                    newest.get(row["document_id"], (-1, 0)), (row["version"], row["passage"])
                )
    return {name for name, (_, passage) in newest.items() if passage >= 0}


def end(ingest) -> None:
    ingest.stop()


def ingested_two(base, name: str) -> tuple[Tenant, TopicPartition]:
    """A tenant with two ingested documents, and their position in the catalog, too.

    No ingest runs any more.
    """
    tenant = make_tenant(base, name)
    send(base, tenant, "a", "b")
    ingest = make_ingest(base)
    stepping(ingest, lambda: states(base, tenant) == [(0, "reading", None, 2)])
    end(ingest)
    return tenant, (tenant.documents_topic, 0)


def test_a_recreated_topic_is_read_from_its_beginning_and_its_small_offsets_win(base) -> None:
    tenant = make_tenant(base, "recreated", partitions=2)
    send(base, tenant, "old", "both", "both", "both")
    ingest = make_ingest(base)
    stepping(ingest, lambda: committed(base, tenant) == 4)
    stepping(ingest, lambda: (0, "reading", None, 4) in states(base, tenant))
    base.log.delete_topic(tenant.documents_topic)
    base.log.ensure_topic(tenant.documents_topic, 1)
    send(base, tenant, "new")
    base.log.append(tenant.documents_topic, 0, [deletion("both")])
    stepping(ingest, lambda: (0, "halted", "topic_replaced", 4) in states(base, tenant))
    dry = resuming.plan(base.log, base.registry, tenant)
    assert (dry.new_topic, [(p.position, p.resume_at, p.skipped) for p in dry.partitions]) == (
        True,
        [(4, 0, None)],
    )
    assert states(base, tenant)[0][1] == "halted", "a dry run changes nothing"
    assert resuming.apply(base.log, base.registry, tenant, actor="test") == dry
    stepping(ingest, lambda: committed(base, tenant) == 2)
    assert standing(base) == {"old", "new"}
    stepping(ingest, lambda: states(base, tenant) == [(0, "reading", None, 2)])
    assert ingest._partitions.halts.known() == {}
    with look(base.engine) as connection:
        records = connection.execute(
            select(tables.audit).order_by(tables.audit.c.seq.desc())
        ).mappings()
        record = next(r for r in records if r["action"] == "tenant.resume_ingest")
    assert (record["actor"], record["subject"]) == ("test", "recreated")
    assert json.loads(record["after"])["partitions"][0]["resume_at"] == 0
    end(ingest)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 3), (3, 2), (4, 1)])
def test_writes_to_a_recreated_topic_before_its_resume_are_kept(
    base, before: int, after: int
) -> None:
    """Until then HTTP writes follow the old topic's map, producers the new topic."""
    tenant = make_tenant(base, "recreated", partitions=before)
    names = [f"d{i}" for i in range(12)]
    for name in names:
        put(base, tenant, name, before)
    ingest = make_ingest(base)
    stepping(ingest, lambda: len(standing(base)) == len(names))
    base.log.delete_topic(tenant.documents_topic)
    base.log.ensure_topic(tenant.documents_topic, after)
    stepping(ingest, lambda: any(state[1] == "halted" for state in states(base, tenant)))
    by_http = [name for name in names[:6] if home_of("flat", name, before) < after]
    for name in by_http:
        base.log.append(tenant.documents_topic, home_of("flat", name, before), [deletion(name)])
    for name in names[6:9]:
        base.log.append(tenant.documents_topic, home_of("flat", name, after), [deletion(name)])
    resuming.apply(base.log, base.registry, tenant, actor="test")
    stepping(ingest, lambda: standing(base) == set(names) - {*by_http, *names[6:9]})
    for name in by_http:
        put(base, tenant, name, after)
    stepping(ingest, lambda: standing(base) == set(names) - set(names[6:9]))
    end(ingest)


def test_writes_are_divided_by_the_newest_map_or_like_a_recreated_topic(base) -> None:
    from ingest.intake import divided_over

    tenant = make_tenant(base, "recreated", partitions=2)
    assert divided_over(base.log, tenant, ()) == 2
    maps = sync_partition_map(base.registry, base.log, tenant, actor="test")
    assert divided_over(base.log, tenant, maps) == 2
    base.log.add_partitions(tenant.documents_topic, 4)
    assert divided_over(base.log, tenant, maps) == 2, "the growth is not recorded yet"
    base.log.delete_topic(tenant.documents_topic)
    assert divided_over(base.log, tenant, maps) == 2
    for n in (1, 3):
        base.log.ensure_topic(tenant.documents_topic, n)
        assert divided_over(base.log, tenant, maps) == n
        base.log.delete_topic(tenant.documents_topic)


def put(base, tenant, name: str, partitions: int) -> None:
    """Writes as a producer to a topic with this many partitions."""
    from vicinage.log import Record

    value = json.dumps({"collection": "flat", "id": name, "vector": [1.0, 0.0, 0.0]}).encode()
    base.log.append(tenant.documents_topic, home_of("flat", name, partitions), [Record(value)])


def deletion(name: str):
    from vicinage.log import Record

    return Record(None, f"flat/{name}".encode())


def test_records_removed_by_retention_are_named_and_skipped_only_on_demand(base) -> None:
    tenant = make_tenant(base, "gone")
    send(base, tenant, "a", "b", "c", "d")
    base.log.commit(Group.INGEST, {(tenant.documents_topic, 0): 1})
    base.log.trim(tenant.documents_topic, 0, 3)
    ingest = make_ingest(base)
    stepping(ingest, lambda: states(base, tenant) == [(0, "halted", "offset_gone", 1)])
    end(ingest)
    [found] = resuming.plan(base.log, base.registry, tenant).partitions
    assert (found.skipped, found.skipped_records, found.resume_at) == ((1, 3), 2, 3)
    resuming.apply(base.log, base.registry, tenant, actor="test")
    ingest = make_ingest(base)
    stepping(ingest, lambda: committed(base, tenant) == 4)
    assert standing(base) == {"d"}
    assert resuming.plan(base.log, base.registry, tenant).partitions == ()
    end(ingest)


def test_a_position_beyond_the_end_survives_a_restart_and_resuming_reads_again(
    base,
) -> None:
    tenant = make_tenant(base, "beyond")
    send(base, tenant, "a")
    base.log.commit(Group.INGEST, {(tenant.documents_topic, 0): 3})
    ingest = make_ingest(base)
    stepping(ingest, lambda: states(base, tenant) == [(0, "halted", "beyond_end", 3)])
    end(ingest)
    send(base, tenant, "b", "c", "d", "e")
    ingest = make_ingest(base)
    stepping(ingest, ingest._partitions.halts.known)
    assert committed(base, tenant) == 3
    resuming.apply(base.log, base.registry, tenant, actor="test")
    stepping(ingest, lambda: committed(base, tenant) == 5)
    assert standing(base) == {"a", "b", "c", "d", "e"}
    end(ingest)


def test_an_expired_position_is_taken_from_the_catalog(base) -> None:
    tenant, tp = ingested_two(base, "idle")
    rows = len(
        base.log.read(
            "vicinage.vectors", base.registry.collection("idle", "flat").generation().slots[0], 0
        )
    )
    forget(base, tp)
    base.registry.refresh()
    assert ingested(base.log, base.registry, [tp]) == {tp: 2}
    ingest = make_ingest(base)
    stepping(ingest, lambda: committed(base, tenant) == 2)
    again = base.log.read(
        "vicinage.vectors", base.registry.collection("idle", "flat").generation().slots[0], 0
    )
    assert len(again) == rows, "nothing is ingested twice"
    end(ingest)


@pytest.mark.parametrize("moved_to", [1, 4])
def test_a_position_that_another_client_moved_while_ingest_was_down_is_not_followed(
    base, moved_to: int
) -> None:
    tenant, tp = ingested_two(base, "moved")
    send(base, tenant, "c", "d")
    base.log.commit(Group.INGEST, {tp: moved_to})
    ingest = make_ingest(base)
    stepping(
        ingest, lambda: committed(base, tenant) == 4 and standing(base) == {"a", "b", "c", "d"}
    )
    end(ingest)


def test_a_catalog_older_than_what_the_log_keeps_gives_no_position(base) -> None:
    tenant, tp = ingested_two(base, "older")
    send(base, tenant, "c", "d")
    base.log.commit(Group.INGEST, {tp: 3})
    base.log.trim(*tp, 3)
    ingest = make_ingest(base)
    stepping(ingest, lambda: committed(base, tenant) == 4)
    assert [state for _, state, _, _ in states(base, tenant)] == ["reading"]
    end(ingest)


def forget(base, tp: tuple[str, int]) -> None:
    """Drops a position as a broker does once offsets.retention.minutes have passed."""
    base.log._writer.submit(
        lambda c: c.execute("DELETE FROM positions WHERE topic = ? AND partition = ?", tp) and None
    )
    assert base.log.committed(Group.INGEST, [tp]) == {}


@pytest.mark.parametrize("was", [0, 1])
def test_an_idle_partitions_position_is_committed_again(base, was: int) -> None:
    tenant = make_tenant(base, "idle")
    tp = (tenant.documents_topic, 0)
    if was:
        send(base, tenant, "a")
    ingest = make_ingest(base)
    stepping(ingest, lambda: committed(base, tenant) == was)
    forget(base, tp)
    ingest._positions._recommit_s = 0.0
    if was:
        stepping(ingest, lambda: base.log.committed(Group.INGEST, [tp]) == {tp: 1})
    else:
        eventually(lambda: ingest.step() == 0)
        assert base.log.committed(Group.INGEST, [tp]) == {}, "there is nothing to remember"
    end(ingest)
