"""kill -9 of each process in turn, under a steady stream of writes and searches: what was acknowledged is what is found.

    python loadtest/kill_rounds.py --rounds 20 [--log kafka] [--catalog postgres]

Writers replace and delete documents of two tenants' collections, one of vectors and one of text; every acknowledged state is kept. After each
kill the platform must answer again by itself; at the end every document must be found exactly once, in the last state acknowledged.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from demo import kafka, postgres
from running import ROOT, Platform, running
from vicinage_client import Client, NotFound, VicinageError

DIMENSION = 16
DOCUMENTS = 200
"""Documents per collection: few, so that they are replaced again and again."""
BETWEEN_S = (1.0, 2.5)
"""Time between kills, drawn anew each time."""


@dataclass
class Writer:
    """Writes one collection for ever; knows what was acknowledged."""

    client: Client
    collection: str
    text: bool
    seed: int
    stop: threading.Event
    acknowledged: dict[str, int | None] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    """Sent, but the answer was lost: the write may have happened."""
    token: str | None = None
    writes: int = 0
    searches: int = 0
    failures: int = 0

    def run(self) -> None:
        """Write and search until told to stop."""
        choose = random.Random(self.seed)
        number = 0
        while not self.stop.is_set():
            number += 1
            name = f"d{choose.randrange(DOCUMENTS)}"
            state = None if choose.random() < 0.1 else number
            try:
                token = self._write(name, state)
            except VicinageError:
                self.unsure.add(name)
                self.failures += 1
                continue
            self.acknowledged[name] = state
            self.unsure.discard(name)
            self.token = token or self.token
            self.writes += 1
            if number % 3 == 0:
                self._search(number)
            time.sleep(0.01)

    def _write(self, name: str, state: int | None) -> str | None:
        if state is None:
            return self.client.delete(self.collection, [name])
        document: dict[str, Any] = {"id": name, "metadata": {"state": state}}
        document |= {"text": f"state {state} of {name}"} if self.text else {"vector": vector(state)}
        return self.client.upsert(self.collection, [document]).token

    def _search(self, number: int) -> None:
        try:
            if self.text:
                self.client.search(self.collection, f"state {number}", k=3)
            else:
                self.client.search(self.collection, vector=vector(number), k=3)
            self.searches += 1
        except VicinageError:
            self.failures += 1


def vector(number: int) -> np.ndarray:
    """A vector that the number alone decides."""
    return np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)


def check(writer: Writer) -> dict[str, Any]:
    """Count what was acknowledged and what is found; `wrong` lists every difference."""
    waited = {"k": 1, "wait_for": writer.token, "timeout_ms": 120_000}
    if writer.text:
        writer.client.search(writer.collection, "ready", **waited)
    else:
        writer.client.search(writer.collection, vector=vector(1), **waited)
    wrong, found = [], 0
    for name, state in writer.acknowledged.items():
        if name in writer.unsure:
            continue
        try:
            document = writer.client.get(writer.collection, name)
            seen: int | None = document.metadata["state"]
            if len(document.passages) != 1:
                wrong.append(f"{name} has {len(document.passages)} passages")
        except NotFound:
            seen = None
        found += seen == state
        if seen != state:
            wrong.append(f"{name}: acknowledged {state}, found {seen}")
    hits = _everything(writer)
    if len(hits) != len(set(hits)):
        wrong.append("a document is found twice")
    sure = len(writer.acknowledged) - len(writer.unsure & set(writer.acknowledged))
    return {
        "collection": writer.collection,
        "acknowledged": sure,
        "found": found,
        "writes": writer.writes,
        "searches": writer.searches,
        "refused": writer.failures,
        "unsure": len(writer.unsure),
        "wrong": wrong,
    }


def _everything(writer: Writer) -> list[str]:
    if writer.text:
        found = writer.client.search(writer.collection, "state", k=1_000, exact=True)
    else:
        found = writer.client.search(writer.collection, vector=vector(1), k=1_000, exact=True)
    return [h.document_id for h in found.hits]


def answers_again(writers: list[Writer], since: float, wait_s: float = 120.0) -> float:
    """Seconds from `since` until every writer has written and searched again."""
    before = [(w.writes, w.searches) for w in writers]
    while any(w.writes == b[0] or w.searches == b[1] for w, b in zip(writers, before, strict=True)):
        if time.monotonic() - since > wait_s:
            raise SystemExit(f"no answer within {wait_s:.0f} s after a kill")
        time.sleep(0.02)
    return time.monotonic() - since


def kill_round(name: str, platform: Platform, broker: Path | None) -> None:
    """SIGKILL one process; the supervisor starts it again (the broker, nobody supervises here: we do)."""
    if name != "broker":
        os.kill(platform.pids()[name], signal.SIGKILL)
        return
    assert broker is not None
    os.kill(int((broker / "pid").read_text()), signal.SIGKILL)
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("kafka_starter", ROOT / "deploy" / "kafka" / "kafka.py")
    assert spec is not None
    assert spec.loader is not None
    starter = module_from_spec(spec)
    spec.loader.exec_module(starter)
    port = int((broker / "server.properties").read_text().split("listeners=PLAINTEXT://127.0.0.1:")[1].split(",")[0])
    starter.start(broker, port)


def main() -> None:
    """Run the rounds; exit 1 if anything acknowledged was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="kills of each process")
    parser.add_argument("--log", choices=["sqlite", "kafka"], default="sqlite")
    parser.add_argument("--catalog", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    folder = ROOT / "build" / "kill"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"seed {args.seed}", flush=True)
    with ExitStack() as stack:
        settings = {"indexer__seal_passages": "60", "indexer__segments_max": "3", "indexer__lease_s": "3"}
        broker = folder / "kafka" if args.log == "kafka" else None
        if broker is not None:
            settings["log_url"] = f"kafka://{stack.enter_context(kafka(broker))}"
        if args.catalog == "postgres":
            settings["catalog_url"] = stack.enter_context(postgres(folder / "postgres"))
        platform = stack.enter_context(running(folder / "data", **settings))
        results, rounds = run_rounds(platform, broker, args.rounds, args.seed)
    report = {"seed": args.seed, "log": args.log, "catalog": args.catalog, "kills": rounds, "collections": results}
    (ROOT / "build" / "kill.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    sys.exit(1 if any(r["wrong"] or r["acknowledged"] != r["found"] for r in results) else 0)


def run_rounds(
    platform: Platform, broker: Path | None, n: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The writers' results, and one row per process killed."""
    stop, writers = threading.Event(), []
    for i, (tenant, text) in enumerate((("alpha", False), ("beta", True))):
        key = platform.cli("tenant", "create", tenant)["key"]
        platform.cli("collection", "create", tenant, "docs", *([] if text else ["--dimension", str(DIMENSION)]))
        writers.append(Writer(Client(platform.url, key, timeout_s=20), "docs", text, seed + i, stop))
    threads = [threading.Thread(target=w.run, daemon=True) for w in writers]
    for thread in threads:
        thread.start()
    names = ["gateway", "ingest", "embedder", *(["broker"] if broker else [])]
    pauses: dict[str, list[float]] = {name: [] for name in names}
    choose = random.Random(seed)
    for number in range(n):
        for name in names:
            time.sleep(choose.uniform(*BETWEEN_S))
            start = time.monotonic()
            kill_round(name, platform, broker)
            pauses[name].append(answers_again(writers, start))
            print(f"round {number + 1}: {name} killed; all answers again after {pauses[name][-1]:.1f} s", flush=True)
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join(60)
    rounds = [
        {
            "process": k,
            "kills": len(v),
            "again_s_median": round(float(np.median(v)), 2),
            "again_s_max": round(max(v), 2),
        }
        for k, v in pauses.items()
    ]
    return [check(w) for w in writers], rounds


if __name__ == "__main__":
    main()
