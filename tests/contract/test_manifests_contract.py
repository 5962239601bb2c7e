"""What the catalog promises of manifests, leases and jobs, over SQLite and a real PostgreSQL."""

from dataclasses import replace

import pytest
from catalogs import House, at_once, make, segment
from sqlalchemy import select, update

from tenants.audit import Audit
from tenants.tables import manifests
from vicinage.catalog import change
from vicinage.errors import Conflict


def test_a_manifest_is_swapped_only_from_what_it_was(house: House) -> None:
    shard = make(house).shards()[0]
    lease = house.leases.acquire("slot/0", "one", ttl_s=10)
    first = house.manifests.of(shard, start=7)
    assert (first.version, first.sealed, first.segments) == (0, 7, ())
    second = house.manifests.swap(first, segments=(segment("a"),), sealed=9, lease=lease)
    assert house.manifests.of(shard, start=7) == second
    for stale in (first, house.manifests.of(shard, start=7).__class__(shard, 5, 1, 9, ())):
        with pytest.raises(Conflict):
            house.manifests.swap(stale, segments=(), sealed=10, lease=lease)
    assert house.manifests.of(shard, start=7) == second


def test_a_segment_that_an_earlier_version_stored_is_read(house: House) -> None:
    shard = make(house).shards()[0]
    lease = house.leases.acquire("slot/0", "one", ttl_s=10)
    known = replace(segment("a"), log_start=2, log_end=9, n_calibration_queries=40)
    house.manifests.swap(
        house.manifests.of(shard, start=0), segments=(known,), sealed=9, lease=lease
    )
    with change(house.engine) as connection:
        text = connection.execute(select(manifests.c.segments)).scalar_one()
        for old, new in (
            ("asked", "n_calibration_queries"),
            ("first", "log_start"),
            ("end", "log_end"),
        ):
            assert f'"{new}"' in text
            text = text.replace(f'"{new}"', f'"{old}"')
        connection.execute(update(manifests).values(segments=text))
    assert house.manifests.of(shard, start=0).segments == (known,)


def test_of_two_indexers_that_swap_at_once_exactly_one_wins(house: House) -> None:
    shard = make(house).shards()[0]
    lease = house.leases.acquire("slot/0", "one", ttl_s=10)
    for old in (
        house.manifests.of(shard, start=0),
        None,
    ):  # the first manifest of a shard, and a later one
        known = old or house.manifests.of(shard, start=0)
        outcomes = at_once(
            6,
            lambda i, known=known: house.manifests.swap(
                known, segments=(segment(f"s{i}"),), sealed=1, lease=lease
            ),
        )
        [winner] = [o for o in outcomes if not isinstance(o, Conflict)]
        assert house.manifests.of(shard, start=0) == winner


def test_a_lease_passes_on_when_it_runs_out_and_its_old_holder_is_fenced_off(house: House) -> None:
    shard = make(house).shards()[0]
    mine = house.leases.acquire("slot/0", "one", ttl_s=10)
    assert house.leases.acquire("slot/0", "two", ttl_s=10) is None
    mine = house.leases.renew(mine, ttl_s=10)
    house.clock.advance(11)
    theirs = house.leases.acquire("slot/0", "two", ttl_s=10)
    assert theirs.epoch > mine.epoch
    with pytest.raises(Conflict):
        house.leases.renew(mine, ttl_s=10)
    with pytest.raises(Conflict, match="lease"):
        house.manifests.swap(house.manifests.of(shard, start=0), segments=(), sealed=1, lease=mine)
    house.manifests.swap(house.manifests.of(shard, start=0), segments=(), sealed=1, lease=theirs)
    house.leases.release(theirs)
    assert house.leases.acquire("slot/0", "one", ttl_s=10).epoch > theirs.epoch


def test_the_change_feed_names_each_changed_manifest_once(house: House) -> None:
    generation = make(house)
    leases = {s: house.leases.acquire(f"slot/{s}", "one", ttl_s=10) for s in (0, 1)}
    seen, none = house.manifests.changed_since(0, {0, 1})
    assert none == []
    for shard in generation.shards():
        for sealed in (1, 2):
            house.manifests.swap(
                house.manifests.of(shard, start=0),
                segments=(),
                sealed=sealed,
                lease=leases[shard.slot],
            )
    seen, changed = house.manifests.changed_since(seen, {0, 1})
    assert [(m.shard.slot, m.sealed) for m in changed] == [(0, 2), (1, 2)]
    assert house.manifests.changed_since(seen, {0, 1}) == (seen, [])


def test_objects_of_a_collection_that_is_gone_are_named_no_more(house: House) -> None:
    shard = make(house).shards()[0]
    lease = house.leases.acquire("slot/0", "one", ttl_s=10)
    house.manifests.swap(
        house.manifests.of(shard, start=0), segments=(segment("a"),), sealed=1, lease=lease
    )
    assert house.manifests.paths() == {"a/passages"}
    house.registry.delete_collection("acme", "docs", actor="test")
    assert house.manifests.paths() == set()


def test_a_job_moves_forward_once(house: House) -> None:
    make(house)
    job = house.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    with pytest.raises(Conflict, match="in progress"):
        house.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    moved = house.jobs.advance(job, state="waiting", barrier={"documents": {"0": 3}}, done=1)
    assert house.jobs.get(job.id) == moved
    with pytest.raises(Conflict):
        house.jobs.advance(job, state="building")
    house.jobs.advance(moved, state="done")
    house.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")


def test_of_many_that_ask_for_a_lease_at_once_one_gets_it(house: House) -> None:
    outcomes = at_once(6, lambda i: house.leases.acquire("slot/0", f"owner-{i}", ttl_s=10))
    [lease] = [o for o in outcomes if o is not None]
    assert (lease.epoch, house.leases.acquire("slot/0", lease.owner, ttl_s=10).epoch) == (1, 2)
    house.clock.advance(11)
    [second] = [
        o
        for o in at_once(6, lambda i: house.leases.acquire("slot/0", f"owner-{i}", ttl_s=10))
        if o is not None
    ]
    assert second.epoch == 3


def test_of_two_workers_that_move_a_job_one_wins_and_a_cancelled_one_moves_no_more(
    house: House,
) -> None:
    make(house)
    job = house.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    outcomes = at_once(4, lambda i: house.jobs.advance(job, state="waiting", done=i))
    [moved] = [o for o in outcomes if not isinstance(o, Conflict)]
    assert house.jobs.get(job.id) == moved
    with pytest.raises(Conflict):
        house.jobs.cancel(job, actor="mallory")
    house.jobs.cancel(moved, actor="ann")
    with pytest.raises(Conflict):
        house.jobs.advance(moved, state="building")
    last = Audit(house.engine).records()[-1]
    assert (last.actor, last.action, last.subject) == ("ann", "reindex.cancel", "acme/docs")
    assert [j.state for j in house.jobs.list("acme")] == ["cancelled"]
    assert house.jobs.list(open_only=True) == ()
