"""The contract of the recall history, over SQLite and PostgreSQL."""

from catalogs import Catalog, at_once, make

from tenants.entities import Generation
from tenants.recall_history import STATE_BYTES_MAX, RecallHistory, RecallRecord


def history(catalog: Catalog) -> RecallHistory:
    return RecallHistory(catalog.engine, catalog.clock)


def kept(
    of: Generation, samples: int, state: str = "{}", generation: int | None = None
) -> RecallRecord:
    return RecallRecord(of.tenant, of.collection, generation or of.number, samples, state)


def test_the_newest_state_is_kept_of_each_collection(catalog: Catalog) -> None:
    of, h = make(catalog), history(catalog)
    assert h.newest() == []
    h.keep([kept(of, 30, "first")])
    h.keep([kept(of, 31, "second")])
    assert h.newest() == [kept(of, 31, "second")]
    h.keep([kept(of, 1, "next", of.number + 1)])
    assert h.newest() == [kept(of, 1, "next", of.number + 1)]


def test_fewer_samples_or_an_older_generation_do_not_replace_what_is_kept(catalog: Catalog) -> None:
    of, h = make(catalog), history(catalog)
    h.keep([kept(of, 30, "many", 2)])
    h.keep([kept(of, 29, "few", 2), kept(of, 1_000, "old", 1)])
    assert h.newest() == [kept(of, 30, "many", 2)]


def test_it_goes_with_the_collection_and_comes_to_none_that_is_gone(catalog: Catalog) -> None:
    of, h = make(catalog), history(catalog)
    h.keep([kept(of, 30)])
    catalog.registry.delete_collection(of.tenant, of.collection, actor="test")
    assert h.newest() == []
    h.keep([kept(of, 31)])
    assert h.newest() == []


def test_a_state_without_bound_is_not_kept(catalog: Catalog) -> None:
    of, h = make(catalog), history(catalog)
    h.keep([kept(of, 30, "x" * (STATE_BYTES_MAX + 1))])
    assert h.newest() == []


def test_of_many_gateways_that_keep_at_once_the_one_with_the_most_samples_stays(
    catalog: Catalog,
) -> None:
    of, h = make(catalog), history(catalog)
    at_once(6, lambda i: [h.keep([kept(of, 10 * i + n)]) for n in range(5)])
    assert h.newest() == [kept(of, 54)]
