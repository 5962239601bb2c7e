"""The view of the catalog for some slots, refresh by refresh."""

from dataclasses import replace

from searching import D, collection, one, seal, send, shard_of

from cluster.wiring import Resources
from query.searcher.catalog_view import NO_MANIFEST, CatalogRead, CatalogView
from tenants import provisioning


def looked(view: CatalogView) -> CatalogRead:
    """Applies one refresh; the tests assert the shards that appeared and disappeared."""
    read = view.read()
    assert not view.begin(read)
    if read.every is not None:
        view.serve(read.every)
    for manifest in read.changed:
        view.note(manifest)
    view.end(read)
    return read


def view_of(base: Resources, slots: range | None = None) -> CatalogView:
    provisioning.create_tenant(base.registry, base.log, "acme", actor="test")
    return CatalogView(
        frozenset(slots or range(base.settings.slots)), base.registry, base.manifests
    )


def test_shards_of_its_slots_alone_are_served(base: Resources) -> None:
    view = view_of(base, range(1))
    made = [shard_of(collection(base, f"c{i}")) for i in range(20)]
    looked(view)
    assert set(view.serving) == {s for s in made if s.slot == 0}
    assert set(view.serving) < set(made)


def test_a_refresh_states_which_shards_are_new_and_which_are_gone(base: Resources) -> None:
    view = view_of(base)
    docs = shard_of(collection(base))
    read = view.read()
    assert read.every is not None
    assert view.serve(read.every) == (frozenset(), {docs})
    view.end(read)
    assert view.read().every is None, "nothing changed"
    base.registry.delete_collection("acme", "docs", actor="test")
    read = view.read()
    assert read.every is not None
    assert view.serve(read.every) == ({docs}, frozenset())
    assert view.is_over(docs)


def test_the_newest_manifest_of_a_shard_is_known_until_it_is_gone(base: Resources) -> None:
    view, of = view_of(base), collection(base)
    docs = shard_of(of)
    looked(view)
    assert (view.stored(docs), view.sealed(docs, of.generation())) == (
        NO_MANIFEST,
        of.generation().start(docs.slot),
    )
    end = send(base, docs, one("a", 1))
    seal(base, docs, of, [one("a", 1)], end)
    [changed] = looked(view).changed
    assert (changed.shard, view.stored(docs).documents, view.sealed(docs, of.generation())) == (
        docs,
        1,
        end,
    )
    assert view.replay_start(docs.slot, 100) == end
    assert looked(view).changed == (), "it is reported once"
    base.registry.delete_collection("acme", "docs", actor="test")
    looked(view)
    assert view.stored(docs) == NO_MANIFEST
    assert view.replay_start(docs.slot, 100) == 100


def test_a_catalog_whose_version_decreased_was_restored_from_a_backup(base: Resources) -> None:
    view, of = view_of(base), collection(base)
    seal(base, shard_of(of), of, [one("a", 1)], 1)
    read = looked(view)
    assert read.change > 0
    assert view.begin(replace(read, change=0))
    assert not view.begin(replace(read, change=0))


def test_the_next_generation_of_a_loaded_collection_is_loaded_without_a_request(
    base: Resources,
) -> None:
    view, of = view_of(base), collection(base)
    docs = shard_of(of)
    looked(view)
    assert not view.is_eager(docs, [docs]), "it has one generation"
    made = base.registry.add_generation(
        "acme",
        "docs",
        index="flat",
        model=None,
        dimension=D,
        place=lambda _number: ((docs.slot,), (0,)),
        actor="test",
    )
    looked(view)
    [following] = made.shards()
    assert view.is_eager(following, [docs])
    assert not view.is_eager(following, [])
