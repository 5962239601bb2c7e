"""Batch sizes of a model: smaller after a long call, larger after short ones."""

from ingest.embedding.batch_size import LONG_S, SHORT_S, BatchSizer


def test_it_starts_at_the_maximum_halves_after_long_calls_and_doubles_after_short_ones() -> None:
    sizer = BatchSizer(512)
    assert sizer.size("m") == 512
    sizer.late("m", 512)
    assert sizer.size("m") == 256
    sizer.took("m", 256, LONG_S)
    assert sizer.size("m") == 128
    sizer.took("m", 128, (SHORT_S + LONG_S) / 2)
    assert sizer.size("m") == 128
    sizer.took("m", 128, SHORT_S)
    assert sizer.size("m") == 256
    for _ in range(3):
        sizer.took("m", sizer.size("m"), 0.1)
    assert sizer.size("m") == 512, "never more than the maximum"
    assert sizer.size("other") == 512, "each model has its own size"


def test_a_small_call_does_not_change_larger_sizes() -> None:
    sizer = BatchSizer(512)
    sizer.late("m", 64)
    sizer.took("m", 3, 0.01)
    assert sizer.size("m") == 32


def test_a_call_that_began_before_changes_nothing() -> None:
    sizer = BatchSizer(512)
    sizer.late("m", 64)
    sizer.late("m", 512)
    assert sizer.size("m") == 32
    sizer.late("m", 1)
    assert sizer.size("m") == 1
