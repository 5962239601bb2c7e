"""The catalog's contract for manifests, leases and jobs, over SQLite and PostgreSQL."""

from dataclasses import replace

import pytest
from catalogs import Catalog, at_once, make, segment
from sqlalchemy import select, update

from tenants.audit import Audit
from tenants.tables import manifests
from vicinage.catalog import change
from vicinage.errors import Conflict


def test_a_manifest_is_swapped_only_from_what_it_was(catalog: Catalog) -> None:
    shard = make(catalog).shards()[0]
    lease = catalog.leases.acquire("slot/0", "one", ttl_s=10)
    first = catalog.manifests.of(shard, start=7)
    assert (first.version, first.sealed, first.segments) == (0, 7, ())
    second = catalog.manifests.swap(first, segments=(segment("a"),), sealed=9, lease=lease)
    assert catalog.manifests.of(shard, start=7) == second
    for stale in (first, catalog.manifests.of(shard, start=7).__class__(shard, 5, 1, 9, ())):
        with pytest.raises(Conflict):
            catalog.manifests.swap(stale, segments=(), sealed=10, lease=lease)
    assert catalog.manifests.of(shard, start=7) == second


def test_a_segment_that_an_earlier_version_stored_is_read(catalog: Catalog) -> None:
    shard = make(catalog).shards()[0]
    lease = catalog.leases.acquire("slot/0", "one", ttl_s=10)
    known = replace(segment("a"), log_start=2, log_end=9, n_calibration_queries=40)
    catalog.manifests.swap(
        catalog.manifests.of(shard, start=0), segments=(known,), sealed=9, lease=lease
    )
    with change(catalog.engine) as connection:
        text = connection.execute(select(manifests.c.segments)).scalar_one()
        for old, new in (
            ("asked", "n_calibration_queries"),
            ("first", "log_start"),
            ("end", "log_end"),
        ):
            assert f'"{new}"' in text
            text = text.replace(f'"{new}"', f'"{old}"')
        connection.execute(update(manifests).values(segments=text))
    assert catalog.manifests.of(shard, start=0).segments == (known,)


def test_of_two_indexers_that_swap_at_once_exactly_one_wins(catalog: Catalog) -> None:
    shard = make(catalog).shards()[0]
    lease = catalog.leases.acquire("slot/0", "one", ttl_s=10)
    for old in (
        catalog.manifests.of(shard, start=0),
        None,
    ):  # the first manifest of a shard, and a later one
        known = old or catalog.manifests.of(shard, start=0)
        outcomes = at_once(
            6,
            lambda i, known=known: catalog.manifests.swap(
                known, segments=(segment(f"s{i}"),), sealed=1, lease=lease
            ),
        )
        [winner] = [o for o in outcomes if not isinstance(o, Conflict)]
        assert catalog.manifests.of(shard, start=0) == winner


def test_a_lease_passes_on_when_it_runs_out_and_its_old_holder_is_fenced_off(
    catalog: Catalog,
) -> None:
    shard = make(catalog).shards()[0]
    mine = catalog.leases.acquire("slot/0", "one", ttl_s=10)
    assert catalog.leases.acquire("slot/0", "two", ttl_s=10) is None
    mine = catalog.leases.renew(mine, ttl_s=10)
    catalog.clock.advance(11)
    theirs = catalog.leases.acquire("slot/0", "two", ttl_s=10)
    assert theirs.epoch > mine.epoch
    with pytest.raises(Conflict):
        catalog.leases.renew(mine, ttl_s=10)
    with pytest.raises(Conflict, match="lease"):
        catalog.manifests.swap(
            catalog.manifests.of(shard, start=0), segments=(), sealed=1, lease=mine
        )
    catalog.manifests.swap(
        catalog.manifests.of(shard, start=0), segments=(), sealed=1, lease=theirs
    )
    catalog.leases.release(theirs)
    assert catalog.leases.acquire("slot/0", "one", ttl_s=10).epoch > theirs.epoch


def test_the_change_feed_names_each_changed_manifest_once(catalog: Catalog) -> None:
    generation = make(catalog)
    leases = {s: catalog.leases.acquire(f"slot/{s}", "one", ttl_s=10) for s in (0, 1)}
    seen, none = catalog.manifests.changed_since(0, {0, 1})
    assert none == []
    for shard in generation.shards():
        for sealed in (1, 2):
            catalog.manifests.swap(
                catalog.manifests.of(shard, start=0),
                segments=(),
                sealed=sealed,
                lease=leases[shard.slot],
            )
    seen, changed = catalog.manifests.changed_since(seen, {0, 1})
    assert [(m.shard.slot, m.sealed) for m in changed] == [(0, 2), (1, 2)]
    assert catalog.manifests.changed_since(seen, {0, 1}) == (seen, [])


def test_objects_of_a_collection_that_is_gone_are_named_no_more(catalog: Catalog) -> None:
    shard = make(catalog).shards()[0]
    lease = catalog.leases.acquire("slot/0", "one", ttl_s=10)
    catalog.manifests.swap(
        catalog.manifests.of(shard, start=0), segments=(segment("a"),), sealed=1, lease=lease
    )
    assert catalog.manifests.paths() == {"a/passages"}
    catalog.registry.delete_collection("acme", "docs", actor="test")
    assert catalog.manifests.paths() == set()


def test_a_job_moves_forward_once(catalog: Catalog) -> None:
    make(catalog)
    job = catalog.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    with pytest.raises(Conflict, match="in progress"):
        catalog.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    moved = catalog.jobs.advance(job, state="waiting", barrier={"documents": {"0": 3}}, done=1)
    assert catalog.jobs.get(job.id) == moved
    with pytest.raises(Conflict):
        catalog.jobs.advance(job, state="building")
    catalog.jobs.advance(moved, state="done")
    catalog.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")


def test_of_many_that_ask_for_a_lease_at_once_one_gets_it(catalog: Catalog) -> None:
    outcomes = at_once(6, lambda i: catalog.leases.acquire("slot/0", f"owner-{i}", ttl_s=10))
    [lease] = [o for o in outcomes if o is not None]
    assert (lease.epoch, catalog.leases.acquire("slot/0", lease.owner, ttl_s=10).epoch) == (1, 2)
    catalog.clock.advance(11)
    [second] = [
        o
        for o in at_once(6, lambda i: catalog.leases.acquire("slot/0", f"owner-{i}", ttl_s=10))
        if o is not None
    ]
    assert second.epoch == 3


def test_of_two_workers_that_move_a_job_one_wins_and_a_canceled_one_moves_no_more(
    catalog: Catalog,
) -> None:
    make(catalog)
    job = catalog.jobs.create("acme", "docs", index="flat", model=None, shards=1, actor="test")
    outcomes = at_once(4, lambda i: catalog.jobs.advance(job, state="waiting", done=i))
    [moved] = [o for o in outcomes if not isinstance(o, Conflict)]
    assert catalog.jobs.get(job.id) == moved
    with pytest.raises(Conflict):
        catalog.jobs.cancel(job, actor="mallory")
    catalog.jobs.cancel(moved, actor="ann")
    with pytest.raises(Conflict):
        catalog.jobs.advance(moved, state="building")
    last = Audit(catalog.engine).records()[-1]
    assert (last.actor, last.action, last.subject) == ("ann", "reindex.cancel", "acme/docs")
    assert [j.state for j in catalog.jobs.list("acme")] == ["canceled"]
    assert catalog.jobs.list(open_only=True) == ()
