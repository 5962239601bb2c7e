"""Estimates the cost of a search of one snapshot before it runs, for scheduling. Pure."""

from typing import Final

from indexer.index import lexical
from indexer.index.effort import EXACT
from indexer.index.segment import Segment
from indexer.index.snapshot import Snapshot

CHARS_A_WORD: Final = 6
CUT_PAIRS: Final = 8_192
"""Pairs of a word and a row that cost as much as tokenizing and stemming one word: about 2 µs."""
COUNT_PAIRS: Final = 20_480
"""Pairs that cost as much as counting the rows of a term in one index: about 5 µs."""


def rows_compared(snapshot: Snapshot, *, exact: bool, scan_rows_max: int = 0) -> int:
    """Returns the rows that one search compares its query with.

    These are the rows without an index, or all if `exact`. Adds up to `scan_rows_max` rows, which
    may be scanned instead of an index.
    """
    if exact:
        return snapshot.rows
    return snapshot.rows_scanned + min(snapshot.rows - snapshot.rows_scanned, scan_rows_max)


def lexical_pairs(snapshot: Snapshot, text: str) -> int:
    """Returns the cost of a lexical search, in pairs of a word and a row, from the text's length.

    Every word is tokenized and stemmed. At most COUNTED_MAX words are counted in each index, and at
    most TERMS_MAX are searched.
    """
    words = 1 + len(text) // CHARS_A_WORD
    counted = min(lexical.COUNTED_MAX, words) * (len(snapshot.segments) + 1)
    before = words * CUT_PAIRS + counted * COUNT_PAIRS if snapshot.rows else 0
    return before + min(lexical.TERMS_MAX, words) * snapshot.rows


def rows_scanned(segment: Segment, objective: float) -> int:
    """Returns the rows of a segment that every search scans.

    These are all rows without an index, or if the objective is exact. RaBitQ counts an eighth: a
    scan of its codes costs that much.
    """
    if segment.index is None or objective >= EXACT:
        return len(segment)
    return len(segment) // 8 if segment.ref.kind == "rabitq" else 0
