"""`vicinage model`: the registry of embedding models."""

from pathlib import Path
from typing import Any

import click

from cluster.commands.base import EPILOG, Group, common, operator, part
from cluster.commands.output import show


@click.group(cls=Group, epilog=EPILOG)
def model() -> None:
    """The registry of embedding models."""


@model.command("list")
@common
def model_list(data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""List all models.

    \b
    vicinage model list
    """
    show(operator(data, url, key).call("GET", "/models"), as_json)


@model.command("register")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["local", "openai"]),
    required=True,
    help="local: files; openai: a server that speaks the OpenAI embeddings API.",
)
@click.option(
    "--location",
    required=True,
    help="package:MODULE, a folder of files, or a server's base URL (…/v1).",
)
@click.option("--dimension", type=int, help="Length of its vectors [default: from its files].")
@click.option("--window-tokens", type=int, help="Longest input, tokens [default: from its files].")
@click.option(
    "--normalized/--no-normalized",
    default=None,
    help="Whether its vectors are L2-normalized [default: from its files, else yes].",
)
@click.option("--query-prompt", help="Text before each search text [default: from its files].")
@click.option("--document-prompt", help="Text before each passage [default: from its files].")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="First load the model, or call its server.",
)
@common
def model_register(
    name: str, data: Path, url: str | None, key: str | None, *, as_json: bool, **given: Any
) -> None:
    r"""Add a model; entries never change. The embedder serves a local one after its next start.

    \b
    vicinage model register e5 --kind local --location /srv/models/e5-small
    vicinage model register m --kind openai --location http://m --dimension 768 --window-tokens 512
    """
    body = {"name": name, **{field: value for field, value in given.items() if value is not None}}
    show(operator(data, url, key).call("POST", "/models", body), as_json)


@model.command("retire")
@click.argument("name")
@common
def model_retire(name: str, data: Path, url: str | None, key: str | None, *, as_json: bool) -> None:
    r"""Retire a model: no new collection or reindex can use it. Fails while a collection uses it.

    \b
    vicinage model retire e5
    """
    show(operator(data, url, key).call("POST", f"/models/{part(name)}/retire"), as_json)
