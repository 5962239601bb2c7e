"""What is kept of recent questions, over SQLite and a real PostgreSQL."""

import numpy as np
from catalogs import House, at_once, make

from tenants.questions import QUESTIONS_MAX


def vectors(n: int, d: int = 4, *, first: float = 0) -> np.ndarray:
    return first + np.arange(n * d, dtype=np.float32).reshape(n, d)


def test_the_newest_are_kept_and_put_in_the_place_of_those_before(house: House) -> None:
    of = make(house)
    questions = house.manifests.questions
    assert questions.of(of.tenant, of.collection, of.model, 4) is None
    questions.keep(of.tenant, of.collection, of.model, vectors(3))
    questions.keep(of.tenant, of.collection, of.model, vectors(QUESTIONS_MAX + 5))
    held = questions.of(of.tenant, of.collection, of.model, 4)
    np.testing.assert_array_equal(held, vectors(QUESTIONS_MAX + 5)[5:])
    assert held.dtype == np.float32


def test_questions_of_another_model_or_dimension_say_nothing(house: House) -> None:
    of = make(house)
    questions = house.manifests.questions
    questions.keep(of.tenant, of.collection, "another", vectors(3))
    assert questions.of(of.tenant, of.collection, of.model, 4) is None
    assert questions.of(of.tenant, of.collection, "another", 5) is None
    assert questions.of("other", of.collection, "another", 4) is None


def test_they_go_with_the_collection_and_come_to_none_that_is_gone(house: House) -> None:
    of = make(house)
    questions = house.manifests.questions
    questions.keep(of.tenant, of.collection, of.model, vectors(3))
    house.registry.delete_collection(of.tenant, of.collection, actor="test")
    assert questions.of(of.tenant, of.collection, of.model, 4) is None
    questions.keep(of.tenant, of.collection, of.model, vectors(3))
    assert questions.of(of.tenant, of.collection, of.model, 4) is None


def test_of_many_who_keep_at_once_nobody_fails_and_one_set_stays(house: House) -> None:
    of = make(house)
    questions = house.manifests.questions
    at_once(8, lambda i: [questions.keep(of.tenant, of.collection, of.model, vectors(3, first=i)) for _ in range(5)])
    held = questions.of(of.tenant, of.collection, of.model, 4)
    assert held is not None and any(np.array_equal(held, vectors(3, first=i)) for i in range(8))


def test_more_are_not_given_up_for_fewer_of_the_same_model(house: House) -> None:
    of, questions = make(house), house.manifests.questions

    def kept(model: str | None) -> list[float]:
        held = questions.of(of.tenant, of.collection, model, 4)
        return [] if held is None else held[:, 0].tolist()

    questions.keep(of.tenant, of.collection, of.model, vectors(60))
    questions.keep(of.tenant, of.collection, of.model, vectors(30, first=1_000))
    assert kept(of.model) == vectors(60)[:, 0].tolist()
    questions.keep(of.tenant, of.collection, of.model, vectors(60, first=1_000))
    assert kept(of.model) == vectors(60, first=1_000)[:, 0].tolist()
    questions.keep(of.tenant, of.collection, "another", vectors(30))
    assert len(kept("another")) == 30
