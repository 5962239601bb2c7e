"""Real text that every machine has: docstrings of the standard library and installed packages."""

import ast
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LENGTH_MIN = 80
"""Characters; a shorter docstring has too little text to search for."""


def standard_library(limit: int = 4_000) -> list[dict[str, Any]]:
    """Returns documents made of the standard library's docstrings, in a stable order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3", "__pycache__"}
    files = sorted(p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))
    return _take(root, files, limit)


def installed_packages(limit: int = 3_000) -> list[dict[str, Any]]:
    """Returns documents made of well-known installed packages' docstrings, in a stable order."""
    root = Path(sysconfig.get_paths()["purelib"])
    names = (
        "fastapi",
        "sqlalchemy",
        "numpy",
        "pyarrow",
        "pydantic",
        "httpx2",
        "starlette",
        "alembic",
        "click",
        "rich",
        "kafka",
    )
    files = sorted(
        p
        for name in names
        for p in (root / name).rglob("*.py")
        if not {"tests", "testing", "__pycache__"} & set(p.parts)
    )
    return _take(root, files, limit)


def sentences(n: int) -> list[str]:
    """Returns `n` distinct sentences of 60 to 200 characters, in a stable order.

    They are from the docstrings of every installed package.
    """
    root = Path(sysconfig.get_paths()["purelib"])
    files = sorted(
        p for p in root.rglob("*.py") if not {"tests", "testing", "__pycache__"} & set(p.parts)
    )
    found: dict[str, None] = {}
    for file in files:
        for document in _docstrings(root, file):
            for sentence in re.split(r"(?<=[.!?:])\s+|\n\s*\n", document["text"]):
                clean = " ".join(sentence.split())
                if 60 <= len(clean) <= 200:
                    found[clean] = None
    everything = list(found)
    if len(everything) < n:
        raise SystemExit(f"only {len(everything)} sentences are installed here, {n} are wanted")
    step = len(everything) / n
    return [everything[int(i * step)] for i in range(n)]


def _take(root: Path, files: list[Path], limit: int) -> list[dict[str, Any]]:
    documents: dict[str, dict[str, Any]] = {}
    for file in files:
        for document in _docstrings(root, file):
            documents.setdefault(document["id"], document)
    everything = list(documents.values())
    if len(everything) <= limit:
        return everything
    step = len(everything) / limit  # spread over all modules, so that every package is included
    return [everything[int(i * step)] for i in range(limit)]


def _docstrings(root: Path, file: Path) -> Iterator[dict[str, Any]]:
    module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # a few files of the standard library are invalid on purpose
    yield from _walk(tree, module, module.split(".")[0])


def _walk(node: ast.AST, name: str, package: str) -> Iterator[dict[str, Any]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and len(text) >= LENGTH_MIN:
            kind = (
                "module"
                if isinstance(node, ast.Module)
                else "class"
                if isinstance(node, ast.ClassDef)
                else "function"
            )
            yield {
                "id": name,
                "text": text,
                "metadata": {"package": package, "kind": kind, "length": len(text)},
            }
    for child in ast.iter_child_nodes(node):
        if isinstance(
            child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and not child.name.startswith("_"):
            yield from _walk(child, f"{name}.{child.name}", package)


if __name__ == "__main__":
    for document in standard_library() + installed_packages():
        print(json.dumps(document))
