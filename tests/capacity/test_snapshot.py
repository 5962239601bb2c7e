"""A snapshot of a running platform has the documents that were written to it."""

import asyncio
import os
import socket
from pathlib import Path

import psutil
import pytest
from resources import DIMENSION, eventually, resources_in, running, write

from capacity import snapshot as gathering
from capacity.accounting import collection_usage
from capacity.report import report
from capacity.snapshot import Rates, take
from tenants import provisioning
from vicinage.settings import IndexerSettings


def test_counts_and_bytes_are_those_of_what_was_written(tmp_path: Path) -> None:
    base = resources_in(tmp_path / "data", seal_passages=20)
    for tenant, collection in (("acme", "docs"), ("other", "notes")):
        provisioning.create_tenant(base.registry, base.log, tenant, actor="test")
        provisioning.create_collection(
            base.registry,
            base.log,
            tenant,
            collection,
            dimension=DIMENSION,
            slots_total=8,
            actor="test",
        )
    with running(base) as searcher:
        write(base, "acme", "docs", 30, 2)
        write(base, "other", "notes", 3, 1)

        def measured():
            for tenant, collection in (("acme", "docs"), ("other", "notes")):
                asyncio.run(searcher.stats(tenant, collection))
            stats = asyncio.run(searcher.stats())
            return take(base.registry, base.log, [stats], Rates(), now_ms=7)

        def complete() -> bool:
            rows = {h.collection: h for h in collection_usage(measured())}
            return (
                rows["docs"].passages == 60
                and rows["docs"].store_bytes > 0
                and rows["notes"].passages == 3
            )

        eventually(complete)
        taken = measured()
    docs, notes = collection_usage(taken)
    assert (docs.tenant, docs.documents, docs.passages) == ("acme", 30, 60)
    assert (notes.tenant, notes.documents, notes.passages) == ("other", 3, 3)
    assert notes.store_bytes == 0, "its rows are in the log and in the delta only"
    sizes = {o.path: o.bytes for o in base.store.list("segments/acme")}
    assert docs.store_bytes == sum(sizes[p] for p in base.manifests.paths())
    assert docs.host_bytes >= 60 * DIMENSION * 4
    assert notes.host_bytes >= 3 * DIMENSION * 4
    assert taken.documents_logged == {"acme": 1, "other": 1}, "one POST is one record"
    whole = report(taken, IndexerSettings())
    [memory] = whole["headroom"]
    [fits] = memory["by_dimension"]
    assert (fits["dimension"], fits["n"]) == (DIMENSION, 63)
    assert memory["host"] == socket.gethostname()
    assert memory["total_bytes"] == psutil.virtual_memory().total
    assert 0 < memory["used_bytes"] <= memory["total_bytes"]
    assert abs(memory["used_bytes"] - psutil.Process(os.getpid()).memory_info().rss) < 500 << 20
    left = min(taken.hosts[0].available, memory["limit_bytes"] - memory["held_bytes"])
    assert (memory["left_bytes"], memory["not_resident_bytes"], memory["at_most"]) == (
        left,
        0,
        False,
    )
    assert memory["held_bytes"] >= docs.host_bytes + notes.host_bytes
    assert memory["passages_left"] == int(left / ((docs.host_bytes + notes.host_bytes) / 63))
    base.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    now = [1_000.0]
    monkeypatch.setattr(gathering.time, "monotonic", lambda: now[0])
    return now


def test_a_rate_is_over_the_last_minute(clock) -> None:
    rates = Rates()
    for _ in range(10):
        clock[0] += 30
        searches, applied = rates.rate(int(clock[0] - 1_000) * 2, 0)
    assert searches.per_s == pytest.approx(2.0)
    assert searches.window_s == 60
    assert applied.per_s == 0
    clock[0] += 30
    stopped, _ = rates.rate(600, 0)
    assert stopped.per_s == pytest.approx(1.0), "half of the window was quiet"


def test_a_searcher_that_restarted_makes_no_negative_rate(clock) -> None:
    rates = Rates()
    clock[0] += 10
    rates.rate(1_000, 1_000)
    clock[0] += 10
    searches, applied = rates.rate(5, 5)
    assert searches.per_s >= 0
    assert applied.per_s >= 0
    assert searches.per_s <= 5 / 10
