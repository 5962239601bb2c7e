"""`vicinage up`, `down`, `status`, `doctor`: the platform itself, and its roles' processes."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.commands.base import EPILOG, EXIT_FAILED, EXIT_UNAVAILABLE, common, here, settings_on
from cluster.commands.output import show
from vicinage.errors import Unavailable

if TYPE_CHECKING:
    from vicinage.settings import Settings


READY_S = 600.0
"""Longest wait of `up --detach`: the first start reads gigabytes of libraries."""
REMIND_S = 15.0
"""Interval of repeating what it waits for, if that has not changed."""
RESTARTS_MAX = 4
"""Number of restarts of one role after which a start of the platform fails."""


@click.command(epilog=EPILOG)
@here
@click.option("--port", type=click.IntRange(0, 65_534), help="Port of the API [default: 8080].")
@click.option("--host", help="Address to listen on [default: 127.0.0.1].")
@click.option(
    "--detach", is_flag=True, help="Return when it is ready; stop it with `vicinage down`."
)
@click.option("--ray", "ray_address", help="Place the roles on the Ray cluster at this address.")
@click.option(
    "--searchers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Searchers on Ray.",
)
def up(
    data: Path,
    port: int | None,
    host: str | None,
    *,
    detach: bool,
    ray_address: str | None,
    searchers: int,
    as_json: bool,
) -> None:
    r"""Start the platform and supervise it: gateway with searcher, ingest with indexer, embedder.

    \b
    vicinage up --data /srv/vicinage --port 8080 --detach
    vicinage up --ray 10.0.0.5:6379 --searchers 2
    """
    from cluster import local
    from cluster.configuration import usable_data
    from cluster.identity import check_identity
    from vicinage.telemetry import configure_events

    settings = settings_on(data, port, host)
    usable_data(data.absolute())
    check_identity(settings)
    if local.running(data.absolute()) is None:
        for host_name, number in local.ports_of(settings, on_ray=ray_address is not None):
            local.check_free(host_name, number)
    if detach:
        _up_detached(data, ray_address, searchers, settings, as_json)
        return
    configure_events("supervisor")
    if ray_address:
        commands = local.role_commands(
            ["gateway"], "--ray", ray_address, "--searchers", str(searchers)
        )
    else:
        commands = local.role_commands(["embedder", "ingest", "gateway"])
    s = settings.resolved()
    click.echo(
        f"starting on http://{s.gateway.host}:{s.gateway.port} with data in {s.data}"
        f" (events in {s.data}/run)",
        err=True,
    )
    local.Supervisor(settings, commands).run()


def _up_detached(
    data: Path, ray_address: str | None, searchers: int, settings: "Settings", as_json: bool
) -> None:
    import subprocess

    from cluster import local

    if local.running(data.absolute()) is not None:
        raise Unavailable(
            f"a platform runs on {data} already: `vicinage status`", dependency="supervisor"
        )
    s = settings.resolved()
    words = [
        *local.PROGRAM,
        "up",
        "--data",
        str(s.data),
        "--host",
        s.gateway.host,
        "--port",
        str(s.gateway.port),
    ]
    if ray_address:
        words += ["--ray", ray_address, "--searchers", str(searchers)]
    path = local.run_folder(settings) / "supervisor.log"
    with path.open("ab") as out:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    url = local.url_of(settings)
    _await_ready(url, process, path)
    show({"url": url, "data": str(s.data), "pid": process.pid}, as_json)


def _await_ready(url: str, process: Any, events: Path, wait_s: float = READY_S) -> None:
    """Waits until every part is ready, and prints what it waits for.

    Stops the platform if a role exits repeatedly.
    """
    import httpx2

    from cluster import local

    began = time.monotonic()
    printed, remind_at, missing = "", began, "the supervisor"
    while (now := time.monotonic()) < began + wait_s:
        if process.poll() is not None:
            tail = events.read_text(errors="replace").strip().split("\n")[-5:]
            raise Unavailable("it did not start:\n  " + "\n  ".join(tail), dependency="supervisor")
        try:
            answer = httpx2.get(f"{url}/readyz", timeout=5, trust_env=False).json()
            parts = answer["parts"]
            if answer["ready"] and parts["embedder"]["ready"]:
                return
            missing = ", ".join(name for name, part in parts.items() if not part["ready"])
        except (httpx2.HTTPError, ValueError, KeyError):
            missing = "the gateway"  # it does not listen yet
        if missing != printed or now >= remind_at:
            printed, remind_at = missing, now + REMIND_S
            click.echo(f"vicinage: waiting for {missing} ({now - began:.0f} s)", err=True)
        _stop_if_failing(local.running(events.parent.parent), events.parent)
        time.sleep(0.1)
    raise Unavailable(
        f"{missing} of {url} not ready within {wait_s:.0f} s. The platform continues to start: see"
        f" `vicinage status`, or stop it with `vicinage down`. {_last_steps(events.parent)}",
        dependency="gateway",
    )


def _last_steps(folder: Path) -> str:
    """Returns the newest event of each role, and the folder with more of them."""
    found = {path.stem: last_error(path) for path in sorted(folder.glob("*.log"))}
    return "; ".join([f"{name}: {event}" for name, event in found.items()] + [f"more in {folder}"])


def _stop_if_failing(state: dict[str, Any] | None, folder: Path) -> None:
    """Stops the platform if a role was restarted RESTARTS_MAX times.

    Raises Unavailable then, with the role's last error.
    """
    from cluster import local

    for name, role_state in (state or {}).get("roles", {}).items():
        if role_state["restarts"] >= RESTARTS_MAX:
            error = last_error(folder / f"{name}.log")
            local.stop(folder.parent)
            raise Unavailable(
                f"the role {name} does not start: {error} (more in {folder / name}.log)",
                dependency=name,
            )


def last_error(path: Path) -> str:
    """Returns the newest error of a role's event file in one line, else the file's last line."""
    lines = path.read_text(errors="replace").strip().split("\n")[-200:] if path.exists() else []
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("level") in ("error", "critical"):
            facts = {
                k: v
                for k, v in event.items()
                if k not in ("level", "timestamp", "role", "exception")
            }
            return " ".join(f"{k}={v}" for k, v in facts.items())[:500]
    return lines[-1][:500] if lines else "it wrote no event"


@click.command(epilog=EPILOG)
@here
def down(data: Path, *, as_json: bool) -> None:
    r"""Stop the platform: first the gateway with its requests in flight, then ingest and embedder.

    \b
    vicinage down --data /srv/vicinage
    """
    from cluster import local

    stopped = local.stop(data.absolute())
    show({"stopped": stopped, "data": str(data)}, as_json)


@click.command(epilog=EPILOG)
@common
def status(data: Path, url: str | None, *, as_json: bool, **_: Any) -> None:
    r"""Show processes, restarts, ready parts, and the remedy for halted partitions.

    \b
    vicinage status
    vicinage status --url http://10.0.0.5:8080
    """
    import httpx2

    from cluster import local
    from cluster.doctor import halts_next

    state = local.running(data.absolute()) if url is None else {"url": url}
    if state is None:
        raise Unavailable(
            f"no platform runs on {data}: start it with `vicinage up --data {data}`",
            dependency="supervisor",
        )
    try:
        answer = httpx2.get(f"{state['url']}/readyz", timeout=10, trust_env=False).json()
    except (httpx2.HTTPError, ValueError) as error:
        answer = {"ready": False, "parts": {}, "error": str(error)}
    remedy = halts_next(answer.get("parts", {}))
    show({**state, **answer, **({"next": remedy} if remedy else {})}, as_json)
    if answer.get("ready") is not True:
        sys.exit(EXIT_UNAVAILABLE if url is not None and "error" in answer else EXIT_FAILED)


@click.command(hidden=True)
@click.argument("name", type=click.Choice(["gateway", "ingest", "embedder"]))
@click.option("--ray", "ray_address")
@click.option("--searchers", type=int, default=1)
def role(name: str, ray_address: str | None, searchers: int) -> None:
    """Run one role in this process, as a child of `up`."""
    from cluster.configuration import load

    if ray_address:
        from cluster.ray import run_gateway

        run_gateway(load(), ray_address, searchers)
        return
    from cluster.roles import run_role

    run_role(name, load())


@click.command(epilog=EPILOG)
@here
@click.option(
    "--port",
    type=click.IntRange(0, 65_534),
    help="Port of the API to check [default: from the settings].",
)
@click.option("--host", help="Address to check [default: from the settings].")
@click.option("--url", help="Check only whether a platform elsewhere answers and is ready.")
def doctor(
    data: Path, port: int | None, host: str | None, url: str | None, *, as_json: bool
) -> None:
    r"""Check libraries, servers and files that the platform needs; each failure has a remedy.

    \b
    vicinage doctor --data /srv/vicinage --config /etc/vicinage.toml --port 9000
    vicinage doctor --url http://10.0.0.5:8080
    """
    from cluster.doctor import examine, examine_url

    rows = examine_url(url) if url else examine(settings_on(data, port, host))
    show(rows, as_json, ("check", "ok", "detail", "next"))
    if not all(row["ok"] for row in rows):
        sys.exit(EXIT_FAILED)
