"""Who may come in: laws 6, 7 and 9."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.admission import Admission
from vicinage.errors import Overloaded, Unavailable


def enter(admission: Admission, held: ExitStack, tenant: str, weight: int = 1) -> bool:
    try:
        held.enter_context(admission.enter(tenant, weight))
    except Overloaded:
        return False
    return True


def test_a_tenant_alone_may_use_everything_and_not_more() -> None:
    admission = Admission(in_flight_max=8)
    with ExitStack() as held:
        assert [enter(admission, held, "a") for _ in range(9)] == [True] * 8 + [False]
        assert admission.in_flight == 8
    assert admission.in_flight == 0


def test_a_place_is_given_back_when_the_work_fails() -> None:
    admission = Admission(in_flight_max=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.enter("a", 1):
            raise ZeroDivisionError
    assert admission.in_flight == 0


def test_once_the_house_is_half_full_nobody_present_goes_beyond_its_share() -> None:
    admission = Admission(in_flight_max=8)
    with ExitStack() as held:
        assert enter(admission, held, "quiet")
        assert [enter(admission, held, "loud") for _ in range(5)] == [True] * 4 + [False]
        assert all(enter(admission, held, "quiet") for _ in range(3))


def test_a_gold_tenant_holds_four_places_to_a_bronze_ones_one() -> None:
    admission = Admission(in_flight_max=10)
    with ExitStack() as held:
        places = {"gold": 0, "bronze": 0}
        for _ in range(20):
            for tenant, weight in (("gold", 4), ("bronze", 1)):
                places[tenant] += enter(admission, held, tenant, weight)
    assert places["gold"] == 8
    assert places["bronze"] == 2


def test_while_draining_nobody_comes_in_and_those_inside_finish() -> None:
    admission = Admission(in_flight_max=8)
    with admission.enter("a", 1):
        admission.drain()
        with pytest.raises(Unavailable), admission.enter("a", 1):
            raise AssertionError
        assert admission.in_flight == 1
    assert admission.in_flight == 0


@given(
    steps=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([1, 2, 4]), st.booleans()), max_size=80),
    most=st.integers(1, 12),
)
def test_it_never_lets_in_more_than_the_bound_nor_forgets_a_place(
    steps: list[tuple[str, int, bool]], most: int
) -> None:
    admission = Admission(in_flight_max=most)
    inside: dict[str, list[ExitStack]] = {name: [] for name in "abcd"}
    for tenant, weight, comes in steps:
        if comes:
            held = ExitStack()
            if enter(admission, held, tenant, weight):
                inside[tenant].append(held)
        elif inside[tenant]:
            inside[tenant].pop().close()
        assert admission.in_flight == sum(map(len, inside.values())) <= most
    for held in [h for each in inside.values() for h in each]:
        held.close()
    assert admission.in_flight == 0
    with admission.enter("a", 1):
        pass
