"""`vicinage demo`: the main job on real documents, with a platform of its own."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from cluster.commands.base import EXIT_FAILED
from cluster.commands.output import show

PORTS = 4
"""Ports that a platform takes, one after the other."""


@click.command(
    epilog="Exit status: 0 all of it held, 1 something did not, 2 wrong usage, 3 the platform did not start."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Empty or new directory for the platform, kept afterwards [default: a temporary one, removed].",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65_532),
    help="Port of its API; the next three are used, too [default: free ones].",
)
@click.option(
    "--documents",
    type=click.IntRange(50, 2_000),
    default=150,
    show_default=True,
    help="Most documents of each tenant.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
def demo(data: Path | None, port: int | None, documents: int, *, as_json: bool) -> None:
    r"""Index real documents for two tenants on a platform of its own, search them, and check what is promised.

    Takes about a minute. It needs no network and no other server, reads no settings, and leaves nothing behind: give --data
    to look around afterwards with `vicinage up --data DIR`.

    \b
    vicinage demo
    vicinage demo --data demo --documents 500
    """
    from cluster.commands.demo_story import run_demo

    began = time.monotonic()
    with ExitStack() as stack:
        folder = (
            _folder(data)
            if data
            else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vicinage-demo-")))
        )
        story = run_demo(
            folder, port or _free_ports(), documents, _quiet if as_json else click.echo
        )
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        show(
            {
                "ok": story.ok(),
                "seconds": seconds,
                "data": str(folder) if data else None,
                "checks": story.checks,
            },
            as_json,
        )
    else:
        failed = [check["check"] for check in story.checks if not check["ok"]]
        kept = f" Look around: vicinage up --data {data}" if data else ""
        click.echo(
            f"\n{'Failed: ' + ', '.join(failed) if failed else 'All of it held'}, in {seconds:.0f} s.{kept}"
        )
    if not story.ok():
        raise SystemExit(EXIT_FAILED)


def _quiet(_line: str) -> None:
    """Tells nothing."""


def _folder(data: Path) -> Path:
    """Returns the directory, made where it is not there.

    Raises click.BadParameter where it holds anything.
    """
    if data.exists() and any(data.iterdir()):
        raise click.BadParameter(
            f"{data} is not empty: the demo makes tenants of its own", param_hint="--data"
        )
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    return data.absolute()


def _free_ports() -> int:
    """Returns the first of PORTS ports in a row that nobody listens on now."""
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
    raise click.ClickException("no four free ports in a row were found: choose one with --port")
