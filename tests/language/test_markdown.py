"""Checks the form of Markdown: line lengths, paths that it names, and decision records."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 100
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\s*(?:[-*] |\d+\. )?!?\[[^\]]*\]\(\S+\)[.,;:]?")
PATH = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|md|toml))`")


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def without_code(text: str) -> str:
    """Replaces fenced code by empty lines, so that line numbers stay."""
    return FENCED.sub(lambda found: "\n" * found.group().count("\n"), text)


def is_prose(line: str) -> bool:
    """Whether a line can be wrapped: not a table row, a heading or a single link."""
    return not line.lstrip().startswith(("|", "#")) and not LINK.fullmatch(line)


@pytest.mark.parametrize("page", tracked("*.md"))
def test_prose_is_wrapped_at_100_columns(page: str) -> None:
    lines = without_code((ROOT / page).read_text(encoding="utf-8")).splitlines()
    assert [
        f"{page}:{number}: {len(line)} columns"
        for number, line in enumerate(lines, 1)
        if len(line) > COLUMNS and is_prose(line)
    ] == []


@pytest.mark.parametrize("page", tracked("*.md"))
def test_files_that_a_page_names_exist(page: str) -> None:
    """A path is relative to the repository, or to a package when it is unique there."""
    files = tracked()
    named = set(PATH.findall(without_code((ROOT / page).read_text(encoding="utf-8"))))
    assert [
        path for path in named if not any(f"/{each}".endswith(f"/{path}") for each in files)
    ] == []


@pytest.mark.parametrize("record", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_record_has_its_sections_and_is_listed_by_its_title(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    title = text.splitlines()[0].removeprefix(f"# {record.name[:3]} ")
    assert re.findall(r"^## (Context|Decision)$", text, re.MULTILINE) == ["Context", "Decision"]
    assert f"[{title}]({record.name})" in (record.parent / "index.md").read_text(encoding="utf-8")
