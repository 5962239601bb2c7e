"""The faults of a chaos run: each event strikes, lets the round write, and heals.

An event is a generator function of (world, chosen tenant, random numbers). It strikes before its
`yield` and heals after it. SHARED events touch every tenant; the others touch the chosen one alone,
and must not delay its neighbor.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
from chaos_model import Ledger
from chaos_tenant import Collection, Tenant
from running import Platform

PARTITIONS_MAX = 6
HEAL_S = 60.0
SEEN_S = 4.0
"""Time after which the gateway has noticed a recreated topic: it lists the topics every 2 s."""
WHOLE = str(16 << 20)


@dataclass
class World:
    """All servers and processes that a run has started, with access to them."""

    platform: Platform
    operator: httpx2.Client
    brokers: str
    broker: tuple[ModuleType, Path]
    """Its starter (deploy/kafka/kafka.py) and its folder."""
    database: tuple[ModuleType, Path, int]
    """Its starter (deploy/postgres/postgres.py), its folder and its port."""
    model: Any
    """The model server of all tenants but the neighbor."""
    spare: Any
    """The model server that reindexes move texts to and from."""
    tenants: list[Tenant] = field(default_factory=list)
    jobs: dict[tuple[str, str], str] = field(default_factory=dict)
    """(tenant, collection) → the reindex job that may be running."""
    notes: list[str] = field(default_factory=list)
    """Observations of the events in this round."""
    admin: Any = None

    def kafka(self) -> Any:
        """Returns a Kafka administrator."""
        from kafka.admin import KafkaAdminClient

        if self.admin is None:
            self.admin = KafkaAdminClient(bootstrap_servers=self.brokers)
        return self.admin

    def forget_admin(self) -> None:
        """Drops the administrator: its connection does not outlive the broker."""
        admin, self.admin = self.admin, None
        if admin is not None:
            with suppress(Exception):
                admin.close()

    def partitions(self, topic: str) -> int:
        """Returns the number of the topic's partitions; 0 if there is no topic."""
        found = self.kafka().describe_topics([topic])
        return len(found[0]["partitions"]) if found and not found[0].get("error_code") else 0

    def until(self, true: Callable[[], Any], what: str, wait_s: float = HEAL_S) -> Any:
        """Returns the first result that is true. Raises TimeoutError."""
        end = time.monotonic() + wait_s
        while True:
            with suppress(httpx2.HTTPError):
                if found := true():
                    return found
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {wait_s:.0f} s")
            time.sleep(0.05)

    def operate(self, method: str, path: str, body: Any = None) -> Any:
        """Returns the answer to an operator; None unless it is a success."""
        answer = self.operator.request(method, f"/v1/admin/{path}", json=body)
        if answer.is_success:
            return answer.json()
        self.notes.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        return None


Event = Callable[[World, Tenant, random.Random], Iterator[None]]


# one tenant alone


def topic_recreated(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Deletes the tenant's documents topic; its team or `resume-ingest` creates it again.

    Then ingest of the tenant is resumed.
    """
    world.kafka().delete_topics([tenant.topic])
    for collection in tenant.collections:
        collection.ledger.log_lost()
    world.until(lambda: not world.partitions(tenant.topic), "deleting the topic")
    if choose.random() < 0.7:
        wanted = {"num_partitions": choose.randrange(1, 4), "configs": {"max.message.bytes": WHOLE}}
        world.until(lambda: _created(world, tenant.topic, wanted), "creating the topic")
    tenant.reconnect()
    if choose.random() < 0.5:
        time.sleep(SEEN_S)
    else:
        _set_unordered(tenant)
    yield
    _resumed(world, tenant)
    tenant.reconnect()
    _set_ordered(tenant)


def _set_unordered(tenant: Tenant) -> None:
    for collection in tenant.collections:
        collection.ledger.begin_unordered()


def _set_ordered(tenant: Tenant) -> None:
    for collection in tenant.collections:
        collection.ledger.end_unordered()


def _created(world: World, topic: str, wanted: dict[str, Any]) -> int:
    with suppress(Exception):
        world.kafka().create_topics({topic: wanted})
    return world.partitions(topic)


def _resumed(world: World, tenant: Tenant) -> None:
    """Resumes the tenant's ingest repeatedly until there was a halt to end."""

    def resumed() -> Any:
        plan = world.operate("POST", f"tenants/{tenant.name}/resume-ingest", {})
        return plan is not None and plan["partitions"]

    plan = world.until(resumed, "a halt to resume")
    world.notes.append(f"resumed {[(p['partition'], p['kind'], p['resume_at']) for p in plan]}")


def partitions_added(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Adds partitions to the tenant's documents topic.

    Its writes have no defined order until all producers know of them.
    """
    n = world.partitions(tenant.topic)
    wanted = min(PARTITIONS_MAX, n + choose.randrange(1, 3))
    if wanted == n:
        yield
        return
    _set_unordered(tenant)
    maps = _maps(world, tenant)
    world.kafka().create_partitions({tenant.topic: wanted})
    if choose.random() < 0.5:
        tenant.reconnect()
    yield
    world.until(lambda: _maps(world, tenant) > maps, "recording the new partitions")
    tenant.reconnect()
    _set_ordered(tenant)


def _maps(world: World, tenant: Tenant) -> int:
    """Returns how many partition maps of the tenant's topic the audit has."""
    after = found = 0
    while records := world.operate("GET", f"audit?after={after}&limit=1000"):
        after = records[-1]["seq"]
        found += sum(
            r["subject"] == tenant.name and r["action"] == "tenant.partitions" for r in records
        )
    return found


def broker_refuses(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Sets the documents topic so that the broker refuses records; then restores it."""
    setting, bad, good = choose.choice(
        [("max.message.bytes", "700", WHOLE), ("cleanup.policy", "compact", "delete")]
    )
    _configure(world, tenant.topic, setting, bad)
    tenant.write(
        choose.choice(tenant.collections),
        [("large", choose.randrange(10**7, 10**8))],
        padding=5_000,
    )
    world.notes.append(f"{setting}={bad}: {tenant.last[:200]}")
    yield
    _configure(world, tenant.topic, setting, good)
    tenant.reconnect()


def _configure(world: World, topic: str, setting: str, value: str) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    world.kafka().alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {setting: value})])


def model_away(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Stops the server of the tenants' model, or makes it hang or fail, and restores it.

    Writes of vectors continue meanwhile.
    """
    if choose.random() < 0.6:
        world.model.stop()
    else:
        world.model.mode = choose.choice(["hangs", "fails"])
    yield
    vectors = next(c for c in tenant.collections if c.model is None)
    began = time.monotonic()
    seen = tenant.look(vectors, HEAL_S)
    world.notes.append(
        f"vectors searchable in {time.monotonic() - began:.1f} s while the model was away"
    )
    _compare(tenant, vectors, seen)
    world.model.mode = "well"
    world.model.stop()
    world.model.start()


def _compare(tenant: Tenant, collection: Collection, seen: dict[str, int]) -> None:
    wrong = collection.ledger.found(seen)
    if wrong:
        raise AssertionError(f"{tenant.name}/{collection.name}: {wrong}")


def collection_recreated(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Deletes a collection and recreates it by name; no older document may appear in it."""
    collection = choose.choice(tenant.collections)
    path = f"/v1/collections/{collection.name}"
    world.until(
        lambda: tenant.http.delete(f"{path}?confirm={collection.name}").status_code in (202, 404),
        "deleting",
    )
    body = {"name": collection.name, "shards": choose.randrange(1, 3)}
    body |= {"model": collection.model} if collection.model else {"dimension": 8}
    world.until(
        lambda: tenant.http.post("/v1/collections", json=body).status_code in (201, 409), "creating"
    )
    old, collection.ledger = collection.ledger, Ledger()
    for name in old.ids():
        collection.ledger.wrote(name, None, acknowledged=True, note="recreated")
    world.jobs.pop((tenant.name, collection.name), None)
    yield


def poison(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Sends records to the tenant's documents topic that ingest cannot accept."""
    del world
    vectors = next(c for c in tenant.collections if c.model is None)
    key = f"{vectors.name}/poison".encode()
    arrow = [("content-type", b"application/vnd.apache.arrow.stream")]
    records: list[tuple[bytes | None, bytes | None, Any]] = [
        (b"this is not JSON", key, ()),
        (b'{"collection":"%s","id":"poison","vector":[1,2]}' % vectors.name.encode(), key, ()),
        (
            b'{"collection":"nowhere","id":"poison","vector":[1,2,3,4,5,6,7,8]}',
            b"nowhere/poison",
            (),
        ),
        (b"\xff\xfe" * 500, None, arrow),
        (b"[" * 20_000, key, ()),
        (None, b"no-slash", ()),
        (None, None, ()),
        (b"", key, [("vicinage-collection-uid", b"\xff"), ("vicinage-judged-version", b"9" * 40)]),
    ]
    for record in choose.sample(records, 4):
        tenant.produce_raw(*record)
    yield
    tenant.produce_raw(*choose.choice(records))


def reindexed(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Starts a reindex to other shards, another index or another model, or ends a running one."""
    collection = choose.choice(tenant.collections)
    place = (tenant.name, collection.name)
    if place not in world.jobs:
        body: dict[str, Any] = {"tenant": tenant.name, "collection": collection.name}
        body |= {"index": choose.choice(["flat", "hnsw", "auto"]), "shards": choose.randrange(1, 4)}
        if collection.model:
            body["model"] = choose.choice([world.model.name, world.spare.name])
        if made := world.operate("POST", "reindex", body):
            world.jobs[place] = made["id"]
    yield
    if (job := world.jobs.get(place)) is None or choose.random() < 0.3:
        return
    if choose.random() < 0.4:
        world.operate("POST", f"reindex/{job}/cancel")
    ended = ("done", "failed", "canceled")
    state = world.until(
        lambda: (world.operate("GET", f"reindex/{job}") or {}).get("state") in ended,
        f"reindex {job}",
    )
    world.notes.append(
        f"reindex of {place} ended: {(world.operate('GET', f'reindex/{job}') or {}).get('state')} "
        f"{state}"
    )
    del world.jobs[place]


def filter_races(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Deletes by filter beside writes of documents that may match."""
    del world
    collection = choose.choice(tenant.collections)
    base = choose.randrange(10**6, 10**7)
    names = choose.sample(range(25), 6)
    tenant.race(
        collection, choose.randrange(4), [(f"d{name}", base + i) for i, name in enumerate(names)]
    )
    yield


# every tenant


def killed(role: str) -> Event:
    """Returns the event that kills one role, which its supervisor restarts."""

    def event(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
        del tenant, choose
        os.kill(world.platform.pids()[role], signal.SIGKILL)
        yield

    event.__name__ = f"{role}_killed"
    return event


def ingest_paused(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Pauses ingest with the indexer for longer than its leases last."""
    del tenant
    pid = world.platform.pids()["ingest"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(choose.uniform(0.5, 4))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def broker_restarted(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Kills and restarts the broker, after the round's writes or before them."""
    del tenant
    starter, folder = world.broker
    pid, port = int((folder / "pid").read_text()), int(world.brokers.rpartition(":")[2])
    world.forget_admin()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    first = choose.random() < 0.5
    if first:
        starter.start(folder, port)
    yield
    if not first:
        starter.start(folder, port)


def broker_paused(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Pauses the broker for some seconds."""
    del tenant
    world.forget_admin()
    pid = int((world.broker[1] / "pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(choose.uniform(1, 4))
    finally:
        os.kill(pid, signal.SIGCONT)
    yield


def database_restarted(world: World, tenant: Tenant, choose: random.Random) -> Iterator[None]:
    """Stops and restarts PostgreSQL."""
    del tenant
    starter, folder, port = world.database
    starter.stop(folder)
    if choose.random() < 0.5:
        yield
        starter.start(folder, port)
    else:
        time.sleep(choose.uniform(0, 3))
        starter.start(folder, port)
        yield


ALONE: dict[str, Event] = {
    e.__name__: e
    for e in (
        topic_recreated,
        partitions_added,
        broker_refuses,
        model_away,
        collection_recreated,
        poison,
        reindexed,
        filter_races,
    )
}
SHARED: dict[str, Event] = {
    e.__name__: e
    for e in (
        killed("gateway"),
        killed("ingest"),
        killed("embedder"),
        ingest_paused,
        broker_restarted,
        broker_paused,
        database_restarted,
    )
}
