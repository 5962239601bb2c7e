"""Measures a large collection in the default platform: index use, effort, recall and time.

`python loadtest/large.py [--passages 300000] [--searches 2000] [--quiet]` fills one collection of
384-d vectors while searches run (not with `--quiet`). It waits until the collection is at rest, and
prints search figures beside raw FAISS on the same vectors. The vectors are synthetic: 2,000
clusters in 24 dimensions, projected to 384 with noise, L2-normalized.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import load
import numpy as np
import pyarrow as pa
import running
from bench import ARROW, K, Report, binary_requests, raw_faiss, recall, wait_searchable
from numpy.typing import NDArray

Floats = NDArray[np.float32]
D, LATENT, CLUSTERS = 384, 24, 2_000
BATCH = 2_000
REST_S = 3_600
STILL_S = 90.0
"""Longer than the compaction of the largest segments takes."""


def made(n: int, seed: int) -> Floats:
    """Returns n vectors, float32 [n, 384], L2-normalized.

    The clusters are the same for every seed.
    """
    shape, chance = np.random.default_rng(0), np.random.default_rng(seed)
    centers = shape.standard_normal((CLUSTERS, LATENT))
    turn = shape.standard_normal((LATENT, D)) / np.sqrt(LATENT)
    found = np.empty((n, D), np.float32)
    for i in range(0, n, 50_000):
        rows = found[i : i + 50_000]
        latent = centers[chance.integers(CLUSTERS, size=len(rows))] + 0.6 * chance.standard_normal(
            (len(rows), LATENT)
        )
        rows[:] = latent @ turn + 0.15 * chance.standard_normal((len(rows), D))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def nearest(vectors: Floats, queries: Floats) -> NDArray[np.int64]:
    """Returns the true K nearest rows of each query, int64 [n, K], a block of queries at a time."""
    found = []
    for i in range(0, len(queries), 100):
        scores = queries[i : i + 100] @ vectors.T
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(found)


def arrow_body(first: int, vectors: Floats) -> bytes:
    """Returns an Arrow stream of documents with a vector alone, whose IDs count from `first`."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), D)
    batch = pa.record_batch({"id": [str(first + i) for i in range(len(vectors))], "vector": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def fill(http: httpx2.Client, vectors: Floats) -> float:
    """Writes all vectors and returns the seconds until the last is searchable."""
    start, token = time.perf_counter(), ""
    for i in range(0, len(vectors), BATCH):
        part = vectors[i : i + BATCH]
        body = arrow_body(i, part)
        answer = http.post(
            "/v1/collections/bench/documents", content=body, headers={"Content-Type": ARROW}
        )
        while answer.status_code == httpx2.codes.TOO_MANY_REQUESTS:
            time.sleep(float(answer.headers["retry-after"]))
            answer = http.post(
                "/v1/collections/bench/documents", content=body, headers={"Content-Type": ARROW}
            )
        answer.raise_for_status()
        token = answer.json()["token"]
        assert answer.json()["accepted"] == len(part), answer.text[:500]
    wait_searchable(http, "bench", token, vectors[0])
    return time.perf_counter() - start


def searching(http: httpx2.Client, queries: Floats, stop: threading.Event) -> None:
    """Searches ten times a second until it is stopped."""
    while not stop.is_set():
        for request in binary_requests("/v1/collections/bench/search", queries):
            if stop.wait(0.1):
                return
            with suppress(httpx2.HTTPError):
                http.post(
                    request.path,
                    content=request.body,
                    headers={"Content-Type": request.content_type},
                )


def at_rest(operator: httpx2.Client) -> dict[str, Any]:
    """Returns the index's facts once they have not changed for STILL_S with an empty delta."""
    since, before = time.monotonic(), None
    end = time.monotonic() + REST_S
    while time.monotonic() < end and time.monotonic() - since < STILL_S:
        found = operator.get("/v1/admin/tenants/bench/collections/bench").json()["index"]
        if found != before or found["delta_passages"]:
            before, since = found, time.monotonic()
        time.sleep(1)
    return dict(before or {})


def look(
    name: str, platform: running.Platform, key: str, queries: Floats, truth: NDArray[np.int64]
) -> None:
    """Searches with one client and with eight, and prints the results."""
    requests = binary_requests("/v1/collections/bench/search", queries)
    for clients in (1, 8):
        done = load.run(
            platform.url, key, requests, clients=clients, server_pids=[platform.pids()["gateway"]]
        )
        answers = [json.loads(body) for body in done.bodies if body]
        found = [
            [int(h["document_id"]) for h in json.loads(b)["hits"]] if b else [] for b in done.bodies
        ]
        efforts = Counter(a["effort"] for a in answers)
        degraded = Counter((a["degraded"] or {}).get("reason") for a in answers)
        print(
            f"{name}, {clients} client(s): p50 {done.p50_ms:.2f} ms, p99 {done.p99_ms:.2f}, "
            f"{done.per_s:.0f}/s, "
            f"{done.server_cpu_ms:.2f} CPU ms, recall {recall(found, truth):.4f}, efforts "
            f"{dict(efforts)}, "
            f"degraded {dict(degraded)}, errors {done.errors}",
            flush=True,
        )


def measure(options: argparse.Namespace, platform: running.Platform) -> None:
    """Fills the collection, waits, and measures."""
    key = platform.cli("tenant", "create", "bench")["key"]
    platform.cli("collection", "create", "bench/bench", "--dimension", str(D), "--metric", "cosine")
    vectors, queries, others = made(options.passages, 1), made(options.searches, 2), made(1_000, 3)
    truth = nearest(vectors, queries)
    client = httpx2.Client(
        base_url=platform.url, headers={"Authorization": f"Bearer {key}"}, timeout=660
    )
    stop = threading.Event()
    thread = threading.Thread(target=searching, args=(client, others, stop), daemon=True)
    if not options.quiet:
        thread.start()
    seconds = fill(client, vectors)
    print(f"{options.passages} passages searchable in {seconds:.0f} s", flush=True)
    look("at once", platform, key, queries[:500], truth[:500])
    began = time.perf_counter()
    operator_key = (platform.data / "run" / "operator.key").read_text().strip()
    operator = httpx2.Client(
        base_url=platform.url, headers={"Authorization": f"Bearer {operator_key}"}, timeout=60
    )
    facts = at_rest(operator)
    print(f"at rest after {time.perf_counter() - began:.0f} s: {json.dumps(facts)}", flush=True)
    stop.set()
    look("at rest", platform, key, queries, truth)
    look("at rest, again", platform, key, queries, truth)
    raw_faiss(Report(), vectors, queries[:500], truth[:500])
    facts = operator.get("/v1/admin/tenants/bench/collections/bench").json()["index"]
    print(f"afterwards: {json.dumps(facts)}")


def main() -> None:
    """Measures with the options of the command line."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--passages", type=int, default=300_000)
    words.add_argument("--searches", type=int, default=2_000)
    words.add_argument(
        "--quiet", action="store_true", help="no searches before the collection is at rest"
    )
    running.end_when_told()
    with (
        tempfile.TemporaryDirectory(prefix="vicinage-large-") as folder,
        running.running(Path(folder)) as platform,
    ):
        measure(words.parse_args(), platform)


if __name__ == "__main__":
    sys.exit(main())
