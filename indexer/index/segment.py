"""A segment: an immutable set of passages with its index, written once, verified when it is loaded.

Its objects: `passages` (Arrow file, memory-mapped: rows of whole documents, vectors among them), `documents` (Arrow file: who is in
it, who is deleted by it, at which version), `index` (FAISS) where the kind is not flat, and `lexical` (words to rows) where there is text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexer.backends import Backend, Mask
from indexer.index.hits import Passages
from indexer.index.lazy import LazyColumns, LazyLexical
from indexer.index.objects import Keys, OnDamage, opened, read_documents, read_passages
from tenants.entities import Metric, SegmentRef
from vicinage.records import Floats
from vicinage.store import Store
from vicinage.wire import vectors_of


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Segment:
    """A loaded segment. Documents are sorted by key; `count` 0 means: deleted at `version`."""

    ref: SegmentRef
    metric: Metric
    rows: pa.RecordBatch
    passages: Passages
    vectors: Floats
    index: Any
    keys: Keys
    first: NDArray[np.int32]
    count: NDArray[np.int32]
    version: NDArray[np.int64]
    deleted: Mapping[int, str]
    """Id of each deleted document, by its place."""
    columns: "LazyColumns"
    lexical: "LazyLexical"

    def __len__(self) -> int:
        return len(self.vectors)

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Place of each key among this segment's documents; −1 where it has none."""
        return self.keys.find(keys)

    def rows_mask(self, documents: Mask) -> Mask:
        """Bool [n documents] in key order → bool [n rows]."""
        live = np.flatnonzero(self.count)
        order = live[np.argsort(self.first[live], kind="stable")]  # rows lie document after document
        mask: Mask = np.repeat(documents[order], self.count[order])
        return mask

    def resident_bytes(self) -> int:
        """Returns the bytes it takes when every page is touched and its words are searched."""
        return self.ref.loaded_bytes()


def load(
    ref: SegmentRef,
    store: Store,
    backend: Backend,
    metric: Metric,
    *,
    barred: frozenset[str] = frozenset(),
    on_damage: OnDamage = lambda _damaged: None,
) -> Segment:
    """The segment, every object verified, memory-mapped. Raises Damaged, Unavailable.

    What is `barred` counts as corrupt, and is not read. `on_damage` hears of a lexical index that cannot be used, once that is opened: the segment goes on without.
    """
    rows = opened(ref, "passages", store, partial(read_passages, n=ref.n_passages), barred)
    documents = opened(ref, "documents", store, read_documents, barred)
    index = opened(ref, "index", store, backend.load, barred) if "index" in ref.objects else None
    return Segment(
        ref,
        metric,
        rows,
        Passages(rows),
        vectors_of(rows),
        index,
        documents.keys,
        documents.first,
        documents.count,
        documents.version,
        documents.deleted,
        LazyColumns(rows),
        LazyLexical(ref, store, rows, barred, on_damage),
    )


def placed(segment: Segment, backend: Backend) -> Segment:
    """The same, to be searched from now on: on a GPU where the backend has one with room."""
    return replace(segment, index=backend.place(segment.index, segment.vectors, segment.metric))
