"""How many passages a model is asked for at once: fewer after a call that took long, more after short ones."""

from ingest.pace import LONG_S, SHORT_S, Pace


def test_it_begins_with_the_most_halves_what_was_late_or_long_and_doubles_what_was_short() -> None:
    pace = Pace(512)
    assert pace.size("m") == 512
    pace.late("m", 512)
    assert pace.size("m") == 256
    pace.took("m", 256, LONG_S)
    assert pace.size("m") == 128
    pace.took("m", 128, (SHORT_S + LONG_S) / 2)
    assert pace.size("m") == 128
    pace.took("m", 128, SHORT_S)
    assert pace.size("m") == 256
    for _ in range(3):
        pace.took("m", pace.size("m"), 0.1)
    assert pace.size("m") == 512, "never more than the most"
    assert pace.size("other") == 512, "each model by itself"


def test_a_small_call_says_nothing_of_greater_ones() -> None:
    pace = Pace(512)
    pace.late("m", 64)
    pace.took("m", 3, 0.01)
    assert pace.size("m") == 32


def test_a_call_that_began_before_undoes_nothing() -> None:
    pace = Pace(512)
    pace.late("m", 64)
    pace.late("m", 512)
    assert pace.size("m") == 32
    pace.late("m", 1)
    assert pace.size("m") == 1
