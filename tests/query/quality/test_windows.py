"""Windows of recall: when one ends, what is shown meanwhile, and their joint error."""

import json

import numpy as np

from query.quality.interval import SAMPLES_MIN, spent
from query.quality.windows import WINDOW, Windows

OBJECTIVE = 0.95


def test_a_window_has_a_verdict_with_enough_samples_and_states_itself() -> None:
    windows = Windows(5)
    for _ in range(SAMPLES_MIN - 1):
        windows.add(0.5, 6)
    assert windows.judged().verdict(OBJECTIVE) == "not_enough_samples"
    windows.add(0.5, 7)
    judged = windows.judged()
    assert (judged.verdict(OBJECTIVE), judged.n, judged.mean) == ("breach", SAMPLES_MIN, 0.5)
    window = judged.window()
    assert (window["number"], window["began_ms"], window["ended_ms"]) == (1, 5, None)
    assert (window["began_because"], window["samples_max"], window["alpha"]) == (
        "first",
        WINDOW,
        0.05,
    )


def test_a_window_that_ends_is_shown_until_the_next_has_enough_samples() -> None:
    windows = Windows(0)
    for _ in range(100):
        windows.add(0.5, 1)
    windows.restart("effort_corrected", 2)
    for _ in range(SAMPLES_MIN - 1):
        windows.add(1.0, 3)
    assert (windows.judged().number, windows.judged().ended_ms, windows.judged().mean) == (
        1,
        2,
        0.5,
    )
    windows.add(1.0, 4)
    judged = windows.judged()
    assert (judged.number, judged.why, judged.n, judged.mean) == (
        2,
        "effort_corrected",
        SAMPLES_MIN,
        1.0,
    )
    assert judged.verdict(OBJECTIVE) == "ok"


def test_a_full_window_ends_and_so_does_one_whose_recall_has_changed() -> None:
    windows = Windows(0)
    for _ in range(WINDOW + SAMPLES_MIN):
        windows.add(1.0, 1)
    assert (windows.judged().number, windows.judged().why) == (2, "full")
    for _ in range(500):
        windows.add(0.5, 2)
    judged = windows.judged()
    assert judged.why == "recall_changed"
    assert judged.verdict(OBJECTIVE) == "breach"


def test_windows_of_a_collection_that_meets_its_objective_report_a_breach_only_by_chance() -> None:
    breached = 0
    for seed in range(12):
        windows = Windows(0)
        for value in np.random.default_rng(seed).binomial(10, OBJECTIVE, 3 * WINDOW) / 10:
            windows.add(value, 0)
            if windows.judged().verdict(OBJECTIVE) == "breach":
                breached += 1
                break
    assert breached <= 1, "in three windows, at some time, in twelve runs"


def test_windows_continue_from_their_state() -> None:
    one = Windows(3)
    for value in np.random.default_rng(1).binomial(10, 0.9, WINDOW + 50) / 10:
        one.add(value, 4)
    other = Windows.of_state(json.loads(json.dumps(one.state())))
    assert other.judged() == one.judged()
    assert other.total == one.total
    for windows in (one, other):
        windows.restart("curves_measured", 9)
    assert other.state() == one.state()
    assert other.state()["sequence"]["alpha"] == spent(3)
