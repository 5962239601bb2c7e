"""Generates docs/reference from the code: `python -m cluster.reference`.

A test compares the files with the generated text.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster import reference_http
from cluster.reference_text import prose, table_row
from query.problems import HTTP_KINDS
from vicinage import errors
from vicinage.metrics import COUNTERS, GAUGES, HISTOGRAMS
from vicinage.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
HEADER = "<!-- Written by `python -m cluster.reference`: change the code, then run it. -->\n\n"


def pages() -> dict[str, str]:
    """Returns the text of each file, by name."""
    return {
        "settings.md": HEADER + settings(),
        "metrics.md": HEADER + metrics(),
        "errors.md": HEADER + problems(),
        "commands.md": HEADER + commands(),
        "http-routes.md": HEADER + reference_http.endpoints(),
        "http-fields.md": HEADER + reference_http.fields_of_bodies(),
        "limits.md": HEADER + limits(),
        "events.md": HEADER + events(),
        "client.md": HEADER + client(),
    }


def settings() -> str:
    """Returns the page of settings: default, bounds and meaning of each."""
    lines = [
        "# Settings",
        "",
        prose(
            "The first source that names a setting wins: an option of the command, the environment "
            "variable, the settings file. [Configure](../how-to/configure.md) shows how to set and "
            "check them."
        ),
        "",
    ]
    groups: dict[str, list[str]] = {}
    for path, field in _settings(Settings, ""):
        group = path.rpartition(".")[0]
        variable = "VICINAGE_" + path.upper().replace(".", "__")
        default = "" if field.default is PydanticUndefined else str(field.default)
        bounds = ", ".join(_bound(m) for m in field.metadata)
        row = table_row(
            f"`{path}`",
            f"`{variable}`",
            f"`{default}`" if default else "",
            bounds,
            field.description or "",
        )
        groups.setdefault(group, []).append(row)
    for group, rows in groups.items():
        lines += [
            f"## {group or 'Platform'}",
            "",
            "| setting | environment | default | bounds | meaning |",
        ]
        lines += ["|---|---|---|---|---|", *rows, ""]
    return "\n".join(lines[:-1]) + "\n"


def _docstring(of: Any) -> str:
    """Returns a docstring whose paragraphs of one long line are wrapped."""
    paragraphs = (inspect.getdoc(of) or "").split("\n\n")
    return "\n\n".join(each if "\n" in each else prose(each) for each in paragraphs)


def _bound(rule: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "pattern": ""}
    found = [
        f"{sign} {getattr(rule, name)}".strip()
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return "; ".join(f"`{f}`" for f in found) or "see code"


def metrics() -> str:
    """Returns the page of metrics, each with its meaning."""
    defined = {"counter": COUNTERS, "gauge": GAUGES, "histogram": HISTOGRAMS}
    lines = [
        "# Metrics",
        "",
        prose(
            "Every process serves `/metrics` in the text format of Prometheus. "
            "[Monitor](../how-to/monitor.md) lists the ports and proposes alerts. No metric has a "
            "tenant as a label, so their number is bounded. Figures of one tenant come from "
            "`vicinage freshness`, `vicinage recall` and `vicinage capacity`."
        ),
        "",
    ]
    lines += [
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
        *(
            table_row(
                f"`{name}`", kind, ", ".join(f"`{label}`" for label in each.labels), each.help
            )
            for kind, definitions in defined.items()
            for name, each in definitions.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def problems() -> str:
    """Returns the page of problem types."""
    lines = [
        "# Errors",
        "",
        prose(
            "Every error is a problem document (RFC 9457) with `type`, `title`, `status` and "
            "`detail`, and where they apply `field`, `limit` and `retry_after_s`. "
            "[Troubleshoot](../how-to/troubleshoot.md) states what to do."
        ),
        "",
    ]
    lines += ["| type | status | meaning |", "|---|---|---|"]
    for kind in _tree(errors.VicinageError):
        lines.append(
            table_row(
                f"`urn:vicinage:problem:{kind.kind}`",
                str(kind.status),
                (kind.__doc__ or "").splitlines()[0],
            )
        )
    known = {kind.kind for kind in _tree(errors.VicinageError)}
    for status, (name, meaning) in HTTP_KINDS.items():
        if name not in known:
            lines.append(table_row(f"`urn:vicinage:problem:{name}`", str(status), meaning))
    return "\n".join(lines) + "\n"


def _tree(kind: type[errors.VicinageError]) -> Iterator[type[errors.VicinageError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


def commands() -> str:
    """Returns the page of commands, each with its help."""
    from cluster.cli import main

    lines = [
        "# Commands",
        "",
        prose(
            "Every command takes `--data DIR`, the directory of a local platform, and `--json`. "
            "Commands that a remote platform can answer also take `--url URL` and `--key KEY`. "
            "`VICINAGE_DATA`, `VICINAGE_URL` and `VICINAGE_KEY` replace the options."
        ),
        "",
        prose(
            "If no platform runs on DATA and no URL is given, `tenant`, `key`, `collection`, "
            "`model`, `reindex` and `audit` work on the catalog of DATA and create it if it does "
            "not exist. A reindex that is started this way waits for the next `vicinage up`. "
            "`status`, `capacity`, `recall` and `freshness` need a running platform "
            "(exit status 3)."
        ),
        "",
        "| exit status | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | refused or failed |",
        "| 2 | wrong usage or settings |",
        "| 3 | no platform answers |",
        "| 4 | `audit verify`: not verified with the audit key |",
        "",
    ]
    for words, command in _commands(main, "vicinage"):
        context = click.Context(command, info_name=words)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## `{words} {usage}`", "", prose(command.get_short_help_str(200)), ""]
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in (
                "data",
                "url",
                "key",
                "as_json",
            ):
                names = "`, `".join((*option.opts, *option.secondary_opts))
                lines.append(prose(f"- `{names}` {option.help}{_default(option)}"))
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


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


def limits() -> str:
    """Returns the page of settings that are bounds."""
    lines = [
        "# Limits",
        "",
        prose(
            "These settings bound what one request, document or process can take. "
            "[HTTP API](http.md) states the fixed limits: sizes of bodies, documents, filters, "
            "searches and names."
        ),
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    for path, field in _settings(Settings, ""):
        if path.endswith("_max") or path in BOUNDS:
            lines.append(table_row(f"`{path}`", f"`{field.default}`", field.description or ""))
    return "\n".join(lines) + "\n"


BOUNDS = (
    "gateway.timeout_ms",
    "gateway.parse_s",
    "gateway.parse_memory_bytes",
    "embedder.queue_tokens",
)
"""Settings that are bounds but do not end with _max."""


def _settings(model: type[BaseModel], path: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}", field


PACKAGES = ("vicinage", "tenants", "ingest", "indexer", "query", "capacity", "cluster", "console")
LEVELS = ("debug", "info", "warning", "error", "exception")


def events() -> str:
    """Returns the page of events: name, level, component and fields of each, from the calls."""
    found = sorted({event for package in PACKAGES for event in _events_of(ROOT / package)})
    lines = [
        "# Events",
        "",
        prose(
            "Each process writes events to `DATA/run/ROLE.log`, one JSON object a line, with "
            "`event`, `level`, `timestamp`, `role`, `component` and the fields below. "
            "[Monitor](../how-to/monitor.md) describes how to watch them."
        ),
        "",
        "| event | level | component | fields |",
        "|---|---|---|---|",
    ]
    for name, level, component, names in found:
        shown = ", ".join(f"`{each}`" for each in names)
        lines.append(
            table_row(
                f"`{name}`",
                "error" if level == "exception" else level,
                f"`{component}`" if component else "",
                shown,
            )
        )
    return "\n".join(lines) + "\n"


def _events_of(folder: Path) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
        calls_of_events = [
            call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "events"
        ]
        component = next(
            (
                str(call.args[0].value)
                for call in calls_of_events
                if isinstance(call.args[0], ast.Constant)
            ),
            "",
        )
        for call in calls:
            if (
                isinstance(call.func, ast.Attribute)
                and call.func.attr in LEVELS
                and _is_event(call.func.value)
            ):
                given = tuple(k.arg for k in call.keywords if k.arg and k.arg != "exc_info")
                yield from (
                    (name, call.func.attr, component, given) for name in _names(call.args[0])
                )


def _is_event(value: ast.expr) -> bool:
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return name in ("_event", "event")


def _names(first: ast.expr) -> Iterator[str]:
    """Yields the event's name, or both names if the call chooses between two."""
    for each in (first.body, first.orelse) if isinstance(first, ast.IfExp) else (first,):
        if isinstance(each, ast.Constant):
            yield str(each.value)


def client() -> str:
    """Returns the page of the Python client: methods, results and errors, from its docstrings."""
    import vicinage_client as package

    lines = [
        "# Python client",
        "",
        prose(
            "The package `vicinage-client` needs httpx2 and nothing else. `Client` is for threads, "
            "`AsyncClient` is the same for asyncio: its methods are coroutines, and `aclose` "
            "ends it."
        ),
        "",
        *_methods(package.Client),
        "## Results",
        "",
    ]
    for kind in _members(package, is_dataclass):
        lines += [
            f"### {kind.__name__}",
            "",
            _docstring(kind),
            "",
            "| field | type |",
            "|---|---|",
        ]
        lines += [table_row(f"`{each.name}`", f"`{_type(each.type)}`") for each in fields(kind)]
        lines.append("")
    lines += ["## Errors", "", "| error | base | meaning |", "|---|---|---|"]
    for kind in _members(package, lambda kind: issubclass(kind, Exception)):
        first = (inspect.getdoc(kind) or "").splitlines()[0]
        lines.append(table_row(f"`{kind.__name__}`", f"`{kind.__mro__[1].__name__}`", first))
    return "\n".join(lines) + "\n"


def _type(annotation: Any) -> str:
    return re.sub(r"\b(?:[a-z_]+\.)+", "", inspect.formatannotation(annotation))


def _members(package: ModuleType, is_one: Callable[[Any], bool]) -> list[Any]:
    return [kind for name in package.__all__ if is_one(kind := getattr(package, name))]


def _methods(kind: type) -> Iterator[str]:
    yield from ("## Client", "", _docstring(kind), "")
    for name, method in vars(kind).items():
        if name == "__init__" or (inspect.isfunction(method) and not name.startswith("_")):
            shown = kind.__name__ if name == "__init__" else name
            yield from (f"### {shown}", "", "```text", f"{shown}({_parameters(method)})", "```", "")
            if name != "__init__":
                yield from (_docstring(method), "")


def _parameters(method: Any) -> str:
    """Returns the parameters without their types, in lines of at most 90 characters."""
    signature = inspect.signature(method)
    bare = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in list(signature.parameters.values())[1:]
    ]
    words = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))[1:-1]
    return "\n    ".join(textwrap.wrap(words, 90, break_long_words=False))


def main() -> None:
    """Writes the files."""
    folder = ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
        sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    main()
