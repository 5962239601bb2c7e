"""Admission of requests: guarantees 6, 7 and 9."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.admission import Admission
from vicinage.errors import Overloaded, Unavailable
from vicinage.tenant_context import TenantContext


def enter(admission: Admission, held: ExitStack, tenant: str, weight: int = 1) -> bool:
    try:
        held.enter_context(admission.enter(TenantContext(tenant, weight)))
    except Overloaded:
        return False
    return True


@pytest.mark.parametrize(("weight", "places"), [(1, 10), (2, 14), (4, 16)])
def test_a_tenant_alone_leaves_permits_for_a_new_one(weight: int, places: int) -> None:
    admission = Admission(in_flight_max=20, bodies_bytes_max=1_000, answers_bytes_max=1_000)
    with ExitStack() as held:
        assert sum(enter(admission, held, "loud", weight) for _ in range(100)) == places
        assert enter(admission, held, "newcomer")
        assert admission.in_flight == places + 1
    assert admission.in_flight == 0


def test_the_only_permit_can_be_acquired() -> None:
    admission = Admission(in_flight_max=1, bodies_bytes_max=1_000, answers_bytes_max=1_000)
    with ExitStack() as held:
        assert [enter(admission, held, "a") for _ in range(2)] == [True, False]


def test_a_permit_is_released_when_the_work_fails() -> None:
    admission = Admission(in_flight_max=1, bodies_bytes_max=1_000, answers_bytes_max=1_000)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.enter(TenantContext("a")):
            raise ZeroDivisionError
    assert admission.in_flight == 0


def test_a_new_tenant_gets_a_permit_among_many_busy_ones() -> None:
    admission = Admission(in_flight_max=256, bodies_bytes_max=1_000, answers_bytes_max=1_000)
    with ExitStack() as held:
        for tenant in range(5):
            while enter(admission, held, f"loud {tenant}"):
                pass
            assert enter(admission, held, f"newcomer {tenant}")


def test_a_gold_tenant_holds_four_permits_to_a_bronze_tenants_one() -> None:
    admission = Admission(in_flight_max=24, bodies_bytes_max=1_000, answers_bytes_max=1_000)
    inside: dict[str, list[ExitStack]] = {"bronze": [], "gold": []}
    for _ in range(200):
        for tenant, weight in (("bronze", 1), ("gold", 4)):
            if inside[tenant]:
                inside[tenant].pop(0).close()
            for _ in range(2):
                place = ExitStack()
                if enter(admission, place, tenant, weight):
                    inside[tenant].append(place)
    assert {tenant: len(places) for tenant, places in inside.items()} == {"gold": 16, "bronze": 4}


def test_while_draining_no_request_is_admitted_and_admitted_ones_finish() -> None:
    admission = Admission(in_flight_max=8, bodies_bytes_max=1_000, answers_bytes_max=1_000)
    with admission.enter(TenantContext("a")):
        admission.drain()
        with pytest.raises(Unavailable), admission.enter(TenantContext("a")):
            raise AssertionError
        assert admission.in_flight == 1
    assert admission.in_flight == 0


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from([1, 2, 4]), st.booleans()), max_size=80
    ),
    most=st.integers(1, 12),
)
def test_it_never_admits_more_than_the_bound_nor_leaks_a_permit(
    steps: list[tuple[str, int, bool]], most: int
) -> None:
    admission = Admission(in_flight_max=most, bodies_bytes_max=1_000, answers_bytes_max=1_000)
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
    with admission.enter(TenantContext("a")):
        pass


def test_unread_answers_have_their_own_account() -> None:
    admission = Admission(in_flight_max=100, bodies_bytes_max=1_000, answers_bytes_max=1_000)
    with ExitStack() as held:
        places = [held.enter_context(admission.enter(TenantContext("loud"))) for _ in range(6)]
        for place in places[:5]:
            place.hold_answer(100)
        with pytest.raises(Overloaded, match="answers"):
            places[5].hold_answer(100)
        places[5].hold(400)
        held.enter_context(admission.enter(TenantContext("newcomer"))).hold_answer(200)
        assert (admission.bodies_bytes, admission.answers_bytes) == (400, 700)
    assert (admission.bodies_bytes, admission.answers_bytes) == (0, 0)
