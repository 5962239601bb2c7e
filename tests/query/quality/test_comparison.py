"""The comparison of a served search with an exact one."""

from query.quality.comparison import recall_of
from vicinage.records import Hit


def hits(names: str, first: float = 1.0) -> tuple[Hit, ...]:
    return tuple(Hit(name, 0, first - i / 100, 1) for i, name in enumerate(names))


def test_recall_is_the_share_of_the_exact_hits_that_were_served() -> None:
    assert recall_of(hits("abcd"), hits("abcd")) == 1
    assert recall_of(hits("abxy", 0.9), hits("abcd")) == 0.5
    assert recall_of((), hits("abcd")) == 0


def test_a_hit_as_near_as_the_last_exact_one_counts_for_ties_have_no_order() -> None:
    exact = (Hit("a", 0, 0.9, 1), Hit("b", 0, 0.5, 1))
    assert recall_of((Hit("a", 0, 0.9, 1), Hit("tie", 0, 0.5, 1)), exact) == 1


def test_a_document_found_by_another_of_its_passages_is_not_the_same_hit() -> None:
    assert recall_of((Hit("a", 1, 0.1, 1),), (Hit("a", 0, 0.9, 1),)) == 0
