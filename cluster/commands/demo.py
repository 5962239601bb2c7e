"""`vicinage demo`: indexes and searches real documents on a platform of its own."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from cluster.commands.base import EXIT_FAILED
from cluster.commands.output import show

PORTS = 4
"""Number of consecutive ports that a platform uses."""


@click.command(
    epilog=(
        "Exit status: 0 all checks passed, 1 a check failed, 2 wrong usage, 3 the platform did not"
        " start."
    )
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help=(
        "Empty or new directory for the platform, kept afterwards [default: a temporary one,"
        " removed]."
    ),
)
@click.option(
    "--port",
    type=click.IntRange(1, 65_532),
    help="Port of its API; it also uses the next three [default: free ones].",
)
@click.option(
    "--documents",
    type=click.IntRange(50, 2_000),
    default=150,
    show_default=True,
    help="Largest number of documents of each tenant.",
)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def demo(data: Path | None, port: int | None, documents: int, *, as_json: bool) -> None:
    r"""Index and search real documents of two tenants on a temporary platform; check the results.

    Takes about a minute. It needs no network and no other server, reads no settings, and leaves
    nothing behind. With --data, `vicinage up --data DIR` starts the platform again afterwards.

    \b
    vicinage demo
    vicinage demo --data demo --documents 500
    """
    from cluster.commands.demo_run import run_demo

    began = time.monotonic()
    with ExitStack() as stack:
        folder = (
            _folder(data)
            if data
            else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vicinage-demo-")))
        )
        report = run_demo(
            folder, port or _free_ports(), documents, _quiet if as_json else click.echo
        )
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        show(
            {
                "ok": report.ok(),
                "seconds": seconds,
                "data": str(folder) if data else None,
                "checks": report.checks,
            },
            as_json,
        )
    else:
        failed = [check["check"] for check in report.checks if not check["ok"]]
        outcome = f"Failed: {', '.join(failed)}" if failed else "All checks passed"
        hint = f" Start it again: vicinage up --data {data}" if data else ""
        click.echo(f"\n{outcome}, in {seconds:.0f} s.{hint}")
    if not report.ok():
        raise SystemExit(EXIT_FAILED)


def _quiet(_line: str) -> None:
    """Prints nothing."""


def _folder(data: Path) -> Path:
    """Returns the directory; creates it if absent.

    Raises click.BadParameter if it is not empty.
    """
    if data.exists() and any(data.iterdir()):
        raise click.BadParameter(
            f"{data} is not empty: the demo creates its own tenants", param_hint="--data"
        )
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    return data.absolute()


def _free_ports() -> int:
    """Returns the first of PORTS consecutive ports that are free now."""
    import socket

    from cluster.local import check_free
    from vicinage.errors import Refused

    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first: int = probe.getsockname()[1]
        try:
            for number in range(first, min(first + PORTS, 65_536)):
                check_free("127.0.0.1", number)
        except Refused:
            continue
        return first
    raise click.ClickException("no four consecutive free ports were found: choose one with --port")
