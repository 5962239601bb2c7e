"""Text analysis: the terms under which a text is indexed, and those that a query searches. Pure.

Texts and queries are folded, split and expanded alike, so a query finds every text that holds its
words. A text is indexed under more forms than a query searches: `C++` under `c` and `cplusplus`, a
run of Thai under its characters, pairs and triples. A query searches only the most specific form.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from vicinage.texts import IGNORABLE

TERM_BYTES_MAX: Final = 100
"""A longer term (a hash, a key) is indexed under its digest: only the whole term finds it."""
STOP_WORDS: Final = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "if",
        "in",
        "into",
        "is",
        "it",
        "no",
        "not",
        "of",
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    ]
)
"""Lucene's English stop words. Texts keep them; a query drops them unless it has no other word."""
SUFFIXES: Final = {"++": "plusplus", "#": "sharp"}
"""Suffixes that are part of a name: C++, C#, F#, notepad++."""
PAIRS: Final = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3041-\u3096"
    "\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Han, Hiragana, Katakana, Bopomofo, Yi: no spaces; a character is about a syllable."""
TRIPLES: Final = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ecf\u0edc-\u0edf\u1000-\u103f\u1050-\u108f"
    "\u109a-\u109d\u1700-\u17d3\u17d7\u17dc\u17dd\u1950-\u19c9\u1a20-\u1a7f\u1aa7"
    "\u1b00-\u1b4c\ua980-\ua9c0\ua9e0-\ua9ef\ua9fa-\ua9fe"
    "\uaa60-\uaac2\uaadb-\uaadd"
)
"""Thai, Lao, Burmese, Khmer and related scripts: no spaces between words.

A character is about a letter.
"""
STACKERS: Final = "\u17d2\u1039\u1a60"
"""Signs that stack the next consonant under the one before.

These are Khmer coeng, Burmese virama and Tai Tham sakot.
"""

_IGNORABLE = re.compile(f"[{IGNORABLE}\u0640]")
"""Invisible characters, and the Arabic tatweel, which only stretches a word visually."""
_ACCENT = re.compile("(?<=[a-z\u00e6-\u02af\u0370-\u03ff\u1d00-\u1eff])[\u0300-\u036f]+")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_PIECE = re.compile(f"([{PAIRS}]+)|([{TRIPLES}]+)|[^{PAIRS}{TRIPLES}]+")
_UNSPACED = re.compile(f"[{PAIRS}{TRIPLES}]")
_SUFFIX: Final = r"(?:\+\+(?!\+)|#(?![{0}#]))?"
_ASCII_WORD = re.compile("[0-9a-z]+" + _SUFFIX.format("0-9a-z"))


def text_terms(text: str) -> list[str]:
    """Returns the terms of a text, unstemmed, in order.

    There are at most three per character, each of at most TERM_BYTES_MAX bytes.
    """
    return _terms(text, query=False)


def query_terms(text: str) -> list[str]:
    """Returns the terms that a query searches, unstemmed, in order, with repetitions.

    All of them are in `text_terms` of the same text. Stop words are dropped unless the query has no
    other word ("To be or not to be").
    """
    terms = _terms(text, query=True)
    return [term for term in terms if term not in STOP_WORDS] or terms


def fold(text: str) -> str:
    """Returns the text in NFKC, fully case-folded, without invisible characters.

    Accents of Latin and Greek letters are dropped; decimal digits of all scripts become ASCII.
    """
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", _IGNORABLE.sub("", text)).casefold()
    text = _IGNORABLE.sub("", unicodedata.normalize("NFKC", text)).replace("\u266f", "#")
    text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit.group())), text)
    decomposed = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", _ACCENT.sub("", decomposed))


def _terms(text: str, *, query: bool) -> list[str]:
    words = _words(fold(text))
    if all(map(_is_plain, words)):
        return words
    return [
        term
        for word in words
        for term in ((word,) if _is_plain(word) else _forms(word, query=query))
    ]


def _is_plain(word: str) -> bool:
    """Returns whether a word is its only term. Most words are."""
    return word.isascii() and word.isalnum() and len(word) <= TERM_BYTES_MAX


def _words(folded: str) -> list[str]:
    """Returns maximal runs of letters, marks and digits, each with its suffix of SUFFIXES."""
    pattern = _ASCII_WORD if folded.isascii() else _any_word()
    return pattern.findall(folded.replace("_", " "))


@lru_cache(1)
def _any_word() -> re.Pattern[str]:
    return re.compile(rf"[\w{_marks()}]+" + _SUFFIX.format(r"\w"))


@lru_cache(1)
def _marks() -> str:
    """Returns every combining mark of Unicode, as ranges of a character class."""
    marks = [c for c in range(0x300, 0x1F000) if unicodedata.category(chr(c))[0] == "M"]
    starts = [c for c, before in zip(marks, [0, *marks], strict=False) if c != before + 1]
    ends = [c for c, after in zip(marks, [*marks[1:], 0], strict=True) if c + 1 != after]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


def _forms(word: str, *, query: bool) -> Iterable[str]:
    """Returns the terms of one word: all for a text, the most specific for a query."""
    if word[-1] in "+#":
        return _named(word, query=query)
    if _UNSPACED.search(word):
        return _grams(word, query=query)
    return (_bounded(word),)


def _named(word: str, *, query: bool) -> list[str]:
    name = word.rstrip("+#")
    whole = _bounded(name + SUFFIXES[word[len(name) :]])
    return [whole] if query else [*_forms(name, query=False), whole]


def _grams(word: str, *, query: bool) -> Iterator[str]:
    """Yields overlapping n-grams of each unspaced run, and the text between such runs as words."""
    for piece in _PIECE.finditer(word):
        most = 2 if piece.group(1) else 3 if piece.group(2) else 0
        if not most:
            yield _bounded(piece.group())
            continue
        signs = _signs(piece.group())
        sizes = (min(most, len(signs)),) if query else range(1, min(most, len(signs)) + 1)
        for size in sizes:
            for at in range(len(signs) - size + 1):
                yield _bounded("".join(signs[at : at + size]))


def _signs(run: str) -> list[str]:
    """Returns the characters of a run, each with its marks and stacked consonants."""
    signs: list[str] = []
    for char in run:
        if signs and (unicodedata.category(char)[0] == "M" or signs[-1][-1] in STACKERS):
            signs[-1] += char
        else:
            signs.append(char)
    return signs


def _bounded(term: str) -> str:
    if (
        len(term) * 4 <= TERM_BYTES_MAX
        or len(encoded := term.encode(errors="surrogatepass")) <= TERM_BYTES_MAX
    ):
        return term
    return "h" + blake2b(encoded, digest_size=16).hexdigest()
