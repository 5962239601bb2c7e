"""The command line: `vicinage`. Heavy imports happen inside the commands, so that --help answers at once."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.commands.base import (
    EPILOG,
    EXIT_AWAY,
    EXIT_FAILED,
    EXIT_PARTLY,
    Group,
    common,
    confirmed,
    here,
    operator,
    part,
    where_of,
)
from cluster.commands.config import config
from cluster.commands.dead_letters import dead_letters
from cluster.output import show
from cluster.tables import collection_rows, headroom_rows, holding_rows, recall_rows
from vicinage.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from cluster.operator import Operator
    from vicinage.settings import Settings


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vicinage")
def main() -> None:
    """Vicinage: a managed vector retrieval platform for many tenants."""


READY_S = 600.0
"""How long `up --detach` waits: the first start after an installation reads gigabytes of libraries, maybe on a busy machine."""
TOLD_S = 15.0
"""How often it says what it waits for, when that has not changed."""
RESTARTS_MAX = 4
"""Restarts of a role, while the platform starts, that end the start."""
main.add_command(config)
main.add_command(dead_letters)


# The platform itself.


def _settings(data: Path, port: int | None = None, host: str | None = None) -> "Settings":
    """Settings of the platform on `data`; warns of variables that are none. Raises ConfigurationError."""
    import os

    from cluster.configuration import load, unknown_variables
    from vicinage.settings import GatewaySettings

    for warning in unknown_variables(os.environ):
        click.echo(f"vicinage: warning: {warning}", err=True)
    settings = load(data=data.absolute())
    changes = {k: v for k, v in (("port", port), ("host", host)) if v is not None}
    if changes:
        gateway = GatewaySettings(**{**settings.gateway.model_dump(), **changes})
        settings = settings.model_copy(update={"gateway": gateway})
    return settings


@main.command(epilog=EPILOG)
@here
@click.option("--port", type=click.IntRange(0, 65_534), help="Port of the API [default: 8080].")
@click.option("--host", help="Address to listen on [default: 127.0.0.1].")
@click.option("--detach", is_flag=True, help="Return when it is ready; stop it with `vicinage down`.")
@click.option("--ray", "ray_address", help="Place the roles on the Ray cluster at this address.")
@click.option("--searchers", type=click.IntRange(1, 256), default=1, show_default=True, help="Searchers on Ray.")
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

    settings = _settings(data, port, host)
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
        commands = local.role_commands(["gateway"], "--ray", ray_address, "--searchers", str(searchers))
    else:
        commands = local.role_commands(["embedder", "ingest", "gateway"])
    s = settings.resolved()
    click.echo(
        f"starting on http://{s.gateway.host}:{s.gateway.port} with data in {s.data} (events in {s.data}/run)", err=True
    )
    local.Supervisor(settings, commands).run()


def _up_detached(data: Path, ray_address: str | None, searchers: int, settings: "Settings", as_json: bool) -> None:
    import subprocess

    from cluster import local

    if local.running(data.absolute()) is not None:
        raise Unavailable(f"a platform runs on {data} already: `vicinage status`", dependency="supervisor")
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
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    url = f"http://{'127.0.0.1' if s.gateway.host == '0.0.0.0' else s.gateway.host}:{s.gateway.port}"  # noqa: S104  (compared)
    _await_ready(url, process, path)
    show({"url": url, "data": str(s.data), "pid": process.pid}, as_json)


def _await_ready(url: str, process: Any, events: Path, wait_s: float = READY_S) -> None:
    """Waits until every part is ready, saying what it waits for. Stops the platform where a role dies again and again."""
    import httpx

    from cluster import local

    began = time.monotonic()
    told, again_at, missing = "", began, "the supervisor"
    while (now := time.monotonic()) < began + wait_s:
        if process.poll() is not None:
            tail = events.read_text(errors="replace").strip().split("\n")[-5:]
            raise Unavailable("it did not start:\n  " + "\n  ".join(tail), dependency="supervisor")
        try:
            answer = httpx.get(f"{url}/readyz", timeout=5, trust_env=False).json()
            parts = answer["parts"]
            if answer["ready"] and parts["embedder"]["ready"]:
                return
            missing = ", ".join(name for name, part in parts.items() if not part["ready"])
        except (httpx.HTTPError, ValueError, KeyError):
            missing = "the gateway"  # not listening yet: that is what is waited for
        if missing != told or now >= again_at:
            told, again_at = missing, now + TOLD_S
            click.echo(f"vicinage: waiting for {missing} ({now - began:.0f} s)", err=True)
        _stop_if_dying(local.running(events.parent.parent), events.parent)
        time.sleep(0.1)
    raise Unavailable(
        f"{missing} of {url} not ready within {wait_s:.0f} s. The platform goes on starting: `vicinage status`, or "
        f"`vicinage down`. {_last_steps(events.parent)}",
        dependency="gateway",
    )


def _last_steps(folder: Path) -> str:
    """Returns the newest event of each role, which tells how far its start came, and where there are more."""
    found = {path.stem: last_error(path) for path in sorted(folder.glob("*.log"))}
    return "; ".join([f"{name}: {event}" for name, event in found.items()] + [f"more in {folder}"])


def _stop_if_dying(state: dict[str, Any] | None, folder: Path) -> None:
    """Raises Unavailable with a role's last error where it was restarted RESTARTS_MAX times, once all is stopped."""
    from cluster import local

    for name, role_state in (state or {}).get("roles", {}).items():
        if role_state["restarts"] >= RESTARTS_MAX:
            error = last_error(folder / f"{name}.log")
            local.stop(folder.parent)
            raise Unavailable(f"the role {name} does not start: {error} (more in {folder / name}.log)", dependency=name)


def last_error(path: Path) -> str:
    """Returns the newest error in a role's event file, in one line; else its last line."""
    lines = path.read_text(errors="replace").strip().split("\n")[-200:] if path.exists() else []
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("level") in ("error", "critical"):
            facts = {k: v for k, v in event.items() if k not in ("level", "timestamp", "role", "exception")}
            return " ".join(f"{k}={v}" for k, v in facts.items())[:500]
    return lines[-1][:500] if lines else "it left no event"


@main.command(epilog=EPILOG)
@here
def down(data: Path, *, as_json: bool) -> None:
    r"""Stop the platform: the gateway finishes what is in flight, then ingest, then the embedder.

    \b
    vicinage down --data /srv/vicinage
    """
    from cluster import local

    stopped = local.stop(data.absolute())
    show({"stopped": stopped, "data": str(data)}, as_json)


@main.command(epilog=EPILOG)
@common
def status(data: Path, url: str | None, *, as_json: bool, **_: Any) -> None:
    r"""Which processes run, how often each was restarted, which parts are ready, and what to do about halted partitions.

    \b
    vicinage status
    vicinage status --url http://10.0.0.5:8080
    """
    import httpx

    from cluster import local
    from cluster.doctor import halts_next

    state = local.running(data.absolute()) if url is None else {"url": url}
    if state is None:
        raise Unavailable(
            f"no platform runs on {data}: start it with `vicinage up --data {data}`", dependency="supervisor"
        )
    try:
        answer = httpx.get(f"{state['url']}/readyz", timeout=10, trust_env=False).json()
    except (httpx.HTTPError, ValueError) as error:
        answer = {"ready": False, "parts": {}, "error": str(error)}
    remedy = halts_next(answer.get("parts", {}))
    show({**state, **answer, **({"next": remedy} if remedy else {})}, as_json)
    if answer.get("ready") is not True:
        sys.exit(EXIT_AWAY if url is not None and "error" in answer else EXIT_FAILED)


@main.command(hidden=True)
@click.argument("name", type=click.Choice(["gateway", "ingest", "embedder"]))
@click.option("--ray", "ray_address")
@click.option("--searchers", type=int, default=1)
def role(name: str, ray_address: str | None, searchers: int) -> None:
    """Run one role in this process (what `up` starts)."""
    from cluster.configuration import load

    if ray_address:
        from cluster.ray import run_gateway

        run_gateway(load(), ray_address, searchers)
        return
    from cluster.roles import run_role

    run_role(name, load())


@main.command(epilog=EPILOG)
@here
@click.option(
    "--port", type=click.IntRange(0, 65_534), help="Port of the API that is checked [default: as the settings say]."
)
@click.option("--host", help="Address that is checked [default: as the settings say].")
@click.option("--url", help="Check only that a platform elsewhere answers and is ready.")
def doctor(data: Path, port: int | None, host: str | None, url: str | None, *, as_json: bool) -> None:
    r"""Check what the platform stands on, by the same options as `up`; each failure says what to do next.

    \b
    vicinage doctor --data /srv/vicinage --config /etc/vicinage.toml --port 9000
    vicinage doctor --url http://10.0.0.5:8080
    """
    from cluster.doctor import examine, examine_url

    rows = examine_url(url) if url else examine(_settings(data, port, host))
    show(rows, as_json, ("check", "ok", "detail", "next"))
    if not all(row["ok"] for row in rows):
        sys.exit(EXIT_FAILED)


# Tenants, keys, collections.


@main.group(epilog=EPILOG)
def tenant() -> None:
    """Tenants: who shares the platform."""


@tenant.command("create")
@click.argument("name")
@click.option(
    "--class",
    "priority",
    type=click.Choice(["gold", "silver", "bronze"]),
    default="silver",
    show_default=True,
    help="Its fair share: gold weighs 4, silver 2, bronze 1.",
)
@common
def tenant_create(name: str, priority: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Make a tenant; prints its first key (read and write), which is shown once.

    \b
    vicinage tenant create acme --class gold
    """
    show(operator(data, url, key).call("POST", "/tenants", {"name": name, "class": priority}), as_json)


@tenant.command("list")
@common
def tenant_list(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""All tenants.

    \b
    vicinage tenant list --json
    """
    show(operator(data, url, key).call("GET", "/tenants"), as_json, ("tenant", "class", "state", "collections"))


@tenant.command("show")
@click.argument("name")
@common
def tenant_show(name: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""One tenant.

    \b
    vicinage tenant show acme
    """
    show(operator(data, url, key).call("GET", f"/tenants/{part(name)}"), as_json)


@tenant.command("update")
@click.argument("name")
@click.option("--class", "priority", type=click.Choice(["gold", "silver", "bronze"]), required=True, help="New class.")
@common
def tenant_update(name: str, priority: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Change a tenant's class; every role follows within about a second.

    \b
    vicinage tenant update acme --class bronze
    """
    show(operator(data, url, key).call("PATCH", f"/tenants/{part(name)}", {"class": priority}), as_json)


@tenant.command("suspend")
@click.argument("name")
@common
def tenant_suspend(name: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Refuse a tenant's keys and pause its topic; nothing is lost.

    \b
    vicinage tenant suspend acme
    """
    show(operator(data, url, key).call("POST", f"/tenants/{part(name)}/suspend"), as_json)


@tenant.command("resume")
@click.argument("name")
@common
def tenant_resume(name: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Undo a suspension.

    \b
    vicinage tenant resume acme
    """
    show(operator(data, url, key).call("POST", f"/tenants/{part(name)}/resume"), as_json)


@tenant.command("resume-ingest")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Say what would be skipped; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def tenant_resume_ingest(
    name: str, data: Path, url: str | None, key: str | None, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    r"""Let ingest go on in a tenant's halted partitions; says which records that skips.

    \b
    vicinage tenant resume-ingest acme --dry-run
    """
    road, path = operator(data, url, key), f"/tenants/{part(name)}/resume-ingest"
    plan = road.call("POST", path, {"dry_run": True})
    to_do = [p for p in plan["partitions"] if p["resume_at"] is not None]
    if not dry_run and to_do:
        if not yes:
            show(plan["partitions"], as_json=False, columns=RESUMED)
            confirmed("Go on so?")
        plan = road.call("POST", path, {"dry_run": False})
    show(plan if as_json else plan["partitions"], as_json, RESUMED)


@tenant.command("set-partitions")
@click.argument("name")
@click.argument("partitions", type=click.IntRange(1, 1_024))
@click.option("--dry-run", is_flag=True, help="Say what would change; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def tenant_set_partitions(
    name: str,
    partitions: int,
    data: Path,
    url: str | None,
    key: str | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    r"""Grow a tenant's documents topic; its writes stay in order, but see --dry-run about its own Kafka producers.

    A producer that does not know of the new partitions yet (up to metadata.max.age.ms, 5 minutes) loses to writes that do.

    \b
    vicinage tenant set-partitions acme 4 --dry-run
    """
    road, path = operator(data, url, key), f"/tenants/{part(name)}/partitions"
    plan = road.call("POST", path, {"partitions": partitions, "dry_run": True})
    if not dry_run:
        if not yes:
            show(plan, as_json=False)
            confirmed("No partition can be removed again. Go on?")
        plan = road.call("POST", path, {"partitions": partitions})
    show(plan, as_json)


RESUMED = ("partition", "kind", "position", "resume_at", "skipped_records", "effect")


@tenant.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def tenant_delete(name: str, data: Path, url: str | None, key: str | None, *, yes: bool, as_json: bool) -> None:
    r"""Delete a tenant with its collections and topics. Its name is not given again.

    \b
    vicinage tenant delete acme --yes
    """
    if not yes:
        confirmed(f"Delete tenant {name} with everything it has?")
    show(operator(data, url, key).call("DELETE", f"/tenants/{part(name)}?confirm={part(name)}"), as_json)


@main.group("key", epilog=EPILOG)
def keys() -> None:
    """API keys: shown once, stored hashed."""


@keys.command("create")
@click.argument("tenant_name", metavar="[TENANT]", required=False)
@click.option("--scopes", default="read,write", show_default=True, help="read, write; or operate, without a tenant.")
@click.option("--expires", help="How long it lives: 90d, 12h, 30m.")
@common
def key_create(
    tenant_name: str | None,
    scopes: str,
    expires: str | None,
    data: Path,
    url: str | None,
    key: str | None,
    *,
    as_json: bool,
) -> None:
    r"""Make a key for a tenant; or, with --scopes operate, for an operator.

    \b
    vicinage key create acme --scopes read --expires 90d
    vicinage key create --scopes operate
    """
    body = {"tenant": tenant_name, "scopes": scopes.split(","), "expires_s": _seconds(expires)}
    show(operator(data, url, key).call("POST", "/keys", body), as_json)


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    unit = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}.get(text[-1:])
    if unit is None or not text[:-1].isdigit():
        raise click.BadParameter("write 90d, 12h, 30m or 45s", param_hint="--expires")
    return int(text[:-1]) * unit


@keys.command("list")
@click.argument("tenant_name", metavar="[TENANT]", required=False)
@common
def key_list(tenant_name: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Keys without their secrets.

    \b
    vicinage key list acme
    """
    path = "/keys" + (f"?tenant={part(tenant_name)}" if tenant_name else "")
    show(
        operator(data, url, key).call("GET", path),
        as_json,
        ("id", "tenant", "scopes", "created_ms", "expires_ms", "revoked_ms"),
    )


@keys.command("revoke")
@click.argument("key_id")
@common
def key_revoke(key_id: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""End a key; within a second it works nowhere.

    \b
    vicinage key revoke 0123456789abcdef
    """
    show(operator(data, url, key).call("DELETE", f"/keys/{part(key_id)}"), as_json)


@main.group(epilog=EPILOG)
def collection() -> None:
    """Collections: a tenant's named sets of documents."""


INDEX_SPECS = "auto, flat, hnsw[:M=32,efc=80,codes=f32|sq8], ivf[:lists=N], ivfpq[:lists=N] or rabitq."


@collection.command("create")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@click.option("--model", help="Embedding model [default: all-minilm-l6-v2].")
@click.option("--dimension", type=int, help="The tenant sends vectors of this length.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "dot", "euclidean"]),
    default="cosine",
    show_default=True,
    help="How near two vectors are: cosine, dot or euclidean.",
)
@click.option("--index", default="auto", show_default=True, help=INDEX_SPECS)
@click.option("--shards", type=int, default=1, show_default=True, help="Parts, each in a slot; at most `slots`.")
@click.option("--recall", type=float, help="Recall objective [default: 0.95].")
@common
def collection_create(
    where: tuple[str, ...],
    data: Path,
    url: str | None,
    key: str | None,
    *,
    recall: float | None,
    as_json: bool,
    **given: Any,
) -> None:
    r"""Make a collection.

    \b
    vicinage collection create acme/docs --model all-minilm-l6-v2
    vicinage collection create acme/vectors --dimension 384 --metric dot --index hnsw:M=32
    """
    tenant_name, name = where_of(where)
    body = {k: v for k, v in {"name": name, **given}.items() if v is not None}
    if recall is not None:
        body["objectives"] = {"recall": recall}
    show(operator(data, url, key).call("POST", f"/tenants/{part(tenant_name)}/collections", body), as_json)


@collection.command("list")
@click.argument("tenant_name", metavar="[TENANT]", required=False)
@common
def collection_list(tenant_name: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Collections, with what each holds.

    \b
    vicinage collection list acme
    """
    path = "/collections" + (f"?tenant={part(tenant_name)}" if tenant_name else "")
    found = operator(data, url, key).call("GET", path)
    show(found if as_json else collection_rows(found), as_json)


@collection.command("show")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@common
def collection_show(where: tuple[str, ...], data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""One collection: counts, freshness, recall, index.

    \b
    vicinage collection show acme/docs
    """
    tenant_name, name = where_of(where)
    show(operator(data, url, key).call("GET", f"/tenants/{part(tenant_name)}/collections/{part(name)}"), as_json)


@collection.command("update")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@click.option("--recall", type=float, help="Recall objective, 0.5 to 1.")
@click.option("--freshness-ms", type=int, help="Freshness objective, milliseconds.")
@click.option("--latency-ms", type=int, help="Latency objective, milliseconds.")
@common
def collection_update(
    where: tuple[str, ...], data: Path, url: str | None, key: str | None, *, as_json: bool, **objectives: float | None
) -> None:
    r"""Change a collection's objectives; those not named stay.

    \b
    vicinage collection update acme/docs --recall 0.98
    """
    tenant_name, name = where_of(where)
    body = {"objectives": {k: v for k, v in objectives.items() if v is not None}}
    if not body["objectives"]:
        raise click.UsageError("name at least one of --recall, --freshness-ms and --latency-ms")
    show(
        operator(data, url, key).call("PATCH", f"/tenants/{part(tenant_name)}/collections/{part(name)}", body), as_json
    )


@collection.command("delete")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def collection_delete(
    where: tuple[str, ...], data: Path, url: str | None, key: str | None, *, yes: bool, as_json: bool
) -> None:
    r"""Delete a collection with all its documents.

    \b
    vicinage collection delete acme/docs --yes
    """
    tenant_name, name = where_of(where)
    if not yes:
        confirmed(f"Delete collection {tenant_name}/{name} with all its documents?")
    path = f"/tenants/{part(tenant_name)}/collections/{part(name)}?confirm={part(name)}"
    show(operator(data, url, key).call("DELETE", path), as_json)


# Reindex, and what is measured.


@main.group(epilog=EPILOG)
def reindex() -> None:
    """Build a collection's next generation beside the live one, and cut over."""


@reindex.command("start")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@click.option("--index", help=f"Of the next generation [default: as it is]: {INDEX_SPECS}")
@click.option("--model", help="Embedding model of the next generation [default: as it is].")
@click.option("--shards", type=int, help="Shards of the next generation [default: as it is].")
@click.option("--wait", is_flag=True, help="Follow it to its end.")
@common
def reindex_start(
    where: tuple[str, ...], data: Path, url: str | None, key: str | None, *, wait: bool, as_json: bool, **given: Any
) -> None:
    r"""Start a reindex. Writes and searches go on meanwhile; interrupting --wait leaves it running.

    \b
    vicinage reindex start acme/docs --index hnsw --shards 2 --wait
    """
    tenant_name, name = where_of(where)
    road = operator(data, url, key)
    body = {k: v for k, v in {"tenant": tenant_name, "collection": name, **given}.items() if v is not None}
    job = road.call("POST", "/reindex", body)
    if wait:
        job = _follow(road, job["id"], quiet=as_json)
    show(job, as_json)
    if job["state"] in ("failed", "cancelled"):
        sys.exit(EXIT_FAILED)


def _follow(road: "Operator", job_id: str, *, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("pending", total=None)
        try:
            while True:
                job = road.call("GET", f"/reindex/{part(job_id)}")
                progress.update(bar, description=job["state"], completed=job["done"], total=job["total"] or None)
                if job["state"] in ("done", "failed", "cancelled"):
                    return job
                time.sleep(0.2)
        except KeyboardInterrupt:
            click.echo(f"still running: follow it with `vicinage reindex status {job_id}`", err=True)
            sys.exit(130)


@reindex.command("status")
@click.argument("job_id")
@common
def reindex_status(job_id: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""One job.

    \b
    vicinage reindex status 0123456789abcdef
    """
    show(operator(data, url, key).call("GET", f"/reindex/{part(job_id)}"), as_json)


@reindex.command("list")
@common
def reindex_list(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""All jobs, oldest first.

    \b
    vicinage reindex list
    """
    columns = ("id", "tenant", "collection", "state", "index", "shards", "done", "total", "error")
    show(operator(data, url, key).call("GET", "/reindex"), as_json, columns)


@reindex.command("cancel")
@click.argument("job_id")
@common
def reindex_cancel(job_id: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Give up a job that has not cut over.

    \b
    vicinage reindex cancel 0123456789abcdef
    """
    show(operator(data, url, key).call("POST", f"/reindex/{part(job_id)}/cancel"), as_json)


_CAPACITY = ("collections", "tenants", "disk", "retention", "headroom", "rates")


@main.group(invoke_without_command=True, epilog=EPILOG)
@common
@click.pass_context
def capacity(ctx: click.Context, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""What every tenant and collection holds, the rates, and what is left.

    \b
    vicinage capacity
    """
    if ctx.invoked_subcommand is None:
        _capacity(data, url, key, as_json=as_json, parts=_CAPACITY)


@capacity.command("show")
@common
def capacity_show(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Everything.

    \b
    vicinage capacity show --json
    """
    _capacity(data, url, key, as_json=as_json, parts=_CAPACITY)


@capacity.command("headroom")
@common
def capacity_headroom(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""What is left.

    \b
    vicinage capacity headroom
    """
    _capacity(data, url, key, as_json=as_json, parts=("headroom",))


def _capacity(data: Path, url: str | None, key: str | None, *, as_json: bool, parts: Sequence[str]) -> None:
    report = _live(data, url, key).call("GET", "/capacity")
    if as_json:
        show(report if len(parts) > 1 else report[parts[0]], as_json)
        return
    for name in parts:
        click.echo(click.style(name, bold=True))
        shown = {"collections": holding_rows, "tenants": holding_rows, "headroom": headroom_rows}.get(name)
        show(shown(report[name]) if shown else report[name], as_json)
        click.echo()


@main.command(epilog=EPILOG)
@click.argument("tenant_name", metavar="[TENANT]", required=False)
@common
def freshness(tenant_name: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Per tenant: the lag now, percentiles of n recent index lags, messages replayed, and what waits for a model.

    \b
    vicinage freshness acme
    """
    if tenant_name and "/" in tenant_name:
        raise click.BadParameter(
            "write TENANT; one collection's lag is in `vicinage collection show`", param_hint="TENANT"
        )
    query = f"?tenant={part(tenant_name)}" if tenant_name else ""
    rows = _live(data, url, key).call("GET", f"/freshness{query}")
    if as_json:
        show(rows, as_json)
        return
    show([{name: fact for name, fact in row.items() if name != "waiting"} for row in rows], as_json)
    if waits := [wait for row in rows for wait in row["waiting"]]:
        click.echo(click.style("\nwaiting for a model", bold=True))
        show(waits, as_json)


@main.command(epilog=EPILOG)
@click.argument("where", metavar="[TENANT[/COLLECTION]]", required=False)
@common
def recall(where: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Per collection: recall measured on sampled live searches, with interval, n, target and verdict.

    \b
    vicinage recall acme/docs
    """
    tenant_name, _, name = (where or "").partition("/")
    query = "&".join(f"{k}={part(v)}" for k, v in (("tenant", tenant_name), ("collection", name)) if v)
    report = _live(data, url, key).call("GET", f"/recall?{query}")
    show(report if as_json else recall_rows(report), as_json)


def _live(data: Path, url: str | None, key: str | None) -> "Operator":
    """Figures that only a running platform has."""
    road = operator(data, url, key)
    if not road.live:
        raise Unavailable(
            f"no platform runs on {data}, and this is measured on a running one: `vicinage up --data {data}`",
            dependency="gateway",
        )
    return road


@main.group(epilog=EPILOG)
def audit() -> None:
    """The audit chain: who changed what."""


@audit.command("list")
@click.option("--after", type=int, default=0, show_default=True, help="Only records beyond this number.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="Most records, to 1,000.")
@common
def audit_list(after: int, limit: int, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Records, oldest first.

    \b
    vicinage audit list --after 100 --limit 20
    """
    rows = operator(data, url, key).call("GET", f"/audit?after={after}&limit={limit}")
    show(rows, as_json, ("seq", "at_ms", "actor", "action", "subject", "after"))


@audit.command("verify")
@click.option("--against", metavar="SEQ:HASH", help="Newest record of an earlier verify, kept outside the catalog.")
@common
def audit_verify(against: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Check each record's hash and MAC, and print the newest: keep it outside the catalog.

    "intact" is said of what was verified with the audit key. Without the key the chain alone is checked, which whoever
    can write to the catalog can recompute: exit status 4. Records cut off the end are seen only --against an earlier newest.

    \b
    vicinage audit verify --against 118:9f2c…
    """
    seq, _, digest = (against or "").partition(":")
    if against and not (seq.isdecimal() and digest):
        raise click.BadParameter("write SEQ:HASH, as an earlier verify printed them", param_hint="--against")
    body = {"seq": int(seq), "hash": digest} if against else {}
    found = operator(data, url, key).call("POST", "/audit/verify", body)
    show(found, as_json)
    if found["keyed_from"] is None:
        sys.exit(EXIT_PARTLY)


@audit.command("new-key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@here
def audit_new_key(data: Path, *, yes: bool, as_json: bool) -> None:
    r"""Make another audit key in place of one that is lost or known to others; the platform must be down everywhere.

    Records up to now are then verified as they are now, by the hash of the newest; copy the new file to every node.

    \b
    vicinage audit new-key --yes
    """
    from cluster import local
    from cluster.audit_key import make_key, path_of
    from cluster.wiring import ground

    if local.running(data.absolute()) is not None:
        raise Conflict(f"a platform runs on {data} with the key of now: `vicinage down` first")
    if not yes:
        confirmed("Make another audit key? Every node needs its file then")
    base = ground(_settings(data), audit_key_optional=True)
    try:
        made = make_key(base.settings, base.engine, again=True)
    finally:
        base.close()
    show({"file": str(path_of(base.settings)), "after": made.after}, as_json)


@main.group(epilog=EPILOG)
def model() -> None:
    """The registry of embedding models."""


@model.command("list")
@common
def model_list(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""All models.

    \b
    vicinage model list
    """
    show(operator(data, url, key).call("GET", "/models"), as_json)


@model.command("register")
@click.argument("name")
@click.option("--kind", type=click.Choice(["local", "openai"]), required=True, help="Files, or a server of its own.")
@click.option("--location", required=True, help="package:MODULE or a folder of files; a server's base URL (…/v1).")
@click.option("--dimension", type=int, help="Length of its vectors [default: as the files say].")
@click.option("--window-tokens", type=int, help="Longest input that it reads [default: as the files say].")
@click.option(
    "--normalised/--no-normalised", default=None, help="Make its vectors unit length [default: as the files say; yes]."
)
@click.option("--query-prompt", help="Text before each search text [default: as the files say].")
@click.option("--document-prompt", help="Text before each passage [default: as the files say].")
@click.option("--check/--no-check", default=True, show_default=True, help="Load it, or call its server, first.")
@common
def model_register(name: str, data: Path, url: str | None, key: str | None, *, as_json: bool, **given: Any) -> None:
    r"""Add a model; entries never change. A local one is served after the embedder's next start.

    \b
    vicinage model register e5 --kind local --location /srv/models/e5-small
    vicinage model register own --kind openai --location http://10.0.0.7:8000/v1 --dimension 1024 --window-tokens 512
    """
    body = {"name": name, **{field: value for field, value in given.items() if value is not None}}
    show(operator(data, url, key).call("POST", "/models", body), as_json)


@model.command("retire")
@click.argument("name")
@common
def model_retire(name: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Let no new collection or reindex use a model. Refused while a collection uses it.

    \b
    vicinage model retire e5
    """
    show(operator(data, url, key).call("POST", f"/models/{part(name)}/retire"), as_json)


@main.group("cluster", epilog=EPILOG)
def cluster_group() -> None:
    """What the platform stands on."""


@cluster_group.command("kafka-acls")
@click.option("--principal", required=True, help="Whom Kafka permits: User:vicinage for the platform itself.")
@click.option("--tenant", help="Print what this tenant's producer needs, in place of what the platform needs.")
@here
def cluster_kafka_acls(principal: str, tenant: str | None, data: Path, *, as_json: bool) -> None:
    r"""Print the commands that give Kafka permissions; changes nothing.

    \b
    vicinage cluster kafka-acls --principal User:vicinage
    vicinage cluster kafka-acls --principal User:team-a --tenant team-a
    """
    from dataclasses import asdict

    from cluster.kafka_acls import acls, commands, tenant_acls
    from tenants.registry import TENANT_NAME

    if not all(principal.partition(":")[::2]):
        raise click.BadParameter("write TYPE:NAME, as User:vicinage", param_hint="--principal")
    if tenant is not None and not TENANT_NAME.fullmatch(tenant):
        raise click.BadParameter("no tenant has that name", param_hint="--tenant")
    _, _, servers = _settings(data).log_url.partition("kafka://")
    wanted = acls(principal) if tenant is None else tenant_acls(tenant, principal)
    if as_json:
        show([asdict(acl) for acl in wanted], as_json)
        return
    for line in commands(wanted, servers or "BROKER:9092"):
        click.echo(line)


if __name__ == "__main__":
    main()
