"""Entry point of the `vicinage` command and of `python -m vicinage`.

Refuses to start if another package shadows one of this distribution. Its top-level packages have
general names (docs/decisions/036-packaging.md), so it needs its own environment: a package of the
same name earlier on Python's path would be imported instead.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

PACKAGES: Final = ("tenants", "ingest", "indexer", "query", "capacity", "console", "cluster")
"""Top-level packages of this distribution, beside `vicinage` itself."""
ROOT: Final = Path(__file__).resolve().parent.parent
EXIT_USAGE: Final = 2


def main() -> None:
    """Runs the command line. Exits with status 2 and a one-line error if a package is shadowed."""
    if clash := shadowed(ROOT, sys.path):
        sys.stderr.write(f"vicinage: {clash}\n")
        sys.exit(EXIT_USAGE)
    # By name: the only upward import of this package, to start the program.
    import_module("cluster.cli").main()


def shadowed(root: Path, path: Sequence[str]) -> str | None:
    """Returns an error if a package would be imported from outside `root`, else None."""
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, path)
        found = (
            Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
        )
        if found != root / name / "__init__.py":
            where = "is not found" if found is None else f"is found in {found}, not"
            return (
                f"the package `{name}` {where} in {root}: something else on Python's path has its"
                " name. Install vicinage in an environment of its own (uv tool install, pipx),"
                " and unset PYTHONPATH"
            )
    return None


if __name__ == "__main__":
    main()
