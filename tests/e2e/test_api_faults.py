"""Answers of the API while parts of the platform are away, late, full, or changing."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest
from gate import Caller, build, calling, platform, problem, serving
from resources import eventually, make_ingest, resources_in, running, settings
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from cluster.wiring import build_searcher, open_resources
from indexer import reindex_jobs
from query import gateway
from query.api import http
from query.api.search_batch import BATCH_AT_ONCE, stream
from tenants.audit import key_of, use_key
from tenants.entities import Principal
from tenants.registry import Registry
from vicinage.catalog import open_catalog
from vicinage.clock import Deadline
from vicinage.errors import Corrupt, NotFound, Unauthenticated, Unavailable
from vicinage.records import ShardQuery
from vicinage.settings import GatewaySettings
from vicinage.tenant_context import TenantContext

Q = [1.0, 0.0, 0.0, 0.0]


class Wire:
    """The connection to a real searcher, which can be cut."""

    def __init__(self, searcher: Any) -> None:
        self._searcher = searcher
        self.slots = searcher.slots
        self.fault: Exception | None = None
        self.late_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._searcher, name)

    async def search(self, query: ShardQuery, deadline: Deadline) -> Any:
        if self.late_s:
            await asyncio.sleep(min(self.late_s, deadline.left_s()))
        if self.fault is not None:
            raise self.fault
        return await self._searcher.search(query, deadline)

    async def stats(self, tenant: str | None = None, collection: str | None = None) -> Any:
        if self.fault is not None:
            raise self.fault
        return await self._searcher.stats(tenant, collection)


class CutLog:
    """The connection to a real log, which can be cut."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)

        def call(*given: Any, **named: Any) -> Any:
            if self.cut:
                raise Unavailable("the broker does not answer", dependency="log")
            return found(*given, **named)

        return call


@contextmanager
def ingesting(base: Any) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=make_ingest(base).run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, Wire, Wire, str]]:
    """Two searchers of four slots each, and a collection on all eight slots."""
    base = resources_in(tmp_path_factory.mktemp("halves"))
    searchers = [build_searcher(base, slots) for slots in (range(4), range(4, 8))]
    for searcher in searchers:
        searcher.start()
    wires = [Wire(s) for s in searchers]
    # The monitor rests in proportion to the duration of a sample. With a share of 1, a late
    # searcher does not make it rest for minutes.
    at_once = GatewaySettings(recall_cpu_share=1.0)
    with ingesting(base), calling(base, None, build(base, wires, at_once)) as call:
        eventually(lambda: all(s.ready() for s in searchers))
        _, key = call.tenant()
        call.collection(key, shards=8)
        chance = np.random.default_rng(1)
        token = call.write(
            key,
            [
                {"id": f"d{i}", "vector": v.tolist()}
                for i, v in enumerate(chance.standard_normal((80, 4)))
            ],
        )
        assert len(call.search(key, vector=Q, k=80, wait_for=token)["hits"]) == 80
        yield call, wires[0], wires[1], key
    for searcher in searchers:
        searcher.stop()
    base.close()


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "halves" in request.fixturenames:
        for wire in request.getfixturevalue("halves")[1:3]:
            wire.fault, wire.late_s = None, 0.0


AWAY = Unavailable("the node is gone", dependency="searcher", retry_after_s=2)


@pytest.mark.parametrize(
    "fault", [AWAY, Corrupt("a segment failed its checksum", path="segments/x")]
)
def test_a_missing_half_is_reported_and_the_other_half_answers(
    halves: Any, fault: Exception
) -> None:
    call, _, second, key = halves
    second.fault = fault
    found = call.search(key, vector=Q, k=80)
    assert found["degraded"] == {"reason": "4 of 8 shards did not answer", "missing_share": 0.5}
    assert 0 < len(found["hits"]) < 80
    assert len(found["freshness"]["watermark"].split(".")) == 4
    assert found["freshness"]["lag_ms"] is None, "the lag of the missing half is unknown"
    second.fault = None
    whole = call.search(key, vector=Q, k=80)
    assert (whole["degraded"], len(whole["hits"])) == (None, 80)


def test_a_late_half_is_missing_and_not_waited_for_beyond_the_deadline(halves: Any) -> None:
    call, _, second, key = halves
    second.late_s = 30
    second.fault = AWAY
    start = time.perf_counter()
    found = call.search(key, vector=Q, timeout_ms=300)
    assert 0.25 < time.perf_counter() - start < 3
    assert found["degraded"]["missing_share"] == 0.5


@pytest.mark.parametrize(
    "fault", [AWAY, Corrupt("a segment failed its checksum", path="segments/x")]
)
def test_without_any_searcher_the_answer_is_503_not_empty(halves: Any, fault: Exception) -> None:
    call, first, second, key = halves
    first.fault = second.fault = fault
    found = call("POST", "/v1/collections/c/search", key, json={"vector": Q})
    assert problem(found, 503, "unavailable")["dependency"] == "searcher"
    assert int(found.headers["retry-after"]) >= 1
    assert "segments/x" not in found.text


def test_a_degraded_answer_is_never_a_sample_of_recall(halves: Any) -> None:
    call, _, second, key = halves
    second.fault = AWAY
    name = call.state.keys.authenticate(key, "read").tenant
    call.portal.call(call.state.recall.settled)
    before = [r["n"] for r in call.admin("GET", f"/recall?tenant={name}")]
    for _ in range(5):
        call.search(key, vector=Q, k=10)
    call.portal.call(call.state.recall.settled)
    assert [r["n"] for r in call.admin("GET", f"/recall?tenant={name}")] == before


def test_a_collection_says_how_many_of_its_shards_answered(halves: Any) -> None:
    call, _, second, key = halves
    second.fault = AWAY
    found = call("GET", "/v1/collections/c", key).json()
    assert found["shards"] == {"asked": 8, "answered": 4}
    assert found["freshness"]["lag_ms"] is None


def test_a_slot_without_a_searcher_is_a_missing_shard(tmp_path: Path) -> None:
    base = resources_in(tmp_path)
    searcher = build_searcher(base, range(4))
    searcher.start()
    with calling(base, searcher, build(base, [searcher])) as call:
        _, key = call.tenant()
        call.collection(key, shards=8)
        assert call.search(key, vector=Q)["degraded"]["missing_share"] == 0.5
        ready = call("GET", "/readyz")
        assert ready.status_code == 503, "half the slots have no searcher"
    searcher.stop()
    base.close()


# The log and the catalog


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[tuple[Caller, Any, list[bool]]]:
    """A gateway whose connections to the log and to the catalog can be cut."""
    base = resources_in(tmp_path)
    cut = [False]
    engine = open_catalog(base.settings.catalog_url.get_secret_value())
    use_key(engine, key_of(base.engine))

    @event.listens_for(engine, "begin")
    def begun(_connection: object) -> None:
        if cut[0]:
            raise OperationalError("BEGIN", {}, Exception("the server closed the connection"))

    log = CutLog(base.log)
    own = replace(base, engine=engine, registry=Registry(engine, base.clock), log=log)
    with (
        running(base, indexing=False) as searcher,
        calling(own, searcher, build(own, [searcher])) as call,
    ):
        yield call, log, cut
    engine.dispose()
    base.close()


def test_while_the_log_is_away_searches_continue_and_writes_answer_503(apart: Any) -> None:
    call, log, _ = apart
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [{"id": "a", "vector": Q}])
    assert call.search(key, vector=Q, wait_for=token)["hits"]
    log.cut = True
    eventually(lambda: call.search(key, vector=Q)["freshness"]["lag_ms"] is None)
    assert [h["document_id"] for h in call.search(key, vector=Q)["hits"]] == ["a"]
    found = call(
        "POST", "/v1/collections/c/documents", key, json={"documents": [{"id": "b", "vector": Q}]}
    )
    assert problem(found, 503, "unavailable")["dependency"] == "log"
    assert int(found.headers["retry-after"]) >= 1
    problem(
        call("POST", "/v1/collections/c/search", key, json={"vector": Q, "wait_for": token}), 503
    )
    ready = call("GET", "/readyz")
    assert (ready.status_code, ready.json()["parts"]["log"]) == (503, {"ready": False})


def test_while_the_catalog_is_away_a_known_key_still_searches_and_the_rest_refuses(
    apart: Any,
) -> None:
    call, _, cut = apart
    _, key = call.tenant()
    call.collection(key)
    token = call.write(key, [{"id": "a", "vector": Q}])
    call.search(key, vector=Q, wait_for=token)
    cut[0] = True
    assert call.search(key, vector=Q)["hits"]
    found = call("POST", "/v1/collections", key, json={"name": "d", "dimension": 4})
    assert problem(found, 503, "unavailable")["dependency"] == "catalog"
    ready = call("GET", "/readyz")
    assert (ready.status_code, ready.json()["parts"]["catalog"]) == (503, {"ready": False})
    time.sleep(
        1.1
    )  # the background refresh has failed meanwhile, and must still run to see later changes
    for _ in range(3):
        assert call.search(key, vector=Q)["hits"], (
            "after a second, everything it needs is in memory"
        )
    found = call(
        "POST", "/v1/collections/c/documents", key, json={"documents": [{"id": "b", "vector": Q}]}
    )
    assert problem(found, 503, "unavailable")["dependency"] == "catalog"
    cut[0] = False
    call.base.registry.refresh()
    assert call("GET", "/v1/collections", key).status_code == 200


# changes during a search


def test_searches_during_a_reindex_see_the_old_generation_or_the_new_and_nothing_else(
    tmp_path: Path,
) -> None:
    base = resources_in(tmp_path)
    # The gateway sees the catalog late, as one on another node would.
    own = replace(base, registry=Registry(base.engine, base.clock))
    with running(base) as searcher, calling(own, searcher, build(own, [searcher])) as call:
        name, key = call.tenant()
        call.collection(key, shards=2)
        chance = np.random.default_rng(2)
        vectors = chance.standard_normal((300, 4))
        token = call.write(
            key, [{"id": f"d{i}", "vector": v.tolist()} for i, v in enumerate(vectors)]
        )
        expected = [h["document_id"] for h in call.search(key, vector=Q, wait_for=token)["hits"]]
        for wanted in (2, 3):
            job = call.admin(
                "POST", "/reindex", {"tenant": name, "collection": "c", "shards": 2}, status=202
            )
            end = time.monotonic() + 60
            seen = set()
            while wanted not in seen:
                assert time.monotonic() < end, call.admin("GET", f"/reindex/{job['id']}")
                found = call.search(key, vector=Q)
                assert [h["document_id"] for h in found["hits"]] == expected
                assert call("GET", "/v1/collections/c/documents/d7", key).status_code == 200
                seen.add(found["generation"])
            assert seen <= {wanted - 1, wanted}
    base.close()


def test_a_search_whose_generation_was_retired_is_repeated_on_the_new_one(
    tmp_path: Path,
) -> None:
    base = resources_in(tmp_path)
    with running(base, indexing=False) as searcher:
        wire = Wire(searcher)
        with calling(base, searcher, build(base, [wire])) as call:
            _, key = call.tenant()
            call.collection(key)
            token = call.write(key, [{"id": "old", "vector": Q}])
            call.search(key, vector=Q, wait_for=token)
            repeated: list[str] = []

            async def search(query: ShardQuery, deadline: Deadline) -> Any:
                if query.shard.generation == 1:
                    repeated.append(str(query.shard))
                    name = query.shard.tenant
                    base.registry.delete_collection(name, "c", actor="test")
                    call.state.registry.create_collection(
                        name,
                        "c",
                        dimension=4,
                        place=lambda _n: ((0,), (base.log.end("vicinage.vectors", 0),)),
                        actor="test",
                    )
                    raise NotFound("there is no generation 1 of 'c'")
                return await searcher.search(query, deadline)

            wire.search = search  # type: ignore[method-assign]
            found = call.search(key, vector=Q)
            assert (found["generation"], found["hits"], len(repeated)) == (2, [], 1)
    base.close()


@contextmanager
def cut_over_unseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Caller, str]]:
    """A gateway and a searcher that have not seen a cut-over yet, and the tenant's key."""
    monkeypatch.setattr(gateway, "REFRESH_S", 3_600)
    made = settings(folder)
    base = open_resources(
        made.model_copy(update={"searcher": made.searcher.model_copy(update={"adopt_s": 60.0})})
    )
    own = replace(base, registry=Registry(base.engine, base.clock))
    with running(base) as searcher, calling(own, searcher, build(own, [searcher])) as call:
        name, key = call.tenant()
        call.collection(key)
        call.search(key, vector=Q, wait_for=call.write(key, [{"id": "old", "vector": Q}]))
        theirs = Registry(base.engine, base.clock)
        job = reindex_jobs.start(
            theirs, base.jobs, name, "c", index="", model=None, shards=1, actor="test"
        )
        eventually(lambda: base.jobs.get(job.id).state == "done", wait_s=60)
        assert own.registry.collection(name, "c").live == 1
        yield call, key
    base.close()


def test_a_search_that_waits_for_a_write_finds_it_though_the_cut_over_was_not_seen_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_over_unseen(tmp_path, monkeypatch) as (call, key):
        found = call.search(key, vector=Q, wait_for=call.write(key, [{"id": "new", "vector": Q}]))
        assert {h["document_id"] for h in found["hits"]} == {"old", "new"}
        assert found["generation"] == 2


def test_a_read_that_waits_for_a_write_finds_it_though_the_cut_over_was_not_seen_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_over_unseen(tmp_path, monkeypatch) as (call, key):
        token = call.write(key, [{"id": "new", "vector": Q}])
        found = call("GET", f"/v1/collections/c/documents/new?wait_for={token}", key)
        assert found.status_code == 200, found.text


# overload and deadlines


def test_a_wait_that_times_out_states_what_was_not_reached(tmp_path: Path) -> None:
    base = resources_in(tmp_path)
    searcher = build_searcher(base)  # no ingest runs here
    searcher.start()
    with calling(base, searcher, build(base, [searcher])) as call:
        _, key = call.tenant()
        call.collection(key)
        token = call.write(key, [{"id": "a", "vector": Q}])
        start = time.perf_counter()
        found = call(
            "POST",
            "/v1/collections/c/search",
            key,
            json={"vector": Q, "wait_for": token, "timeout_ms": 200},
        )
        body = problem(found, 504, "deadline-exceeded")
        assert (body["dependency"], token in body["detail"]) == ("ingest", True)
        assert 0.15 < time.perf_counter() - start < 3
        eventually(lambda: (call.search(key, vector=Q)["freshness"]["lag_ms"] or 0) > 100)
    searcher.stop()
    base.close()


def test_waits_of_one_tenant_leave_permits_for_others(tmp_path: Path) -> None:
    base = resources_in(tmp_path)
    searcher = build_searcher(base)
    searcher.start()
    with calling(base, searcher, build(base, [searcher])) as call:
        _, loud = call.tenant()
        _, quiet = call.tenant()
        for key in (loud, quiet):
            call.collection(key)
        token = call.write(loud, [{"id": "a", "vector": Q}])
        other = call.write(quiet, [{"id": "a", "vector": Q}])

        async def ask(key: str, wait_for: str, timeout_ms: int) -> int:
            body = {"vector": Q, "wait_for": wait_for, "timeout_ms": timeout_ms}
            headers = {"authorization": f"Bearer {key}"}
            return (
                await call.http.post("/v1/collections/c/search", json=body, headers=headers)
            ).status_code

        async def all_at_once() -> list[int]:
            many = [asyncio.create_task(ask(loud, token, 1_500)) for _ in range(40)]
            await asyncio.sleep(0.5)
            return [await ask(quiet, other, 100), *await asyncio.gather(*many)]

        first, *rest = call.portal.call(all_at_once)
        assert first == 504, "the quiet tenant's wait was admitted, and ended with its own deadline"
        assert (rest.count(429), rest.count(504)) == (16, 24)
    searcher.stop()
    base.close()


def test_beyond_its_bound_the_gateway_answers_429_at_once_and_200_once_there_is_room(
    tmp_path: Path,
) -> None:
    with platform(tmp_path, GatewaySettings(in_flight_max=2)) as call:
        _, key = call.tenant()
        call.collection(key)
        held = call.state.pipeline.admission

        async def crowd() -> tuple[httpx2.Response, httpx2.Response]:
            headers = {"authorization": f"Bearer {key}"}
            with held.enter(TenantContext("other", 2)), held.enter(TenantContext("another", 2)):
                full = await call.http.post(
                    "/v1/collections/c/search", json={"vector": Q}, headers=headers
                )
            return full, await call.http.post(
                "/v1/collections/c/search", json={"vector": Q}, headers=headers
            )

        full, after = call.portal.call(crowd)
        assert problem(full, 429, "overloaded")["retry_after_s"] > 0
        assert int(full.headers["retry-after"]) >= 1
        assert after.status_code == 200
        assert held.in_flight == 0


def test_the_first_answer_of_a_batch_does_not_wait_for_the_last(tmp_path: Path) -> None:
    base = resources_in(tmp_path)
    searcher = build_searcher(base)
    searcher.start()
    with calling(base, searcher, build(base, [searcher])) as call:
        name, key = call.tenant()
        call.collection(key)
        with ingesting(base):
            call.search(key, vector=Q, wait_for=call.write(key, [{"id": "a", "vector": Q}]))
        late = call("DELETE", "/v1/collections/c/documents/a", key).json()[
            "token"
        ]  # and no ingest reads it
        late_one, other = {"vector": Q, "wait_for": late, "timeout_ms": 60_000}, {"vector": Q}
        answers = stream(
            call.state, requester(name), "c", [orjson.dumps(late_one), orjson.dumps(other)]
        )

        async def following() -> dict[str, Any]:
            return dict(orjson.loads(await anext(answers)))

        first = call.portal.call(following)
        assert (first["index"], [h["document_id"] for h in first["hits"]]) == (1, ["a"])
        with ingesting(base):
            second = call.portal.call(following)
        assert (second["index"], second["hits"]) == (0, [])
        call.portal.call(answers.aclose)
    searcher.stop()
    base.close()


def requester(tenant: str) -> Callable[[], Awaitable[Principal]]:
    async def principal() -> Principal:
        return Principal("test", tenant, frozenset({"read"}))

    return principal


def test_a_search_of_a_batch_holds_its_permit_until_its_line_is_read(tmp_path: Path) -> None:
    with platform(tmp_path) as call:
        name, key = call.tenant()
        call.collection(key)
        admission = call.state.pipeline.admission

        async def slow_reader() -> list[int]:
            lines = stream(call.state, requester(name), "c", [orjson.dumps({"vector": Q})] * 100)
            inside = []
            async for _ in lines:
                await asyncio.sleep(
                    0.01
                )  # time for all others to be answered, if they were admitted
                inside.append(admission.in_flight)
            return inside

        inside = call.portal.call(slow_reader)
        assert len(inside) == 100
        assert max(inside) == inside[10] == BATCH_AT_ONCE
        assert admission.in_flight == 0

        async def leaving_reader() -> None:
            lines = stream(call.state, requester(name), "c", [orjson.dumps({"vector": Q})] * 100)
            await anext(lines)
            await lines.aclose()
            await asyncio.sleep(0.1)

        call.portal.call(leaving_reader)
        assert admission.in_flight == 0


def test_a_revoked_key_ends_its_batch(tmp_path: Path) -> None:
    with platform(tmp_path) as call:
        name, key = call.tenant()
        call.collection(key)
        revoked = False

        async def principal() -> Principal:
            if revoked:
                raise Unauthenticated("this key does not exist, or no more")
            return await requester(name)()

        async def read() -> list[bytes]:
            nonlocal revoked
            lines = stream(call.state, principal, "c", [orjson.dumps({"vector": Q})] * 100)
            found = [await anext(lines)]
            revoked = True
            return found + [line async for line in lines]

        problems = ["problem" in orjson.loads(line) for line in call.portal.call(read)]
        assert problems.count(False) <= BATCH_AT_ONCE
        assert problems.count(True) >= 100 - BATCH_AT_ONCE


def test_a_waiting_search_releases_its_permit_when_its_client_disconnects(tmp_path: Path) -> None:
    base = resources_in(tmp_path)  # no ingest runs here
    searcher = build_searcher(base)
    searcher.start()
    with calling(base, searcher, build(base, [searcher])) as call:
        _, key = call.tenant()
        call.collection(key)
        token = call.write(key, [{"id": "a", "vector": Q}])
        app = call.another()
        state = app.state.gateway
        headers = {"authorization": f"Bearer {key}"}
        body = {"vector": Q, "wait_for": token, "timeout_ms": 600_000}
        with serving(app) as url, httpx2.Client(base_url=url, timeout=1, trust_env=False) as http:
            with pytest.raises(httpx2.ReadTimeout):
                http.post("/v1/collections/c/search", json=body, headers=headers)
            eventually(lambda: state.pipeline.admission.in_flight == 0, wait_s=5)
            with pytest.raises(httpx2.ReadTimeout):
                http.get(
                    "/v1/collections/c/documents/a", params={"wait_for": token}, headers=headers
                )
            eventually(lambda: state.pipeline.admission.in_flight == 0, wait_s=5)
            eventually(lambda: state.freshness.waits() == 0, wait_s=5)
    searcher.stop()
    base.close()


def test_a_waiting_search_is_told_to_retry_when_the_gateway_stops(tmp_path: Path) -> None:
    base = resources_in(tmp_path)  # no ingest runs here
    searcher = build_searcher(base)
    searcher.start()
    with calling(base, searcher, build(base, [searcher])) as call, ThreadPoolExecutor(2) as callers:
        _, key = call.tenant()
        call.collection(key)
        token = call.write(key, [{"id": "a", "vector": Q}])
        app = call.another()
        state = app.state.gateway
        with serving(app, on_stop=state.drain) as url:
            headers = {"authorization": f"Bearer {key}"}
            with httpx2.Client(base_url=url, timeout=30, trust_env=False, headers=headers) as http:
                body = {"vector": Q, "wait_for": token, "timeout_ms": 600_000}
                asked = [
                    callers.submit(http.post, "/v1/collections/c/search", json=body),
                    callers.submit(
                        http.get, "/v1/collections/c/documents/a", params={"wait_for": token}
                    ),
                ]
                eventually(lambda: state.freshness.waits() == len(asked))
                began = time.monotonic()
                state.drain()
                for each in asked:
                    found = each.result(timeout=10)
                    assert problem(found, 503, "unavailable")["dependency"] == "gateway"
                    assert int(found.headers["retry-after"]) >= 1
                assert time.monotonic() - began < 5
                problem(
                    http.post("/v1/collections/c/search", json={"vector": Q}), 503, "unavailable"
                )
    searcher.stop()
    base.close()


@pytest.mark.parametrize("path", ["search", "search:batch", "documents", "documents:delete"])
def test_a_body_takes_a_permit_and_its_bytes_before_it_is_read(tmp_path: Path, path: str) -> None:
    with platform(tmp_path, GatewaySettings(bodies_bytes_max=4_000)) as call:
        _, key = call.tenant("bronze")
        _, other = call.tenant("bronze")
        for each in (key, other):
            call.collection(each)
        admission = call.state.pipeline.admission
        seen: list[tuple[int, int]] = []

        async def body(n_chunks: int) -> Any:
            for _ in range(n_chunks):
                yield b" " * 500
                seen.append((admission.in_flight, admission.bodies_bytes))

        def post(key_of: str, n_chunks: int) -> httpx2.Response:
            headers = {"content-type": "application/json"}
            return call(
                "POST", f"/v1/collections/c/{path}", key_of, content=body(n_chunks), headers=headers
            )

        problem(post(key, 3), 400, "refused")
        assert (1, 1_000) in seen
        problem(post(key, 7), 429, "overloaded")
        assert (admission.in_flight, admission.bodies_bytes) == (0, 0)
        with admission.enter(TenantContext("loud")) as permit:
            permit.hold(2_000)
            problem(post(other, 2), 400, "refused")
        assert call.search(key, vector=Q)["hits"] == []
        assert (admission.in_flight, admission.bodies_bytes) == (0, 0)


def test_while_draining_requests_are_refused_with_retry_after(
    tmp_path: Path,
) -> None:
    with platform(tmp_path) as call:
        _, key = call.tenant()
        call.collection(key)
        call.state.pipeline.admission.drain()
        found = call("POST", "/v1/collections/c/search", key, json={"vector": Q})
        assert problem(found, 503, "unavailable")["dependency"] == "gateway"
        assert found.headers["retry-after"]
        assert call("GET", "/healthz").status_code == 200


def test_a_body_that_trickles_in_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.2)
    with platform(tmp_path) as call:
        _, key = call.tenant()
        call.collection(key)

        async def trickle() -> Any:
            for _ in range(100):
                yield b" "
                await asyncio.sleep(0.05)

        headers = {"content-type": "application/json"}
        found = call("POST", "/v1/collections/c/search", key, content=trickle(), headers=headers)
        problem(found, 400, "refused", "body")


# internal errors, and the embedder


class Broken:
    """An embedder with an internal error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def embed_query(self, text: str, *, tenant: TenantContext, deadline: Deadline) -> Any:
        raise self.error


def asking_text(
    folder: Path, error: Exception
) -> tuple[httpx2.Response, httpx2.Response, list[Mapping[str, Any]]]:
    with platform(folder, embedder_for=lambda _name: Broken(error)) as call:
        _, key = call.tenant()
        call.collection(key, model="all-minilm-l6-v2")
        one = call("POST", "/v1/collections/c/search", key, json={"text": "a secret text"})
        many = call(
            "POST",
            "/v1/collections/c/search:batch",
            key,
            json={"searches": [{"text": "x"}, {"vector": [0.1] * 384}]},
        )
        return (
            one,
            many,
            sorted(
                (httpx2.Response(200, content=line).json() for line in many.content.splitlines()),
                key=lambda m: m["index"],
            ),
        )


def test_an_internal_error_is_500_with_an_id_and_without_details(tmp_path: Path) -> None:
    one, _, lines = asking_text(tmp_path, RuntimeError("password=hunter2"))
    body = problem(one, 500, "internal")
    assert len(body["request_id"]) == 32
    assert "hunter2" not in one.text
    assert lines[0]["problem"]["status"] == 500, "one failed search of a batch fails no other"
    assert lines[1]["hits"] == []


def test_while_the_embedder_is_away_text_waits_and_vectors_continue(tmp_path: Path) -> None:
    one, _, lines = asking_text(
        tmp_path, Unavailable("connection refused", dependency="embedder", retry_after_s=1)
    )
    assert problem(one, 503, "unavailable")["dependency"] == "embedder"
    assert one.headers["retry-after"] == "1"
    assert lines[0]["problem"]["status"] == 503
    assert lines[1]["hits"] == []


def test_the_gateway_ends_even_if_a_cancellation_is_swallowed(tmp_path: Path) -> None:
    base = resources_in(tmp_path)
    searcher = build_searcher(base)
    searcher.start()
    wire = Wire(searcher)
    measuring = threading.Event()

    async def search(query: ShardQuery, deadline: Deadline) -> Any:
        if query.exact:
            measuring.set()
            with contextlib.suppress(
                asyncio.CancelledError
            ):  # as asyncio.wait_for of Python 3.11 may do
                await asyncio.sleep(30)
        return await searcher.search(query, deadline)

    wire.search = search  # type: ignore[method-assign]
    with calling(
        base, searcher, build(base, [wire], GatewaySettings(recall_cpu_share=1.0))
    ) as call:
        _, key = call.tenant()
        call.collection(key)
        call.search(key, vector=Q)
        assert measuring.wait(10)
        start = time.perf_counter()
    assert time.perf_counter() - start < 5
    searcher.stop()
    base.close()


def test_a_background_task_that_dies_ends_the_role(tmp_path: Path) -> None:
    died: list[BaseException] = []
    base = resources_in(tmp_path)
    own = replace(base, registry=Registry(base.engine, base.clock))
    with calling(own, None, build(own, [], on_failure=died.append)):
        own.registry.refresh = lambda: 1 // 0  # type: ignore[method-assign]
        eventually(lambda: died)
    assert isinstance(died[0], ZeroDivisionError)
    base.close()
