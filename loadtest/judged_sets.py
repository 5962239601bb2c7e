"""Judged sets: documents, queries and grades; long queries made from a set; nDCG and recall.

A folder has documents.jsonl {id, text}, queries.jsonl {id, text} and qrels.tsv (query_id,
document_id, grade, with a header; 0 is not relevant). Lines end at a line feed alone: a text can
contain U+2028 and U+0085.
"""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DEPTH = 100
Ranking = dict[str, list[str]]
"""Document IDs, best first, by query ID."""


@dataclass(frozen=True)
class JudgedSet:
    """The documents, the queries, and the grades of relevance."""

    documents: dict[str, str]
    queries: dict[str, str]
    grades: dict[str, dict[str, int]]
    own: dict[str, str] = field(default_factory=dict)
    """The document that a query was made from; it is not counted among the hits."""


def read(folder: Path) -> JudgedSet:
    """Returns the set in `folder`, without empty documents and without unjudged queries."""
    documents = {
        d["id"]: d["text"] for d in json_lines(folder / "documents.jsonl") if d["text"].strip()
    }
    grades: dict[str, dict[str, int]] = {}
    with (folder / "qrels.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            grades.setdefault(row["query_id"], {})[row["document_id"]] = int(row["grade"])
    queries = {
        q["id"]: q["text"]
        for q in json_lines(folder / "queries.jsonl")
        if any(grades.get(q["id"], {}).values())
    }
    return JudgedSet(documents, queries, grades)


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file of JSON lines, cut at line feeds alone."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]


def long_queries(of: JudgedSet) -> JudgedSet:
    """Returns a set whose queries are whole documents of `of`.

    Each document that is relevant to a query is a query. Relevant to it are the other documents
    that are relevant to one of the same queries; the grade is the lower of the two grades, the
    highest over the queries that they share. The document itself does not count as a hit.
    """
    grades: dict[str, dict[str, int]] = {}
    for judged in of.grades.values():
        relevant = [(d, grade) for d, grade in judged.items() if grade > 0 and d in of.documents]
        for own, own_grade in relevant:
            for other, grade in relevant:
                if other != own:
                    mine = grades.setdefault(own, {})
                    mine[other] = max(mine.get(other, 0), min(own_grade, grade))
    queries = {d: text for d, text in of.documents.items() if d in grades}
    return JudgedSet(of.documents, queries, grades, {d: d for d in queries})


def ndcg(ranking: list[str], grades: dict[str, int], k: int = 10) -> float:
    """Returns the normalized discounted cumulative gain at k, with exponential gain."""
    gain = [(2 ** grades.get(d, 0) - 1) / math.log2(i + 2) for i, d in enumerate(ranking[:k])]
    ideal = [
        (2**g - 1) / math.log2(i + 2)
        for i, g in enumerate(sorted(grades.values(), reverse=True)[:k])
    ]
    return sum(gain) / sum(ideal) if sum(ideal) else 0.0


def recall_at(ranking: list[str], grades: dict[str, int], k: int = DEPTH) -> float:
    """Returns the share of the relevant documents that are among the first k."""
    relevant = {d for d, g in grades.items() if g > 0}
    return len(relevant & set(ranking[:k])) / len(relevant) if relevant else 0.0


def measure(rankings: Ranking, judged: JudgedSet) -> dict[str, float]:
    """Returns means over the queries of `rankings`."""
    counted = {q: [d for d in found if d != judged.own.get(q)] for q, found in rankings.items()}
    return {
        "ndcg@10": float(np.mean([ndcg(found, judged.grades[q]) for q, found in counted.items()])),
        f"recall@{DEPTH}": float(
            np.mean([recall_at(found, judged.grades[q]) for q, found in counted.items()])
        ),
        "queries": len(counted),
    }
