"""Runs one role in this process.

The role boundary: an essential thread that dies ends the process, with an event.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cluster.configuration import ConfigurationError
from cluster.descriptors import connections_max, raise_limit
from cluster.health import serve_health
from cluster.lifetime import STOP_S, end_with_supervisor, limit_stop
from cluster.memory import keep_returning
from cluster.wiring import (
    LOG_WAIT_S,
    Resources,
    build_embedder,
    build_gateway,
    build_indexer,
    build_ingest,
    build_searcher,
    open_resources,
)
from vicinage.errors import Unavailable
from vicinage.scratch import sweep_scratch
from vicinage.settings import Settings
from vicinage.telemetry import configure_events, events
from vicinage.threads import EssentialThread, on_thread_death

if TYPE_CHECKING:
    import uvicorn

    from ingest.run import Ingest

ROLES = ("gateway", "ingest", "embedder")
RETRY_S: Final = (0.25, 5.0)
"""The first and the longest wait before ingest restarts after a dependency was unavailable."""
BACKLOG: Final = 128
"""Connections that the kernel queues; at most this many are accepted at once."""
SETTLED_S: Final = 20.0
"""After this long without a failure, the backoff starts again."""
_event = events("cluster")


def run_role(name: str, settings: Settings) -> None:
    """Runs `gateway` (with its searcher), `ingest` (with the indexer) or `embedder`.

    Returns after an orderly stop.
    """
    begin(name)
    {"gateway": _gateway, "ingest": _ingest, "embedder": serve_embedder}[name](settings)


def internal_key(settings: Settings) -> str | None:
    """Returns the bearer key between gateway, ingest and embedder that `up` wrote, or None."""
    path = settings.resolved().data / "run" / "internal.key"
    return path.read_text().strip() if path.exists() else None


def serve(
    app: Any,
    host: str,
    port: int,
    *,
    drain_s: float,
    connections: int = 4_096,
    on_stop: Callable[[], None] = lambda: None,
) -> "uvicorn.Server":
    """Returns a uvicorn server that is not started. It calls `on_stop` when it begins to stop.

    It has at most `connections`, or fewer if the process's descriptors do not suffice.
    """
    import uvicorn

    from cluster.connections import DrainingServer, bounded

    config = uvicorn.Config(
        app,
        http=bounded(connections_max(raise_limit(), connections)),
        ws="none",
        backlog=BACKLOG,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(drain_s),
        server_header=False,
        date_header=False,
    )
    return DrainingServer(config, on_stop)


def run_until_signal(server: "uvicorn.Server") -> None:
    """Serves until SIGTERM or SIGINT, then returns.

    uvicorn would raise the signal again at its end, before this process has closed the rest.
    """
    if threading.current_thread() is threading.main_thread():  # signals belong to it
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, partial(_stop_serving, server))
    server.run()


def _stop_serving(server: "uvicorn.Server", *_: object) -> None:
    limit_stop(max(STOP_S, (server.config.timeout_graceful_shutdown or 0) + STOP_S / 2))
    server.should_exit = True


def begin(name: str) -> None:
    """Ties this process to its supervisor and its essential threads, and names its events."""
    end_with_supervisor()
    configure_events(name)
    on_thread_death(die)
    sweep_scratch()
    keep_returning()


def die(error: BaseException) -> None:
    """Ends the process at once, after the death of an essential thread.

    The supervisor restarts the role.
    """
    _event.error("role.died", error=repr(error))
    os._exit(70)


def _gateway(settings: Settings) -> None:
    resources = open_resources(settings, log_wait_s=LOG_WAIT_S)
    searcher = build_searcher(resources, on_failure=die)
    searcher.start()
    app = build_gateway(resources, [searcher], embedder_key=internal_key(settings), on_failure=die)
    s = resources.settings.gateway
    serve_health(s.host, s.health_port or s.port + 3, app.state.gateway.readiness.parts_threadsafe)
    run_until_signal(
        serve(
            app,
            s.host,
            s.port,
            drain_s=s.drain_s,
            connections=s.connections_max,
            on_stop=app.state.gateway.drain,
        )
    )
    searcher.stop()
    resources.close()


def _ingest(settings: Settings) -> None:
    resources, stop = open_resources(settings, log_wait_s=LOG_WAIT_S), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_stop_working, stop))
    work_until(stop, resources, internal_key(settings))
    resources.close()


def work_until(stop: threading.Event, resources: Resources, key: str | None) -> None:
    """Runs ingest and the indexer until `stop`. The process ends when either dies."""
    s = resources.settings
    raise_limit()
    serve_health(s.gateway.host, s.ingest.metrics_port or s.gateway.port + 2)
    works = {
        "ingest": partial(persist, partial(build_ingest, resources, embedder_key=key), stop),
        "indexer": partial(build_indexer(resources, embedder_key=key).run, stop),
    }
    threads = [
        EssentialThread(name, work, stopping=stop.is_set, on_death=die)
        for name, work in works.items()
    ]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join(STOP_S)


def persist(make: "Callable[[], Ingest]", stop: threading.Event) -> None:
    """Runs ingest until `stop`; restarts it with backoff if a dependency is unavailable.

    It restarts from its committed positions: work in progress is repeated, and versions absorb
    duplicates. Any other error of ingest ends the role.
    """
    wait = RETRY_S[0]
    while not stop.is_set():
        began = time.monotonic()
        try:
            make().run(stop)
        except Unavailable as error:
            if time.monotonic() - began > SETTLED_S:
                wait = RETRY_S[0]
            _event.warning("ingest.restarted", reason=str(error), retry_in_s=wait)
            stop.wait(wait)
            wait = min(2 * wait, RETRY_S[1])


def _stop_working(stop: threading.Event, *_: object) -> None:
    limit_stop()
    stop.set()


def serve_embedder(settings: Settings, *, host: str | None = None) -> None:
    """Loads and calibrates the local models, then serves them until a signal."""
    from urllib.parse import urlsplit

    resources = open_resources(settings, log_wait_s=LOG_WAIT_S)
    models = resources.registry.models()
    url = urlsplit(resources.settings.embedder.url)
    resources.close()
    key = internal_key(settings)
    if key is None:
        raise ConfigurationError(
            f"{settings.resolved().data}/run/internal.key is missing, and without it any client"
            " could use the embedder: start the platform with `vicinage up`, which writes it, or"
            " copy it from the node that has it"
        )
    app = build_embedder(resources.settings, models, key=key, on_failure=die)
    run_until_signal(serve(app, host or url.hostname or "127.0.0.1", url.port or 8081, drain_s=5))
