"""`vicinage capacity`, `freshness` and `recall`: what a running platform measures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.base import EPILOG, Group, common, operator, part
from cluster.commands.output import show
from cluster.commands.tables import headroom_rows, recall_rows, usage_rows
from vicinage.errors import Unavailable

if TYPE_CHECKING:
    from cluster.commands.operator import Operator


_CAPACITY = ("collections", "tenants", "disk", "retention", "headroom", "rates")


@click.group(cls=Group, invoke_without_command=True, epilog=EPILOG)
@common
@click.pass_context
def capacity(
    ctx: click.Context, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Show the use of each tenant and collection, the rates, and the headroom.

    \b
    vicinage capacity
    """
    if ctx.invoked_subcommand is None:
        _capacity(data, url, key, as_json=as_json, parts=_CAPACITY)


@capacity.command("show")
@common
def capacity_show(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Show the complete report.

    \b
    vicinage capacity show --json
    """
    _capacity(data, url, key, as_json=as_json, parts=_CAPACITY)


@capacity.command("headroom")
@common
def capacity_headroom(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Show the headroom.

    \b
    vicinage capacity headroom
    """
    _capacity(data, url, key, as_json=as_json, parts=("headroom",))


def _capacity(
    data: Path, url: str | None, key: str | None, *, as_json: bool, parts: Sequence[str]
) -> None:
    report = _live(data, url, key).call("GET", "/capacity")
    if as_json:
        show(report if len(parts) > 1 else report[parts[0]], as_json)
        return
    for name in parts:
        click.echo(click.style(name, bold=True))
        shown = {
            "collections": usage_rows,
            "tenants": usage_rows,
            "headroom": headroom_rows,
        }.get(name)
        show(shown(report[name]) if shown else report[name], as_json)
        click.echo()


@click.command(epilog=EPILOG)
@click.argument("tenant_name", metavar="[TENANT]", required=False)
@common
def freshness(
    tenant_name: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Show each tenant's lag, percentiles of recent index lags, and documents that wait.

    Also shows the number of messages replayed. Documents may wait for a model.

    \b
    vicinage freshness acme
    """
    if tenant_name and "/" in tenant_name:
        raise click.BadParameter(
            "write TENANT; one collection's lag is in `vicinage collection show`",
            param_hint="TENANT",
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


@click.command(epilog=EPILOG)
@click.argument("where", metavar="[TENANT[/COLLECTION]]", required=False)
@common
def recall(
    where: str | None, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Show each collection's recall, measured on sampled live searches.

    Shows the interval, the number of samples, the target and the verdict.

    \b
    vicinage recall acme/docs
    """
    tenant_name, _, name = (where or "").partition("/")
    query = "&".join(
        f"{k}={part(v)}" for k, v in (("tenant", tenant_name), ("collection", name)) if v
    )
    report = _live(data, url, key).call("GET", f"/recall?{query}")
    show(report if as_json else recall_rows(report), as_json)


def _live(data: Path, url: str | None, key: str | None) -> "Operator":
    """Returns the connection to a running platform. Raises Unavailable if none runs."""
    platform = operator(data, url, key)
    if not platform.live:
        raise Unavailable(
            f"no platform runs on {data}, and only a running one measures this: `vicinage up"
            f" --data {data}`",
            dependency="gateway",
        )
    return platform
