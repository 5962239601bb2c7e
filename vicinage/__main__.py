"""Entry of the `vicinage` command and of `python -m vicinage`: refuses to start where another package shadows one of ours.

The distribution has top-level packages with general names (docs/decisions/036-packaging.md), so it is installed into an
environment of its own. Anything earlier on Python's path that has one of the names would be imported in its place.
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
    """Runs the command line. Exits with 2, and one line that says why, where a package is shadowed."""
    if clash := shadowed(ROOT, sys.path):
        sys.stderr.write(f"vicinage: {clash}\n")
        sys.exit(EXIT_USAGE)
    # By name: no import of this package points upwards but this one, which only starts the program.
    import_module("cluster.cli").main()


def shadowed(root: Path, path: Sequence[str]) -> str | None:
    """Returns which package would be imported from elsewhere than `root`, and what to do; None where none would."""
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, path)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
        if found != root / name / "__init__.py":
            where = "nowhere" if found is None else str(found)
            return (
                f"the package `{name}` is found in {where}, not in {root}: something else on Python's path has its name. "
                "Install vicinage in an environment of its own (uv tool install, pipx), and unset PYTHONPATH"
            )
    return None


if __name__ == "__main__":
    main()
