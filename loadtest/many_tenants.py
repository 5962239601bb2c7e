"""Measures many small tenants on one node: cost to create and keep them, and search latency.

`python loadtest/many_tenants.py [tenants] [passages each] [idle tenants]` uses a real catalog, log
and store; a searcher runs in this process. The first search of a tenant is cold, later ones are
warm: names after VectorDBBench (multi-tenant search, cold and warm latency).
"""

import gc
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import bench

from cluster.wiring import Resources, build_searcher, open_resources
from indexer.backends import open_backend
from indexer.index.rows import newest
from indexer.seal import Builder
from query.searcher.run import Searcher
from tenants import provisioning
from tenants.leases import Leases
from vicinage.clock import Deadline
from vicinage.records import ShardId, ShardQuery
from vicinage.settings import Settings
from vicinage.wire import vector_column, vectors_schema

Floats = NDArray[np.float32]
D = 384
BIG = 10_000
"""Passages of the larger tenants whose first answer is timed."""
N_BIG = 20
FIRST = 250
"""Number of tenants after which one more costs as much as every further one."""
ASKED = 2_000


def rows(vectors: Floats, texts: list[str]) -> pa.RecordBatch:
    """Returns one document a row, as a vectors message has them."""
    n, schema = len(vectors), vectors_schema(D)
    columns = [
        [f"d{i}" for i in range(n)],
        list(range(1, n + 1)),
        [1] * n,
        [0] * n,
        texts,
        [0] * n,
        [1] * n,
        ["{}"] * n,
    ]
    arrays = [pa.array(c, schema.field(i).type) for i, c in enumerate(columns)]
    return pa.RecordBatch.from_arrays([*arrays, vector_column(vectors)], schema=schema)


def settings(data: Path) -> Settings:
    """Opens the resources of a platform in that folder."""
    return Settings(data=data).resolved()


def make(
    data: Path, names: list[str], each: int, vectors: Floats, texts: list[str], answer: Any
) -> None:
    """Creates tenants with a sealed collection of `each` passages.

    `answer` gets the seconds that tenants and segments took.
    """
    base = open_resources(settings(data))
    started = time.perf_counter()
    made = []
    for name in names:
        provisioning.create_tenant(base.registry, base.log, name, actor="bench")
        made.append(
            provisioning.create_collection(
                base.registry,
                base.log,
                name,
                "c",
                dimension=D,
                slots_total=base.settings.slots,
                actor="bench",
            )
        )
    created = time.perf_counter() - started
    started = time.perf_counter()
    builder, leases = (
        Builder(base.manifests, base.store, open_backend(), base.settings.indexer),
        Leases(base.engine, base.clock),
    )
    held = {
        slot: leases.acquire(f"slot/{slot}", "bench", ttl_s=3_600)
        for slot in range(base.settings.slots)
    }
    for i, of in enumerate(made if each else ()):
        at = i * each % max(1, len(vectors) - each)
        generation = of.generation()
        shard = generation.shards()[0]
        ref = builder.write(
            shard, generation, *newest([rows(vectors[at : at + each], texts[at : at + each])])
        )
        lease = held[shard.slot]
        assert lease is not None
        builder.publish(shard, generation, lease, lambda m, ref=ref: (*m.segments, ref))
    for lease in held.values():
        if lease is not None:
            leases.release(lease)
    base.close()
    answer.put((created, time.perf_counter() - started))


def weigh(data: Path, answer: Any) -> None:
    """Puts the private bytes of a process whose searcher of this platform is idle into `answer`."""
    base = open_resources(settings(data))
    searcher, _ = started(base)
    gc.collect()
    answer.put(int(psutil.Process().memory_full_info().uss))
    searcher.stop()
    base.close()


def in_a_process(work: Callable[..., None], *given: Any) -> Any:
    """Returns the answer of `work` in its own process, whose memory does not count here."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=work, args=(*given, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


def shards(base: Resources, prefix: str) -> list[ShardId]:
    """Returns the shards of the tenants whose names begin with the prefix."""
    return [
        c.generation().shards()[0]
        for c in base.registry.collections()
        if c.tenant.startswith(prefix)
    ]


def search_times(searcher: Searcher, chosen: list[ShardId], queries: Floats) -> NDArray[np.float64]:
    """Returns the milliseconds of one search to each in turn."""
    taken = []
    for i, shard in enumerate(chosen):
        started = time.perf_counter()
        query = ShardQuery(shard, queries[i % len(queries)][None], 10, include=frozenset({"text"}))
        searcher.submit(query, Deadline.after(30)).result(30)
        taken.append((time.perf_counter() - started) * 1e3)
    return np.array(taken)


def resident() -> int:
    """Returns the resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def started(base: Resources) -> tuple[Searcher, float]:
    """Returns a searcher that is ready, and the seconds that its start took."""
    at = time.perf_counter()
    searcher = build_searcher(base)
    searcher.start()
    while not searcher.ready():
        time.sleep(0.005)
    return searcher, time.perf_counter() - at


def measure(
    report: Any, folder: Path, n: int, each: int, n_idle: int, vectors: Floats, texts: list[str]
) -> None:
    """Measures `n` tenants of `each` passages, `n_idle` without any, and a few large ones.

    FIRST of them exist before anything is counted.
    """
    queries, facts = vectors[-ASKED:], {"n": n, "passages": each, "d": D}
    shutil.rmtree(folder, ignore_errors=True)
    in_a_process(make, folder, [f"first-{i}" for i in range(FIRST)], 0, vectors, texts)
    alone = in_a_process(weigh, folder)
    created, _ = in_a_process(make, folder, [f"idle-{i}" for i in range(n_idle)], 0, vectors, texts)
    report.add("tenants: create one, with a collection", created / n_idle * 1e3, "ms", n=n_idle)
    idle = (in_a_process(weigh, folder) - alone) / n_idle
    report.add("tenants: memory of an idle one in a searcher", idle, "bytes", n=n_idle)
    _, filled = in_a_process(make, folder, [f"small-{i}" for i in range(n)], each, vectors, texts)
    report.add("tenants: seal a small one", filled / n * 1e3, "ms", **facts)
    in_a_process(make, folder, [f"big-{i}" for i in range(N_BIG)], BIG, vectors, texts)
    base = open_resources(settings(folder))
    before = resident()
    searcher, took = started(base)
    report.add(
        f"tenants: searcher start with {FIRST + n_idle + n + N_BIG} of them", took, "s", **facts
    )
    rng = np.random.default_rng(0)
    small = shards(base, "small-")
    chosen = [small[i] for i in rng.choice(len(small), min(ASKED, len(small)), replace=False)]
    cold = search_times(searcher, chosen, queries)
    report.add(
        "tenants: first answer of a small one, cold, p99",
        float(np.percentile(cold, 99)),
        "ms",
        p50=round(float(np.median(cold)), 2),
        **facts,
    )
    many = [chosen[i] for i in rng.integers(0, len(chosen), ASKED)]
    warm = search_times(searcher, many, queries)
    report.add(
        "tenants: search on random ones, warm, p99",
        float(np.percentile(warm, 99)),
        "ms",
        p50=round(float(np.median(warm)), 2),
        **facts,
    )
    big = search_times(searcher, shards(base, "big-"), queries)
    report.add(
        f"tenants: first answer of {BIG} passages, cold, p99",
        float(np.percentile(big, 99)),
        "ms",
        p50=round(float(np.median(big)), 2),
    )
    held = searcher.shards.budget.resident_bytes()
    report.add(
        "tenants: resident bytes beside the accounted",
        (resident() - before) / held,
        "×",
        accounted=held,
    )
    crowd(report, searcher, small, queries)
    searcher.stop()
    base.close()


def crowd(report: Any, searcher: Searcher, small: list[ShardId], queries: Floats) -> None:
    """Runs eight clients on random tenants; one tenant in ten has not been searched yet."""
    rng = np.random.default_rng(1)
    lines = [[small[i] for i in rng.integers(0, len(small), 500)] for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        at = time.perf_counter()
        taken = np.concatenate(
            list(pool.map(lambda line: search_times(searcher, line, queries), lines))
        )
        seconds = time.perf_counter() - at
    report.add(
        "tenants: 8 clients on random ones, p99",
        float(np.percentile(taken, 99)),
        "ms",
        per_s=round(len(taken) / seconds),
    )


def main() -> None:
    """Prints the table."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    each = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    texts = bench.passages(bench.KEPT)
    vectors = bench.vectors_of(texts, bench.KEPT)
    n_idle = int(sys.argv[3]) if len(sys.argv) > 3 else n
    measure(bench.Report(), bench.BUILD / "bench" / "tenants", n, each, n_idle, vectors, texts)


if __name__ == "__main__":
    main()
