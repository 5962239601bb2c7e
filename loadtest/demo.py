"""Runs the main job on real text for two tenants and checks every promise: `make demo`.

It exits with 0 only if every check passes. Documents arrive over HTTP and Kafka while the ingest
process is killed, and none is lost or duplicated. A search that waits for acknowledged writes is
answered when all of them are present. An HNSW index is built while writes continue. Searches find
their known answers, one tenant cannot reach the other, and recall is measured.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).parent))
import corpus
from ray_nodes import ray_nodes
from running import ROOT, Platform, end_when_told, free_port, running
from vicinage_client import Client, VicinageError

COLLECTION = "docs"
SEARCHABLE_WITHIN_S = 600
WAIT_MS = 600_000
"""Longest wait of a search."""
REINDEX_S = 300
FRESH_ROUNDS = 60
SEARCHES = {
    "library": {
        "median of a list of numbers": "statistics.median",
        "insert an item in a sorted list and keep it sorted": "bisect.insort",
        "wrap text in a single paragraph so lines fit a width": "textwrap",
        "count elements and find the most common ones": "collections.Counter",
        "compare two sequences and produce a unified diff": "difflib",
        "send an email message through an SMTP server": "smtplib",
        "parse a URL into its components": "urllib.parse",
    },
    "packages": {
        "compute singular value decomposition": "numpy.linalg",
        "declare a background task that runs after the response is sent": "fastapi.background",
        "render a table in the terminal": "rich.table",
        "write a table to a Parquet file": "pyarrow.parquet",
        "consume messages from a Kafka topic": "kafka.",
        "create a new migration revision script": "alembic.",
    },
}
"""Search text → the prefix of the ID that one of the first five hits must have."""

console = Console(highlight=False)


@dataclass
class Checks:
    """The checks, and whether they passed."""

    failed: list[str] = field(default_factory=list)

    def that(self, held: bool, promise: str, detail: object = "") -> None:
        """Prints one line and records a failed check."""
        console.print(f"  [{'green]✓' if held else 'red]✗'}[/] {promise}  [dim]{detail}[/]")
        if not held:
            self.failed.append(promise)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One data team: its name, its key and its documents."""

    name: str
    client: Client
    key: str
    documents: list[dict[str, Any]]


def step(title: str) -> None:
    """Prints a heading with the time."""
    console.print(f"\n[bold]{title}[/]")


@contextmanager
def servers(
    args: argparse.Namespace, folder: Path
) -> Iterator[tuple[dict[str, str], tuple[str, ...], str | None]]:
    """Starts the requested servers.

    Yields settings for the platform, words for `up`, and Kafka's address.
    """
    settings: dict[str, str] = {}
    up: tuple[str, ...] = ()
    brokers = None
    with ExitStack() as stack:
        if args.log == "kafka":
            brokers = stack.enter_context(kafka(folder / "kafka"))
            settings["log_url"] = f"kafka://{brokers}"
        if args.catalog == "postgres":
            settings["catalog_url"] = stack.enter_context(postgres(folder / "postgres"))
        if args.nodes > 1:
            step(f"Starting Ray: {args.nodes} nodes on this machine")
            address = stack.enter_context(ray_nodes(args.nodes))
            up = ("--ray", address, "--searchers", str(args.nodes))
        yield settings, up, brokers


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """Starts a real Apache Kafka: one node, KRaft."""
    step("Starting Apache Kafka (KRaft)")
    script, port = str(ROOT / "deploy" / "kafka" / "kafka.py"), free_port()
    run(
        [sys.executable, script, "start", "--dir", str(folder), "--port", str(port), "--detach"],
        300,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        run([sys.executable, script, "stop", "--dir", str(folder)], 60)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Starts a real PostgreSQL."""
    step("Starting PostgreSQL")
    script, port = str(ROOT / "deploy" / "postgres" / "postgres.py"), free_port()
    out = run(
        [sys.executable, script, "start", "--dir", str(folder), "--port", str(port), "--detach"],
        120,
    )
    try:
        yield out.strip().splitlines()[-1]
    finally:
        run([sys.executable, script, "stop", "--dir", str(folder)], 60)


def run(words: list[str], timeout_s: float) -> str:
    """Runs a command to its end and returns its standard output. Ends the demo if it fails."""
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(words)} ended with "
            f"{done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def make_tenants(platform: Platform, nodes: int) -> list[Tenant]:
    """Creates two tenants, each with a key and a collection of the same name."""
    step("Two tenants, each with a collection called docs")
    texts = {"library": corpus.standard_library(), "packages": corpus.installed_packages()}
    made = []
    for name, documents in texts.items():
        key = platform.cli(
            "tenant", "create", name, "--class", "gold" if name == "library" else "silver"
        )["key"]
        platform.cli("collection", "create", name, COLLECTION, "--shards", str(nodes))
        made.append(Tenant(name, Client(platform.url, key, timeout_s=60), key, documents))
        console.print(f"  {name}: {len(documents)} documents")
    return made


def send_library(tenant: Tenant) -> str:
    """Writes over HTTP with the Python client; returns the token."""
    written = tenant.client.upsert(COLLECTION, tenant.documents, batch=200)
    assert not written.rejected, written.rejected[:3]
    return str(written.token)


def start_producer(
    platform: Platform, tenant: Tenant, brokers: str | None, folder: Path
) -> subprocess.Popen[str]:
    """Writes with a data team's own script: kafka-python if there is Kafka, else plain HTTP."""
    file = folder / f"{tenant.name}.jsonl"
    file.write_text(
        "\n".join(json.dumps({"collection": COLLECTION, **d}) for d in tenant.documents)
    )
    words = [sys.executable, str(ROOT / "loadtest" / "producer.py"), str(file)]
    if brokers:
        words += ["--kafka", brokers, "--topic", f"vicinage.docs.{tenant.name}"]
    else:
        words += ["--url", platform.url, "--key", tenant.key, "--collection", COLLECTION]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


class Waiting(threading.Thread):
    """A search that waits for all acknowledged writes, and what was present at its answer."""

    def __init__(self, tenant: Tenant, position: Any) -> None:
        super().__init__(daemon=True)
        self.tenant, self.position = tenant, position
        self.before = self.found = -1
        self.start()

    def run(self) -> None:
        """Runs the search, and counts the documents at once when it is answered."""
        self.before = count(self.tenant)["documents"]
        self.tenant.client.search(
            COLLECTION, "ready", k=1, wait_for=self.position, timeout_ms=WAIT_MS
        )
        self.found = count(self.tenant)["documents"]

    def check(self, checks: Checks) -> None:
        """Checks that it began during the writes, and was answered after the last of them."""
        n = len(self.tenant.documents)
        checks.that(
            self.before < n == self.found,
            f"{self.tenant.name}: a search waited for the acknowledged position, and was answered "
            "when all was present",
            f"{self.position}: sent at {self.before}, answered at {self.found} of {n}",
        )


def stream_in(
    platform: Platform, tenants: list[Tenant], brokers: str | None, folder: Path, checks: Checks
) -> None:
    """Writes both ways, kills ingest in the middle, and waits until everything is searchable."""
    library, packages = tenants
    step("Documents arrive over HTTP and Kafka; the ingest process is killed with -9 in the middle")
    start = time.monotonic()
    producer = start_producer(platform, packages, brokers, folder)
    waiting = [Waiting(library, send_library(library))]
    out, _ = producer.communicate(timeout=300)
    last = json.loads(out)["last"]
    waiting.append(Waiting(packages, last.get("token", last)))
    n = sum(len(t.documents) for t in tenants)
    console.print(f"  acknowledged: {n} in {time.monotonic() - start:.1f} s")
    killed = watch_until_answered(platform, waiting)
    seconds = time.monotonic() - start
    checks.that(killed, "the ingest process was killed while it worked, and restarted")
    for each in waiting:
        each.check(checks)
    console.print(f"  searchable: {n} documents in {seconds:.1f} s ({n / seconds:.0f}/s)")


def watch_until_answered(platform: Platform, waiting: list[Waiting]) -> bool:
    """Shows how many documents are searchable until every waiting search is answered.

    Kills ingest at a quarter. Returns whether it did.
    """
    killed, end = False, time.monotonic() + SEARCHABLE_WITHIN_S
    columns = (
        TextColumn("  {task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = {
            w.tenant.name: progress.add_task(w.tenant.name, total=len(w.tenant.documents))
            for w in waiting
        }
        quarter = sum(len(w.tenant.documents) for w in waiting) // 4
        while time.monotonic() < end and any(w.is_alive() for w in waiting):
            counts = {w.tenant.name: count(w.tenant)["documents"] for w in waiting}
            for name, n in counts.items():
                progress.update(bars[name], completed=n)
            if not killed and sum(counts.values()) > quarter:
                killed = kill_ingest(platform, progress.console)
            time.sleep(1)  # each read costs the platform a measurement of the lag
        for w in waiting:
            progress.update(bars[w.tenant.name], completed=max(w.found, 0))
    return killed


def kill_ingest(platform: Platform, out: Console) -> bool:
    """Kills the process that ingests with SIGKILL."""
    pid = platform.pids()["ingest"]
    os.kill(pid, signal.SIGKILL)
    out.print(f"  [yellow]kill -9 {pid}[/] (ingest and indexer)")
    return True


def count(tenant: Tenant) -> dict[str, Any]:
    """Returns the collection's own report."""
    return dict(tenant.client.collection(COLLECTION).counts)


def nothing_lost_or_duplicated(tenants: list[Tenant], checks: Checks) -> None:
    """Checks that every document sent is present, with exactly its passages."""
    step("Nothing lost, nothing duplicated")
    for t in tenants:
        passages = 0
        for d in t.documents:
            passages += len(t.client.get(COLLECTION, d["id"]).passages)
        found = count(t)
        checks.that(
            found["documents"] == len(t.documents),
            f"{t.name}: {len(t.documents)} documents sent, as many found",
            found,
        )
        checks.that(
            found["passages"] == passages,
            f"{t.name}: each passage of its documents exactly once",
            passages,
        )


class Notes(threading.Thread):
    """A small stream of writes until it is stopped."""

    def __init__(self, tenant: Tenant) -> None:
        super().__init__(daemon=True)
        self.tenant, self.ids, self.token = tenant, [], None
        self._done = threading.Event()
        self.start()

    def run(self) -> None:
        """Writes one note after another."""
        while not self._done.wait(0.1):
            name = f"note/{len(self.ids)}"
            note = {
                "id": name,
                "text": f"A note of the night watch, number {len(self.ids)}.",
                "metadata": {"package": "note"},
            }
            self.token = self.tenant.client.upsert(COLLECTION, [note]).token
            self.ids.append(name)

    def end(self) -> None:
        """Returns when the last note is searchable."""
        self._done.set()
        self.join(60)
        self.tenant.client.search(COLLECTION, "a note", k=1, wait_for=self.token, timeout_ms=60_000)


def reindex(platform: Platform, tenant: Tenant, checks: Checks) -> None:
    """Builds a new generation with an HNSW index, and cuts over to it while writes continue."""
    step(f"{tenant.name}/{COLLECTION} is reindexed with HNSW while writes continue")
    notes = Notes(tenant)
    start = time.monotonic()
    done = operate(
        platform, "reindex", "start", f"{tenant.name}/{COLLECTION}", "--index", "hnsw", "--wait"
    )
    seconds = time.monotonic() - start
    notes.end()
    facts = tenant.client.collection(COLLECTION)
    n = len(tenant.documents) + len(notes.ids)
    checks.that(
        done and facts.generation == 2,
        "the new generation serves searches",
        f"after {seconds:.1f} s",
    )
    kinds = [kind.partition(":")[0] for kind in facts.raw["index"]["kinds"]]
    checks.that(kinds == ["hnsw"], "its index is HNSW", facts.raw["index"])
    checks.that(
        facts.counts["documents"] == n and len(notes.ids) > 0,
        f"its documents and the {len(notes.ids)} written meanwhile, none lost, none duplicated",
        facts.counts,
    )
    gone = tenant.client.delete(COLLECTION, notes.ids)
    tenant.client.search(COLLECTION, "a note", k=1, wait_for=gone, timeout_ms=60_000)
    found = count(tenant)["documents"]
    checks.that(
        found == len(tenant.documents), "its documents alone, once those are deleted", found
    )


def operate(platform: Platform, *words: str) -> bool:
    """Runs a command as an operator does, with its output shown. Returns whether it succeeded."""
    console.print(f"  [dim]$ vicinage {' '.join(words)}[/]")
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words, "--data", str(platform.data)],
        cwd=ROOT,
        env=platform.environment,
        check=False,
        timeout=REINDEX_S,
    )
    return done.returncode == 0


def known_answers(tenants: list[Tenant], checks: Checks) -> None:
    """Runs searches whose answers are known."""
    step("Searches with known answers")
    for t in tenants:
        for text, begins in SEARCHES[t.name].items():
            hits = t.client.search(COLLECTION, text, k=5).hits
            found = next((h.document_id for h in hits if h.document_id.startswith(begins)), None)
            checks.that(
                found is not None,
                f"{t.name}: {text!r}",
                f"→ {found or [h.document_id for h in hits]}",
            )
    filtered = tenants[1].client.search(COLLECTION, "a table", k=5, filter={"package": "rich"}).hits
    only = {h.metadata["package"] for h in filtered}
    checks.that(
        only == {"rich"} and len(filtered) == 5, "a filter is exact", f"package = rich → {only}"
    )


def freshness(tenant: Tenant, checks: Checks) -> None:
    """Reads its own writes repeatedly, and reports the duration."""
    step("A write is searchable through its token")
    lags = []
    for i in range(FRESH_ROUNDS):
        text = f"The number of the day is {i * 7919}, said the lighthouse keeper."
        start = time.perf_counter()
        token = tenant.client.upsert(
            COLLECTION, [{"id": "note/today", "text": text, "metadata": {"package": "note"}}]
        ).token
        hits = tenant.client.search(COLLECTION, text, k=1, wait_for=token).hits
        lags.append((time.perf_counter() - start) * 1e3)
        if not hits or hits[0].text != text:
            checks.that(False, "the search that waited for the token saw the write", hits)
            return
    tenant.client.search(
        COLLECTION, "gone", wait_for=tenant.client.delete(COLLECTION, ["note/today"])
    )
    p50, p99 = np.percentile(lags, [50, 99])
    checks.that(
        True,
        f"{FRESH_ROUNDS} writes of one document, each found by the next search",
        f"write + embed + search p50 {p50:.0f} ms, p99 {p99:.0f} ms",
    )


def isolation(platform: Platform, tenants: list[Tenant], checks: Checks) -> None:
    """Checks that a key opens its own tenant's collections and nothing else."""
    step("One tenant cannot reach the other")
    library, packages = tenants
    platform.cli("collection", "create", "library", "private", "--dimension", "4")
    library.client.upsert("private", [{"id": "secret", "vector": [1, 0, 0, 0], "metadata": {}}])
    for what, call in {
        "search": lambda: packages.client.search("private", vector=[1, 0, 0, 0]),
        "read": lambda: packages.client.get("private", "secret"),
        "list": lambda: packages.client.collection("private"),
        "write": lambda: packages.client.upsert("private", [{"id": "x", "vector": [1, 0, 0, 0]}]),
        "delete": lambda: packages.client.delete("private", ["secret"]),
    }.items():
        try:
            call()
            checks.that(False, f"{what} with the other tenant's key is refused")
        except VicinageError as refusal:
            checks.that(
                refusal.status == 404,
                f"{what} with the other tenant's key is refused",
                f"{refusal.status} {refusal}",
            )
    hits = [
        h.document_id
        for q in SEARCHES["library"]
        for h in packages.client.search(COLLECTION, q, k=20).hits
    ]
    ours = {d["id"] for d in packages.documents}
    checks.that(
        set(hits) <= ours,
        "a search of the collection of the same name finds the tenant's own documents only",
        len(hits),
    )


def measured(platform: Platform, tenants: list[Tenant], checks: Checks) -> None:
    """Shows recall with its interval, freshness and capacity, as operators read them."""
    step("Reports for operators")
    for t in tenants:
        for d in t.documents[:: max(1, len(t.documents) // 220)]:
            t.client.search(COLLECTION, d["text"].split("\n")[0][:200], k=10)
    live = {t.name: t.client.collection(COLLECTION).generation for t in tenants}
    rows = recall_rows(platform, live)
    checks.that(
        {row["tenant"] for row in rows} == set(live),
        "recall is measured on the live generations",
        live,
    )
    for row in rows:
        low, high = row["interval"]
        promise = f"recall@{row['k']} of {row['tenant']}/{row['collection']}: {row['recall']:.3f}"
        checks.that(
            row["samples"] >= 100 and row["n"] >= 30 and row["recall"] >= 0.95,
            promise,
            f"95 % interval {low:.3f} to {high:.3f}, n = {row['n']} of {row['samples']} samples",
        )
    for row in platform.cli("freshness"):
        console.print(
            f"  freshness {row['tenant']}: lag {row['lag_ms']} ms, index lag p50 {row['p50_ms']} "
            f"ms, p99 {row['p99_ms']} ms"
        )
    checks.that(operate(platform, "capacity"), "capacity is shown")


def recall_rows(
    platform: Platform, live: dict[str, int], wait_s: float = 90
) -> list[dict[str, Any]]:
    """Returns the recall report of the live generations, once enough samples are measured.

    The monitor rests in proportion to its work.
    """
    end = time.monotonic() + wait_s
    while True:
        reported = [
            row
            for row in platform.cli("recall")
            if row["collection"] == COLLECTION and row["k"] == 10
        ]
        rows = [row for row in reported if row["generation"] == live.get(row["tenant"])]
        if (
            len(rows) >= len(live) and all(row["samples"] >= 100 for row in rows)
        ) or time.monotonic() > end:
            return rows
        time.sleep(1)


def lose_a_node(platform: Platform, tenant: Tenant, checks: Checks) -> None:
    """Kills one of the searchers: answers state what is missing until it is back."""
    step("A searcher dies")
    pid = next(p for name, p in platform.pids().items() if name.startswith("searcher"))
    os.kill(pid, signal.SIGKILL)
    console.print(f"  [yellow]kill -9 {pid}[/] (a searcher)")
    degraded, end = None, time.monotonic() + 60
    while time.monotonic() < end:
        try:
            answer = tenant.client.search(COLLECTION, "median of a list of numbers", k=5)
        except VicinageError:
            continue
        if answer.degraded:
            degraded = answer.degraded
        elif degraded:
            break
        time.sleep(0.05)
    checks.that(degraded is not None, "answers reported a missing part", degraded)
    checks.that(
        not answer.degraded,
        "and were complete again after its restart",
        f"after {60 - (end - time.monotonic()):.1f} s",
    )
    checks.that(count(tenant)["documents"] == len(tenant.documents), "with every document")


def main() -> None:
    """Runs everything, leaves no process running, and exits with 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=["sqlite", "kafka"], default="sqlite")
    parser.add_argument("--catalog", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--nodes", type=int, default=1)
    args = parser.parse_args()
    end_when_told()
    folder = ROOT / "build" / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    checks, start = Checks(), time.monotonic()
    with servers(args, folder) as (settings, up, brokers):
        step("Starting the platform")
        with running(
            folder / "data", up=up, gateway__recall_cpu_share="0.25", **settings
        ) as platform:
            console.print(
                f"  {platform.url}  (log: {args.log}, catalog: {args.catalog}, nodes: {args.nodes})"
            )
            tenants = make_tenants(platform, args.nodes)
            stream_in(platform, tenants, brokers, folder, checks)
            nothing_lost_or_duplicated(tenants, checks)
            reindex(platform, tenants[1], checks)
            known_answers(tenants, checks)
            freshness(tenants[0], checks)
            isolation(platform, tenants, checks)
            measured(platform, tenants, checks)
            if args.nodes > 1:
                lose_a_node(platform, tenants[0], checks)
    failed = "; ".join(checks.failed)
    outcome = f"Failed checks: {failed}" if failed else "All checks passed"
    console.print(f"\n[bold]{outcome}[/], in {time.monotonic() - start:.0f} s.")
    print(NEXT)  # not wrapped: a wrapped line cannot be copied
    sys.exit(1 if checks.failed else 0)


NEXT = """
Keep a platform running, and try it by hand:

  .venv/bin/vicinage up --data data --detach
  .venv/bin/vicinage tenant create acme --data data        # prints the key, once: export KEY=vk_...
  .venv/bin/vicinage collection create acme docs --data data
  export URL=http://127.0.0.1:8080/v1/collections/docs
  curl -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' $URL/documents \\
       -d '{"documents":[{"id":"hello","text":"Vicinage finds nearest neighbors for tenants."}]}'
  curl -H "Authorization: Bearer $KEY" -H 'Content-Type: application/json' $URL/search \\
       -d '{"text":"what finds neighbors?","k":3}'
  .venv/bin/vicinage down --data data
"""

if __name__ == "__main__":
    main()
