"""Measures retrieval quality on a judged set, beside exact search and a reference BM25.

    python loadtest/judged.py FOLDER [--mode dense|lexical|hybrid]   # a whole platform, over HTTP
    python loadtest/judged.py FOLDER --in-process [--long]           # one shard in this process

FOLDER has documents.jsonl {id, text}, queries.jsonl {id, text} and qrels.tsv. Exact search uses the
same model. `--long` searches with whole documents instead of the set's queries (see
judged_sets.long_queries). A document's score is that of its best passage. The exit status is 1 if
served and exact dense search differ by more than 0.005, or if lexical search is worse than the
reference by more than that.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from judged_sets import DEPTH, JudgedSet, Ranking, long_queries, measure, read
from judged_shard import PASSAGES, JudgedShard, Piece, embedded, embedded_queries, pieces_of
from running import ROOT, running
from vicinage_client import Client

from query.plan import Fusion

ALLOWED = 0.005
WEIGHTS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
RRF, WEIGHTED = "hybrid, rrf", "hybrid, weighted {}"

MODES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "dense": [("dense", {}), ("dense, exact: true", {"exact": True})],
    "lexical": [("lexical", {"mode": "lexical"})],
    "hybrid": [
        ("hybrid, default", {"mode": "hybrid"}),
        (RRF, {"mode": "hybrid", "fusion": {"method": "rrf"}}),
        *(
            (
                WEIGHTED.format(w),
                {"mode": "hybrid", "fusion": {"method": "weighted", "dense_weight": w}},
            )
            for w in WEIGHTS
        ),
    ],
}
"""The searches of each mode: its name in the table, and the fields beside the text."""
OUTSIDE = "dense, exact, outside the platform (float32)"
REFERENCE = "bm25s (k1 1.2, b 0.75, English stemming, stop words)"


def exact_rankings(judged: JudgedSet, pieces: list[Piece]) -> Ranking:
    """Returns exact search by numpy over the same passages, with the same model in float32."""
    vectors = embedded([p.text for _, p in pieces], KEPT)
    asked = embedded_queries(list(judged.queries.values()), KEPT)
    order = np.argsort(-(asked @ vectors.T), axis=1, kind="stable")[:, :PASSAGES]
    return {
        q: list(dict.fromkeys(pieces[i][0] for i in row))
        for q, row in zip(judged.queries, order, strict=True)
    }


def reference_rankings(judged: JudgedSet, pieces: list[Piece]) -> Ranking:
    """Returns BM25 by bm25s over the same passages, with its own text analysis."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    texts, queries = [p.text for _, p in pieces], list(judged.queries.values())
    index.index(
        bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False),
        show_progress=False,
    )
    asked = bm25s.tokenize(
        queries, stopwords="en", stemmer=stemmer, show_progress=False, return_ids=False
    )
    found: Ranking = {}
    for name, tokens in zip(judged.queries, asked, strict=True):
        order = np.argsort(-index.get_scores(tokens), kind="stable")[:PASSAGES]
        found[name] = list(dict.fromkeys(pieces[i][0] for i in order))
    return found


def served_rankings(client: Client, judged: JudgedSet, **fields: Any) -> Ranking:
    """Returns the platform's own answers; `fields` are sent with each query."""
    found = {
        q: client.search("judged", text, k=PASSAGES, **fields).hits
        for q, text in judged.queries.items()
    }
    return {q: list(dict.fromkeys(hit.document_id for hit in hits)) for q, hits in found.items()}


KEPT = ROOT / "build" / "judged-vectors"
Results = dict[str, dict[str, float]]


def in_process(judged: JudgedSet, pieces: list[Piece], modes: list[str]) -> Results:
    """Returns the figures of one shard, by the platform's search and fusion."""
    vectors = embedded([p.text for _, p in pieces], KEPT)
    asked = embedded_queries(list(judged.queries.values()), KEPT)
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="vicinage-judged-") as folder:
        shard = JudgedShard(pieces, vectors, Path(folder))
        if "dense" in modes:
            results["dense"] = measure(shard.rankings(judged.queries, asked, "dense"), judged)
        if "lexical" in modes:
            results["lexical"] = measure(shard.rankings(judged.queries, None, "lexical"), judged)
        for name, fusion in _fusions() if "hybrid" in modes else ():
            results[name] = measure(shard.rankings(judged.queries, asked, "hybrid", fusion), judged)
    return results


def _fusions() -> list[tuple[str, Fusion]]:
    weighted = [(WEIGHTED.format(w), Fusion("weighted", w)) for w in WEIGHTS]
    return [("hybrid, default", Fusion()), (RRF, Fusion("rrf")), *weighted]


def over_http(args: argparse.Namespace, judged: JudgedSet, modes: list[str]) -> Results:
    """Returns the figures of a whole platform that is started for it."""
    data = ROOT / "build" / "judged"
    shutil.rmtree(data, ignore_errors=True)
    with running(data, indexer__seal_passages="1000") as platform:
        key = platform.cli("tenant", "create", "judged")["key"]
        platform.cli("collection", "create", "judged", "judged", "--index", args.index)
        client = Client(platform.url, key, timeout_s=600)
        start = time.perf_counter()
        written = client.upsert(
            "judged", ({"id": d, "text": t} for d, t in judged.documents.items()), progress=True
        )
        client.search("judged", "ready", wait_for=written.token, timeout_ms=600_000)
        seconds = time.perf_counter() - start
        print(json.dumps({"rejected": len(written.rejected), "ingest_s": round(seconds, 1)}))
        time.sleep(5)  # wait for seals: the served figures are to be those of segments
        asked = [each for mode in modes for each in MODES[mode]]
        return {
            name: measure(served_rankings(client, judged, **given), judged) for name, given in asked
        }


def main() -> None:
    """Indexes, searches, judges and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--index", default="auto", help="index spec of the collection")
    parser.add_argument(
        "--mode", choices=sorted(MODES), help="one mode alone; otherwise all of them"
    )
    parser.add_argument("--long", action="store_true", help="whole documents as queries")
    parser.add_argument(
        "--in-process", action="store_true", help="one shard in this process, no platform"
    )
    args = parser.parse_args()
    judged = read(args.folder)
    judged = long_queries(judged) if args.long else judged
    modes = [args.mode] if args.mode else list(MODES)
    pieces = pieces_of(judged)
    results = (
        in_process(judged, pieces, modes) if args.in_process else over_http(args, judged, modes)
    )
    if "dense" in modes:
        results[OUTSIDE] = measure(exact_rankings(judged, pieces), judged)
    if "lexical" in modes:
        results[REFERENCE] = measure(reference_rankings(judged, pieces), judged)
    print(
        json.dumps(
            {"documents": len(judged.documents), "passages": len(pieces), **results}, indent=2
        )
    )
    print(table(results))
    sys.exit(1 if apart(results) > ALLOWED else 0)


def table(results: Results) -> str:
    """Returns the figures as a Markdown table."""
    lines = [
        f"| {name} | {r['ndcg@10']:.4f} | {r[f'recall@{DEPTH}']:.4f} |"
        for name, r in results.items()
    ]
    n = next(iter(results.values()))["queries"]
    return "\n".join([f"| {n} queries | nDCG@10 | recall@{DEPTH} |", "|---|---|---|", *lines])


def apart(results: Results) -> float:
    """Returns how far dense search is from exact search, or lexical below the reference.

    It is 0 if either was not measured.
    """
    found = [0.0]
    if truth := results.get(OUTSIDE):
        dense = [results[name] for name, _ in MODES["dense"] if name in results]
        found += [abs(r[k] - truth[k]) for r in dense for k in r]
    if reference := results.get(REFERENCE):
        found.append(reference["ndcg@10"] - results["lexical"]["ndcg@10"])
    return max(found)


if __name__ == "__main__":
    main()
