"""The delta: views are immutable, filters read each row once, rows of deletions have no vector."""

import sys
import threading

import numpy as np
import pytest
from rows import message, unit

from indexer.index import filters
from indexer.index.delta import Delta, Entry
from vicinage.filters import parse

RED = parse({"color": "red"})


def append(delta: Delta, name: str, version: int, n: int = 1, color: str = "red") -> None:
    batch = message(
        [(name, version, [unit(version * 10 + i) for i in range(n)], f'{{"color": "{color}"}}')]
    )
    delta.append(batch, version, np.ones(n, np.bool_))


def test_a_view_does_not_change_with_later_writes() -> None:
    delta = Delta(4)
    append(delta, "a", 1, n=2)
    view = delta.view()
    vectors, alive = view.vectors.copy(), view.alive.copy()
    for version in range(2, 200):  # grows the arrays several times
        append(delta, f"d{version}", version)
        delta.kill([Entry(0, 2, 1)])
    np.testing.assert_array_equal(view.vectors, vectors)
    np.testing.assert_array_equal(view.alive, alive)
    assert len(view) == 2
    assert delta.view().alive[:3].tolist() == [False, False, True]


def test_every_row_is_found_in_its_batch() -> None:
    delta = Delta(4)
    for version, n in ((1, 3), (2, 1), (3, 2)):
        append(delta, f"d{version}", version, n)
    view = delta.view()
    append(delta, "later", 4)
    where = [view.row(row) for row in range(len(view))]
    assert [(m.passages.id(at), at) for m, at in where] == [
        ("d1", 0), ("d1", 1), ("d1", 2), ("d2", 0), ("d3", 0), ("d3", 1)
    ]  # fmt: skip


def test_an_idle_delta_holds_no_vectors() -> None:
    assert Delta(384).view().vectors.base.nbytes == 0


def test_the_row_of_a_deletion_holds_no_nan() -> None:
    delta = Delta(4)
    delta.append(message([("a", 1, None, "{}")]), 0, np.zeros(1, np.bool_))
    assert np.isfinite(delta.view().vectors).all()


def test_an_older_view_filters_alike_after_a_newer_one() -> None:
    delta = Delta(4)
    append(delta, "a", 1, color="red")
    old = delta.view()
    append(delta, "b", 2, color="blue")
    assert delta.view().columns().mask(RED).tolist() == [True, False]
    assert old.columns().mask(RED).tolist() == [True]
    assert delta.view().columns().mask(RED).tolist() == [True, False]


@pytest.mark.parametrize("_round", range(10))  # a race appears every other time
def test_threads_that_filter_first_at_once_agree(_round: int) -> None:
    delta = Delta(4)
    for version in range(1, 301):
        append(delta, f"d{version}", version, color="red" if version % 3 else "blue")
    view, wanted = delta.view(), [bool(v % 3) for v in range(1, 301)]
    start, seen = threading.Barrier(8), []

    def look() -> None:
        start.wait()
        seen.append(view.columns().mask(RED).tolist())

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads switch at nearly every instruction
    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    sys.setswitchinterval(usual)
    assert seen == [wanted] * 8


def test_after_a_write_only_the_last_block_of_filter_columns_is_rebuilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("indexer.index.delta.BLOCK", 4)
    delta, made = Delta(4), []
    column = filters._Column
    monkeypatch.setattr(
        filters, "_Column", lambda values: made.append(len(values)) or column(values)
    )
    views = []
    for i in range(10):
        delta.append(
            message([(f"d{i}", i + 1, [unit(i)], f'{{"n": {i}}}')]), i, np.ones(1, np.bool_)
        )
        views.append(delta.view())
        assert np.flatnonzero(views[-1].columns().mask(parse({"n": {"$gte": 3}}))).tolist() == [
            *range(3, i + 1)
        ]
    assert made == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    for i, view in enumerate(views):
        assert np.flatnonzero(view.columns().mask(parse({"n": {"$gte": 3}}))).tolist() == [
            *range(3, i + 1)
        ]
    assert len(views[-1].columns().mask(parse({}))) == 10
