"""Tenants and collections are created completely, topics and rows, also after a crash."""

from collections import Counter
from pathlib import Path

import pytest

from cluster.wiring import Resources
from tenants import provisioning
from tenants.keys import Keys
from tenants.provisioning import VECTORS_TOPIC, ensure_vectors, place
from vicinage.errors import NotFound, Refused
from vicinage.log import Record

TOPICS = {"vicinage.docs.acme": 1, "vicinage.dead.acme": 1}


def topics(base: Resources) -> dict[str, int]:
    return {name: n for name, n in base.log.topics("vicinage.").items() if name != VECTORS_TOPIC}


def test_a_tenant_has_its_topics_as_soon_as_it_exists(base: Resources) -> None:
    made = provisioning.create_tenant(base.registry, base.log, "acme", partitions=3, actor="test")
    assert topics(base) == {made.documents_topic: 3, made.dead_topic: 1}


def test_topics_that_a_crash_left_absent_are_created_by_their_first_user(base: Resources) -> None:
    tenant = base.registry.create_tenant("acme", actor="test")
    assert topics(base) == {}
    for _ in range(2):
        provisioning.ensure_topics(base.log, tenant)
    assert topics(base) == TOPICS


def test_deleting_a_tenant_deletes_its_topics_and_asking_again_finishes_what_a_crash_left(
    base: Resources,
) -> None:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    base.registry.delete_tenant("acme", actor="test")  # the process dies here
    assert topics(base) == TOPICS
    for _ in range(2):
        assert (
            provisioning.delete_tenant(base.registry, base.log, "acme", actor="test").state
            == "deleted"
        )
    assert topics(base) == {}
    with pytest.raises(NotFound):
        provisioning.delete_tenant(base.registry, base.log, "unknown", actor="test")


def test_deleting_a_tenant_revokes_its_keys(base: Resources) -> None:
    keys = Keys(base.engine, base.clock)
    for name in ("acme", "other"):
        provisioning.create_tenant(base.registry, base.log, name, actor="test")
        keys.create(name, ["read"], actor="test")
    base.registry.delete_tenant("acme", actor="test")
    assert {key.tenant: key.revoked_ms is not None for key in keys.list()} == {
        "acme": True,
        "other": False,
    }


def test_a_generation_starts_where_its_slots_end(base: Resources) -> None:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    for slot in range(base.settings.slots):
        base.log.append(VECTORS_TOPIC, slot, [Record(b"row")] * slot)
    made = provisioning.create_collection(
        base.registry,
        base.log,
        "acme",
        "docs",
        dimension=4,
        shards=3,
        slots_total=base.settings.slots,
        actor="test",
    ).generation()
    assert made.starts == made.slots
    assert len(made.shards()) == 3


@pytest.mark.parametrize("shards", [0, -1, 9])
def test_a_collection_has_at_least_one_shard_and_at_most_one_a_slot(
    base: Resources, shards: int
) -> None:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    with pytest.raises(Refused, match="1 to 8") as refused:
        provisioning.create_collection(
            base.registry,
            base.log,
            "acme",
            "docs",
            dimension=4,
            shards=shards,
            slots_total=8,
            actor="test",
        )
    assert (refused.value.field, refused.value.limit) == ("shards", 8)
    assert base.registry.collections() == ()


def test_a_platform_keeps_the_number_of_slots_it_was_made_with(
    base: Resources, tmp_path: Path
) -> None:
    ensure_vectors(base.log, base.settings.slots)
    with pytest.raises(Refused, match="created with 8 slots"):
        ensure_vectors(base.log, 16)


def test_shards_lie_on_slots_of_their_own_and_collections_spread_over_all() -> None:
    for shards in (1, 3, 8):
        slots = place("acme", "docs", 1, shards, 8)
        assert len(set(slots)) == shards
        assert set(slots) <= set(range(8))
        assert slots == place("acme", "docs", 1, shards, 8)
    firsts = Counter(place(f"tenant-{i}", "docs", 1, 1, 8)[0] for i in range(8_000))
    assert all(850 < n < 1_150 for n in firsts.values()), firsts
