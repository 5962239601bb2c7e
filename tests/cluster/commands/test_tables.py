"""Tables of the command line: bounds are marked, and every measurement is included."""

from cluster.commands.tables import (
    bounded,
    collection_rows,
    headroom_rows,
    recall_rows,
    usage_rows,
)

COUNTS = {"documents": 401, "passages": 500, "at_least": True}


def test_counts_that_are_lower_bounds_are_marked() -> None:
    assert (bounded(7, at_least=False), bounded(7, at_least=True)) == ("7", "≥7")
    facts = {
        "tenant": "acme",
        "name": "docs",
        "counts": COUNTS,
        "generation": 1,
        "model": None,
        "dimension": 4,
    }
    (row,) = collection_rows([facts])
    assert (row["documents"], row["passages"], row["dimension"]) == ("≥401", "≥500", 4)
    (row,) = usage_rows([{"tenant": "acme", **COUNTS, "host_bytes": 9}])
    assert row == {"tenant": "acme", "documents": "≥401", "passages": "≥500", "host_bytes": 9}


def test_headroom_has_a_row_for_each_dimension_and_marks_what_may_be_less() -> None:
    host = {
        "host": "one",
        "limit_bytes": 9,
        "held_bytes": 1,
        "not_resident_bytes": 2,
        "available_bytes": 8,
        "left_bytes": 6_144,
        "at_most": True,
        "by_dimension": [
            {"dimension": d, "n": 1, "bytes_per_passage": b, "passages_left": 6 // b}
            for d, b in ((96, 1), (384, 3))
        ],
    }
    rows = headroom_rows([host])
    assert [(r["dimension"], r["left_bytes"], r["passages_left"]) for r in rows] == [
        (96, "≤6.0 KiB", "≤6"),
        (384, "≤6.0 KiB", "≤2"),
    ]
    (bare,) = headroom_rows([{**host, "at_most": False, "by_dimension": []}])
    assert (bare["left_bytes"], bare["passages_left"]) == ("6.0 KiB", None)


def test_recall_shows_interval_window_and_proof() -> None:
    report = {
        "tenant": "acme",
        "collection": "docs",
        "generation": 2,
        "k": 10,
        "recall": 0.91,
        "interval": [0.88, 0.931],
        "n": 48,
        "target": 0.95,
        "verdict": "breach",
        "window": {"began_ms": 1_780_000_000_000},
        "correction": 0.02,
        "below_objective": {"recall": 0.9, "n": 60},
    }
    (row,) = recall_rows([report])
    assert (row["interval"], row["verdict"], row["below"]) == (
        "0.880 to 0.931",
        "breach",
        "0.900 (n 60)",
    )
    assert row["since"] == "2026-05-28 20:26"
    assert recall_rows([{**report, "below_objective": None}])[0]["below"] is None
