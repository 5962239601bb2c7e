"""Searches a FAISS index of the CPU at a given width, under a filter.

FAISS's own selector on a graph only post-filters the nodes that the beam reaches. It gives no sign
if the beam reached the wrong part of the graph. So a graph is walked without the filter, with a
beam wide enough that the k-th allowed row is expected well inside it (`widths.beam_for`). The rank
at which it is found then shows how selective the filter is around this very query. A filter that
correlates negatively with the query puts that rank too near the end of the beam. Then the graph is
walked once more with a wider beam. If the rank is too near again, the caller searches exactly.
"""

import math
from functools import lru_cache
from typing import Any, Final

import faiss
import numpy as np
from faiss import swig_ptr

from indexer.backends import K_MEASURED, Mask, Rows
from indexer.backends.indexes import Index
from indexer.backends.widths import beam_needed, is_beam_worth_it
from vicinage.records import Floats

BEAM_SHARE_MIN: Final = 0.8
"""Share of the needed beam at which a walk is trusted: about one query in 20 is walked again."""
WALKS_MAX: Final = 2
GRAPH_CANDIDATES: Final = 2
"""Over-fetch of a graph with codes: this many × k candidates are scored again by their vectors.

With one byte per number, a factor of one loses a hundredth of recall.
"""
LIST_CANDIDATES: Final = 5
"""Least over-fetch of lists with codes of one bit per number; it grows with the lists probed."""
QUERY_BITS: Final = 4
"""Bits per number of a query where codes have one bit per number.

It is compared by popcount: 150 × faster than unquantized (FAISS's default), with the same recall.
"""


def search_index(
    index: Index, queries: Floats, k: int, width: int, allowed: Mask | None
) -> tuple[Floats, Rows]:
    """Returns FAISS's own scores and rows [n, at least k] of each query, −1 beyond the last."""
    find = {"hnsw": _walk, "ivf": _probe, "ivfpq": _probe, "rabitq": _scan}[index.kind]
    return find(index, queries, k, width, allowed)


def walk_allowed(
    index: Index, queries: Floats, k: int, effort: int, beam: int, allowed: Mask, n_allowed: int
) -> Rows:
    """Returns the allowed rows of each query's beam, −1 after them.

    A query whose k-th allowed row no walk finds well inside the beam has none.
    """
    found_by_query: dict[int, Rows] = {}
    unsure = list(range(len(queries)))
    for _ in range(WALKS_MAX):
        _, reached_rows = _beam_rows(index, queries[unsure], beam, beam)
        needed, still = 0.0, []
        for i, rows in zip(unsure, reached_rows, strict=True):
            reached = rows if rows[-1] >= 0 else rows[rows >= 0]
            ranks = np.flatnonzero(allowed[reached])
            held = len(ranks)
            # The rank of the k-th allowed row; if there are fewer, its rank extrapolated from their
            # share of the beam.
            rank = int(ranks[k - 1]) + 1 if held >= k else beam * k / max(held, 0.5)
            wanted = beam_needed(effort, rank)
            if held >= k and beam >= BEAM_SHARE_MIN * wanted:
                found_by_query[i] = reached[ranks]
            else:
                needed = max(needed, wanted)
                still.append(i)
        unsure, beam = still, math.ceil(needed)
        if not unsure or not is_beam_worth_it(beam, n_allowed):
            break
    width = max(map(len, found_by_query.values()), default=k)
    found = np.full((len(queries), width), -1, np.int64)
    for i, rows in found_by_query.items():
        found[i, : len(rows)] = rows
    return found


def _walk(
    index: Index, queries: Floats, k: int, beam: int, _allowed: Mask | None
) -> tuple[Floats, Rows]:
    """Walks a graph without a filter."""
    take = min(max(k, K_MEASURED) * GRAPH_CANDIDATES, beam) if index.coded else k
    return _beam_rows(index, queries, take, beam)


def _beam_rows(index: Index, queries: Floats, take: int, beam: int) -> tuple[Floats, Rows]:
    """Returns the best `take` rows of each query's beam.

    Calls FAISS's C++ function directly: its Python wrapper takes a tenth of the call's time.
    """
    n = len(queries)
    scores, rows = np.empty((n, take), np.float32), np.empty((n, take), np.int64)
    index.faiss.search_c(
        n, swig_ptr(queries), take, swig_ptr(scores), swig_ptr(rows), _beam_parameters(beam)
    )
    return scores, rows


@lru_cache(512)
def _beam_parameters(width: int) -> Any:
    """Returns the parameters of a beam. FAISS only reads them, so all threads share one object."""
    return faiss.SearchParametersHNSW(efSearch=width)


def _probe(
    index: Index, queries: Floats, k: int, lists: int, allowed: Mask | None
) -> tuple[Floats, Rows]:
    """Probes lists. FAISS applies a selector inside each list.

    Where `lists` exceeds the index's lists, only the number of candidates grows.
    """
    candidates = max(k, K_MEASURED) * max(LIST_CANDIDATES, lists // 5)
    take = min(candidates, int(index.faiss.ntotal)) if index.coded else k
    parameters = faiss.SearchParametersIVF(
        nprobe=min(lists, int(index.faiss.nlist)), sel=selector(allowed)
    )
    return index.faiss.search(queries, take, params=parameters)  # type: ignore[no-any-return]


def _scan(
    index: Index, queries: Floats, _k: int, candidates: int, allowed: Mask | None
) -> tuple[Floats, Rows]:
    """Scans the codes of every allowed row: one bit per number."""
    parameters = faiss.RaBitQSearchParameters(qb=QUERY_BITS, sel=selector(allowed))
    return index.faiss.search(queries, candidates, params=parameters)  # type: ignore[no-any-return]


def selector(allowed: Mask | None) -> Any:
    """Returns FAISS's selector of the allowed rows; None for all rows."""
    return (
        None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    )
