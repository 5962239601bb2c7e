"""Names and prose are plain, standard English of the field, as far as patterns can check it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEOPLE = r"who|whom|whoever|nobody|somebody|everybody|anybody|he|his|him|himself|she"
BRITISH = (
    r"\w*(?:normalis|initialis|serialis|optimis|recognis|organis|quantis)\w*"
    r"|\w*(?:travell|labell|modell)(?:ed|ing)|cancell(?:ed|ing)(?!\(\))|acknowledgements?"
    r"|(?:neighbour|honour|behaviour|colour|favour|catalogue|centre)\w*"
)
WORDS = {
    "processes, shards, tenants and files are *it*": PEOPLE,
    "evict, release, load, unload": r"(?:let|lets|letting) go|brought in|brings? in|set down",
    "repair, maintenance, warm-up": r"mend|mends|mended|mending|upkeep",
    "notify": r"ring the bell|bell",
    "permit, state, resources": r"house|answerer",
    "combined, scatter result": r"gathered",
    "again": r"anew",
    "without end": r"for ever",
    "path, way": r"roads?",
    "pause": r"(?:stand|stands|stood|standing) still",
    "unknown, foreign": r"invalid_values?",
    "failing, away": r"unwell",
    "skip": r"(?:pass|passes|passed|passing) over",
    "synthetic": r"made[- ]up",
    "American spelling": BRITISH,
}
"""What to write instead → words that no file contains.

A word within an identifier counts, too: `_` is taken for a space before.
"""
CODE_WORDS = {"search, search request, query": r"questions?(?! mark)"}
"""The same for code: documentation may call the text of a user a question."""
STARTS = re.compile(r'"""(?:Of|What|So many|Who|Whose|How) ')
"""Beginnings of docstrings that are riddles: begin with a verb or a noun phrase."""


def compiled(words: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {
        why: re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE)
        for why, pattern in words.items()
    }


PATTERNS, CODE_PATTERNS = compiled(WORDS), compiled(CODE_WORDS)


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
    patterns = dict(PATTERNS)
    if name.endswith(".py"):
        patterns |= CODE_PATTERNS | {"a docstring begins with a verb or a noun phrase": STARTS}
    return [
        f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {found.group()!r}: {why}"
        for why, pattern in patterns.items()
        for found in pattern.finditer(text)
    ]


@pytest.mark.parametrize("name", files())
def test_a_file_is_in_the_fields_language(name: str) -> None:
    assert matches(name) == []
