"""★ A segment: an immutable set of passages with its index, written once and verified at loading.

Its objects:

- `passages`: an Arrow file, memory-mapped; the rows of whole documents, with their vectors.
- `documents`: an Arrow file; the documents that the segment holds or deletes, and their versions.
- `index`: the FAISS index, if the kind is not flat.
- `lexical`: the lexical index, if any passage has text.
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
    """A loaded segment. Documents are sorted by key; `count` 0 means deleted at `version`."""

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
    """The id of each deleted document, by its index among the documents."""
    columns: "LazyColumns"
    lexical: "LazyLexical"

    def __len__(self) -> int:
        return len(self.vectors)

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Returns the index of each key among this segment's documents; −1 for an absent key."""
        return self.keys.find(keys)

    def rows_mask(self, documents: Mask) -> Mask:
        """Returns a mask of rows, bool [n rows], from a mask of documents in key order."""
        live = np.flatnonzero(self.count)
        # rows are stored document after document
        order = live[np.argsort(self.first[live], kind="stable")]
        mask: Mask = np.repeat(documents[order], self.count[order])
        return mask

    def resident_bytes(self) -> int:
        """Returns its bytes when every page is resident and its lexical index is open."""
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
    """Returns the segment, memory-mapped, with every object verified. Raises Damaged, Unavailable.

    An object whose path is in `barred` counts as corrupt and is not read. `on_damage` is called if
    the lexical index cannot be used when it is first opened; the segment is served with a rebuilt
    one.
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
    """Returns the segment with its index placed: on a GPU if the backend has one with room."""
    return replace(segment, index=backend.place(segment.index, segment.vectors, segment.metric))
