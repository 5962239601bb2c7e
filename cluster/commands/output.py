"""The output of commands: JSON, or text for people.

Nothing is truncated: a table that is too wide becomes one block per row. Only `show` does I/O.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

PAD: Final = "  "
WIDTH: Final = 120
"""Columns without a terminal."""
_BYTES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def show(value: Any, as_json: bool, columns: Sequence[str] = ()) -> None:
    """Prints JSON, a table of rows, or one line per fact."""
    click.echo(json.dumps(value) if as_json else text_of(value, columns, width()))


def width() -> int:
    """Returns the columns of the terminal."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


def text_of(value: Any, columns: Sequence[str], wide: int) -> str:
    """Returns a list as a table of rows, a mapping as one line per fact, other values as text."""
    if isinstance(value, list):
        return rows_of(value, columns or (list(value[0]) if value else ()), wide)
    if isinstance(value, Mapping):
        return facts_of(value)
    return str(value)


def rows_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], wide: int) -> str:
    """Returns the rows as a table if it fits into `wide` columns, else as one block per row."""
    if not rows:
        return "(none)"
    cells = [[readable(name, row.get(name)) for name in columns] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(columns)]
    if sum(widths) + len(PAD) * (len(widths) - 1) > wide or any(
        "\n" in cell for row in cells for cell in row
    ):
        blocks = [facts_of({name: row.get(name) for name in columns}) for row in rows]
        return "\n\n".join(blocks)
    right = [all(_is_number(row.get(name)) for row in rows) for name in columns]
    lines = [
        [
            click.style(_put(name, w, r), bold=True)
            for name, w, r in zip(columns, widths, right, strict=True)
        ]
    ]
    lines += [
        [_put(cell, w, r) for cell, w, r in zip(row, widths, right, strict=True)] for row in cells
    ]
    return "\n".join(PAD.join(line).rstrip() for line in lines)


def facts_of(value: Mapping[str, Any]) -> str:
    """Returns one line per fact; nested facts are indented below it."""
    longest = max((len(name) for name in value), default=0)
    lines: list[str] = []
    for name, fact in value.items():
        if isinstance(fact, Mapping) and fact:
            lines += [name, *(PAD + line for line in facts_of(fact).splitlines())]
        elif isinstance(fact, list) and fact and isinstance(fact[0], Mapping):
            lines.append(name)
            for each in fact:
                lines += [
                    ("- " if i == 0 else PAD) + line
                    for i, line in enumerate(facts_of(each).splitlines())
                ]
        else:
            lines.append(f"{name:<{longest}}{PAD}{readable(name, fact)}")
    return "\n".join(lines)


def readable(name: str, value: Any) -> str:
    """Returns a value in a readable form: bytes and times by the unit in its name."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(name, value)
    if isinstance(value, list):
        return ", ".join(readable(name, each) for each in value) or "-"
    return value if isinstance(value, str) else json.dumps(value)


def _number(name: str, value: float) -> str:
    if name.endswith("_ms") and value >= 1e11:  # a time after 1973, not a duration
        return moment(value)
    if name.endswith("bytes") or "bytes_" in name:
        return size(value)
    if name.endswith("_ms") and value >= 10_000:
        return duration(value / 1000)
    if name.endswith("_s") and value >= 120:
        return duration(value)
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def moment(at_ms: float) -> str:
    """Returns a time in UTC, to the minute."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def size(n: float) -> str:
    """Returns bytes in the largest binary unit of which there is at least one: 23.6 GiB."""
    if abs(n) < 1024:
        return f"{n:.0f} B"
    unit = 0
    while abs(n) >= 1024 and unit < len(_BYTES) - 1:
        n, unit = n / 1024, unit + 1
    return f"{n:.1f} {_BYTES[unit]}"


def duration(seconds: float) -> str:
    """Returns a time span in its two largest units: 2 d 3 h, 41 min 5 s."""
    left = round(seconds)
    parts = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        n, left = divmod(left, length)
        if n:
            parts.append(f"{n} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _put(text: str, wide: int, right: bool) -> str:
    return text.rjust(wide) if right else text.ljust(wide)
