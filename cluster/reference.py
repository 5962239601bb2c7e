"""docs/reference, written from the code itself: `python -m cluster.reference`. A test holds the files to it."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from query.problems import HTTP_KINDS
from vicinage import errors, telemetry
from vicinage.settings import Settings

HEADER = "<!-- Written by `python -m cluster.reference`: change the code, then run it. -->\n\n"


def pages() -> dict[str, str]:
    """File name → text."""
    return {
        "settings.md": HEADER + settings(),
        "metrics.md": HEADER + metrics(),
        "errors.md": HEADER + problems(),
        "commands.md": HEADER + commands(),
        "http-routes.md": HEADER + endpoints(),
    }


def settings() -> str:
    """Every setting with its default, bounds and meaning."""
    lines = [
        "# Settings",
        "",
        "From arguments, then `VICINAGE_*` (groups joined by `__`), then `vicinage.toml` in the working directory.",
        "",
    ]
    lines += ["| setting | environment | default | bounds | meaning |", "|---|---|---|---|---|"]
    lines += _fields(Settings, "", "VICINAGE_")
    return "\n".join(lines) + "\n"


def _fields(model: type[BaseModel], path: str, variable: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{path}{name}.", f"{variable}{name.upper()}__")
            continue
        default = "" if field.default is PydanticUndefined else field.default
        bounds = ", ".join(_bound(m) for m in field.metadata)
        shown = f"`{path}{name}`", f"`{variable}{name.upper()}`", f"`{default}`", bounds, field.description or ""
        yield _row(*shown)


def _row(*cells: str) -> str:
    """A row of a table: a bar within a cell would end it, even between backticks."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _bound(rule: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "pattern": ""}
    found = [
        f"{sign} {getattr(rule, name)}".strip() for name, sign in signs.items() if getattr(rule, name, None) is not None
    ]
    return "; ".join(f"`{f}`" for f in found) or "see code"


def metrics() -> str:
    """Every metric with its meaning."""
    source = Path(telemetry.__file__).read_text()
    found = re.findall(r'^    "(vicinage_\w+)",  # (.+)$', source, re.MULTILINE)
    lines = [
        "# Metrics",
        "",
        "At `/metrics` of the gateway, of the embedder (the next port) and of ingest (the one after), in Prometheus' text form. Figures per tenant come from the API",
    ]
    lines += [
        "(`vicinage freshness`, `recall`, `capacity`): no metric carries a tenant as its label, so that their number is bounded.",
        "",
    ]
    lines += ["| metric | meaning |", "|---|---|", *(_row(f"`{name}`", meaning) for name, meaning in found)]
    return "\n".join(lines) + "\n"


def problems() -> str:
    """Every problem type."""
    lines = [
        "# Errors",
        "",
        "Every error is an RFC 9457 problem document: `type`, `title`, `status`, `detail`, and where they apply `field`, `limit`, `retry_after_s`.",
        "",
    ]
    lines += ["| type | status | meaning |", "|---|---|---|"]
    for kind in _tree(errors.VicinageError):
        lines.append(
            _row(f"`urn:vicinage:problem:{kind.kind}`", str(kind.status), (kind.__doc__ or "").splitlines()[0])
        )
    known = {kind.kind for kind in _tree(errors.VicinageError)}
    for status, (name, meaning) in HTTP_KINDS.items():
        if name not in known:
            lines.append(_row(f"`urn:vicinage:problem:{name}`", str(status), meaning))
    return "\n".join(lines) + "\n"


def _tree(kind: type[errors.VicinageError]) -> Iterator[type[errors.VicinageError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


def commands() -> str:
    """Every command with its help."""
    from cluster.cli import main

    lines = [
        "# Commands",
        "",
        "Every command takes `--data DIR` (a local platform) and `--json`; all but `up` and `down`, which are about DIR itself, `--url URL`, too, with `--key KEY` where a key is needed.",
        "`VICINAGE_DATA`, `VICINAGE_URL` and `VICINAGE_KEY` stand for the options. `data` in `vicinage.toml` is not read here.",
        "",
        "Where no platform runs on DATA and no URL is given, `tenant`, `key`, `collection`, `model`, `reindex` and `audit` work on DATA's catalog themselves, and make it where there is none: look at `--data` twice.",
        "A reindex started so waits for the next `vicinage up`; counts of collections are then lower bounds of 0 (`at_least`), since no searcher counts them. `status`, `capacity`, `recall` and `freshness` need a running platform (exit 3).",
        "",
    ]
    for words, command in _commands(main, "vicinage"):
        context = click.Context(command, info_name=words)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## `{words} {usage}`", "", command.get_short_help_str(200), ""]
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in ("data", "url", "key", "as_json"):
                lines.append(
                    f"- `{'`, `'.join((*option.opts, *option.secondary_opts))}` {option.help}{_default(option)}"
                )
        lines.append("")
    lines.append(
        "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no platform answers, 4 (`audit verify`) not verified with the audit key."
    )
    return "\n".join(lines) + "\n"


def _default(option: click.Option) -> str:
    if not option.show_default or option.secondary_opts:
        return ""
    return f" [default: {option.default}]"


def _commands(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], f"{words} {name}")
        if command.invoke_without_command:
            yield words, command
    elif not command.hidden:
        yield words, command


def endpoints() -> str:
    """Every route with its first line."""
    from fastapi import FastAPI

    from query.api import admin, collections, documents, health, search, search_batch

    app = FastAPI()
    for each in (search, search_batch, documents, collections, admin, health):
        app.include_router(each.router)
    lines = [
        "# HTTP API",
        "",
        "`Authorization: Bearer <key>`. What is sent and what comes back: [the HTTP API](http.md); `/openapi.json` and `/docs` of a running gateway have the routes.",
        "",
    ]
    lines += ["| method | path | |", "|---|---|---|"]
    for path, methods in sorted(app.openapi()["paths"].items()):
        for method, facts in methods.items():
            lines.append(_row(method.upper(), f"`{path}`", facts.get("description", "").splitlines()[0]))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the files."""
    folder = Path(__file__).resolve().parent.parent / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
        sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    main()
