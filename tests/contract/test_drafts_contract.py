"""Drafts are pinned while a manifest may still name them, over SQLite and PostgreSQL."""

import pytest
from catalogs import Catalog, make

from tenants.entities import Lease, ObjectRef, SegmentRef
from vicinage.errors import Conflict


def lease_of(catalog: Catalog, owner: str) -> Lease:
    found = catalog.leases.acquire("slot/0", owner, ttl_s=10)
    assert found is not None
    return found


def test_a_draft_is_pinned_until_a_manifest_names_it(catalog: Catalog) -> None:
    drafts, shard = catalog.manifests.drafts, make(catalog).shards()[0]
    lease = lease_of(catalog, "one")
    drafts.begin("segments/x/1", lease)
    drafts.begin("segments/x/2", lease)
    assert drafts.pinned() == {"segments/x/1", "segments/x/2"}
    named = SegmentRef(
        "1", {"passages": ObjectRef("segments/x/1/passages.arrow", 1, "0")}, "flat", 1, 1, 0
    )
    empty = catalog.manifests.of(shard, start=0)
    catalog.manifests.swap(empty, segments=(named,), sealed=1, lease=lease)
    assert drafts.pinned() == {"segments/x/2"}
    drafts.end(["segments/x/2", "segments/never"])
    assert drafts.pinned() == set()


def test_a_draft_ends_with_the_lease_of_its_writer(catalog: Catalog) -> None:
    drafts = catalog.manifests.drafts
    lost = lease_of(catalog, "one")
    drafts.begin("segments/x/1", lost)
    catalog.clock.advance(60)
    drafts.forget_stale()
    assert drafts.pinned() == {"segments/x/1"}, (
        "a lease that ran out is still its holder's until another takes it"
    )
    drafts.begin("segments/x/2", held := lease_of(catalog, "two"))
    assert drafts.pinned() == {"segments/x/2"}
    with pytest.raises(Conflict):
        drafts.begin("segments/x/3", lost)
    drafts.forget_stale()
    catalog.leases.renew(held, ttl_s=10)
    assert drafts.pinned() == {"segments/x/2"}
