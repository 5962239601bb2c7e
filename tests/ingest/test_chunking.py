"""Passages: exact positions, nothing left out, never over the window, for any text."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.chunking import CHARS_PER_TOKEN_MAX, Chunker, open_chunker
from ingest.embedding.tokenizer import model_folder, open_tokenizer
from tenants.entities import DEFAULT_MODEL
from vicinage.errors import Refused
from vicinage.records import Passage
from vicinage.settings import IngestSettings
from vicinage.texts import is_blank

pytestmark = pytest.mark.model
TOKENIZER = open_tokenizer(DEFAULT_MODEL)
SMALL = IngestSettings(passage_tokens=20, passage_overlap_tokens=5)
WINDOW = 30
CHUNKER = open_chunker(replace(DEFAULT_MODEL, window_tokens=WINDOW + 2), SMALL)
PROSE = " ".join(
    f"Sentence number {i} speaks of the {w}, briefly."
    for i, w in enumerate(["sea", "wind", "hull"] * 30)
)
ODD = [
    "漢字",
    "👨‍👩‍👧 ",
    "é",
    "ﷺ",
    "\u0301",
    "ß",
    "a" * 150,
    "x",
    ".",
    "\n\n",
    "\t",
    " " * 40,
    "한국어",
    "مرحبا ",
    "word ",
]


def tokens(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


def check(text: str, passages: list[Passage], window: int = WINDOW) -> None:
    covered: set[int] = set()
    for p in passages:
        assert text[p.start : p.end] == p.text, "characters, not bytes"
        assert tokens(p.text) <= window
        covered.update(range(p.start, p.end))
    assert all(a.start < b.start and a.end < b.end for a, b in pairwise(passages)), (
        "in order, none within another"
    )
    assert all(i in covered for i, char in enumerate(text) if not is_blank(char)), text


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=400).filter(str.strip))
def test_positions_are_exact_and_nothing_is_left_out(text: str) -> None:
    check(text, CHUNKER.chunk(text))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ODD), st.integers(1, 80)), min_size=1, max_size=8))
def test_a_text_whose_parts_are_of_very_different_density_fits_the_window_everywhere(
    runs: list,
) -> None:
    text = "".join(part * times for part, times in runs)
    if text.strip():
        check(text, CHUNKER.chunk(text))


def test_a_text_that_fits_is_one_passage_without_the_space_around_it() -> None:
    assert CHUNKER.chunk("  \n red apples\t") == [Passage("red apples", 4, 14)]


def test_chunks_end_between_sentences_and_neighbors_overlap() -> None:
    passages = CHUNKER.chunk(PROSE)
    check(PROSE, passages)
    assert len(passages) > 10
    assert sum(p.text.endswith(".") for p in passages) >= len(passages) * 0.9
    without = open_chunker(
        DEFAULT_MODEL, IngestSettings(passage_tokens=40, passage_overlap_tokens=0)
    ).chunk(PROSE)
    assert all(a.end <= b.start for a, b in pairwise(without))
    shared = open_chunker(
        DEFAULT_MODEL, IngestSettings(passage_tokens=40, passage_overlap_tokens=20)
    ).chunk(PROSE)
    assert all(a.end > b.start for a, b in pairwise(shared))


def test_passages_are_about_as_long_as_requested() -> None:
    sizes = [
        tokens(p.text) for p in open_chunker(DEFAULT_MODEL, IngestSettings()).chunk(PROSE * 20)
    ]
    assert max(sizes) <= 254
    assert 120 <= sum(sizes) / len(sizes) <= 230


def test_unreadable_text_makes_no_passage() -> None:
    passages = CHUNKER.chunk("red apples " + "\u200b\u00ad\0 " * 5_000 + " green pears")
    assert passages
    assert not any(is_blank(p.text) for p in passages)
    assert {
        word for p in passages for word in ("red", "apples", "green", "pears") if word in p.text
    } == {
        "red",
        "apples",
        "green",
        "pears",
    }


@pytest.mark.parametrize("text", ["a" * 60_000, "👨‍👩‍👧" * 9_000], ids=["one word", "no words"])
def test_a_very_long_word_is_split_to_fit(text: str) -> None:
    passages = CHUNKER.chunk(text)
    check(text, passages)
    assert max(len(p.text) for p in passages) <= SMALL.passage_tokens * CHARS_PER_TOKEN_MAX


def test_the_work_is_linear_in_the_text() -> None:
    worked = 0

    def count(texts: Sequence[str]) -> list[int]:
        nonlocal worked
        worked += sum(map(len, texts))
        return [tokens(t) for t in texts]

    text = "." * 100_000 + "word " * 20_000
    check(text, Chunker(count, aim=20, window=WINDOW, overlap=5).chunk(text))
    assert worked < 6 * len(text)


def test_the_window_of_a_model_behind_a_server_is_kept_in_bytes() -> None:
    remote = replace(
        DEFAULT_MODEL, kind="openai", location="http://127.0.0.1:1/v1", window_tokens=102
    )
    text = PROSE + "漢字" * 300
    passages = open_chunker(remote, IngestSettings()).chunk(text)
    assert max(len(p.text.encode()) for p in passages) <= 100
    assert all(text[p.start : p.end] == p.text for p in passages)


def test_a_chunker_needs_the_tokenizer_and_not_the_model() -> None:
    code = """
import sys
from ingest.chunking import open_chunker
from tenants.entities import DEFAULT_MODEL
from vicinage.settings import IngestSettings
assert open_chunker(DEFAULT_MODEL, IngestSettings()).chunk("red apples")
sys.exit("torch" in sys.modules or "transformers" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_model_that_is_not_installed_is_refused_by_name() -> None:
    with pytest.raises(Refused, match="no_such_package is not installed"):
        model_folder(replace(DEFAULT_MODEL, location="package:no_such_package"))
    with pytest.raises(Refused, match=r"no tokenizer\.json"):
        model_folder(replace(DEFAULT_MODEL, location="/nowhere"))
