"""The reference equals the text generated from the code, and every link between pages resolves."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from cluster import reference
from cluster.commands.collections import INDEX_SPECS
from tenants.index_spec import GRAMMAR
from vicinage.metrics import COUNTERS, GAUGES, HISTOGRAMS

pages = cache(reference.pages)
ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("vicinage", "tenants", "ingest", "indexer", "query", "capacity", "cluster")


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_reference_is_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text() == pages()[name], (
        "run `python -m cluster.reference`"
    )


def test_every_setting_metric_and_command_has_its_line() -> None:
    written = pages()
    for row in written["settings.md"].splitlines():
        if row.startswith("| `") and "VICINAGE_" in row:
            assert (
                not row.endswith("|  |")
                or "url" in row
                or "data" in row
                or "host" in row
                or "precision" in row
            ), row
    assert written["commands.md"].count("## ") >= 25
    assert written["metrics.md"].count("| `vicinage_") >= 15


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "client" / "README.md"],
    ids=lambda p: p.name,
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.timeout(180)
def test_the_site_builds_and_every_anchor_is_there(tmp_path: Path) -> None:
    """`mkdocs --strict` fails on a missing link target, anchor or page of the navigation."""
    words = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    foreign = re.compile(r'<(?:link|script|img)[^>]+(?:href|src)="https?://')
    assert not [page for page in tmp_path.rglob("*.html") if foreign.search(page.read_text())], (
        "works without a network"
    )


PAGES = [
    ROOT / "README.md",
    *(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "decisions"),
]


def names(pattern: str, page: Path) -> set[str]:
    return set(re.findall(pattern, page.read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_metrics_settings_and_commands_that_a_page_names_exist(page: Path) -> None:
    """A rename in the code fails here until the pages that name it are changed, too."""
    written = pages()
    metrics = names(r"\bvicinage_[a-z]+_[a-z_]+", page)
    assert [m for m in metrics if not re.search(rf"`{m}(_\w+)?`", written["metrics.md"])] == []
    settings = names(
        r"`((?:gateway|embedder|ingest|indexer|searcher|kafka|rerank|audit)\.[a-z_]+)[` =]", page
    )
    events = names(r"^\| `(\w+\.\w+)`", ROOT / "docs" / "reference" / "events.md")
    assert names(r"\bevents? `([a-z_]+\.[a-z_]+)`", page) - events == set()
    assert [
        s for s in settings - {"audit.key"} - events if f"`{s}`" not in written["settings.md"]
    ] == []
    commands = names(r"\bvicinage ([a-z-]+(?: [a-z-]+)?)", page)
    known = set(
        re.findall(r"^## `vicinage ([a-z-]+(?: [a-z-]+)?)", written["commands.md"], re.MULTILINE)
    )
    nouns = {command.split()[0] for command in known}
    assert [c for c in commands if c.split()[0] in nouns and not {c, c.split()[0]} & known] == []


def test_the_command_line_names_every_index_spec() -> None:
    assert f"{GRAMMAR}." == INDEX_SPECS


def test_every_metric_is_in_the_reference() -> None:
    page = pages()["metrics.md"]
    names = [*COUNTERS, *GAUGES, *HISTOGRAMS]
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_every_defined_metric_is_created_once_by_its_owner() -> None:
    """A definition that no module creates would stand in the reference and never be exported."""
    sources = [p.read_text() for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    for kind, names in (("counter", COUNTERS), ("gauge", GAUGES), ("histogram", HISTOGRAMS)):
        created = [name for s in sources for name in re.findall(rf"\b{kind}\(\s*\"(\w+)\"", s)]
        assert sorted(created) == sorted(names)


def test_events_are_a_noun_and_what_happened_to_it() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", pages()["events.md"], re.MULTILINE)
    assert len(rows) > 50
    assert [name for name in rows if not re.fullmatch(r"[a-z_]+\.[a-z_]+", name)] == []
