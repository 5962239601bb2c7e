"""Measures the cost and recall of each index kind, the basis of `auto`.

docs/decisions/012-index-kinds.md has the results. The data are the bench's sentences or, for a
million passages, windows of real text (windows.py). Everything runs in this process on one thread,
with k = 10, at the least effort whose measured recall reaches the objective. A figure is the CPU
time of this thread for a search, and of all threads for a build. Filters are random.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import windows
from bench import BUILD, K, passages, vectors_of

from indexer.backends import EFFORTS, choose, open_backend
from indexer.index.effort import recall
from tenants.index_spec import IndexSpec

Floats = NDArray[np.float32]
SPECS = (
    "flat",
    "hnsw:M=32",
    "hnsw:M=32,codes=sq8",
    "hnsw:M=24,codes=sq8",
    "hnsw:M=16,codes=sq8",
    "ivf",
    "ivfpq",
    "rabitq",
)
ASKED = 2_000
MILLION = 1_000_000
"""Windows that are made once and kept: about half an hour on two cores."""
SHARES = (0.5, 0.1, 0.01, 0.001)


def measure(spec: IndexSpec, vectors: Floats, queries: Floats, objective: float) -> dict[str, Any]:
    """Measures one kind at one size: build time, bytes a passage, effort for the objective."""
    backend = open_backend()
    start = time.process_time()
    index = backend.build(vectors, spec, "cosine")
    built = time.process_time() - start
    row: dict[str, Any] = {
        "spec": str(spec),
        "n": len(vectors),
        "build_s": round(built, 2),
        "bytes": round(backend.bytes(spec, len(vectors), vectors.shape[1]) / len(vectors)),
    }
    _, truth = backend.exact(vectors, queries, K, metric="cosine", allowed=None)
    for effort in EFFORTS[spec.kind] or (0,):
        ms, found = _timed(backend, index, vectors, queries, effort, None)
        row |= {"effort": effort, "ms": round(ms, 4), "recall": round(recall(found, truth), 4)}
        if row["recall"] >= objective:
            break
    row["filtered"] = [
        _filtered(backend, index, vectors, queries, row["effort"], share) for share in SHARES
    ]
    return row


def _filtered(
    backend: Any, index: Any, vectors: Floats, queries: Floats, effort: int, share: float
) -> dict[str, Any]:
    allowed = np.random.default_rng(1).random(len(vectors)) < share
    _, truth = backend.exact(vectors, queries, K, metric="cosine", allowed=allowed)
    ms, found = _timed(backend, index, vectors, queries, effort, allowed)
    possible = min(K, int(allowed.sum()))
    found_share = recall(found[:, :possible], truth[:, :possible]) if possible else 1.0
    return {"share": share, "ms": round(ms, 4), "recall": round(found_share, 4)}


def _data(n: int, *, of_windows: bool) -> tuple[Floats, Floats]:
    """Returns at least `n` passages, and queries that are not among them."""
    if of_windows:
        return windows.vectors(max(n, MILLION))
    kept = max(n, 50_000) + ASKED
    every = vectors_of(passages(kept), kept)
    return every[:-ASKED], every[-ASKED:]


def _timed(
    backend: Any,
    index: Any,
    vectors: Floats,
    queries: Floats,
    effort: int,
    allowed: NDArray[np.bool_] | None,
) -> tuple[float, NDArray[np.int64]]:
    start = time.thread_time()
    found = [
        backend.search(index, vectors, q[None], K, metric="cosine", effort=effort, allowed=allowed)[
            1
        ]
        for q in queries
    ]
    return (time.thread_time() - start) / len(queries) * 1e3, np.concatenate(found)


def main() -> None:
    """Measures, prints a line for each kind, and writes build/kinds.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument(
        "--windows", action="store_true", help="windows of texts instead of sentences"
    )
    parser.add_argument("--objective", type=float, default=0.95)
    parser.add_argument("--specs", nargs="+", default=list(SPECS))
    args = parser.parse_args()
    every, held_out = _data(max(args.sizes), of_windows=args.windows)
    queries, rows = held_out[:: max(1, len(held_out) // args.queries)][: args.queries], []
    for n in args.sizes:
        for text in args.specs:
            row = measure(
                choose(text, n, flat_max=0),
                np.ascontiguousarray(every[:n]),
                queries,
                args.objective,
            )
            rows.append(row)
            filtered = "  ".join(
                f"{f['share']:g}: {f['ms']:.3f} ms @{f['recall']:.3f}" for f in row["filtered"]
            )
            print(
                f"{n:>8} {row['spec']:<32} build {row['build_s']:>6.2f} s  {row['bytes']:>5} B  "
                f"effort {row['effort']:>4}"
                f"  {row['ms']:.3f} ms @{row['recall']:.3f}  {filtered}",
                flush=True,
            )
    (BUILD / "kinds.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
