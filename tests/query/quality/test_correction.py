"""The correction of effort by live recall follows the objective, not noise, within bounds."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.quality.correction import ADDED_MAX, ADDED_MIN, Correction
from query.quality.interval import SAMPLES_MIN
from query.quality.windows import WINDOW

OBJECTIVE = 0.95


def served(recall: float, n: int, rng: np.random.Generator) -> list[float]:
    """Returns recall@10 of n searches with that mean."""
    return (rng.binomial(10, recall, n) / 10).tolist()


@pytest.mark.parametrize("off", [-0.03, -0.015])
def test_curves_that_promise_too_much_are_corrected(off: float) -> None:
    rng, correction = np.random.default_rng(1), Correction()
    for _ in range(100):
        true = OBJECTIVE + off + correction.added
        for value in served(true, SAMPLES_MIN, rng):
            correction.note(value, OBJECTIVE)
    assert OBJECTIVE - 0.012 <= OBJECTIVE + off + correction.added <= OBJECTIVE + 0.02


def test_effort_is_lowered_if_recall_is_well_above_the_objective() -> None:
    rng, correction = np.random.default_rng(2), Correction()
    for _ in range(100):
        for value in served(min(1.0, OBJECTIVE + 0.035 + correction.added), SAMPLES_MIN, rng):
            correction.note(value, OBJECTIVE)
    assert ADDED_MIN <= correction.added < -0.005
    assert OBJECTIVE + 0.035 + correction.added >= OBJECTIVE


def test_a_curve_that_is_right_is_left_alone() -> None:
    moves = 0
    for seed in range(20):
        rng, correction = np.random.default_rng(seed), Correction()
        for value in served(OBJECTIVE + 0.004, 600, rng):
            correction.note(value, OBJECTIVE)
        moves += correction.added != 0
    assert moves <= 1, "all wrong moves together have a probability of one in twenty"


def test_few_samples_move_nothing() -> None:
    correction = Correction()
    for _ in range(SAMPLES_MIN - 1):
        correction.note(0.1, OBJECTIVE)
    assert correction.added == 0
    correction.note(0.1, OBJECTIVE)
    assert correction.added > 0
    assert correction.since.n == 0, "samples of the old effort do not count for the new one"


def test_a_correction_from_synthetic_searches_restarts_once_curves_know_real_ones() -> None:
    correction = Correction()
    for _ in range(SAMPLES_MIN):
        correction.note(0.5, OBJECTIVE)
    assert correction.added > 0
    correction.note(1.0, OBJECTIVE, n_calibration_queries=30)
    assert (correction.added, correction.since.n) == (0, 1)
    for _ in range(SAMPLES_MIN):
        correction.note(0.5, OBJECTIVE, n_calibration_queries=59)
    assert correction.added > 0, "some more searches change nothing"
    correction.note(0.5, OBJECTIVE, n_calibration_queries=0)
    assert correction.added > 0, "nor does one older segment among the newer"
    correction.note(1.0, OBJECTIVE, n_calibration_queries=60)
    assert correction.added == 0


@given(
    recalls=st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), max_size=900),
    objective=st.floats(0.5, 0.999),
)
def test_it_stays_within_its_bounds_and_holds_a_bounded_number_of_samples(
    recalls: list[float], objective: float
) -> None:
    correction = Correction()
    for value in recalls:
        correction.note(value, objective)
        assert ADDED_MIN <= correction.added <= ADDED_MAX
        assert correction.since.n <= WINDOW


def test_an_effort_below_the_greatest_rises_until_the_greatest_and_proves_nothing() -> None:
    correction = Correction()
    for _ in range(20 * SAMPLES_MIN):
        correction.note(0.5, OBJECTIVE, greatest=False)
    assert correction.added == ADDED_MAX
    assert not correction.proven


def test_an_index_that_misses_the_objective_at_its_greatest_effort_is_proven_to() -> None:
    correction = Correction()
    for value in served(0.9, 200, np.random.default_rng(3)):
        correction.note(value, OBJECTIVE, greatest=True, now_ms=7)
    assert correction.proof is not None
    assert correction.proof.since_ms == 7
    assert correction.proof.high < OBJECTIVE
    assert correction.added == 0, "the effort cannot rise further"


def test_samples_of_a_lesser_effort_are_no_proof_of_the_greatest() -> None:
    correction = Correction()
    for i in range(SAMPLES_MIN):
        correction.note(0.5, OBJECTIVE, greatest=i != 3)
    assert not correction.proven
    assert correction.added > 0


def test_a_proof_ends_when_the_objective_is_met_or_a_window_does_not_confirm_it() -> None:
    rng = np.random.default_rng(4)
    for later, within in ((0.99, 600), (OBJECTIVE, 2 * WINDOW)):
        correction = Correction()
        for value in served(0.9, 200, rng):
            correction.note(value, OBJECTIVE, greatest=True)
        assert correction.proven
        for value in served(later, within, rng):
            correction.note(value, OBJECTIVE, greatest=True)
        assert not correction.proven


def test_a_proof_ends_when_the_curves_are_measured_on_the_collections_own_searches() -> None:
    correction = Correction()
    for _ in range(SAMPLES_MIN):
        correction.note(0.5, OBJECTIVE, greatest=True)
    assert correction.proven
    assert (
        correction.note(0.5, OBJECTIVE, n_calibration_queries=30, greatest=True)
        == "curves_measured"
    )
    assert not correction.proven


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_an_index_that_meets_the_objective_is_hardly_ever_proven_to_miss_it(share: float) -> None:
    wrong = 0
    for seed in range(40):
        rng, correction = np.random.default_rng(seed), Correction()
        for value in recalls_of(OBJECTIVE, share, 1_000, rng):
            correction.note(value, OBJECTIVE, greatest=True)
            if correction.proven:
                wrong += 1
                break
    assert wrong <= 3, "at some time in 1,000 samples, in 40 runs"


def recalls_of(mean: float, share: float, n: int, rng: np.random.Generator) -> list[float]:
    """Returns recall of n searches: a hard share gives the mean, the others miss nothing."""
    hard = rng.random(n) < max(share, 1 - mean)
    return np.where(
        hard, rng.binomial(10, 1 - (1 - mean) / max(share, 1 - mean), n) / 10, 1.0
    ).tolist()


def test_it_continues_from_its_state() -> None:
    rng, one = np.random.default_rng(5), Correction()
    values = served(0.93, 700, rng)
    for i, value in enumerate(values):
        if i % 50 == 0:
            one = Correction.of_state(json.loads(json.dumps(one.state())))
        one.note(value, OBJECTIVE, greatest=True)
    other = Correction()
    for value in values:
        other.note(value, OBJECTIVE, greatest=True)
    assert (one.added, one.proven, one.number, one.since.n) == (
        other.added,
        other.proven,
        other.number,
        other.since.n,
    )
    assert (one.since.low, one.since.high) == (other.since.low, other.since.high)
