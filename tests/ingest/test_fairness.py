"""Guarantee 7 in ingest: a slow or absent model, or a large backlog, delays its own tenant alone.

The tests count calls of the model, not time.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from resources import HashEmbedder, eventually, make_ingest, running

from ingest.scheduler import PER_MODEL_MAX
from tenants import provisioning
from tenants.entities import Group
from vicinage.errors import Corrupt, Unavailable
from vicinage.log import Record
from vicinage.records import Floats
from vicinage.tenant_context import TenantContext
from vicinage.wire import decode_rows


class Controlled(HashEmbedder):
    """Answers a tenant at once, never while it is `held`, or as away while it is in `absent`."""

    def __init__(self, *held: str) -> None:
        super().__init__()
        self.gates = {name: threading.Event() for name in held}
        self.absent: dict[str, Exception] = {}
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str], *, tenant: TenantContext, **given: Any) -> Floats:
        self.asked.append(tenant.name)
        if tenant.name in self.absent:
            raise self.absent[tenant.name]
        if tenant.name in self.gates:
            assert self.gates[tenant.name].wait(30)
        return super().embed(texts, tenant=tenant, **given)


def tenants(base, *names: str) -> None:
    for name in names:
        provisioning.create_tenant(base.registry, base.log, name, actor="test")
        provisioning.create_collection(
            base.registry, base.log, name, "docs", slots_total=8, actor="test"
        )


def send(base, tenant: str, n: int) -> None:
    values = [
        json.dumps({"collection": "docs", "id": f"d{i}", "text": f"text {i}"}).encode()
        for i in range(n)
    ]
    base.log.append(f"vicinage.docs.{tenant}", 0, [Record(v) for v in values])


def committed(base, tenant: str) -> int:
    tp = (f"vicinage.docs.{tenant}", 0)
    return base.log.committed(Group.INGEST, [tp]).get(tp, 0)


def written(base) -> set[str]:
    """Returns the tenants with rows in the vectors log."""
    stored = (s for slot in range(8) for s in base.log.read("vicinage.vectors", slot, 0))
    return {decode_rows(s.record.value).tenant for s in stored}


@contextmanager
def at_work(base, model: Controlled) -> Iterator[None]:
    """Runs ingest with this model; jobs are small, so that a backlog is many of them."""
    small = base.settings.ingest.model_copy(update={"batch_passages": 4})
    with running(
        replace(base, settings=base.settings.model_copy(update={"ingest": small})),
        indexing=False,
        embedder=model,
    ):
        try:
            yield
        finally:
            model.absent.clear()
            for gate in model.gates.values():
                gate.set()


def test_a_backlog_of_one_tenant_holds_two_calls_and_delays_no_other(
    base,
) -> None:
    tenants(base, "long", "short")
    send(base, "long", 400)
    model = Controlled("long")
    with at_work(base, model):
        eventually(lambda: model.asked.count("long") == 2)
        send(base, "short", 1)
        eventually(lambda: committed(base, "short") == 1)
        assert model.asked == ["long", "long", "short"]
        model.gates["long"].set()
        eventually(lambda: committed(base, "long") == 400)


def test_many_tenants_without_their_embedder_do_not_stop_another(base) -> None:
    away = [f"away{i}" for i in range(PER_MODEL_MAX + 2)]
    tenants(base, *away, "well")
    model = Controlled()
    model.absent = {name: Unavailable("gone", dependency="embedder") for name in away}
    for name in away:
        send(base, name, 20)
    with at_work(base, model):
        eventually(lambda: set(away) <= set(model.asked))
        send(base, "well", 20)
        eventually(lambda: committed(base, "well") == 20)
        assert written(base) == {"well"}
        model.absent.clear()
        eventually(lambda: written(base) == {"well", *away})
        eventually(
            lambda: (
                base.registry.lanes.every() == [] and all(committed(base, n) == 20 for n in away)
            )
        )


def test_an_absent_embedder_is_retried_with_backoff(base) -> None:
    tenants(base, "away")
    send(base, "away", 1)
    model = Controlled()
    model.absent = {"away": Unavailable("gone", dependency="embedder")}
    ingest = make_ingest(base, model)
    while not model.asked:
        ingest.step(0.05)
    steps = [ingest.step(0.25) for _ in range(12)]
    assert sum(steps) == 0
    assert len(model.asked) <= 8, "no busy loop: it slept between its attempts"
    model.absent.clear()
    ingest.drain()
    assert committed(base, "away") == 1
    assert written(base) == {"away"}


def test_an_unexpected_error_of_a_worker_ends_the_role(base) -> None:
    tenants(base, "bad")
    send(base, "bad", 1)
    model = Controlled()
    model.absent = {"bad": Corrupt("broken", path="model")}
    stop = threading.Event()
    with pytest.raises(Corrupt):
        make_ingest(base, model).run(stop)
    assert committed(base, "bad") == 0


def test_a_stop_does_not_wait_for_an_embedder_that_is_away(base) -> None:
    tenants(base, "away")
    send(base, "away", 50)
    model = Controlled()
    model.absent = {"away": Unavailable("gone", dependency="embedder")}
    stop = threading.Event()
    role = threading.Thread(target=make_ingest(base, model).run, args=(stop,))
    role.start()
    eventually(lambda: model.asked)
    stop.set()
    role.join(10)
    assert not role.is_alive()
    assert committed(base, "away") == 0


@pytest.mark.parametrize("seed", range(3))
def test_calls_that_end_in_any_order_are_committed_in_order(base, monkeypatch, seed: int) -> None:
    """Positions only rise, and at each of them all rows below it are in the vectors log."""
    tenants(base, "a", "b")
    turns = threading.Condition()

    class Shuffled(Controlled):
        def embed(self, texts: Sequence[str], *, tenant: TenantContext, **given: Any) -> Floats:
            late = crc32(f"{seed} {texts[0]}".encode()) % 2 == 0
            if late:
                with turns:
                    turns.wait(0.02)
            vectors = super().embed(texts, tenant=tenant, **given)
            with turns:
                turns.notify_all()
            return vectors

    commits: list[tuple[str, int]] = []
    commit = base.log.commit
    monkeypatch.setattr(
        base.log,
        "commit",
        lambda group, places: (
            commits.extend((t[0], n) for t, n in places.items()),
            commit(group, places),
        ),
    )
    send(base, "a", 100)
    send(base, "b", 100)
    with at_work(base, Shuffled()):
        eventually(lambda: committed(base, "a") == committed(base, "b") == 100, wait_s=60)
    for topic in ("vicinage.docs.a", "vicinage.docs.b"):
        places = [n for t, n in commits if t == topic]
        assert places == sorted(places)
        assert len(places) >= 25
