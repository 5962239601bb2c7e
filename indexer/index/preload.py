"""Decides what must be loaded before a search of one snapshot, and loads it.

A search itself reads few values and adds few rows to an index. More are loaded first, so that other
searches of the same thread do not wait.
"""

from typing import Final

from indexer.index.snapshot import Snapshot
from vicinage.records import ShardQuery

BEHIND_MAX: Final = 256
"""Most rows that a search itself adds to the delta's lexical index: about 10 ms."""
READ_MAX: Final = 4_096
"""Most metadata values that a search itself reads for its filter: about 8 ms."""
LEXICAL: Final = "$lexical"
"""Stands for the lexical indexes among names of fields: no field of a filter begins with $."""


def needs(snapshot: Snapshot, query: ShardQuery) -> frozenset[str] | None:
    """Returns the names of what must be loaded first; None if the search can run at once.

    These are filter columns of many rows, lexical indexes of segments, and a delta's lexical index
    that is far behind.
    """
    if not query.filter and not query.texts:
        return None
    names = query.filter.fields if query.filter else frozenset()
    unread = sum(g.columns.unread(names) for g in snapshot.segments)
    unread += snapshot.delta.metadata.unread(snapshot.delta, names)
    if unread <= READ_MAX:
        names = frozenset()
    if query.texts and not _is_lexical_loaded(snapshot):
        names |= {LEXICAL}
    return names or None


def load_needed(snapshot: Snapshot, names: frozenset[str]) -> None:
    """Loads what `needs` named. Waits for the store. Raises Unavailable."""
    if fields := names - {LEXICAL}:
        for segment in snapshot.segments:
            segment.columns.columns().read(fields)
        snapshot.delta.columns().read(fields)
    if LEXICAL in names:
        for segment in snapshot.segments:
            segment.lexical.index()
        if snapshot.delta.words.behind(snapshot.delta) > BEHIND_MAX:
            snapshot.delta.lexical()


def _is_lexical_loaded(snapshot: Snapshot) -> bool:
    return (
        all(g.lexical.is_loaded() for g in snapshot.segments)
        and snapshot.delta.words.behind(snapshot.delta) <= BEHIND_MAX
    )
