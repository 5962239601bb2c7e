"""The only door to tantivy: an index of texts by row number, which ranks the rows that hold a query's words by BM25.

A query is data: `indexer/index/analysis.py` cuts it into terms as it cut the texts; it is never read as a query language.
Law 8: what is written is one file, stored and verified like every other; it is unpacked anew by each process that uses it.
"""

import math
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from indexer.backends import Mask
from indexer.index import analysis
from vicinage.errors import Corrupt, Unavailable
from vicinage.records import Floats
from vicinage.scratch import own_folder

if TYPE_CHECKING:
    import tantivy
    from numpy.typing import NDArray

FILE: Final = "lexical-2.tar"
"""Counts up whenever the analysis or the bytes change: a file of another name is not read, and its texts are indexed anew."""
TERMS_MAX: Final = 128
"""Different terms of a query that are looked for: those that weigh most."""
COUNTED_MAX: Final = 512
"""Different terms of a query whose rarity is looked up.

English text has so many from about 5 KiB on.
"""
REMOVE_TRIES: Final = 100
_ANALYZER: Final = "terms-2"
_HEAP_BYTES: Final = (15_000_000, 64_000_000)
"""Of the writer, for few rows and for many; tantivy takes no less than the first."""
_FEW: Final = 1_000
FIRST_MAX: Final = 16_384
"""Hits that are ranked in the hope that k of them are allowed: 5 to 10 ms."""
SET_MAX: Final = 4_096
"""Allowed rows that are looked for by number where that hope failed, at most 6 ms in 100,000 rows; beyond, everything is ranked (30 ms)."""


@lru_cache(1)
def _analyzer() -> "tantivy.TextAnalyzer":
    """Returns what is left of the analysis once `analysis` has cut a text: Latin letters to ASCII, English stemming."""
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    return (
        TextAnalyzerBuilder(Tokenizer.whitespace())
        .filter(Filter.ascii_fold())
        .filter(Filter.stemmer("english"))
        .build()
    )


@lru_cache(1)
def _schema() -> "tantivy.Schema":
    from tantivy import SchemaBuilder

    builder = SchemaBuilder()
    builder.add_text_field("text", stored=False, tokenizer_name=_ANALYZER, index_option="freq")
    builder.add_unsigned_field("row", stored=False, indexed=True, fast=True)
    return builder.build()


def terms(query: str) -> Counter[str]:
    """Returns the terms of a query as they are indexed, each with how often the query says it.

    A single Latin letter or digit counts once: in a long text it is a symbol, whatever it is about.
    """
    counts = Counter(_analyzer().analyze(" ".join(analysis.query_terms(query))))
    return Counter(
        {term: 1 if len(term) == 1 and term.isascii() else n for term, n in counts.items()}
    )


def weights(query: Mapping[str, int], parts: "Sequence[Lexical]") -> list[dict[str, float]]:
    """Returns for each part the weight of each term of `query` there, for `Lexical.search`.

    A term weighs as often as the query says it. How rare it is counts over all parts together, so
    that the scores of different parts compare: a weight corrects the part's own statistics by those
    of all. At most TERMS_MAX terms are kept, those of the greatest frequency times rarity. Of a
    query of more than COUNTED_MAX terms, only those that it says most often, then the longest, are
    counted: about 5 µs a term and part.
    """
    counts = {term: [part.count(term) for part in parts] for term in _most_said(query)}
    n = sum(len(part) for part in parts)
    rarity = {term: _idf(n, sum(of)) for term, of in counts.items() if any(of)}
    kept = nlargest(TERMS_MAX, rarity, key=lambda term: query[term] * rarity[term])
    return [
        {
            term: query[term] * rarity[term] / _idf(len(part), counts[term][i])
            for term in kept
            if counts[term][i]
        }
        for i, part in enumerate(parts)
    ]


def _most_said(query: Mapping[str, int]) -> Sequence[str]:
    """Returns at most COUNTED_MAX terms, whatever the parts hold: every shard counts the same ones."""
    if len(query) <= COUNTED_MAX:
        return list(query)
    return nlargest(COUNTED_MAX, query, key=lambda term: (query[term], len(term), term))


def _idf(n: int, count: int) -> float:
    """Returns BM25's inverse document frequency as tantivy computes it."""
    return math.log1p((n - count + 0.5) / (count + 0.5))


class Lexical:
    """An index as of one moment. Immutable; safe for many threads."""

    __slots__ = ("_n", "_searcher")

    def __init__(self, searcher: "tantivy.Searcher") -> None:
        self._searcher = searcher
        self._n = searcher.num_docs

    def __len__(self) -> int:
        return self._n

    def count(self, term: str) -> int:
        """Returns how many rows hold `term`, those that died since included."""
        return self._searcher.doc_freq("text", term)

    def search(
        self, weighted: Mapping[str, float], k: int, allowed: Mask | None
    ) -> "tuple[Floats, NDArray[np.int64]]":
        """Returns scores float32 [m] and rows int64 [m], best first, of equal ones the lower row; m ≤ k.

        A score is the sum over `weighted` of weight × BM25 (k1 1.2, b 0.75). Found are the rows that hold at least one term
        and are True in `allowed` (bool, by row; beyond its end nothing is allowed): all of them, where they are fewer than k.
        Cost: with the rows that hold a term, if few of the best are allowed.
        """
        if not weighted or not self._n:
            return _nothing()
        query = _any_of(weighted)
        if allowed is None:
            return self._ranked(query, k, None)
        n_allowed = int(np.count_nonzero(allowed))
        if not n_allowed:
            return _nothing()
        hoped = min(self._n, 2 * k * len(allowed) // n_allowed)
        if hoped <= FIRST_MAX:
            found = self._ranked(query, hoped, allowed)
            if len(found[0]) >= k or hoped == self._n:
                return found[0][:k], found[1][:k]
        if n_allowed <= SET_MAX:
            return self._ranked(_among(query, np.flatnonzero(allowed).tolist()), k, allowed)
        scores, rows = self._ranked(query, self._n, allowed)
        return scores[:k], rows[:k]

    def _ranked(
        self, query: "tantivy.Query", limit: int, allowed: Mask | None
    ) -> "tuple[Floats, NDArray[np.int64]]":
        """The allowed ones among the `limit` best."""
        found = self._searcher.search(query, min(limit, self._n), count=False).hits
        scores = np.array([score for score, _ in found], np.float32)
        rows = np.array(self._searcher.fast_field_values("row", [at for _, at in found]), np.int64)
        if allowed is not None:
            keep = rows < len(allowed)
            keep[keep] = allowed[rows[keep]]
            scores, rows = scores[keep], rows[keep]
        order = np.lexsort((rows, -scores))
        return scores[order], rows[order]


def _nothing() -> "tuple[Floats, NDArray[np.int64]]":
    return np.zeros(0, np.float32), np.zeros(0, np.int64)


def _any_of(weighted: Mapping[str, float]) -> "tantivy.Query":
    from tantivy import Occur, Query

    each = (
        (Query.term_query(_schema(), "text", term, "freq"), weight)
        for term, weight in weighted.items()
    )
    return Query.boolean_query(
        [(Occur.Should, q if w == 1 else Query.boost_query(q, w)) for q, w in each]
    )


def _among(query: "tantivy.Query", rows: list[int]) -> "tantivy.Query":
    """The same, of these rows alone; what they score is not changed."""
    from tantivy import Occur, Query

    among = Query.const_score_query(Query.term_set_query(_schema(), "row", rows), 0.0)
    return Query.boolean_query([(Occur.Must, query), (Occur.Must, among)])


class Growing:
    """An index in memory, to which texts are added.

    One thread at a time adds; what `now` gave stays as it was.
    """

    __slots__ = ("_index", "n", "now")

    def __init__(self) -> None:
        import tantivy

        self._index = tantivy.Index(_schema())
        self._index.register_tokenizer(_ANALYZER, _analyzer())
        self._index.config_reader("manual")
        self.n = 0
        """Rows given so far, those without text among them."""
        self.now = Lexical(self._index.searcher())

    def add(self, texts: Sequence[str | None]) -> None:
        """Index the texts as the next rows. Costs some 5 to 10 ms, and 20 µs a sentence."""
        _write(self._index, texts, self.n)
        self.n += len(texts)
        self._index.reload()
        self.now = Lexical(self._index.searcher())


def pack(texts: Sequence[str | None], file: Path) -> Path:
    """Index the texts by their number and write the index to `file`; `unpack` reads it."""
    import tantivy

    with _folder(file.parent) as folder:
        index = tantivy.Index(_schema(), path=str(folder))
        index.config_reader("manual")
        index.register_tokenizer(_ANALYZER, _analyzer())
        _write(index, texts, 0)
        with tarfile.open(file, "w") as tar:
            for part in sorted(folder.iterdir()):
                if not part.name.endswith(".lock"):
                    tar.add(part, part.name)
    return file


def unpack(file: Path) -> Lexical:
    """The index in `file`, which was verified. Raises Corrupt, Unavailable.

    Its parts lie on the disk for temporary files without a name, mapped, as long as it is used:
    nobody else can change them unseen, and whatever ends this process leaves nothing behind. As
    long, tantivy has a thread that looks for changes twice a second (there are none), which cannot
    be forbidden: whoever opens many bounds how many.
    """
    import tantivy

    try:
        with _folder(None) as folder:
            with tarfile.open(file) as tar:
                tar.extractall(folder, filter="data")
            index = tantivy.Index.open(str(folder))
            index.config_reader("manual")
            return Lexical(index.searcher())
    except (tarfile.TarError, ValueError) as error:
        raise Corrupt(f"{file.name} is no lexical index: {error}", path=str(file)) from error
    except OSError as error:
        raise Unavailable(f"no room to unpack {file.name}: {error}", dependency="disk") from error


@contextmanager
def _folder(parent: Path | None) -> Iterator[Path]:
    """A folder of our own, gone afterwards.

    A thread of tantivy's may still put a lock file into it: then once more.
    """
    folder = Path(tempfile.mkdtemp(prefix="vicinage-lexical-", dir=parent or own_folder()))
    try:
        yield folder
    finally:
        for _ in range(REMOVE_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.01)


def _write(index: "tantivy.Index", texts: Iterable[str | None], first: int) -> None:
    """Add the texts as rows from `first` on; searchable by a reader that is opened, or reloaded, after the return."""
    import tantivy

    every = list(texts)
    with index.writer(_HEAP_BYTES[len(every) > _FEW], 1) as writer:
        for row, text in enumerate(every, start=first):
            if text is not None:
                document = tantivy.Document()
                document.add_text("text", " ".join(analysis.text_terms(text)))
                document.add_unsigned("row", row)
                writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
