"""The correction of effort by live recall: it moves toward the objective, not on noise, and not without bound."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.correction import LEAST, MOST, PATIENCE, Correction, moved
from query.interval import ENOUGH

OBJECTIVE = 0.95


def served(recall: float, n: int, rng: np.random.Generator) -> list[float]:
    """Recall@10 of n questions of that mean."""
    return (rng.binomial(10, recall, n) / 10).tolist()


@pytest.mark.parametrize("off", [-0.03, -0.015])
def test_curves_that_promise_too_much_are_made_up_for(off: float) -> None:
    rng, correction = np.random.default_rng(1), Correction()
    for _ in range(100):
        true = OBJECTIVE + off + correction.added
        for value in served(true, ENOUGH, rng):
            correction.note(value, OBJECTIVE)
    assert OBJECTIVE - 0.012 <= OBJECTIVE + off + correction.added <= OBJECTIVE + 0.02


def test_effort_is_taken_back_where_recall_lies_well_above() -> None:
    rng, correction = np.random.default_rng(2), Correction()
    for _ in range(100):
        for value in served(min(1.0, OBJECTIVE + 0.035 + correction.added), ENOUGH, rng):
            correction.note(value, OBJECTIVE)
    assert LEAST <= correction.added < -0.005
    assert OBJECTIVE + 0.035 + correction.added >= OBJECTIVE


def test_a_curve_that_is_right_is_left_alone() -> None:
    moves = 0
    for seed in range(20):
        rng, correction = np.random.default_rng(seed), Correction()
        for value in served(OBJECTIVE + 0.004, 600, rng):
            correction.note(value, OBJECTIVE)
        moves += correction.added != 0
    assert moves <= 6, "chance moves it now and then, by one step"


def test_few_samples_move_nothing() -> None:
    correction = Correction()
    for _ in range(ENOUGH - 1):
        correction.note(0.1, OBJECTIVE)
    assert correction.added == 0
    correction.note(0.1, OBJECTIVE)
    assert correction.added > 0
    assert correction.since == [], "what was served at the old effort says nothing about the new one"


def test_what_was_learned_of_made_up_questions_is_forgotten_once_curves_know_real_ones() -> None:
    correction = Correction()
    for _ in range(ENOUGH):
        correction.note(0.5, OBJECTIVE)
    assert correction.added > 0
    correction.note(1.0, OBJECTIVE, asked=30)
    assert (correction.added, correction.since) == (0, [1.0])
    for _ in range(ENOUGH):
        correction.note(0.5, OBJECTIVE, asked=59)
    assert correction.added > 0, "some questions more say nothing new"
    correction.note(0.5, OBJECTIVE, asked=0)
    assert correction.added > 0, "nor does one older segment among the newer"
    correction.note(1.0, OBJECTIVE, asked=60)
    assert correction.added == 0


@given(
    recalls=st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), max_size=5 * PATIENCE),
    objective=st.floats(0.5, 0.999),
)
def test_it_stays_within_its_bounds_and_holds_a_bounded_number_of_samples(
    recalls: list[float], objective: float
) -> None:
    correction = Correction()
    for value in recalls:
        correction.note(value, objective)
        assert LEAST <= correction.added <= MOST
        assert len(correction.since) < PATIENCE + ENOUGH


def test_what_lies_below_moves_up_whatever_was_added() -> None:
    bad = [0.5] * 60 + [0.6] * 60
    assert moved(LEAST, bad, OBJECTIVE) > LEAST
    assert moved(MOST, bad, OBJECTIVE) == MOST
