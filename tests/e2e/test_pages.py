"""Runs every code block of the README, tutorials and how-to guides on a real platform."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from pages import Session, blocks, check_syntax
from servers import free_port, kafka_starter

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "loadtest"))
from running import ROOT, Platform, running

README, FIRST, KAFKA = (
    ROOT / "README.md",
    ROOT / "docs/tutorials/first-search.md",
    ROOT / "docs/tutorials/kafka.md",
)
RUN = [
    README,
    *sorted((ROOT / "docs/tutorials").glob("*.md")),
    *sorted((ROOT / "docs/how-to").glob("*.md")),
]
OWN = (README, FIRST, KAFKA)
"""Pages that start a platform themselves."""
SHARED = [
    page for page in RUN if page not in OWN and any(block.runs for block in blocks(page, ROOT))
]
SENT = ROOT / "docs/reference/http.md"
"""A page whose JSON blocks with a note are sent."""
PAGES = [*RUN, *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in RUN)]

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(900)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_has_valid_syntax_and_runs_or_states_why_not(page: Path) -> None:
    for block in blocks(page, ROOT):
        check_syntax(block)
        if block.note.startswith("no"):
            assert block.note.removeprefix("no").lstrip(", "), (
                f"{block.where}: the reason why it does not run is missing"
            )


def run(page: Path, in_session: Session, url: str = "") -> None:
    for block in blocks(page, ROOT):
        if block.runs:
            in_session.run(block)
        elif block.kind == "json" and block.note and not block.note.startswith("no"):
            in_session.send(block, url)


@contextmanager
def own_platform(folder: Path, replaced: dict[str, str]) -> Iterator[Session]:
    """Yields a session for a page that starts a platform in ./data; always stops it."""
    port = free_port()
    for linked in ("docs", "deploy"):
        (folder / linked).symlink_to(ROOT / linked)
    (folder / ".venv").symlink_to(sys.prefix)
    try:
        with closing(
            Session(
                folder,
                {"VICINAGE_GATEWAY__PORT": str(port)},
                {"127.0.0.1:8080": f"127.0.0.1:{port}", **replaced},
            )
        ) as made:
            yield made
    finally:
        words = [sys.executable, "-m", "vicinage", "down", "--data", str(folder / "data")]
        subprocess.run(words, cwd=ROOT, timeout=120, check=False, capture_output=True)


@pytest.mark.parametrize("page", [README, FIRST], ids=name)
def test_a_page_runs_from_installation_to_the_first_answer(page: Path, tmp_path: Path) -> None:
    with own_platform(tmp_path, {}) as in_session:
        run(page, in_session)


@pytest.fixture
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yields host:port of a real Apache Kafka for one test: topic names are fixed."""
    starter, folder, port = kafka_starter(), tmp_path_factory.mktemp("kafka"), free_port()
    starter.start(folder, port)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        starter.stop(folder)


@pytest.mark.kafka
def test_the_kafka_tutorial_with_a_real_broker(tmp_path: Path, own_kafka: str) -> None:
    with own_platform(tmp_path, {"127.0.0.1:9092": own_kafka}) as in_session:
        run(KAFKA, in_session)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, str]]:
    """A platform with the tenant `acme`, and its key."""
    with running(tmp_path_factory.mktemp("pages") / "data") as made:
        yield made, made.cli("tenant", "create", "acme")["key"]


@pytest.mark.parametrize("page", [*SHARED, SENT], ids=name)
def test_a_page_on_a_running_platform(
    page: Path, platform: tuple[Platform, str], tmp_path: Path
) -> None:
    """Pages begin with an empty collection `docs` of the tenant `acme`, and its key in KEY."""
    at, key = platform
    at.cli("collection", "create", "acme/docs")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    try:
        with closing(
            Session(
                tmp_path,
                {
                    "VICINAGE_DATA": str(at.data),
                    "VICINAGE_GATEWAY__PORT": at.url.rpartition(":")[2],
                    "KEY": key,
                },
                {"http://127.0.0.1:8080": at.url},
            )
        ) as made:
            run(page, made, at.url)
    finally:
        at.cli("collection", "delete", "acme/docs", "--yes")
