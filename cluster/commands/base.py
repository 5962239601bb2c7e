"""The parts that all commands share.

They are options, the operator's connection, and errors as one line (or JSON) with an exit status.
"""

import json
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from vicinage.errors import Unavailable, VicinageError

if TYPE_CHECKING:
    from cluster.commands.operator import Operator
    from vicinage.settings import Settings

EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_PARTLY = 1, 2, 3, 4
EPILOG: Final = (
    "Exit status: 0 done, 1 refused or failed, 2 wrong usage or settings, 3 no platform answers."
)
CONFIG: Final = "VICINAGE_CONFIG"

Command = Callable[..., Any]


def common(command: Command) -> Command:
    """Adds the options of commands that a platform elsewhere can also answer."""
    command = click.option(
        "--key", envvar="VICINAGE_KEY", help="Operator key [default: that of --data]."
    )(command)
    return here(
        click.option("--url", envvar="VICINAGE_URL", help="URL of a platform elsewhere.")(command)
    )


def here(command: Command) -> Command:
    """Adds the options that every command takes."""
    command = click.option("--json", "as_json", is_flag=True, help="Print only JSON.")(command)
    command = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        callback=_set_config,
        expose_value=False,
        is_eager=True,
        help="Settings file [default: VICINAGE_CONFIG, else vicinage.toml here].",
    )(command)
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="VICINAGE_DATA",
        callback=_data,
        help="Directory of the local platform [default: from the settings, else data].",
    )(command)


def _set_config(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        os.environ[CONFIG] = str(value.absolute())


def _data(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path:
    """Returns the named directory, else that of the settings file, read without all settings."""
    if value is not None:
        return value
    path = Path(os.environ.get(CONFIG) or "vicinage.toml")
    try:
        named = tomllib.loads(path.read_text()).get("data")
    except (OSError, ValueError):  # not TOML or UTF-8: loading the settings reports it
        named = None
    return Path(named) if isinstance(named, str) else Path("data")


class Group(click.Group):
    """A group whose commands report an error and its remedy in one line, without a traceback."""

    group_class = type
    """Groups within it are of this class, too."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Adds the command.

        In a raw docstring, click's mark for keeping lines is two characters: makes it one.
        """
        cmd.help = cmd.help and cmd.help.replace("\\b\n", "\b\n")
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs; turns a VicinageError into one line, or JSON with --json, and an exit status."""
        try:
            return super().invoke(ctx)
        except VicinageError as error:
            click.echo(_error_text(error), err=True)
            sys.exit(_status(error))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs; with --json, errors of usage are JSON, too."""
        if "--json" not in sys.argv or kwargs.get("standalone_mode") is False:
            return super().main(*args, **kwargs)
        try:
            ended = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.Abort:
            click.echo(
                _problem("aborted", "Interrupted", 0, "interrupted before the end"), err=True
            )
            sys.exit(EXIT_FAILED)
        except click.ClickException as error:
            click.echo(_problem("usage", "Wrong usage", 400, error.format_message()), err=True)
            sys.exit(error.exit_code)
        sys.exit(ended if isinstance(ended, int) else 0)


def _error_text(error: VicinageError) -> str:
    if "--json" not in sys.argv:
        return f"vicinage: {error}"
    body = getattr(error, "body", None)
    return (
        json.dumps({"error": body})
        if body
        else _problem(error.kind, error.title, error.status, error.detail)
    )


def _problem(kind: str, title: str, status: int, detail: str) -> str:
    problem = {
        "type": f"urn:vicinage:problem:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
    }
    return json.dumps({"error": problem})


def _status(error: VicinageError) -> int:
    if error.kind == "configuration":
        return EXIT_USAGE
    return EXIT_UNAVAILABLE if isinstance(error, Unavailable) else EXIT_FAILED


def operator(data: Path, url: str | None, key: str | None) -> "Operator":
    """Returns the connection to /v1/admin."""
    from cluster.commands.operator import Operator

    return Operator(data, url, key)


def confirmed(prompt: str) -> None:
    """Asks for confirmation on stderr.

    Raises click.Abort for no, and click.UsageError with --json, whose output is only JSON.
    """
    if "--json" in sys.argv:
        raise click.UsageError(f"{prompt} Nothing was changed: add --yes")
    click.confirm(prompt, abort=True, err=True)


def part(name: str) -> str:
    """Returns a name as one part of a path or query.

    Raises click.UsageError for a slash: servers decode it before they route.
    """
    if "/" in name:
        raise click.UsageError(f"{name!r} is not a valid name: it has a slash")
    return quote(name, safe="")


def where_of(words: Sequence[str]) -> tuple[str, str]:
    """Returns tenant and collection of TENANT/COLLECTION, in one word or two.

    Raises click.BadParameter.
    """
    tenant, _, collection = "/".join(words).partition("/")
    if not tenant or not collection:
        raise click.BadParameter("write TENANT/COLLECTION", param_hint="TENANT/COLLECTION")
    return tenant, collection


def settings_on(data: Path, port: int | None = None, host: str | None = None) -> "Settings":
    """Returns the settings of the platform on `data`; warns of variables that are not settings.

    Raises ConfigurationError.
    """
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
