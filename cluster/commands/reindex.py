"""`vicinage reindex`: a collection's next generation."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.commands.base import EPILOG, EXIT_FAILED, Group, common, operator, part, where_of
from cluster.commands.collections import INDEX_SPECS
from cluster.commands.output import show

if TYPE_CHECKING:
    from cluster.commands.operator import Operator


@click.group(cls=Group, epilog=EPILOG)
def reindex() -> None:
    """Build a collection's next generation beside the live one, and cut over."""


@reindex.command("start")
@click.argument("where", metavar="TENANT/COLLECTION", nargs=-1, required=True)
@click.option("--index", help=f"Index of the next generation [default: unchanged]: {INDEX_SPECS}")
@click.option("--model", help="Embedding model of the next generation [default: unchanged].")
@click.option("--shards", type=int, help="Shards of the next generation [default: unchanged].")
@click.option("--wait", is_flag=True, help="Wait until it ends, with a progress bar.")
@common
def reindex_start(
    where: tuple[str, ...],
    data: Path,
    url: str | None,
    key: str | None,
    *,
    wait: bool,
    as_json: bool,
    **given: Any,
) -> None:
    r"""Start a reindex. Writes and searches continue; interrupting --wait does not stop it.

    \b
    vicinage reindex start acme/docs --index hnsw --shards 2 --wait
    """
    tenant_name, name = where_of(where)
    platform = operator(data, url, key)
    body = {
        k: v
        for k, v in {"tenant": tenant_name, "collection": name, **given}.items()
        if v is not None
    }
    job = platform.call("POST", "/reindex", body)
    if wait:
        job = _follow(platform, job["id"], quiet=as_json)
    show(job, as_json)
    if job["state"] in ("failed", "canceled"):
        sys.exit(EXIT_FAILED)


def _follow(platform: "Operator", job_id: str, *, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("pending", total=None)
        try:
            while True:
                job = platform.call("GET", f"/reindex/{part(job_id)}")
                progress.update(
                    bar, description=job["state"], completed=job["done"], total=job["total"] or None
                )
                if job["state"] in ("done", "failed", "canceled"):
                    return job
                time.sleep(0.2)
        except KeyboardInterrupt:
            click.echo(
                f"still running: follow it with `vicinage reindex status {job_id}`", err=True
            )
            sys.exit(130)


@reindex.command("status")
@click.argument("job_id")
@common
def reindex_status(
    job_id: str, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Show one job.

    \b
    vicinage reindex status 0123456789abcdef
    """
    show(operator(data, url, key).call("GET", f"/reindex/{part(job_id)}"), as_json)


@reindex.command("list")
@common
def reindex_list(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""List all jobs, oldest first.

    \b
    vicinage reindex list
    """
    columns = ("id", "tenant", "collection", "state", "index", "shards", "done", "total", "error")
    show(operator(data, url, key).call("GET", "/reindex"), as_json, columns)


@reindex.command("cancel")
@click.argument("job_id")
@common
def reindex_cancel(
    job_id: str, data: Path, url: str | None, key: str | None, *, as_json: bool
) -> None:
    r"""Cancel a job that has not cut over.

    \b
    vicinage reindex cancel 0123456789abcdef
    """
    show(operator(data, url, key).call("POST", f"/reindex/{part(job_id)}/cancel"), as_json)
