"""The confidence sequence is valid at all times together, and detects real breaches."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from query.quality.interval import ALPHA, ConfidenceSequence, interval, spent

OBJECTIVE = 0.95
RUNS, SAMPLES = 80, 1_200


def recalls(mean: float, kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Returns recall@10 of n searches: alike, some much harder than others, or all or nothing."""
    if kind == "alike":
        return rng.binomial(10, mean, n) / 10
    if kind == "mixed":
        return rng.binomial(10, rng.beta(8 * mean, 8 * (1 - mean), n)) / 10
    return (rng.random(n) < mean).astype(float)


def allowed(runs: int, share: float) -> float:
    """Returns how many runs may fail by chance: the mean plus three standard deviations."""
    return runs * share + 3 * (runs * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("kind", ["alike", "mixed", "all or nothing"])
def test_it_misses_the_mean_at_some_time_in_at_most_alpha_of_runs_and_so_does_a_breach(
    kind: str,
) -> None:
    missed = breached = 0
    for seed in range(RUNS):
        s, miss, breach = ConfidenceSequence(), False, False
        for value in recalls(OBJECTIVE, kind, SAMPLES, np.random.default_rng(seed)):
            s.add(value)
            miss |= not s.low <= OBJECTIVE <= s.high
            breach |= s.high < OBJECTIVE
        missed += miss
        breached += breach
    assert missed <= allowed(RUNS, ALPHA)
    assert breached <= allowed(RUNS, ALPHA / 2)


@pytest.mark.parametrize(
    ("mean", "kind", "within"), [(0.9, "alike", 100), (0.9, "mixed", 160), (0.93, "alike", 420)]
)
def test_a_real_breach_is_found_in_a_reasonable_number_of_samples(
    mean: float, kind: str, within: int
) -> None:
    found = []
    for seed in range(40):
        s = ConfidenceSequence(spent(1))
        for value in recalls(mean, kind, 2_000, np.random.default_rng(seed)):
            s.add(value)
            if s.high < OBJECTIVE:
                break
        found.append(s.n)
    assert np.median(found) <= within
    assert max(found) < 2_000


def test_recall_that_varies_above_the_objective_is_no_breach() -> None:
    breached = 0
    for seed in range(40):
        rng, s = np.random.default_rng(seed), ConfidenceSequence()
        means = OBJECTIVE + 0.04 * (np.arange(SAMPLES) // 100 % 2)
        for mean in means:
            s.add(rng.binomial(10, mean) / 10)
            if s.high < OBJECTIVE:
                breached += 1
                break
    assert breached <= allowed(40, ALPHA / 2)


def test_samples_without_one_mean_leave_no_candidate() -> None:
    s = ConfidenceSequence()
    for value in [1.0] * 300 + [0.5] * 600:
        s.add(value)
    assert s.empty
    assert s.high < s.low + 0.01


def test_perfect_samples_bound_the_mean_from_below_alone() -> None:
    assert interval([]) == (0, 1)
    assert interval([1.0]) == (0, 1)
    low, high = interval([1.0] * 100)
    assert 0.93 < low < 0.97
    assert high == 1


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), max_size=200), st.floats(0.001, 0.2))
def test_it_only_narrows_and_continues_from_its_state(values: list[float], alpha: float) -> None:
    s = ConfidenceSequence(alpha)
    low, high = s.low, s.high
    for value in values:
        s.add(value)
        assert 0 <= low <= s.low
        assert s.high <= high <= 1
        low, high = s.low, s.high
    again = ConfidenceSequence.of_state(json.loads(json.dumps(s.state())))
    assert (again.n, again.low, again.high, again.mean) == (
        s.n,
        s.low,
        s.high,
        pytest.approx(s.mean),
    )
    for value in values:
        s.add(value)
        again.add(value)
    assert (again.low, again.high) == (
        pytest.approx(s.low, abs=0.001),
        pytest.approx(s.high, abs=0.001),
    )


def test_all_windows_together_err_with_at_most_alpha() -> None:
    assert sum(spent(number) for number in range(1, 10_000)) == pytest.approx(ALPHA, rel=1e-3)
