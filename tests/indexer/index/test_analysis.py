"""Text analysis: texts and queries are split alike, no word vanishes, no term is too long."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.index.analysis import STOP_WORDS, TERM_BYTES_MAX, fold, query_terms, text_terms

SCRIPTS = st.text(
    st.sampled_from(
        "aZéİıßςΣ09_ \n.+#\u00ad\u200b\u200c\u200d\ufeff東京あカ๑กำ้ີកខ្ំမ္စй\u0301\u0640\U00020000Ａ①ﬁ"
    ),
    max_size=60,
)
TEXTS = st.text(max_size=60) | SCRIPTS


def is_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LN"


@given(TEXTS, TEXTS)
def test_a_query_searches_only_terms_of_the_same_text(text: str, other: str) -> None:
    """A stop word may be searched in `text` alone and be dropped beside other words."""
    assert set(query_terms(text)) <= set(text_terms(text))
    assert set(query_terms(text)) - STOP_WORDS <= set(text_terms(f"{text}\n{other}"))


@given(TEXTS)
def test_no_word_vanishes_and_none_is_too_long(text: str) -> None:
    terms = text_terms(text)
    assert bool(terms) == bool(query_terms(text))
    assert all(
        0 < len(term.encode()) <= TERM_BYTES_MAX and term.split() == [term] for term in terms
    )
    if all(len(word.encode()) <= TERM_BYTES_MAX for word in terms):
        assert {c for c in fold(text) if is_word(c)} <= set("".join(terms))


@given(TEXTS)
def test_folding_is_idempotent_and_ignores_case(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    if "ı" not in text:  # its upper case is I, as that of i
        assert fold(text.upper()) == fold(text)


@pytest.mark.parametrize("length", [101, 1_000, 100_000])
@pytest.mark.parametrize("char", ["a", "é", "ก", "東", "𠀀", "ខ"])
def test_a_run_of_any_length_is_indexed(char: str, length: int) -> None:
    assert query_terms(char * length)
    assert set(query_terms(char * length)) <= set(text_terms(char * length))


@pytest.mark.parametrize(
    ("text", "indexed", "queried"),
    [
        ("C++ and C#", ["c", "cplusplus", "and", "c", "csharp"], ["cplusplus", "csharp"]),
        (
            "a C++11 page#part ##x y+++",
            ["a", "c", "cplusplus", "11", "page", "part", "x", "y"],
            None,
        ),
        ("東京都", ["東", "京", "都", "東京", "京都"], ["東京", "京都"]),
        ("แมว2", ["แ", "ม", "ว", "แม", "มว", "แมว", "2"], ["แมว", "2"]),
        ("天", ["天"], ["天"]),
        ("ខ្មែរ", ["ខ្មែ", "រ", "ខ្មែរ"], ["ខ្មែរ"]),
        (
            "To be or not to be",
            ["to", "be", "or", "not", "to", "be"],
            ["to", "be", "or", "not", "to", "be"],
        ),
        ("the cat, the CAT", ["the", "cat", "the", "cat"], ["cat", "cat"]),
        ("snake_case", ["snake", "case"], ["snake", "case"]),
        ("İzmir ﬁt Straße ΟΔΟΣ", ["izmir", "fit", "strasse", "οδοσ"], None),
        ("हिन्दी", ["हिन्दी"], ["हिन्दी"]),
        ("\u200b \u00ad \0 .,", [], []),
    ],
)
def test_forms(text: str, indexed: list[str], queried: list[str] | None) -> None:
    assert text_terms(text) == indexed
    if queried is not None:
        assert query_terms(text) == queried
