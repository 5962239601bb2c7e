"""The lexical index: exactly the allowed rows that hold a word of the query, never fewer than k."""

import gc
import os
import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resources import eventually

from indexer.index import lexical
from indexer.index.analysis import STOP_WORDS, text_terms
from indexer.index.lexical import Growing, Lexical, pack, terms, unpack, weights
from vicinage.errors import Corrupt

WORDS = [
    "apple",
    "banana",
    "cherry",
    "plum",
    "fig",
    "kiwi",
]  # each stays one term, stemmed or not


def indexed(texts: list[str | None], folder: Path | None = None) -> Lexical:
    if folder is not None:
        return unpack(pack(texts, folder / lexical.FILE))
    growing = Growing()
    growing.add(texts)
    return growing.now


def rows(index: Lexical, query: str, k: int = 100, allowed: np.ndarray | None = None) -> list[int]:
    [weighted] = weights(terms(query), [index])
    scores, found = index.search(weighted, k, allowed)
    assert list(zip(-scores, found, strict=True)) == sorted(zip(-scores, found, strict=True)), (
        "best first, then by row"
    )
    return found.tolist()


def test_rarer_words_and_shorter_texts_rank_higher(tmp_path: Path) -> None:
    texts = ["apple banana", "apple cherry plum fig", None, "banana", "apple", "the kiwi"]
    for index in (indexed(texts), indexed(texts, tmp_path)):
        assert rows(index, "kiwi apple") == [5, 4, 0, 1]
        assert rows(index, "banana", k=1) == [3]
        assert rows(index, "the cat or the kiwi") == [5], (
            "unknown words and stop words find nothing"
        )
        assert rows(index, "the") == [5], "unless the query has no other word"
        assert rows(index, "unknown") == rows(index, "") == rows(index, "?! ...") == []


@pytest.mark.parametrize(
    "query",
    [
        '"apple',
        "apple AND NOT",
        "text:apple",
        "app*",
        "apple~2",
        "row:[0 TO 9]",
        "+apple -banana",
        "a\0pple",
        "(((",
        "*",
    ],
)
def test_a_query_is_words_and_no_query_language(query: str) -> None:
    index = indexed(["apple banana", "banana", "an apricot", "row text and not"])
    words = set(re.findall("[a-z0-9]+", query.lower())) - STOP_WORDS
    expected = [
        i
        for i, t in enumerate(["apple banana", "banana", "an apricot", "row text and not"])
        if words & set(t.split())
    ]
    assert sorted(rows(index, query)) == expected


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Die Straße in ZÜRICH", "zurich"),
        ("Running dogs", "dog runs"),
        ("東京都の天気", "天"),
        ("हिन्दी नमस्ते", "नमस्ते"),
        ("ｆｕｌｌ width", "full"),
        ("cafe\u0301", "café"),
        ("ABC中文", "abc"),
        ("версия 3.11", "ВЕРСИЯ"),
        ("part no. QX-4711/b", "qx 4711"),
        ("İSTANBUL and IZMIR", "istanbul"),
        ("ISPARTA", "ısparta"),
        ("ΟΔΟΣ Αθηνών", "οδός"),
        ("οδος", "ΟΔΌΣ"),
        ("co\u00adop\u200ber\u200da\ufefftion", "cooperation"),
        ("cooperation", "co\u2060operation"),
        ("ภาษาไทยเป็นภาษาที่สวยงาม", "สวยงาม"),
        ("กรุงเทพมหานคร", "กรุงเทพ"),
        ("ດອກໄມ້ສີແດງ", "ສີແດງ"),
        ("ខ្ញុំស្រឡាញ់ភាសាខ្មែរ", "ភាសាខ្មែរ"),
        ("မြန်မာဘာသာစကား", "ဘာသာ"),
        ("๑๒๓ บาท", "123"),
        ("東京都の天気予報", "天気予報"),
        ("رســول", "رسول"),
        ("a course in C++ and C#", "c++"),
        ("C♯ for beginners", "C#"),
        ("Notepad++ is an editor", "notepad"),
        ("sha256 " + "0123456789abcdef" * 8, "0123456789ABCDEF" * 8),
        ("x" * 5_000, "X" * 5_000),
    ],
)
def test_words_of_many_languages_are_found(text: str, query: str) -> None:
    assert rows(indexed(["something else", text]), query) == [1]


def test_marks_belong_to_their_letters() -> None:
    assert rows(indexed(["नमस"]), "नमस्ते") == []


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("a course in C", "C++"),
        ("a course in C", "C#"),
        ("a course in C#", "C++"),
        ("ฉันรักหมา", "แมว"),
        ("天 気", "天気"),
        ("x" * 5_000, "x" * 4_999),
    ],
)
def test_a_query_searches_the_most_specific_form(text: str, query: str) -> None:
    assert rows(indexed([text]), query) == []


def test_a_very_long_query_counts_a_bounded_number_of_terms_alike_in_every_shard() -> None:
    counted: list[str] = []

    class Counting:
        def __len__(self) -> int:
            return 10

        def count(self, term: str) -> int:
            counted.append(term)
            return 1

    counts = {f"w{i:05}": 1 for i in range(5_000)} | {"x": 3, "phosphofructokinase": 1}
    kept = [set(lexical.weights(counts, [Counting()])[0]) for _ in range(2)]
    assert len(counted) == 2 * lexical.COUNTED_MAX
    assert {"x", "phosphofructokinase"} <= set(counted), "the most frequent ones, then the longest"
    assert kept[0] == kept[1] and len(kept[0]) == lexical.TERMS_MAX


def test_a_query_searches_the_terms_of_the_greatest_weight() -> None:
    many = [f"w{i}" for i in range(3 * lexical.TERMS_MAX)]
    index = indexed([" ".join(many[i:]) for i in range(0, len(many), 10)])
    [kept] = weights(terms(" ".join(many)), [index])
    assert set(kept) == set(many[: lexical.TERMS_MAX]), "the rarest"
    [kept] = weights(terms(" ".join(many) + " w200" * 9), [index])
    assert set(kept) == {*many[: lexical.TERMS_MAX - 1], "w200"}, (
        "with a frequent term of the query"
    )
    assert terms("again " * 1_000) == {"again": 1_000}
    assert rows(indexed([" ".join(many)]), " ".join(many)) == [0]


def test_a_word_counts_as_often_as_it_is_in_the_query() -> None:
    index = indexed(["apple fig", "banana fig", "banana kiwi", "apple plum"])
    assert rows(index, "apple banana banana", k=2) == [1, 2]
    assert rows(index, "apple apple banana", k=2) == [0, 3]
    one, two = (
        index.search(weights(terms(q), [index])[0], 1, None)[0][0] for q in ("apple", "apple apple")
    )
    assert two == pytest.approx(2 * one)


few_texts = st.lists(
    st.lists(st.sampled_from(["apple", "banana", "cherry"]), min_size=2, max_size=2), min_size=1
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(few_texts, min_size=1, max_size=4),
    st.lists(st.sampled_from(["apple", "banana"]), min_size=1),
)
def test_scores_of_several_parts_are_those_of_one_index_of_all(
    parts: list[list[list[str]]], queried: list[str]
) -> None:
    """All texts have two words: parts differ in the frequency of words, not in length."""
    texts = [[" ".join(text) for text in part] for part in parts]
    split, joined = (
        [indexed(list(part)) for part in texts],
        indexed([t for part in texts for t in part]),
    )
    query = terms(" ".join(queried))
    [of_all] = weights(query, [joined])
    found = sorted(
        zip(*[x.tolist() for x in joined.search(of_all, 1_000, None)][::-1], strict=True)
    )
    first, seen = 0, []
    for part, weighted in zip(split, weights(query, split), strict=True):
        scores, at = part.search(weighted, 1_000, None)
        seen += [
            (first + row, score) for row, score in zip(at.tolist(), scores.tolist(), strict=True)
        ]
        first += len(part)
    assert [row for row, _ in sorted(seen)] == [row for row, _ in found]
    assert [s for _, s in sorted(seen)] == pytest.approx([s for _, s in found], rel=1e-4)


def test_an_index_grows_while_earlier_readers_stay_unchanged(tmp_path: Path) -> None:
    growing = Growing()
    growing.add(["apple", None])
    before = growing.now
    for i in range(20):
        growing.add([f"apple w{i}"])
    assert rows(before, "apple") == [0]
    assert sorted(rows(growing.now, "apple")) == [0, *range(2, 22)]
    assert rows(growing.now, "w19") == [21]
    assert growing.n == 22


def held(text: str) -> set[str]:
    """Returns the terms of a text, stemmed."""
    return set(lexical._analyzer().analyze(" ".join(text_terms(text))))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.text(max_size=40))
def test_any_text_is_found_by_itself(texts: list[str], query: str) -> None:
    index = indexed(list(texts))
    for i, text in enumerate(texts):
        found = rows(index, text)
        assert (i in found) == bool(terms(text))
        assert set(found) == {j for j, other in enumerate(texts) if set(terms(text)) & held(other)}
    assert set(rows(index, query)) == {
        j for j, t in enumerate(texts) if set(terms(query)) & held(t)
    }


def test_rows_beyond_the_end_of_the_mask_are_not_allowed() -> None:
    index = indexed(["apple"] * 10)
    assert rows(index, "apple", allowed=np.ones(4, np.bool_)) == [0, 1, 2, 3]


few = st.lists(
    st.none() | st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=30
)


@settings(max_examples=60, deadline=None)
@given(few, st.lists(st.sampled_from([*WORDS, "absent"]), max_size=3), st.integers(1, 8), st.data())
def test_hits_are_exactly_allowed_rows_with_a_word(
    texts: list[str | None], queried: list[str], k: int, data: st.DataObject
) -> None:
    allowed = data.draw(
        st.none() | st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)).map(np.array),
        label="allowed",
    )
    matching = {
        i
        for i, t in enumerate(texts)
        if t is not None and set(queried) & set(t.split()) and (allowed is None or allowed[i])
    }
    index, query = indexed(texts), " ".join(queried)
    assert set(rows(index, query, 100, allowed)) == matching
    best = rows(index, query, k, allowed)
    assert len(best) == min(k, len(matching))
    assert best == rows(index, query, 100, allowed)[:k]


@pytest.mark.parametrize("first_max", [0, 50, 100_000])
@pytest.mark.parametrize("set_max", [0, 100_000])
def test_a_filter_that_correlates_negatively_with_the_query_loses_no_hit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first_max: int, set_max: int
) -> None:
    """The best rows are not allowed: every strategy finds the same k rows."""
    monkeypatch.setattr(lexical, "FIRST_MAX", first_max)
    monkeypatch.setattr(lexical, "SET_MAX", set_max)
    texts = ["apple"] * 2_000 + [f"apple {'banana ' * (i % 7)}{i}" for i in range(500)]
    index = indexed(list(texts), tmp_path)
    allowed = np.zeros(2_500, np.bool_)
    allowed[2_000::5] = True
    everything = [r for r in rows(index, "apple", 2_500) if allowed[r]]
    assert len(everything) == 100
    assert rows(index, "apple", 10, allowed) == everything[:10]
    assert rows(index, "apple", 1_000, allowed) == everything
    assert rows(index, "apple", 10, np.zeros(2_500, np.bool_)) == []


def test_many_threads_read_while_one_adds() -> None:
    growing = Growing()
    growing.add(["apple w0"])
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            index = growing.now
            found = rows(index, "apple banana")
            if len(found) < 1 or len(set(found)) != len(found):
                wrong.append(found)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(30):
        growing.add([f"apple w{i}"] * 5)
    done.set()
    for thread in threads:
        thread.join(10)
    assert wrong == []
    assert len(rows(growing.now, "apple", 1_000)) == 151


def test_a_file_of_an_earlier_version_is_read_and_its_texts_split_alike() -> None:
    """`tests/formats/lexical-2.tar`.

    Where this fails, the change needs a new FILE: older indexes are then rebuilt.
    """
    assert lexical.FILE == "lexical-2.tar"
    index = unpack(Path(__file__).parents[2] / "formats" / lexical.FILE)
    assert rows(index, "Running foxes of ZÜRICH") == [2, 0]
    assert rows(index, "天気") == [3]
    assert rows(index, "brown") == [0]
    assert rows(index, "C++") == [4]
    assert rows(index, "สวยงาม") == [5]
    assert rows(index, "f" * 128) == [6]


def test_an_invalid_file_is_corrupt_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    index = unpack(pack(["apple"], tmp_path / lexical.FILE))
    assert list(place.iterdir()) == []
    assert rows(index, "apple") == [0], "mapped, although its files are unlinked"
    (tmp_path / "bad.tar").write_bytes(b"no tar at all")
    with pytest.raises(Corrupt):
        unpack(tmp_path / "bad.tar")
    assert list(place.iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"tmp", "bad.tar", lexical.FILE}


def test_no_thread_outlives_its_index(tmp_path: Path) -> None:
    """tantivy watches a folder with a thread; indexes in memory and released ones have none."""

    def n_watching() -> int:
        return subprocess.check_output(
            ["ps", "-T", "-o", "comm=", "-p", str(os.getpid())], text=True
        ).count("tantivy-")

    gc.collect()
    eventually(lambda: n_watching() == 0)
    in_memory = [indexed(["apple"]) for _ in range(20)]
    assert n_watching() == 0
    unpacked = [indexed(["apple"], tmp_path) for _ in range(20)]
    assert all(rows(i, "apple") == [0] for i in [*in_memory, *unpacked])
    eventually(lambda: n_watching() >= 20)  # a thread gives itself its name once it runs
    unpacked.clear()
    eventually(lambda: n_watching() == 0)
