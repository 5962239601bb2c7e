"""The gateway: the list of routes, and what runs beside them."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from query.admission import Admission
from query.answer import Answerer, QueryEmbedder
from query.api import admin, collections, dead_letters, documents, health, search, search_batch
from query.api.http import NOT_TEXT, has_text_path
from query.boundary import said
from query.key_gate import Failures, KeyGate
from query.parsers import Parsers, Writers
from query.problems import DOCUMENTED, plain, problem
from query.quality.freshness import Freshness
from query.quality.lag_sweep import LagSweep
from query.quality.recall import History, RecallMonitor
from query.readiness import Readiness
from query.rerank import Reranker
from query.scatter import Searcher, Searchers
from query.turns import Turns
from query.waiting import Waiting, waiting
from tenants.audit import Audit
from tenants.entities import Collection, EmbeddingModel, Generation
from tenants.jobs import Jobs
from tenants.keys import Keys
from tenants.positions import PartitionState
from tenants.registry import Registry
from vicinage import __version__
from vicinage.clock import Clock, Deadline
from vicinage.errors import Refused, Unavailable, VicinageError
from vicinage.log import Log
from vicinage.records import Floats
from vicinage.settings import GatewaySettings, IngestSettings
from vicinage.stats import SearcherStats
from vicinage.telemetry import events, gauge

REFRESH_S = 0.25
TURNS_AT_ONCE: Final = 2
"""Large answers that are encoded at once: their slices run between those of all other requests on the event loop."""
FETCHES_AT_ONCE: Final = 16
"""Requests that wait for the content of a large answer at once; they take fewer than half of the gateway's threads."""
FETCHES_OF_ONE_MAX: Final = 2
"""Of those, one tenant's: a searcher or a topic that hangs delays its own tenants, and no others (bulkhead)."""
STOP_S: Final = 10.0
"""How long what runs beside the routes may take to end."""
SAVE_S: Final = 2.0
"""How long keeping measured recall may take at the end."""
_SEARCH: Final = re.compile(r"/v1/collections/([^/]+)/search")
_event = events("query")
_in_flight = gauge("vicinage_query_in_flight", "requests being served")


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything the routes need, made by the wiring."""

    registry: Registry
    keys: Keys
    audit: Audit
    jobs: Jobs
    log: Log
    all_searchers: tuple[Searcher, ...]
    embedder_for: Callable[[str], QueryEmbedder]
    embedder_ready: Callable[[], Awaitable[bool]]
    measure_capacity: Callable[[Searchers], Awaitable[Any]]
    check_model: Callable[[EmbeddingModel], None]
    """Tries a model before it is registered. Raises Refused."""
    settings: GatewaySettings
    limits: IngestSettings
    slots_total: int
    clock: Clock
    local_operator: bool = False
    on_failure: Callable[[BaseException], None] | None = None
    """Told when what runs beside the routes dies."""
    keep_recent_queries: Callable[[Generation, Floats], None] | None = None
    """Where recent questions go, for the next segments' effort curves."""
    recall_history: History | None = None
    """Where measured recall is kept over a restart."""
    close_embedders: Callable[[], Awaitable[None]] | None = None
    reranker: Reranker | None = None
    searchers: Searchers = field(init=False)
    freshness: Freshness = field(init=False)
    recall: RecallMonitor = field(init=False)
    answerer: Answerer = field(init=False)
    readiness: Readiness = field(init=False)
    key_gate: KeyGate = field(init=False)
    parsers: Parsers = field(init=False)
    writers: Writers = field(init=False)
    fetches: Turns = field(init=False)
    """For reading what may be a large answer: documents, lists of collections, dead letters."""
    turns: Turns = field(init=False)
    """For encoding it on the event loop. Nothing waits for a searcher, the log or a client while it holds one."""

    def __post_init__(self) -> None:
        s = self.settings
        made: dict[str, Any] = {"searchers": Searchers(self.all_searchers)}
        made["freshness"] = Freshness(self.log, self.registry, made["searchers"], self.clock)
        made["key_gate"] = KeyGate(self.keys, Failures(s.key_failures_per_s, self.clock.monotonic))
        made["readiness"] = Readiness(self.registry, self.log, made["searchers"], self.slots_total, self.embedder_ready)
        made["recall"] = RecallMonitor(
            made["searchers"],
            share=s.recall_sample_share,
            samples_min=s.recall_samples_min,
            cpu_share=s.recall_cpu_share,
            keep=self.keep_recent_queries,
            history=self.recall_history,
        )
        made["answerer"] = Answerer(
            self.registry,
            made["searchers"],
            self.embedder_for,
            made["freshness"],
            made["recall"],
            Admission(
                in_flight_max=s.in_flight_max,
                bodies_bytes_max=s.bodies_bytes_max,
                answers_bytes_max=s.answers_bytes_max,
            ),
            self.reranker,
        )
        made["parsers"] = Parsers(
            processes=s.parse_processes,
            parse_s=s.parse_s,
            memory_bytes=s.parse_memory_bytes,
            on_failure=self.on_failure,
        )
        made["writers"] = Writers()
        made["fetches"] = Turns(FETCHES_AT_ONCE, FETCHES_OF_ONE_MAX)
        made["turns"] = Turns(TURNS_AT_ONCE)
        for name, part in made.items():
            object.__setattr__(self, name, part)

    def drain(self) -> None:
        """Let nobody in any more, and send away who waits for a write: the others are answered."""
        self.answerer.admission.drain()
        self.freshness.drain()

    async def capacity(self) -> Any:
        """See capacity/."""
        return await self.measure_capacity(self.searchers)

    async def freshness_report(self, tenant: str | None) -> list[dict[str, Any]]:
        """Per tenant: lag now, percentiles of n recent index lags, messages replayed at a start, what waits for a model."""
        stats = await self.searchers.stats(tenant)
        waits_of: dict[str, list[Waiting]] = {}
        for fact in await run_in_threadpool(waiting, self.registry, self.log, tenant):
            waits_of.setdefault(fact["tenant"], []).append(fact)
        not_reading = await run_in_threadpool(self.registry.positions.not_reading, tenant)
        lags_of: dict[str, list[int | None]] = {}
        for c in self.registry.collections(tenant):
            lags_of.setdefault(c.tenant, []).append(await self._lag(c, stats))
        rows = []
        for t in [t for t in self.registry.tenants() if tenant in (None, t.name)]:
            recent = [lag for s in stats for lag in s.index_lag_ms.get(t.name, ())]
            lags = lags_of.get(t.name, [])
            known = [lag for lag in lags if lag is not None]
            lag_ms = max(known, default=0) if len(known) == len(lags) else None
            p50, p99 = (round(float(np.percentile(recent, q)), 1) for q in (50, 99)) if recent else (None, None)
            replayed = sum(s.replayed.get(t.name, 0) for s in stats)
            rows.append(
                {
                    "tenant": t.name,
                    "lag_ms": lag_ms,
                    "p50_ms": p50,
                    "p99_ms": p99,
                    "n": len(recent),
                    "replayed": replayed,
                    "waiting": waits_of.get(t.name, []),
                    **_ingest(t.name, not_reading),
                }
            )
        return rows

    async def _lag(self, collection: Collection, stats: list[SearcherStats]) -> int | None:
        live = collection.generation()
        watermarks = {slot: at for s in stats for slot, at in s.watermarks.items() if slot in live.slots}
        return await self.freshness.lag_ms(self.registry.tenant(collection.tenant), live, watermarks)


def _ingest(tenant: str, not_reading: Sequence[PartitionState]) -> dict[str, Any]:
    """Returns whether ingest reads the tenant's topic, and each partition that it does not read."""
    own = [s for s in not_reading if s.tenant == tenant]
    state = next((each for each in ("halted", "resuming", "waiting") if any(s.state == each for s in own)), "reading")
    named = [
        {name: getattr(s, name) for name in ("partition", "state", "kind", "reason", "since_ms", "position")}
        for s in own
    ]
    return {"ingest": state, "partitions": named}


class Api(FastAPI):
    """FastAPI with one short cut: a search goes from the server straight to its function.

    The layers in between (exception groups, exit stacks, routers within routers) do nothing for it, and cost about as much CPU
    as the whole of its handling. The route itself stays FastAPI's: listed, documented, and the same function.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; a search takes the short cut, and HEAD is GET without the body."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, partial(_without_body, send)
        if not has_text_path(scope):
            await said(Refused(NOT_TEXT, field="path"), scope["path"])(scope, receive, send)
            return
        found = _SEARCH.fullmatch(scope["path"]) if scope["method"] == "POST" else None
        if found is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        try:
            response = await search.search(found[1], Request(scope, receive, send))
        except Exception as error:  # noqa: BLE001  (the request boundary)
            response = said(error, scope["path"])
        await response(scope, receive, send)


async def _without_body(send: Send, message: Message) -> None:
    await send({**message, "body": b""} if message["type"] == "http.response.body" else message)


def create_app(house: Gateway) -> FastAPI:
    """The application."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        sweep = LagSweep(house.log, house.registry, house.searchers, house.clock)
        works = (house.recall.run(), house.recall.keep_history(), _keep_fresh(house), sweep.run())
        beside = [asyncio.create_task(each) for each in works]
        house.readiness.begin()
        for task in beside:
            task.add_done_callback(partial(_ended, house))
        try:
            yield
        finally:
            house.drain()
            await _cancel(beside)
            await _save_recall(house)
            house.readiness.close()
            house.freshness.close()
            await run_in_threadpool(house.parsers.close)
            if house.close_embedders is not None:
                await house.close_embedders()

    app = Api(
        title="Vicinage",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        responses={"default": DOCUMENTED},
        redirect_slashes=False,  # a redirect turns the deletion of a document into that of its collection
    )
    app.state.gateway = house
    for each in (search, search_batch, documents, collections, dead_letters, admin, health):
        app.include_router(each.router)
    app.add_exception_handler(VicinageError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    return app


def _ended(house: Gateway, task: asyncio.Task[None]) -> None:
    """The role's boundary: what runs beside the routes ends only with them, or ends the role, loudly."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    _event.error("a part of the gateway died", exc_info=error)
    if house.on_failure is not None:
        house.on_failure(error)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """End the tasks. Asked again until they do: asyncio.wait_for of Python 3.11 can swallow a cancellation."""
    pending = set(tasks)
    end = Deadline.after(STOP_S)
    while pending and not end.passed():
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    if pending:
        _event.error("tasks beside the routes did not end", tasks=[str(t.get_coro()) for t in pending])


async def _save_recall(house: Gateway) -> None:
    """Keep the samples since the last time, if the catalog answers soon."""
    try:
        async with asyncio.timeout(SAVE_S):
            await house.recall.save()
    except (TimeoutError, Unavailable) as away:
        _event.warning("recall.not_kept", reason=str(away))


async def _keep_fresh(house: Gateway) -> None:
    """See the catalog's changes within REFRESH_S, whoever made them."""
    while True:
        try:
            await run_in_threadpool(house.registry.refresh)
        except Unavailable as away:
            _event.warning("the catalog is away", reason=str(away))
        _in_flight.set(house.answerer.admission.in_flight)
        await asyncio.sleep(REFRESH_S)


async def _failed(request: Request, error: Exception) -> Response:
    return said(error, request.url.path)


async def _invalid(_request: Request, error: Exception) -> Response:
    return problem(Refused(f"the request is not understood: {str(error)[:200]}"))


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "GET" in headers.get("Allow", ""):
        headers["Allow"] += ", HEAD"
    return plain(error.status_code, error.detail, f"{error.detail}; see /openapi.json", headers)
