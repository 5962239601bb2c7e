"""Real documents that every installation has: docstrings of installed Python code.

They come from the standard library, and from packages that the platform needs.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

LENGTH_MIN: Final = 80
"""Shortest docstring, characters; a shorter one has too little content to search for."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of one tenant: their modules, and searches with the id prefix of a correct hit."""

    tenant: str
    modules: tuple[str, ...]
    searches: tuple[tuple[str, str], ...]

    def documents(self, limit: int) -> list[dict[str, Any]]:
        """Returns at most `limit` documents, in a stable order, expected hits first.

        Each module has an equal share.
        """
        expected = tuple(prefix for _, prefix in self.searches)
        by_module = [
            sorted(_documents(module), key=lambda each: not each["id"].startswith(expected))
            for module in self.modules
        ]
        share = max(1, limit // len(by_module))
        return [document for documents in by_module for document in documents[:share]][:limit]


LIBRARY: Final = Corpus(
    "library",
    (
        "bisect",
        "calendar",
        "difflib",
        "heapq",
        "random",
        "shutil",
        "smtplib",
        "statistics",
        "tempfile",
        "textwrap",
    ),
    (
        ("median of a list of numbers", "statistics.median"),
        ("insert an item in a sorted list and keep it sorted", "bisect.insort"),
        ("wrap text in a single paragraph so lines fit a width", "textwrap."),
    ),
)
PACKAGES: Final = Corpus(
    "packages",
    (
        "click.decorators",
        "click.termui",
        "click.types",
        "fastapi.background",
        "fastapi.params",
        "httpx2._client",
        "httpx2._models",
        "rich.progress",
        "rich.table",
        "starlette.requests",
    ),
    (
        ("render a table in the terminal", "rich.table."),
        ("prompt the user for confirmation, yes or no", "click.termui.confirm"),
        ("run a task after the response is sent", "fastapi.background."),
    ),
)
CORPORA: Final[Sequence[Corpus]] = (LIBRARY, PACKAGES)


def _documents(module: str) -> Iterator[dict[str, Any]]:
    """Yields the docstrings of a module's functions and classes.

    Reads its source; imports only its parent packages.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for name, node in _defined(tree, module):
        text = ast.get_docstring(node)
        if text is not None and len(text) >= LENGTH_MIN:
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield {"id": name, "text": text, "metadata": {"module": module, "kind": kind}}


def _defined(
    tree: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yields each definition by name, once, even if it is defined again."""
    seen: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(
            node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            if name not in seen:
                seen.add(name)
                yield name, node
            if isinstance(node, ast.ClassDef):
                for inner, found in _defined(node, name):
                    if inner not in seen:
                        seen.add(inner)
                        yield inner, found
