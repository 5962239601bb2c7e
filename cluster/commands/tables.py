"""Reports of the platform as rows of a table, for people. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.commands.output import moment, size

Row = dict[str, Any]


def recall_rows(report: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Returns one row per collection.

    `since` is the start of the window of its samples. `below` is the recall of an index that is
    proven to miss the target.
    """
    rows: list[Row] = []
    for r in report:
        proof = r["below_objective"]
        rows.append(
            {
                **{name: r[name] for name in ("tenant", "collection", "generation", "k", "recall")},
                "interval": "{:.3f} to {:.3f}".format(*r["interval"]),
                **{name: r[name] for name in ("n", "target", "verdict")},
                "since": moment(r["window"]["began_ms"]),
                "correction": r["correction"],
                "below": None if proof is None else f"{proof['recall']:.3f} (n {proof['n']})",
            }
        )
    return rows


def collection_rows(collections: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Returns one row per collection; ≥ marks a count that is a lower bound."""
    return [
        {
            **{name: c[name] for name in ("tenant", "name")},
            **{
                name: bounded(c["counts"][name], at_least=c["counts"]["at_least"])
                for name in ("documents", "passages")
            },
            **{name: c[name] for name in ("generation", "model", "dimension")},
        }
        for c in collections
    ]


def usage_rows(report: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Returns one row per collection or tenant of the capacity report.

    ≥ marks a count that is a lower bound.
    """
    return [
        {
            name: bounded(value, at_least=row["at_least"])
            if name in ("documents", "passages")
            else value
            for name, value in row.items()
            if name != "at_least"
        }
        for row in report
    ]


def headroom_rows(report: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Returns one row per host and dimension; ≤ marks headroom that may be less."""
    names = ("host", "limit_bytes", "held_bytes", "not_resident_bytes", "available_bytes")
    rows: list[Row] = []
    for host in report:
        left = f"{'≤' if host['at_most'] else ''}{size(host['left_bytes'])}"
        every = host["by_dimension"] or [
            {"dimension": None, "bytes_per_passage": None, "passages_left": None}
        ]
        for d in every:
            fits = d["passages_left"]
            rows.append(
                {
                    **{name: host[name] for name in names},
                    "left_bytes": left,
                    "dimension": d["dimension"],
                    "bytes_per_passage": d["bytes_per_passage"],
                    "passages_left": f"≤{fits}" if host["at_most"] and fits is not None else fits,
                }
            )
    return rows


def bounded(count: int, *, at_least: bool) -> str:
    """Returns the text of a count or of a lower bound."""
    return f"≥{count}" if at_least else str(count)
