"""Names and prose are plain, standard English of the field: what a pattern can find of that, it finds here.

`unreviewed.txt` lists the files that are still to be reworked: a file that is not in it has no match, and a file in it
that has none any more must be taken out. New files begin reviewed.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNREVIEWED = Path(__file__).with_name("unreviewed.txt")
FORBIDDEN = {
    "processes, shards, tenants and files are *it*": r"who|whom|whoever|nobody|somebody|everybody|anybody|he|his|him|she",
    "evict, load, unload": r"lets? go of|letting go of|brought in|bring in|brings in|set down",
    "repair, maintenance, warm-up": r"mend|mends|mended|mending|upkeep",
    "notify": r"ring the bell|bell",
    "permit, state, resources": r"house|answerer",
    "American spelling": r"\w*(?:normalis|initialis|serialis|optimis|recognis|organis|quantis)\w*|neighbour\w*|honour\w*"
    r"|behaviour\w*|colour\w*|cancelled|cancelling|favour\w*|catalogue\w*",
}
PATTERNS = {
    why: re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE)
    for why, words in FORBIDDEN.items()
}
"""A word within an identifier counts, too: `_` is taken for a space before."""


def files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.toml", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if not name.startswith("tests/language/")]


def matches(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8").replace("_", " ")
    return [
        f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {found.group()!r}: {why}"
        for why, pattern in PATTERNS.items()
        for found in pattern.finditer(text)
    ]


def unreviewed() -> list[str]:
    return UNREVIEWED.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", sorted(set(files()) - set(unreviewed())))
def test_a_reviewed_file_is_in_the_fields_language(name: str) -> None:
    assert matches(name) == []


def test_files_without_a_match_are_reviewed() -> None:
    done = [name for name in unreviewed() if not (ROOT / name).exists() or not matches(name)]
    assert done == [], "take these out of tests/language/unreviewed.txt"
