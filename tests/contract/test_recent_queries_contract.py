"""The contract of recent queries, over SQLite and PostgreSQL."""

import numpy as np
from catalogs import Catalog, at_once, make

from tenants.recent_queries import RECENT_QUERIES_MAX


def vectors(n: int, d: int = 4, *, first: float = 0) -> np.ndarray:
    return first + np.arange(n * d, dtype=np.float32).reshape(n, d)


def test_the_newest_are_kept_and_put_in_the_place_of_those_before(catalog: Catalog) -> None:
    of = make(catalog)
    queries = catalog.manifests.recent_queries
    assert queries.of(of.tenant, of.collection, of.model, 4) is None
    queries.keep(of.tenant, of.collection, of.model, vectors(3))
    queries.keep(of.tenant, of.collection, of.model, vectors(RECENT_QUERIES_MAX + 5))
    held = queries.of(of.tenant, of.collection, of.model, 4)
    np.testing.assert_array_equal(held, vectors(RECENT_QUERIES_MAX + 5)[5:])
    assert held.dtype == np.float32


def test_queries_of_another_model_or_dimension_are_not_returned(catalog: Catalog) -> None:
    of = make(catalog)
    queries = catalog.manifests.recent_queries
    queries.keep(of.tenant, of.collection, "another", vectors(3))
    assert queries.of(of.tenant, of.collection, of.model, 4) is None
    assert queries.of(of.tenant, of.collection, "another", 5) is None
    assert queries.of("other", of.collection, "another", 4) is None


def test_they_go_with_the_collection_and_come_to_none_that_is_gone(catalog: Catalog) -> None:
    of = make(catalog)
    queries = catalog.manifests.recent_queries
    queries.keep(of.tenant, of.collection, of.model, vectors(3))
    catalog.registry.delete_collection(of.tenant, of.collection, actor="test")
    assert queries.of(of.tenant, of.collection, of.model, 4) is None
    queries.keep(of.tenant, of.collection, of.model, vectors(3))
    assert queries.of(of.tenant, of.collection, of.model, 4) is None


def test_concurrent_writers_all_succeed_and_one_set_stays(catalog: Catalog) -> None:
    of = make(catalog)
    queries = catalog.manifests.recent_queries
    at_once(
        8,
        lambda i: [
            queries.keep(of.tenant, of.collection, of.model, vectors(3, first=i)) for _ in range(5)
        ],
    )
    held = queries.of(of.tenant, of.collection, of.model, 4)
    assert held is not None and any(np.array_equal(held, vectors(3, first=i)) for i in range(8))


def test_more_are_not_given_up_for_fewer_of_the_same_model(catalog: Catalog) -> None:
    of, queries = make(catalog), catalog.manifests.recent_queries

    def kept(model: str | None) -> list[float]:
        held = queries.of(of.tenant, of.collection, model, 4)
        return [] if held is None else held[:, 0].tolist()

    queries.keep(of.tenant, of.collection, of.model, vectors(60))
    queries.keep(of.tenant, of.collection, of.model, vectors(30, first=1_000))
    assert kept(of.model) == vectors(60)[:, 0].tolist()
    queries.keep(of.tenant, of.collection, of.model, vectors(60, first=1_000))
    assert kept(of.model) == vectors(60, first=1_000)[:, 0].tolist()
    queries.keep(of.tenant, of.collection, "another", vectors(30))
    assert len(kept("another")) == 30
