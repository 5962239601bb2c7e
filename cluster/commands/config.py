"""`vicinage config`: the settings, and the source of each value."""

import os
from dataclasses import asdict
from pathlib import Path

import click

from cluster.commands.base import EPILOG, Group, here
from cluster.commands.output import show


@click.group(cls=Group, epilog=EPILOG)
def config() -> None:
    """Settings: every value, and its source."""


@config.command("show")
@click.option(
    "--set-only", is_flag=True, help="Show only settings that differ from their defaults."
)
@here
def config_show(data: Path, *, set_only: bool, as_json: bool) -> None:
    r"""Show every setting with its value (secrets hidden) and its origin.

    \b
    vicinage config show --set-only
    vicinage config show --config /etc/vicinage.toml --json
    """
    from cluster.configuration import load, origins, unknown_variables

    for warning in unknown_variables(os.environ):
        click.echo(f"vicinage: warning: {warning}", err=True)
    given = {"data": data}
    rows = [asdict(o) for o in origins(load(**given), os.environ, given)]
    show(
        [r for r in rows if not set_only or r["origin"] != "default"],
        as_json,
        ("name", "value", "origin"),
    )
