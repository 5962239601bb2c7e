"""Kills each process in turn with kill -9 under a steady stream of writes and searches.

    python loadtest/kill_rounds.py --rounds 20 [--log kafka] [--catalog postgres]

A witness writes the collection of each of two tenants: one of vectors and one of text. After each
kill the platform must accept a write and make it searchable again without help, and the writes
acknowledged just before must be found. At the end every acknowledged write must be found exactly
once, and nothing else.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from demo import kafka, postgres, run
from running import ROOT, Platform, end_when_told, running
from vicinage_client import Client
from witness import ANSWERS_S, DIMENSION, Witness

BETWEEN_S = (1.0, 2.5)
"""Time between kills, drawn at random each time."""
GIVEN_UP_S = 3.0
"""Shorter than a gateway's restart: answers are lost, and writes continue while searches fail."""


def kill(name: str, platform: Platform, broker: Path | None) -> None:
    """Kills one process with SIGKILL.

    The supervisor restarts it; this program restarts the broker.
    """
    if name != "broker":
        os.kill(platform.pids()[name], signal.SIGKILL)
        return
    assert broker is not None
    os.kill(int((broker / "pid").read_text()), signal.SIGKILL)
    script, port = (
        str(ROOT / "deploy" / "kafka" / "kafka.py"),
        platform.environment["VICINAGE_LOG_URL"].rpartition(":")[2],
    )
    run([sys.executable, script, "start", "--dir", str(broker), "--port", port, "--detach"], 120)


def answers_again(witnesses: list[Witness], strike: Callable[[], None]) -> float:
    """Returns the seconds from the kill until a write and a search succeeded everywhere.

    The write was sent after the kill, acknowledged and found. Writes acknowledged just before the
    kill are read back, too: a witness records what is missing.
    """
    before = [w.kept for w in witnesses]
    marks = [(w.number, w.searches) for w in witnesses]
    start = time.monotonic()
    strike()
    for witness, (number, searches) in zip(witnesses, marks, strict=True):
        while witness.kept is None or witness.kept.state <= number or witness.searches == searches:
            if time.monotonic() - start > ANSWERS_S:
                raise SystemExit(f"nothing was acknowledged within {ANSWERS_S:.0f} s after a kill")
            time.sleep(0.02)
        witness.read_back(witness.kept)
    seconds = time.monotonic() - start
    for witness, kept in zip(witnesses, before, strict=True):
        if kept is not None:
            witness.read_back(kept)
    return seconds


def main() -> None:
    """Runs the rounds. Exits with 1 if an acknowledged write was lost or duplicated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="kills of each process")
    parser.add_argument("--log", choices=["sqlite", "kafka"], default="sqlite")
    parser.add_argument("--catalog", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    end_when_told()
    folder = ROOT / "build" / "kill"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"seed {args.seed}", flush=True)
    with ExitStack() as stack:
        settings = {
            "indexer__seal_passages": "60",
            "indexer__segments_max": "3",
            "indexer__lease_s": "3",
        }
        broker = folder / "kafka" if args.log == "kafka" else None
        if broker is not None:
            settings["log_url"] = f"kafka://{stack.enter_context(kafka(broker))}"
        if args.catalog == "postgres":
            settings["catalog_url"] = stack.enter_context(postgres(folder / "postgres"))
        platform = stack.enter_context(running(folder / "data", **settings))
        results, rounds = run_rounds(platform, broker, args.rounds, args.seed)
    report = {
        "seed": args.seed,
        "log": args.log,
        "catalog": args.catalog,
        "kills": rounds,
        "collections": results,
    }
    (ROOT / "build" / "kill.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    acknowledged, found = (sum(r[count] for r in results) for count in ("acknowledged", "found"))
    print(
        f"acknowledged writes: {acknowledged}; found: {found}; wrong: "
        f"{sum(len(r['wrong']) for r in results)}"
    )
    sys.exit(1 if any(r["wrong"] or r["acknowledged"] != r["found"] for r in results) else 0)


def make_witnesses(platform: Platform, seed: int) -> list[Witness]:
    """Returns one witness of vectors and one of texts, each with a tenant and a collection."""
    made = []
    for i, (tenant, text) in enumerate((("alpha", False), ("beta", True))):
        key = platform.cli("tenant", "create", tenant)["key"]
        platform.cli(
            "collection",
            "create",
            tenant,
            "docs",
            *([] if text else ["--dimension", str(DIMENSION)]),
        )
        made.append(
            Witness(Client(platform.url, key, timeout_s=GIVEN_UP_S), "docs", text, seed + i)
        )
    return made


def run_rounds(
    platform: Platform, broker: Path | None, n: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Prints the outcome of every write, and one row for each killed process."""
    witnesses = make_witnesses(platform, seed)
    pauses: dict[str, list[float]] = {
        name: [] for name in ("gateway", "ingest", "embedder", *(["broker"] if broker else []))
    }
    choose = random.Random(seed)
    with ThreadPoolExecutor(len(witnesses)) as pool:
        works = [pool.submit(w.run) for w in witnesses]
        try:
            for number in range(n):
                for name, again_s in pauses.items():
                    time.sleep(choose.uniform(*BETWEEN_S))
                    again_s.append(
                        answers_again(witnesses, lambda name=name: kill(name, platform, broker))
                    )
                    written = sum(w.acknowledged.total() for w in witnesses)
                    wrong = sum(len(w.wrong) for w in witnesses)
                    print(
                        f"round {number + 1}: {name} killed; written and found again after "
                        f"{again_s[-1]:.1f} s"
                        f" ({written} writes acknowledged, {wrong} wrong)",
                        flush=True,
                    )
            time.sleep(1)
        finally:
            for witness in witnesses:
                witness.stop.set()
        for work in works:
            work.result(60)
    return [w.check() for w in witnesses], [_row(name, again_s) for name, again_s in pauses.items()]


def _row(name: str, again_s: list[float]) -> dict[str, Any]:
    median, worst = round(float(np.median(again_s)), 2), round(max(again_s), 2)
    return {"process": name, "kills": len(again_s), "again_s_median": median, "again_s_max": worst}


if __name__ == "__main__":
    main()
