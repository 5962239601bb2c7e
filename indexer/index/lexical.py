"""The only module that uses tantivy: an index of texts by row number, ranked by BM25.

A query is data: `indexer/index/analysis.py` splits it into terms like the texts. It is never parsed
as a query language. Guarantee 8: an index is stored as one file, verified like every other. Each
process that uses it unpacks it.
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
"""The number grows whenever the analysis or the stored bytes change.

A file with another name is not read; its texts are indexed again.
"""
TERMS_MAX: Final = 128
"""Most different terms of a query that are searched: those with the greatest weight."""
COUNTED_MAX: Final = 512
"""Most different terms of a query whose document frequency is looked up.

English text has that many from about 5 KiB on.
"""
REMOVE_TRIES: Final = 100
_ANALYZER: Final = "terms-2"
_HEAP_BYTES: Final = (15_000_000, 64_000_000)
"""Heap of the writer, for few rows and for many; the first is tantivy's minimum."""
_FEW: Final = 1_000
FIRST_MAX: Final = 16_384
"""Most hits that are ranked and then post-filtered for k allowed ones: 5 to 10 ms."""
SET_MAX: Final = 4_096
"""Most allowed rows that are passed to tantivy as a set if post-filtering finds too few.

That takes at most 6 ms in 100,000 rows. With more allowed rows, all hits are ranked (30 ms).
"""


@lru_cache(1)
def _analyzer() -> "tantivy.TextAnalyzer":
    """Returns the analyzer of terms: Latin letters to ASCII, English stemming.

    The module `analysis` has split the text before.
    """
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
    """Returns the terms of a query as they are indexed, each with its count in the query.

    A single Latin letter or digit counts once: in a long text it is a symbol that tells little of
    the topic.
    """
    counts = Counter(_analyzer().analyze(" ".join(analysis.query_terms(query))))
    return Counter(
        {term: 1 if len(term) == 1 and term.isascii() else n for term, n in counts.items()}
    )


def weights(query: Mapping[str, int], parts: "Sequence[Lexical]") -> list[dict[str, float]]:
    """Returns for each part the weight of each term of `query` there, for `Lexical.search`.

    A weight is the term's count in the query times its inverse document frequency over all parts,
    divided by that of the part. So scores of different parts are comparable. Keeps at most
    TERMS_MAX terms, those with the greatest count times inverse document frequency. Of a query of
    more than COUNTED_MAX terms, looks up only the most frequent, then the longest: about 5 µs per
    term and part.
    """
    counts = {term: [part.count(term) for part in parts] for term in _most_frequent(query)}
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


def _most_frequent(query: Mapping[str, int]) -> Sequence[str]:
    """Returns at most COUNTED_MAX terms, chosen by the query alone: the same in every shard."""
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
        """Returns how many rows hold `term`, including rows that are dead by now."""
        return self._searcher.doc_freq("text", term)

    def search(
        self, weighted: Mapping[str, float], k: int, allowed: Mask | None
    ) -> "tuple[Floats, NDArray[np.int64]]":
        """Returns scores float32 [m] and rows int64 [m], best first; of equal scores the lower row.

        A score is the sum over `weighted` of weight × BM25 (k1 1.2, b 0.75). m ≤ k, and is less
        only if fewer allowed rows hold a term. `allowed` is bool by row; rows beyond its end are
        not allowed. The cost grows with the rows that hold a term, if few of the best are allowed.
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
        """Returns the allowed rows among the `limit` best."""
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
    """Returns the query restricted to these rows, with unchanged scores."""
    from tantivy import Occur, Query

    among = Query.const_score_query(Query.term_set_query(_schema(), "row", rows), 0.0)
    return Query.boolean_query([(Occur.Must, query), (Occur.Must, among)])


class Growing:
    """An index in memory to which texts are added, by one thread at a time.

    Values of `now` are immutable: later additions do not change them.
    """

    __slots__ = ("_index", "n", "now")

    def __init__(self) -> None:
        import tantivy

        self._index = tantivy.Index(_schema())
        self._index.register_tokenizer(_ANALYZER, _analyzer())
        self._index.config_reader("manual")
        self.n = 0
        """Rows added so far, including those without text."""
        self.now = Lexical(self._index.searcher())

    def add(self, texts: Sequence[str | None]) -> None:
        """Indexes the texts as the next rows. Costs 5 to 10 ms, plus 20 µs per sentence."""
        _write(self._index, texts, self.n)
        self.n += len(texts)
        self._index.reload()
        self.now = Lexical(self._index.searcher())


def pack(texts: Sequence[str | None], file: Path) -> Path:
    """Indexes the texts by their position and writes the index to `file`, for `unpack`."""
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
    """Returns the index in `file`, which the caller has verified. Raises Corrupt, Unavailable.

    Its parts are memory-mapped from unlinked temporary files while it is used. So no other process
    can change them, and nothing remains when this process ends. Meanwhile a thread of tantivy looks
    for changes twice a second. There are none, but the thread cannot be turned off, so callers
    bound the number of open indexes.
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
        raise Corrupt(f"{file.name} is not a lexical index: {error}", path=str(file)) from error
    except OSError as error:
        raise Unavailable(
            f"{file.name} cannot be unpacked to the disk for temporary files: {error}",
            dependency="disk",
        ) from error


@contextmanager
def _folder(parent: Path | None) -> Iterator[Path]:
    """Creates a temporary folder and removes it afterwards.

    Retries the removal, because a thread of tantivy may still write a lock file into it.
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
    """Adds the texts as rows from `first` on.

    Readers that are opened or reloaded after the return find them.
    """
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
