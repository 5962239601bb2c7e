"""Reports of the platform as rows of a table, for people. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

Row = dict[str, Any]


def recall_rows(report: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row a collection; `since` is when the window of its samples began, `below` the recall of an index proven to miss the target."""
    rows: list[Row] = []
    for r in report:
        proof = r["below_objective"]
        rows.append(
            {
                **{name: r[name] for name in ("tenant", "collection", "generation", "k", "recall")},
                "interval": "{:.3f} to {:.3f}".format(*r["interval"]),
                **{name: r[name] for name in ("n", "target", "verdict")},
                "since": minute(r["window"]["began_ms"]),
                "correction": r["correction"],
                "below": None if proof is None else f"{proof['recall']:.3f} (n {proof['n']})",
            }
        )
    return rows


def collection_rows(collections: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row a collection; a count that is a lower bound is marked with ≥."""
    return [
        {
            **{name: c[name] for name in ("tenant", "name")},
            **{
                name: bounded(c["counts"][name], at_least=c["counts"]["at_least"]) for name in ("documents", "passages")
            },
            **{name: c[name] for name in ("generation", "model", "dimension")},
        }
        for c in collections
    ]


def bounded(count: int, *, at_least: bool) -> str:
    """A count, or a lower bound of one."""
    return f"≥{count}" if at_least else str(count)


def minute(at_ms: int) -> str:
    """A time in UTC, to the minute."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
