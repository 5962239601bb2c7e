"""Ingest restarts in its process after a dependency was away; the old run writes nothing more."""

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resources import HashEmbedder, eventually, make_ingest, resources_in

from cluster import roles
from ingest.run import STOP_S
from tenants.entities import Group
from tenants.provisioning import VECTORS_TOPIC, create_collection, create_tenant
from vicinage.errors import Unavailable
from vicinage.log import Record


class Away:
    """A dependency that raises Unavailable as long as it is away."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.away = False
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return found

        def call(*given: Any, **named: Any) -> Any:
            if self.away:
                self.asked += 1
                raise Unavailable("it does not answer", dependency="catalog")
            return found(*given, **named)

        return call


@pytest.fixture
def base(tmp_path: Path) -> Any:
    found = resources_in(tmp_path)
    create_tenant(found.registry, found.log, "acme", actor="test")
    create_collection(
        found.registry,
        found.log,
        "acme",
        "c",
        model="all-minilm-l6-v2",
        slots_total=8,
        actor="test",
    )
    yield found
    found.close()


def write(base: Any, i: int) -> int:
    body = json.dumps({"collection": "c", "id": f"d{i}", "text": "some words"}).encode()
    [offset] = base.log.append("vicinage.docs.acme", 0, [Record(body)])
    return offset


def passed(base: Any, offset: int) -> Callable[[], bool]:
    tp = ("vicinage.docs.acme", 0)
    return lambda: base.log.committed(Group.INGEST, [tp]).get(tp, 0) > offset


def n_messages(base: Any) -> int:
    return sum(base.log.end(VECTORS_TOPIC, slot) for slot in range(8))


def test_ingest_survives_a_catalog_that_is_away_and_retries_with_backoff(base: Any) -> None:
    stop, catalogs, made = threading.Event(), [], []

    def make() -> Any:
        made.append(time.monotonic())
        ingest = make_ingest(base)
        catalogs.append(Away(ingest._registry))
        catalogs[-1].away = len(made) in range(2, 5)
        ingest._registry = catalogs[-1]
        return ingest

    role = threading.Thread(target=roles.persist, args=(make, stop))
    role.start()
    try:
        eventually(passed(base, write(base, 0)))
        catalogs[0].away = True
        offset = write(base, 1)
        eventually(lambda: len(made) == 5)
        eventually(passed(base, offset))
    finally:
        stop.set()
        role.join(20)
    waits = [b - a for a, b in itertools.pairwise(made[1:])]
    assert waits == sorted(waits)
    assert n_messages(base) == 2


class Hanging(HashEmbedder):
    """An embedder that does not answer until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.go_on = threading.Event(), threading.Event()

    def embed(self, *given: Any, **named: Any) -> Any:
        self.called.set()
        self.go_on.wait(60)
        return super().embed(*given, **named)


def test_a_thread_of_an_earlier_run_writes_nothing_and_moves_no_position_back(base: Any) -> None:
    embedder, stop = Hanging(), threading.Event()
    role = threading.Thread(target=make_ingest(base, embedder).run, args=(stop,))
    role.start()
    first = write(base, 0)
    assert embedder.called.wait(20)
    stop.set()
    role.join(STOP_S + 10)
    assert not role.is_alive()

    again, stop = make_ingest(base), threading.Event()
    role = threading.Thread(target=again.run, args=(stop,))
    role.start()
    last = [write(base, i) for i in range(1, 4)][-1]
    eventually(passed(base, last))
    before = n_messages(base)
    embedder.go_on.set()
    time.sleep(1)
    assert passed(base, last)() and n_messages(base) == before, first
    stop.set()
    role.join(20)
