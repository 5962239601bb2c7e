"""One role in this process, until it is told to stop or a part of it dies. The role boundary: whatever dies ends it, loudly."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.wiring import Ground, build_embedder, build_gateway, build_indexer, build_ingest, build_searcher, ground
from vicinage.settings import Settings
from vicinage.telemetry import REGISTRY, configure_events, events

if TYPE_CHECKING:
    import uvicorn

ROLES = ("gateway", "ingest", "embedder")
_event = events("cluster")


def run_role(name: str, settings: Settings) -> None:
    """Run `gateway` (with its searcher), `ingest` (with the indexer) or `embedder`. Returns after an orderly stop."""
    configure_events(name)
    end_with_parent()
    {"gateway": _gateway, "ingest": _ingest, "embedder": serve_embedder}[name](settings)


def internal_key(settings: Settings) -> str | None:
    """The bearer key between gateway, ingest and embedder, as `up` wrote it; None where there is none."""
    path = settings.resolved().data / "run" / "internal.key"
    return path.read_text().strip() if path.exists() else None


def serve(
    app: Any, host: str, port: int, *, drain_s: float, on_stop: Callable[[], None] = lambda: None
) -> "uvicorn.Server":
    """A uvicorn server, not started yet; `on_stop` is called when it begins to stop."""
    import uvicorn

    from cluster.connections import BoundedHeads, DrainingServer

    config = uvicorn.Config(
        app,
        http=BoundedHeads,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(drain_s),
        server_header=False,
        date_header=False,
    )
    return DrainingServer(config, on_stop)


def run_until_told(server: "uvicorn.Server") -> None:
    """Serve until SIGTERM or SIGINT, and return: uvicorn raises the signal anew once it has ended, and what we still have to end would be left."""
    if threading.current_thread() is threading.main_thread():  # signals belong to it
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run()


def end_with_parent() -> None:
    """Stop in order when the supervisor's end of our standard input closes: nobody is left behind when it is killed."""
    if sys.stdin is None or sys.stdin.isatty() or os.environ.get("VICINAGE_SUPERVISED") != "1":
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


def serve_metrics(host: str, port: int) -> None:
    """Serve this process's /metrics, as gateway and embedder do theirs. A port that is taken is said, and ends nothing."""
    from prometheus_client import start_http_server

    try:
        start_http_server(port, addr=host, registry=REGISTRY)
    except (OSError, OverflowError) as error:
        _event.error("metrics are not served", host=host, port=port, error=str(error))


def die(error: BaseException) -> None:
    """End the process at once: a part of the role has died, and the supervisor starts it anew."""
    _event.error("role died", error=repr(error))
    os._exit(70)


def _gateway(settings: Settings) -> None:
    base = ground(settings)
    searcher = build_searcher(base, on_failure=die)
    searcher.start()
    app = build_gateway(base, [searcher], embedder_key=internal_key(settings), on_failure=die)
    s = base.settings.gateway
    run_until_told(serve(app, s.host, s.port, drain_s=s.drain_s, on_stop=app.state.gateway.drain))
    searcher.stop()
    base.close()


def _ingest(settings: Settings) -> None:
    base, stop = ground(settings), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    work_until(stop, base, internal_key(settings))
    base.close()


def work_until(stop: threading.Event, base: Ground, key: str | None) -> None:
    """Ingest and index until `stop`; the first of them that dies takes the process with it."""
    s = base.settings
    serve_metrics(s.gateway.host, s.ingest.metrics_port or s.gateway.port + 2)
    works: list[Callable[[threading.Event], None]] = [
        build_ingest(base, embedder_key=key).run,
        build_indexer(base, embedder_key=key).run,
    ]
    threads = [threading.Thread(target=_guarded, args=(work, stop), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join(30)


def _guarded(work: Callable[[threading.Event], None], stop: threading.Event) -> None:
    try:
        work(stop)
    except BaseException as error:  # noqa: BLE001  (the role boundary)
        if not stop.is_set():
            _event.exception("a part of the role died")
            die(error)


def serve_embedder(settings: Settings, *, host: str | None = None) -> None:
    """Load and calibrate the local models, then serve them until told to stop."""
    from urllib.parse import urlsplit

    base = ground(settings)
    models = base.registry.models()
    url = urlsplit(base.settings.embedder.url)
    base.close()
    app = build_embedder(base.settings, models, key=internal_key(settings), on_failure=die)
    run_until_told(serve(app, host or url.hostname or "127.0.0.1", url.port or 8081, drain_s=5))
