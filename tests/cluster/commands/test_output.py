"""The readable output of commands: complete, with units."""

import pytest

from cluster.commands.output import duration, facts_of, moment, readable, rows_of, size

ID = "a" * 40


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("host_bytes", 25_340_000_000, "23.6 GiB"),
        ("bytes", 1_023, "1023 B"),
        ("store_bytes_max", 1 << 40, "1.0 TiB"),
        ("created_ms", 1_796_022_720_000, "2026-11-30 07:12"),
        ("lag_ms", 41 * 60_000, "41 min"),
        ("lag_ms", 250, "250"),
        ("uptime_s", 187_200, "2 d 4 h"),
        ("passages", 27_123_456, "27123456"),
        ("recall", 0.97123, "0.97123"),
        ("resident", True, "yes"),
        ("expires_ms", None, "-"),
        ("scopes", ["read", "write"], "read, write"),
        ("id", ID, ID),
    ],
)
def test_values_have_units_and_all_their_digits(name: str, value: object, text: str) -> None:
    assert readable(name, value) == text


def test_a_table_that_fits_is_a_table() -> None:
    text = rows_of([{"id": "a", "n": 5}, {"id": "bb", "n": 12}], ("id", "n"), 80)
    assert [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in text.split("\n")] == [
        "id   n",
        "a    5",
        "bb  12",
    ]
    assert rows_of([], ("id",), 80) == "(none)"


def test_a_table_that_is_too_wide_is_a_block_a_row_and_nothing_is_cut() -> None:
    text = rows_of([{"id": ID, "reason": "b" * 60}] * 2, ("id", "reason"), 80)
    assert text.count(ID) == 2
    assert text.count("b" * 60) == 2
    assert len(text.split("\n\n")) == 2


def test_facts_of_facts_are_indented() -> None:
    assert (
        facts_of({"name": "docs", "counts": {"documents": 2}})
        == "name    docs\ncounts\n  documents  2"
    )


def test_spans_sizes_and_moments() -> None:
    assert (duration(0), duration(65), duration(86_400 * 3)) == ("0 s", "1 min 5 s", "3 d")
    assert (size(0), size(1 << 20)) == ("0 B", "1.0 MiB")
    assert moment(0) == "1970-01-01 00:00"
