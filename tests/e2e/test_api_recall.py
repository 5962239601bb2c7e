"""Measured recall over a gateway restart, and an index that is proven to miss its objective."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gate import Caller, build, calling
from resources import eventually, resources_in, running

from query.quality.interval import SAMPLES_MIN
from query.quality.samples import Sample
from tenants.recall_history import RecallHistory, RecallRecord
from vicinage.settings import GatewaySettings

SETTINGS = GatewaySettings(recall_sample_share=1, recall_cpu_share=1)
ROWS = 60


@contextmanager
def two_gateways(folder: Path) -> Iterator[tuple[Caller, contextmanager]]:
    """A platform that seals after ROWS passages, a caller, and a way to start another one."""
    base = resources_in(folder, seal_passages=ROWS, flat_max=1)
    try:
        with (
            running(base) as searcher,
            calling(base, searcher, build(base, [searcher], SETTINGS)) as call,
        ):
            yield call, lambda: calling(base, searcher, build(base, [searcher], SETTINGS))
    finally:
        base.close()


def filled(call: Caller) -> tuple[str, str]:
    """Returns a tenant's name and key; its collection has a graph index."""
    tenant, key = call.tenant()
    call.collection(key, index="hnsw:M=8,efc=20", dimension=8)
    vectors = np.random.default_rng(0).standard_normal((ROWS, 8)).tolist()
    token = call.write(key, [{"id": f"d{i}", "vector": v} for i, v in enumerate(vectors)])
    call.search(key, vector=vectors[0], wait_for=token)
    eventually(lambda: facts(call, key)["index"]["segments"] == 1)
    return tenant, key


def facts(call: Caller, key: str) -> dict:
    return call("GET", "/v1/collections/c", key).json()


def test_measured_recall_survives_a_restart_of_the_gateway(tmp_path: Path) -> None:
    with two_gateways(tmp_path) as (call, another):
        _, key = filled(call)
        for i in range(SAMPLES_MIN):
            call.search(key, vector=[1, i, 2, 3, 4, 5, 6, 7], k=5)
        eventually(lambda: (facts(call, key)["recall"] or {"n": 0})["n"] >= SAMPLES_MIN)
        before = facts(call, key)["recall"]
        call.portal.call(call.state.recall.save)
        with another() as later:
            eventually(lambda: facts(later, key)["recall"] is not None)
            assert facts(later, key)["recall"] == before
            assert before["window"]["began_ms"] > 0


def test_measurements_are_stored_when_a_gateway_stops(tmp_path: Path) -> None:
    with two_gateways(tmp_path) as (call, another):
        _, key = filled(call)
        with another() as first:
            for i in range(SAMPLES_MIN):
                first.search(key, vector=[1, i, 2, 3, 4, 5, 6, 7], k=5)
            eventually(lambda: (facts(first, key)["recall"] or {"n": 0})["n"] >= SAMPLES_MIN)
        with another() as later:
            eventually(lambda: facts(later, key)["recall"] is not None)
            assert facts(later, key)["recall"]["n"] >= SAMPLES_MIN


def test_a_scan_in_place_of_an_index_is_reported_in_answer_and_collection(tmp_path: Path) -> None:
    with two_gateways(tmp_path) as (call, another):
        tenant, key = filled(call)
        found = call.search(key, vector=[1] * 8, k=5)
        assert (found["degraded"], found["effort"] > 0) == (None, True)
        index = facts(call, key)["index"]
        assert (index["scanned_passages"], index["below_objective"]) == (0, None)
        assert index["curve"]["effort"] >= found["effort"]
        missed = Sample()
        missed.windows_of(5, 1).add(0.5, 1)
        for _ in range(SAMPLES_MIN):
            missed.correction.note(0.5, 0.95, greatest=True, now_ms=77)
        RecallHistory(call.base.engine, call.base.clock).keep(
            [RecallRecord(tenant, "c", 1, 1, missed.state())]
        )
        with another() as later:
            eventually(lambda: facts(later, key)["index"]["below_objective"] is not None)
            found = later.search(key, vector=[1] * 8, k=5)
            assert found["effort"] == 0
            assert found["degraded"]["missing_share"] == 0
            assert f"{ROWS} passages were compared one by one" in found["degraded"]["reason"]
            exact = later.search(key, vector=[1] * 8, k=5, exact=True)
            assert (exact["hits"], exact["degraded"]) == (found["hits"], None)
            below = facts(later, key)["index"]["below_objective"]
            assert (below["since_ms"], below["n"], below["recall"]) == (77, SAMPLES_MIN, 0.5)
            assert below["searches"]["scanned"] >= 1
            (row,) = later.admin("GET", f"/recall?tenant={tenant}")
            assert row["below_objective"]["since_ms"] == 77


def test_an_objective_of_one_is_exact_search_by_request(tmp_path: Path) -> None:
    with two_gateways(tmp_path) as (call, _):
        _, key = call.tenant()
        call.collection(key, index="hnsw:M=8,efc=20", dimension=8, objectives={"recall": 1})
        vectors = np.random.default_rng(0).standard_normal((ROWS, 8)).tolist()
        token = call.write(key, [{"id": f"d{i}", "vector": v} for i, v in enumerate(vectors)])
        call.search(key, vector=vectors[0], wait_for=token)
        eventually(lambda: facts(call, key)["index"]["segments"] == 1)
        found = call.search(key, vector=[1] * 8, k=5)
        assert (found["effort"], found["degraded"]) == (0, None)
        assert facts(call, key)["index"]["scanned_passages"] == ROWS
