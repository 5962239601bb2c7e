"""The contract of the quarantine, over SQLite and PostgreSQL."""

from dataclasses import replace

from catalogs import Catalog, at_once, make, segment

from tenants import manifests
from tenants.audit import Audit
from tenants.entities import Damage, Generation
from tenants.manifests import Manifests


def published(catalog: Catalog, generation: Generation, *names: str) -> None:
    shard = generation.shards()[0]
    lease = catalog.leases.acquire(f"slot/{shard.slot}", "test", ttl_s=30)
    assert lease is not None
    old = catalog.manifests.of(shard, start=0)
    catalog.manifests.swap(old, segments=tuple(map(segment, names)), sealed=1, lease=lease)


def damage(generation: Generation, name: str, **facts: object) -> Damage:
    made = {
        "path": f"{name}/passages",
        "segment": name,
        "role": "passages",
        "fault": "corrupt",
        "reason": "a bit",
    }
    return Damage(shard=generation.shards()[0], **{**made, **facts})  # type: ignore[arg-type]


def test_of_concurrent_reports_one_is_recorded(catalog: Catalog) -> None:
    generation = make(catalog)
    published(catalog, generation, "s1")
    quarantine = catalog.manifests.quarantine
    noted = at_once(
        6,
        lambda i: Manifests(catalog.engine, catalog.clock).quarantine.note(
            damage(generation, "s1"), actor=f"{i}"
        ),
    )
    assert sorted(map(str, noted)) == ["False"] * 5 + ["True"]
    [found] = quarantine.open()
    assert (found.path, found.state, found.seen_ms) == (
        "s1/passages",
        "noted",
        catalog.clock.now_ms(),
    )
    assert (
        len([r for r in Audit(catalog.engine).records() if r.action == "segment.quarantine"]) == 1
    )
    assert Audit(catalog.engine).verify()


def test_what_no_manifest_names_is_not_noted(catalog: Catalog) -> None:
    generation, other = make(catalog), make(catalog, tenant="other")
    published(catalog, generation, "s1")
    for each in (damage(generation, "s2"), damage(other, "s1"), damage(generation, "s")):
        assert not catalog.manifests.quarantine.note(each, actor="test")
    assert catalog.manifests.quarantine.every() == []


def test_what_is_corrupt_is_barred_until_it_is_replaced_or_found_whole(catalog: Catalog) -> None:
    generation = make(catalog)
    published(catalog, generation, "s1", "s2", "s3")
    quarantine, shard = catalog.manifests.quarantine, generation.shards()[0]
    for name, fault in (("s1", "corrupt"), ("s2", "lost"), ("s3", "corrupt")):
        assert quarantine.note(damage(generation, name, fault=fault), actor="test")
    assert quarantine.barred(shard) == {"s1/passages", "s3/passages"}, (
        "of what is lost there are no bytes"
    )
    quarantine.move(damage(generation, "s1"), "stuck", actor="test", reason="gone")
    assert (quarantine.is_stuck("s1/passages"), quarantine.is_stuck("s2/passages")) == (True, False)
    assert quarantine.barred(shard) == {"s1/passages", "s3/passages"}
    quarantine.move(damage(generation, "s1"), "replaced", actor="test")
    quarantine.forget(damage(generation, "s3"), actor="test", why="found whole")
    assert quarantine.barred(shard) == frozenset()
    assert [(d.segment, d.state) for d in quarantine.every()] == [
        ("s1", "replaced"),
        ("s2", "noted"),
    ]
    assert [d.segment for d in quarantine.open([shard.slot])] == ["s2"]
    assert quarantine.open([shard.slot + 1]) == []


def test_a_manifest_of_an_older_or_a_newer_version_is_read() -> None:
    """Segments of earlier versions have no log offsets."""
    objects = '{"passages": {"path": "s1/passages", "bytes": 1, "sha256": "00"}}'
    facts = f'"id": "s1", "objects": {objects}, "kind": "flat", "n_passages": 1,'
    facts += ' "n_documents": 1, "n_deletes": 0'
    older, newer = manifests._parse(
        f'[{{{facts}}}, {{{facts}, "first": 3, "end": 9, "color": "blue"}}]'
    )
    assert older == segment("s1")
    assert newer == replace(older, log_start=3, log_end=9)


def test_what_became_of_it_is_said_once(catalog: Catalog) -> None:
    generation = make(catalog)
    published(catalog, generation, "s1")
    quarantine = catalog.manifests.quarantine
    quarantine.note(damage(generation, "s1"), actor="test")
    for _ in range(3):
        quarantine.move(damage(generation, "s1"), "replaced", actor="test")
    for _ in range(3):
        quarantine.forget(damage(generation, "s1"), actor="test", why="over")
    actions = [r.action for r in Audit(catalog.engine).records() if r.action.startswith("segment.")]
    assert actions == ["segment.quarantine", "segment.replaced", "segment.released"]
