"""Runs random rounds of writes and faults over a real Kafka and PostgreSQL.

    python loadtest/chaos.py [--rounds 200] [--seed N] [--events WORDS] [--json FILE]

Four tenants each have a collection of vectors and one of texts. In each round three of them write
over HTTP and with a Kafka producer while one or two faults strike. A topic is deleted and created
again, or gets partitions. A broker refuses records, or a model server dies. A collection is created
again under its name, or invalid records arrive. A reindex runs, or a deletion by filter races with
writes. Roles are killed, and broker and database are restarted.

Then every fault is healed, and each collection is compared with a model of what was acknowledged.
No document may be lost, come back after its deletion, or appear twice. The fourth tenant, the
neighbor, is never touched, and its latencies are measured all the time.

The rounds follow from the seed; the timing between two requests does not. Exit status 1: at least
one check failed.
"""

import argparse
import json
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from chaos_events import ALONE, HEAL_S, SHARED, Event, World
from chaos_model import PARTS
from chaos_tenant import DIMENSION, Collection, Tenant
from model_server import ModelServer
from neighbor import Neighbor
from running import ROOT, Platform, end_when_told, free_port, running
from servers import load

LAG_MAX_S = 5.0
"""Default of --lag-max-s."""
IDS = 25
"""Documents in a collection: few, so that they are written and deleted repeatedly."""
SHARED_SHARE = 0.2
"""Share of the rounds with events in which one event touches every tenant."""
STUCK_MAX = 3
SETTINGS = {
    "indexer__seal_passages": "20",
    "indexer__segments_max": "3",
    "indexer__seal_age_s": "10",
    "indexer__lease_s": "3",
    "indexer__superseded_age_s": "5",
    "indexer__orphan_age_s": "120",
    "indexer__tombstone_age_s": "100",
    "indexer__keep_documents_s": "300",
    "indexer__keep_sealed_bytes": "0",
    "embedder__threads": "1",
    "embedder__precision": "float32",
}


@dataclass
class Run:
    """Runs the rounds and records what is wrong."""

    world: World
    neighbor: Neighbor
    seed: int
    events: list[str]
    lag_max_s: float
    number: int = 0
    """Token of the last write."""
    wrong: list[str] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    stuck: int = 0
    began: float = field(default_factory=time.monotonic)

    def round(self, n: int) -> None:
        """Runs one round: writes, faults, writes, healing, and a complete comparison."""
        choose, began = random.Random(f"{self.seed}/{n}"), time.monotonic()
        self.world.notes.clear()
        plan = self._plan(choose)
        names = [f"{name}({tenant.name})" for name, tenant in plan]
        self.struck.update(name for name, _ in plan)
        self.neighbor.label = (
            "shared" if any(name in SHARED for name, _ in plan) else "others" if plan else "calm"
        )
        wrong = len(self.wrong)
        try:
            self._writes(choose, choose.randrange(2, 7))
            with ExitStack() as stack:
                for name, tenant in plan:
                    stack.enter_context(_struck((ALONE | SHARED)[name], self.world, tenant, choose))
                self._writes(choose, choose.randrange(1, 6), [tenant for _, tenant in plan])
            self._writes(choose, choose.randrange(1, 4))
        except Exception as error:  # noqa: BLE001  (anything that a fault left undone is a finding; the rounds continue)
            self.wrong.append(f"{type(error).__name__}: {error}")
        self._look(choose)
        self.neighbor.label = "calm"
        self.wrong[wrong:] = [f"round {n} {names}: {w}" for w in self.wrong[wrong:]]
        self.seconds.append(time.monotonic() - began)
        marks = f"{len(self.wrong) - wrong} wrong" if len(self.wrong) > wrong else "all correct"
        at_s = time.monotonic() - self.began
        print(
            f"{at_s:.0f} s: round {n}: {', '.join(names) or 'calm'}: {self.seconds[-1]:.1f} s, "
            f"{marks} {self.world.notes}",
            flush=True,
        )
        for each in self.wrong[wrong:]:
            print(f"  WRONG {each}", flush=True)

    def _plan(self, choose: random.Random) -> list[tuple[str, Tenant]]:
        """Returns the events of a round, none to two, each with its tenant.

        At most one is shared.
        """
        n = choose.choices([0, 1, 2], [0.1, 0.6, 0.3])[0]
        alone, shared = ([name for name in self.events if name in kind] for kind in (ALONE, SHARED))
        names = choose.sample(alone, min(n, len(alone)))
        if n and shared and (not alone or choose.random() < SHARED_SHARE):
            names[-1:] = [choose.choice(shared)]
        tenants = choose.sample(self.world.tenants, len(names))
        return list(zip(names, tenants, strict=True))

    def _writes(self, choose: random.Random, n: int, faulty: Sequence[Tenant] = ()) -> None:
        """Writes as tenants drawn at random each time.

        Two of three writes are of the tenants under fault.
        """
        for _ in range(n):
            tenant = choose.choice(
                faulty if faulty and choose.random() < 0.67 else self.world.tenants
            )
            self._write(choose, tenant, choose.choice(tenant.collections))

    def _write(self, choose: random.Random, tenant: Tenant, collection: Collection) -> None:
        names = [f"d{i}" for i in choose.sample(range(IDS), choose.randrange(1, 5))]
        pairs = [(name, self._next()) for name in names]
        kind = choose.random()
        if kind < 0.45:
            tenant.write(collection, pairs)
        elif kind < 0.7:
            tenant.produce(collection, pairs)
        elif kind < 0.8:
            tenant.delete(collection, names)
        elif kind < 0.9:
            tenant.produce(collection, [(name, None) for name in names])
        else:
            tenant.delete_part(collection, choose.randrange(PARTS))

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _look(self, choose: random.Random) -> None:
        """Compares every collection of every tenant completely."""
        for tenant in self.world.tenants:
            self._look_at(tenant, choose)
        if self.neighbor.failures or self.neighbor.wrong:
            self.wrong.extend(self.neighbor.wrong)
            self.neighbor.wrong.clear()

    def _look_at(self, tenant: Tenant, choose: random.Random) -> None:
        for collection in tenant.collections:
            try:
                seen = tenant.look(collection, HEAL_S)
                self.wrong += [
                    f"{tenant.name}/{collection.name}: {w}" for w in collection.ledger.found(seen)
                ]
                self.wrong += [
                    f"{tenant.name}/{collection.name}: {w}"
                    for w in tenant.probe(collection, seen, choose)
                ]
            except AssertionError as error:
                self.wrong.append(f"{tenant.name}/{collection.name}: {error}")
            except (TimeoutError, httpx2.HTTPError) as error:
                self.stuck += 1
                self.wrong.append(
                    f"STUCK {tenant.name}/{collection.name}: {type(error).__name__} {error}"
                )
        self.wrong += tenant.slow
        tenant.slow.clear()

    def end(self) -> None:
        """Checks the neighbor: its documents, and how long faults of other tenants delayed it."""
        with self.neighbor.quiet:
            self._look_at(self.neighbor.tenant, random.Random(self.seed))
        for began, label, why in self.neighbor.failures:
            if label != "shared":
                self.wrong.append(
                    f"neighbor: failed at {began - self.began:.1f} s while {label}: {why}"
                )
        for s in self.neighbor.samples:
            if s.kind != "shared" and s.lag_s > self.lag_max_s:
                self.wrong.append(
                    f"neighbor: at {s.began - self.began:.1f} s a write took {s.write_s:.1f} s, "
                    "and until it was searchable"
                    f" {s.lag_s:.1f} s, while {s.kind}"
                )

    def report(self) -> dict[str, Any]:
        """Returns everything that was measured and found, as JSON."""
        return {
            "seed": self.seed,
            "rounds": len(self.seconds),
            "seconds_mean": round(sum(self.seconds) / max(1, len(self.seconds)), 2),
            "seconds_max": round(max(self.seconds, default=0), 1),
            "writes": self.number,
            "events": dict(self.struck),
            "neighbor": self.neighbor.figures(),
            "wrong": self.wrong,
        }


@contextmanager
def _struck(event: Event, world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Strikes, and heals even if the block fails."""
    steps = event(world, tenant, choose)
    next(steps)
    try:
        yield
    finally:
        next(steps, None)


@contextmanager
def prepared(folder: Path) -> Iterator[tuple[World, Tenant]]:
    """Starts the servers and a platform with its tenants.

    Yields the world and the neighbor's tenant.
    """
    with ExitStack() as stack:
        kafka, postgres = load("deploy/kafka/kafka.py"), load("deploy/postgres/postgres.py")
        port, database_port = free_port(), free_port()
        kafka.start(folder / "kafka", port)
        stack.callback(kafka.stop, folder / "kafka")
        url = postgres.start(folder / "postgres", database_port)
        stack.callback(_stopped, postgres, folder / "postgres")
        brokers = f"127.0.0.1:{port}"
        settings = {"log_url": f"kafka://{brokers}", "catalog_url": url, **SETTINGS}
        platform = stack.enter_context(running(folder / "data", **settings))
        models = [ModelServer(name, DIMENSION) for name in ("first", "spare", "neighbors")]
        for model in models:
            stack.callback(model.stop)
        world = World(
            platform, _operator(platform), brokers, (kafka, folder / "kafka"),
            (postgres, folder / "postgres", database_port), models[0], models[1],
        )  # fmt: skip
        for model in models:
            facts = {
                "kind": "openai",
                "location": model.url,
                "dimension": DIMENSION,
                "window_tokens": 256,
            }
            assert world.operate("POST", "models", {"name": model.name, **facts}), world.notes
        world.tenants = [_tenant(world, name, models[0].name) for name in ("red", "green", "blue")]
        beside = _tenant(world, "beside", models[2].name)
        for tenant in (*world.tenants, beside):
            stack.callback(tenant.close)
        yield world, beside


def _stopped(postgres: Any, folder: Path) -> None:
    with suppress(RuntimeError):
        postgres.stop(folder)
    shutil.rmtree(postgres.home_of(folder), ignore_errors=True)


def _operator(platform: Platform) -> httpx2.Client:
    key = (platform.data / "run" / "operator.key").read_text().strip()
    return httpx2.Client(
        base_url=platform.url,
        headers={"authorization": f"Bearer {key}"},
        timeout=30,
        trust_env=False,
    )


def _tenant(world: World, name: str, model: str) -> Tenant:
    made = world.operate("POST", "tenants", {"name": name})
    assert made, world.notes
    tenant = Tenant(name, made["key"], world.platform.url, world.brokers)
    for collection, body in (("vectors", {"dimension": DIMENSION}), ("texts", {"model": model})):
        tenant.http.post("/v1/collections", json={"name": collection, **body}).raise_for_status()
        tenant.collections.append(Collection(collection, body.get("model")))  # type: ignore[arg-type]
    return tenant


def main() -> None:
    """Runs the rounds. Exits with 1 if a check failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument(
        "--lag-max-s",
        type=float,
        default=LAG_MAX_S,
        help=(
            "a write of the neighbor that takes longer to be searchable was delayed by faults "
            "of others"
        ),
    )
    parser.add_argument(
        "--events", default="", help="words: only events with one of them in their names"
    )
    parser.add_argument(
        "--json", type=Path, default=ROOT / "build" / "chaos.json", help="where the report goes"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build" / "chaos",
        help="folder of everything that is started",
    )
    args = parser.parse_args()
    end_when_told()
    words = args.events.split(",")
    events = [name for name in (*ALONE, *SHARED) if any(word in name for word in words)]
    shutil.rmtree(args.folder, ignore_errors=True)
    print(f"seed {args.seed}, {args.rounds} rounds", flush=True)
    with prepared(args.folder) as (world, beside):
        run = Run(world, Neighbor(beside, args.seed), args.seed, events, args.lag_max_s)
        thread = threading.Thread(target=run.neighbor.run, daemon=True)
        thread.start()
        for n in range(1, args.rounds + 1):
            run.round(n)
            if run.stuck >= STUCK_MAX:
                print("stopped: too much is stuck", flush=True)
                break
        run.end()
        run.neighbor.stop()
        thread.join(60)
    report = run.report()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2))
    print(json.dumps({k: v for k, v in report.items() if k != "wrong"}, indent=2))
    print(
        f"seed {args.seed}: {report['rounds']} rounds, {report['writes']} writes, "
        f"{len(run.wrong)} wrong"
    )
    sys.exit(1 if run.wrong else 0)


if __name__ == "__main__":
    main()
