"""The gateway: its routes and its background tasks."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from functools import cache, partial
from http import HTTPStatus
from typing import Final

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from query.api import pages, search
from query.api.http import NOT_TEXT, has_text_path
from query.api.openapi import bounds_of, document
from query.api.routes import ROUTERS
from query.boundary import problem_response
from query.problems import plain, problem
from query.quality.lag_sweep import LagSweep
from query.state import GatewayState
from vicinage.clock import Deadline
from vicinage.errors import Refused, Unavailable, VicinageError
from vicinage.metrics import gauge
from vicinage.telemetry import events

REFRESH_S = 0.25
STOP_S: Final = 10.0
"""Seconds that the background tasks may take to end."""
SAVE_S: Final = 2.0
"""Seconds that saving measured recall may take at shutdown."""
_SEARCH: Final = re.compile(r"/v1/collections/([^/]+)/search")
_event = events("query")
_in_flight = gauge("vicinage_query_in_flight")


class Api(FastAPI):
    """FastAPI with one shortcut: a search goes from the server directly to its function.

    The layers in between (exception groups, exit stacks, nested routers) do nothing for a search.
    They cost about as much CPU as all of its handling. The route itself stays FastAPI's: listed,
    documented, and the same function.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request. A search takes the shortcut; HEAD is GET without the body."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, partial(_without_body, send)
        if not has_text_path(scope):
            await problem_response(Refused(NOT_TEXT, field="path"), scope["path"])(
                scope, receive, send
            )
            return
        found = _SEARCH.fullmatch(scope["path"]) if scope["method"] == "POST" else None
        if found is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        try:
            response = await search.search(found[1], Request(scope, receive, send))
        except Exception as error:  # noqa: BLE001  (the request boundary)
            response = problem_response(error, scope["path"])
        await response(scope, receive, send)


async def _without_body(send: Send, message: Message) -> None:
    await send({**message, "body": b""} if message["type"] == "http.response.body" else message)


def create_app(state: GatewayState) -> FastAPI:
    """Returns the application over the gateway's state."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        sweep = LagSweep(state.log, state.registry, state.searchers, state.clock)
        works = (state.recall.run(), state.recall.keep_history(), _keep_fresh(state), sweep.run())
        beside = [asyncio.create_task(each) for each in works]
        state.readiness.begin()
        for task in beside:
            task.add_done_callback(partial(_ended, state))
        try:
            yield
        finally:
            state.drain()
            await _cancel(beside)
            await _save_recall(state)
            state.readiness.close()
            state.freshness.close()
            await run_in_threadpool(state.parsers.close)
            if state.close_embedders is not None:
                await state.close_embedders()

    app = Api(
        lifespan=lifespan,
        openapi_url=None,  # `pages.py` serves the document, encoded once, off the event loop
        # a redirect turns the deletion of a document into that of its collection
        redirect_slashes=False,
    )
    app.state.gateway = state
    app.state.openapi_json = cache(lambda: orjson.dumps(document(ROUTERS, bounds_of(state))))
    for router in (*ROUTERS, pages.router):
        app.include_router(router)
    app.add_exception_handler(VicinageError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    return app


def _ended(state: GatewayState, task: asyncio.Task[None]) -> None:
    """Logs the failure of a background task and calls `on_failure` (the role boundary).

    A background task otherwise ends only with the routes.
    """
    if task.cancelled() or (error := task.exception()) is None:
        return
    _event.error("background_task.failed", exc_info=error)
    if state.on_failure is not None:
        state.on_failure(error)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancels the tasks until they end, at most STOP_S.

    Repeats the cancellation, because asyncio.wait_for of Python 3.11 can swallow one.
    """
    pending = set(tasks)
    end = Deadline.after(STOP_S)
    while pending and not end.passed():
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
    if pending:
        _event.error("background_task.not_ended", tasks=[str(t.get_coro()) for t in pending])


async def _save_recall(state: GatewayState) -> None:
    """Saves the samples since the last save if the catalog answers within SAVE_S."""
    try:
        async with asyncio.timeout(SAVE_S):
            await state.recall.save()
    except (TimeoutError, Unavailable) as away:
        _event.warning("recall.not_kept", reason=str(away))


async def _keep_fresh(state: GatewayState) -> None:
    """Refreshes the registry every REFRESH_S, to see the changes that other processes make."""
    while True:
        try:
            await run_in_threadpool(state.registry.refresh)
        except Unavailable as away:
            _event.warning("catalog.refresh_failed", reason=str(away))
        _in_flight.set(state.pipeline.admission.in_flight)
        await asyncio.sleep(REFRESH_S)


async def _failed(request: Request, error: Exception) -> Response:
    return problem_response(error, request.url.path)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    *_, field = fault["loc"]
    return problem(Refused(f"{field}: {fault['msg']}; see /openapi.json", field=str(field)))


def _methods_of(scope: Scope) -> list[str]:
    """Returns the methods of a path, which may be those of several routes."""
    found: set[str] = set()
    for route in (route for router in (*ROUTERS, pages.router) for route in router.routes):
        if isinstance(route, APIRoute) and route.matches(scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted({*found, "HEAD"} if "GET" in found else found)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods_of(request.scope))
    return plain(error.status_code, error.detail, f"{error.detail}; see /openapi.json", headers)
