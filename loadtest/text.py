"""`python loadtest/text.py`: searches by text beside the model alone, and the CPU that each process spends on one.

Every text is asked once, but for the last case, in which all of them are asked again. The bound, sentence-transformers alone
with all cores to itself in the faster of float32 and bfloat16, is measured before and after; both are shown.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))
import load
from bench import BUILD, WORDS, K, Report, ingest_vectors, passages, raw_encode, settle, vectors_of
from running import Platform, running

PATH = "/v1/collections/bench/search"


def ask(report: Report, case: str, platform: Platform, key: str, texts: list[str], clients: int) -> None:
    """Ask each of `texts` once; searches a second, latency, and CPU a search by process."""
    requests = [load.Request(PATH, json.dumps({"text": t, "k": K}).encode()) for t in texts]
    pids = platform.pids()
    before = {role: load.cpu_seconds([pid]) for role, pid in pids.items()}
    done = load.run(platform.url, key, requests, clients=clients, server_pids=list(pids.values()))
    each = {f"{role}_ms": round((load.cpu_seconds([pid]) - before[role]) / len(texts) * 1e3, 2) for role, pid in pids.items()}
    latency = {"p50_ms": round(done.p50_ms, 1), "p99_ms": round(done.p99_ms, 1)}
    report.add(case, done.per_s, "searches/s", **latency, **each, errors=done.errors)


def main() -> None:
    """Measure; print as it goes; write build/text.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=1_600)
    args = parser.parse_args()
    report, n = Report(), args.passages
    everything, vectors = passages(102_000), vectors_of(passages(102_000), 102_000)
    short = [" ".join(t.split()[:WORDS]) for t in everything[n : n + args.questions]]
    data = BUILD / "bench" / "text"
    shutil.rmtree(data, ignore_errors=True)

    def bounds() -> None:
        for calls_of in (1, 8):
            report.add(f"the model alone, calls of {calls_of}", raw_encode(short[:200], calls_of)[1], "texts/s")

    bounds()
    with running(data, indexer__seal_age_s="5") as platform:
        key = platform.cli("tenant", "create", "bench")["key"]
        platform.cli("collection", "create", "bench", "bench", "--model", "all-minilm-l6-v2")
        http = httpx.Client(base_url=platform.url, headers={"Authorization": f"Bearer {key}"}, timeout=120)
        ingest_vectors(report, http, everything[:n], vectors[:n], list(platform.pids().values()))
        operator_key = (data / "run" / "operator.key").read_text().strip()
        settle(httpx.Client(base_url=platform.url, headers={"Authorization": f"Bearer {operator_key}"}), "bench/bench")
        ask(report, "warm", platform, key, short[:100], 8)
        ask(report, f"{WORDS} words, 1 client", platform, key, short[100:300], 1)
        for clients in (8, 32):
            part = short[300:][clients == 32 :: 2]  # noqa: E203
            ask(report, f"{WORDS} words, {clients} clients", platform, key, part, clients)
        ask(report, "the same again, 8 clients", platform, key, short, 8)
    bounds()
    (BUILD / "text.json").write_text(json.dumps(report.rows, indent=2))


if __name__ == "__main__":
    main()
