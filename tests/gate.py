"""A gateway over a whole platform in this process, and a client of it by ASGI or over loopback."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio.from_thread
import httpx2
import orjson
import uvicorn
from fastapi import FastAPI
from resources import HashEmbedder, eventually, resources_in, running

from cluster.connections import BoundedHeads, DrainingServer
from cluster.wiring import Resources
from query.gateway import create_app
from query.state import Dependencies, GatewayState, open_state
from tenants.audit import Audit
from tenants.keys import Keys
from tenants.recall_history import RecallHistory
from vicinage.settings import GatewaySettings
from vicinage.telemetry import configure_events

configure_events("test")
PROBLEM = "application/problem+json"


@dataclass
class Caller:
    """Sends requests to the app in this process: synchronous calls over one event loop."""

    app: FastAPI
    portal: Any
    http: httpx2.AsyncClient
    state: GatewayState
    base: Resources
    searcher: Any
    operator: str
    made: int = field(default=0)

    def __call__(
        self, method: str, path: str, key: str | None = None, **given: Any
    ) -> httpx2.Response:
        headers = dict(given.pop("headers", {}))
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return self.portal.call(partial(self.http.request, method, path, headers=headers, **given))

    def another(self) -> FastAPI:
        """Returns another gateway over the same platform."""
        return build(self.base, [self.searcher], self.state.settings)

    def admin(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        """Sends an operator's request that must be answered with `status`."""
        found = self(method, f"/v1/admin{path}", self.operator, json=body)
        assert found.status_code == status, found.text
        return found.json()

    def tenant(self, priority: str = "silver") -> tuple[str, str]:
        """Returns a new tenant's name and key."""
        self.made += 1
        name = f"t{self.made}"
        return name, self.admin("POST", "/tenants", {"name": name, "class": priority}, status=201)[
            "key"
        ]

    def collection(self, key: str, name: str = "c", **given: Any) -> dict[str, Any]:
        """Creates a collection of `key`'s tenant, with 4 dimensions by default."""
        body = {
            "name": name,
            **({"dimension": 4} if not given.keys() & {"dimension", "model"} else {}),
            **given,
        }
        found = self("POST", "/v1/collections", key, json=body)
        assert found.status_code == 201, found.text
        return found.json()

    def write(self, key: str, documents: list[dict[str, Any]], name: str = "c") -> str:
        """Writes documents that must all be accepted; returns the token."""
        found = self(
            "POST", f"/v1/collections/{name}/documents", key, json={"documents": documents}
        )
        assert found.status_code == 202, found.text
        assert found.json()["rejected"] == []
        return found.json()["token"]

    def search(
        self, key: str, name: str = "c", *, status: int = 200, **fields: Any
    ) -> dict[str, Any]:
        """Runs a search that must be answered with `status`."""
        found = self("POST", f"/v1/collections/{name}/search", key, json=fields)
        assert found.status_code == status, found.text
        return found.json()


def build(
    base: Resources, searchers: list[Any], settings: GatewaySettings | None = None, **given: Any
) -> FastAPI:
    """Returns the app over these searchers, with an embedder that needs no model."""

    async def ready() -> bool:
        return True

    async def no_capacity(_searchers: Any) -> Any:
        return {}

    embedder = HashEmbedder()
    parts: dict[str, Any] = {
        "embedder_for": lambda _model: embedder,
        "embedder_ready": ready,
        "measure_capacity": no_capacity,
        "check_model": lambda _model: None,
        "local_operator": False,
        "recall_history": RecallHistory(base.engine, base.clock),
        **given,
    }
    state = open_state(
        Dependencies(
            registry=base.registry,
            keys=Keys(
                base.engine, base.clock, grace_s=(settings or base.settings.gateway).key_grace_s
            ),
            audit=Audit(base.engine),
            jobs=base.jobs,
            log=base.log,
            searchers=tuple(searchers),
            settings=settings or base.settings.gateway,
            limits=base.settings.ingest,
            slots_total=base.settings.slots,
            clock=base.clock,
            **parts,
        )
    )
    return create_app(state)


@contextmanager
def calling(base: Resources, searcher: Any, app: FastAPI) -> Iterator[Caller]:
    """Yields a caller of `app` during its lifespan."""
    operator = Keys(base.engine, base.clock).create(None, ["operate"], actor="test")[1]
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
        portal.wrap_async_context_manager(
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app, raise_app_exceptions=False),
                base_url="http://gateway",
                timeout=30,
            )
        ) as http,
    ):
        yield Caller(app, portal, http, app.state.gateway, base, searcher, operator)


@contextmanager
def platform(
    folder: Path, settings: GatewaySettings | None = None, *, indexing: bool = False, **given: Any
) -> Iterator[Caller]:
    """Yields ingest, searcher, gateway and a caller."""
    base = resources_in(folder)
    try:
        with (
            running(base, indexing=indexing) as searcher,
            calling(base, searcher, build(base, [searcher], settings, **given)) as caller,
        ):
            yield caller
    finally:
        base.close()


@contextmanager
def serving(
    app: Any, *, http: Any = BoundedHeads, on_stop: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Serves the app on loopback; yields its URL."""
    config = uvicorn.Config(
        app, http=http, host="127.0.0.1", port=0, log_level="warning", access_log=False, ws="none"
    )
    server = DrainingServer(config, on_stop)
    thread = threading.Thread(target=partial(asyncio.run, server.serve()), daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def problem(
    found: httpx2.Response, status: int, kind: str | None = None, field: str | None = None
) -> dict[str, Any]:
    """Returns the problem document of a refusal with this status, kind and field."""
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == PROBLEM
    body = orjson.loads(found.content)
    assert body["status"] == status
    assert body["type"].startswith("urn:vicinage:problem:")
    assert body["title"]
    assert body["detail"]
    if kind is not None:
        assert body["type"] == f"urn:vicinage:problem:{kind}"
    if field is not None:
        assert body.get("field") == field, body
    return body
