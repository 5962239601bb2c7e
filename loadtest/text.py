"""Measures text searches beside the model alone, with the CPU time of each process for a search.

    python loadtest/text.py [--forms]

`--forms` measures in this process alone: the CPU time of one thread for a text. It compares the
library's model with the encoder (bert.py), in calls as the embedder makes them. The least of
several rounds counts.

Every text is searched once, except in the last case, which repeats all of them. The bound is
sentence-transformers alone with all cores, in the faster of float32 and bfloat16. It is measured
before and after, and both are shown.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).parent))
import load
from bench import (
    BUILD,
    KEPT,
    WORDS,
    K,
    Report,
    ingest_vectors,
    passages,
    raw_encode,
    settle,
    vectors_of,
)
from running import Platform, end_when_told, running

from ingest.embedding.batcher import Item

PATH = "/v1/collections/bench/search"


def search(
    report: Report, case: str, platform: Platform, key: str, texts: list[str], clients: int
) -> None:
    """Searches each of `texts` once. Returns rate, latency, and CPU time a search by process."""
    requests = [load.Request(PATH, json.dumps({"text": t, "k": K}).encode()) for t in texts]
    pids = platform.pids()
    before = {role: load.cpu_seconds([pid]) for role, pid in pids.items()}
    done = load.run(platform.url, key, requests, clients=clients, server_pids=list(pids.values()))
    each = {
        f"{role}_ms": round((load.cpu_seconds([pid]) - before[role]) / len(texts) * 1e3, 2)
        for role, pid in pids.items()
    }
    latency = {"p50_ms": round(done.p50_ms, 1), "p99_ms": round(done.p99_ms, 1)}
    report.add(case, done.per_s, "searches/s", **latency, **each, errors=done.errors)


def forms(report: Report, texts: list[str], rounds: int = 5) -> None:
    """Measures CPU time of one thread for a text in each form of the model.

    Calls have 1, 8 and 24 texts.
    """
    from ingest.embedding import local
    from ingest.embedding.embed_request import split_calls
    from ingest.embedding.onnx_runtime import OnnxRuntime
    from ingest.embedding.tokenizer import model_root
    from ingest.embedding.torch_runtime import TorchModel, TorchRuntime, load
    from tenants.entities import DEFAULT_MODEL
    from vicinage.settings import EmbedderSettings

    embedder = local.LocalEmbedder(DEFAULT_MODEL, EmbedderSettings(threads=1, precision="float32"))
    root = model_root(DEFAULT_MODEL)
    ways = [
        ("library's model", TorchModel(load(root, "cpu"))),
        ("encoder", TorchRuntime(root, "cpu").at("float32", 1)),
        ("ONNX Runtime", OnnxRuntime(root).at("float32", 1)),
    ]
    rows = embedder._input.encode(texts)  # noqa: SLF001
    least: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for n in (1, 8, 24):
            for name, model in ways:
                start = time.process_time()
                for i in range(0, len(rows), n):
                    items = [Item(row, None, 0) for row in sorted(rows[i : i + n], key=len)]
                    for call in split_calls(items, model.pad_share):
                        embedder._forward(model, [item.tokens for item in call], 1)  # noqa: SLF001
                each = (time.process_time() - start) / len(rows) * 1e3
                least[name, n] = min(each, least.get((name, n), each))
    embedder.close()
    for (name, n), each in least.items():
        bound = least["library's model", n]
        report.add(f"{name}, calls of {n}, one thread", each, "CPU ms/text", bound=bound)


def main() -> None:
    """Measures, prints each figure, and writes build/text.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--searches", type=int, default=1_600)
    parser.add_argument("--forms", action="store_true")
    args = parser.parse_args()
    end_when_told()
    report, n = Report(), args.passages
    everything = passages(KEPT)
    vectors = vectors_of(everything, KEPT)
    short = [" ".join(t.split()[:WORDS]) for t in everything[n : n + args.searches]]
    if args.forms:
        forms(report, short[:48])
        return
    data = BUILD / "bench" / "text"
    shutil.rmtree(data, ignore_errors=True)

    def bounds() -> None:
        for calls_of in (1, 8):
            report.add(
                f"the model alone, calls of {calls_of}",
                raw_encode(short[:200], calls_of)[1],
                "texts/s",
            )

    bounds()
    with running(data, indexer__seal_age_s="5") as platform:
        key = platform.cli("tenant", "create", "bench")["key"]
        platform.cli("collection", "create", "bench", "bench", "--model", "all-minilm-l6-v2")
        http = httpx2.Client(
            base_url=platform.url, headers={"Authorization": f"Bearer {key}"}, timeout=120
        )
        ingest_vectors(report, http, everything[:n], vectors[:n], list(platform.pids().values()))
        operator_key = (data / "run" / "operator.key").read_text().strip()
        settle(
            httpx2.Client(
                base_url=platform.url, headers={"Authorization": f"Bearer {operator_key}"}
            ),
            "bench/bench",
        )
        search(report, "warm", platform, key, short[:100], 8)
        search(report, f"{WORDS} words, 1 client", platform, key, short[100:300], 1)
        search(report, f"{WORDS} words, 8 clients", platform, key, short[300:], 8)
        search(report, "the same again, 8 clients", platform, key, short[300:], 8)
    bounds()
    (BUILD / "text.json").write_text(json.dumps(report.rows, indent=2))


if __name__ == "__main__":
    main()
