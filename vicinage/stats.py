"""Statistics that searchers report: their shards, their work, and the memory of their machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vicinage.records import ShardId


@dataclass(frozen=True, slots=True)
class CurveEnd:
    """The end of an effort curve: recall at the greatest measured effort.

    `n_calibration_queries`: recent queries of the collection that it was measured on.
    """

    effort: int
    recall: float
    n_calibration_queries: int


@dataclass(frozen=True, slots=True)
class ShardStats:
    """Statistics of a shard.

    `host_bytes` is accounted memory: delta arrays, and segments as if every page were touched.
    `exact`: `documents` and `passages` are the numbers searchable at the watermark. Otherwise they
    are lower bounds, for a shard that is not `resident` and was not counted yet.
    """

    shard: ShardId
    documents: int
    passages: int
    delta_passages: int
    segments: int
    kinds: tuple[str, ...]
    host_bytes: int
    store_bytes: int
    watermark: int
    manifest_version: int
    resident: bool = True
    exact: bool = True
    segment_passages: int = 0
    """Passages in its segments, including deleted and replaced ones."""
    log_bytes: int = 0
    """Bytes of rows that no segment has, for a counted shard that is not resident."""
    scanned_passages: int = 0
    """Passages that every search scans; 0 for a shard that is not resident."""
    curve: CurveEnd | None = None
    """The curve end of the segment with the lowest recall at its greatest measured effort."""
    scans: Mapping[str, int] = field(default_factory=dict)
    """Searches by scan outcome since the shard was loaded: scanned, or the bound against it."""


@dataclass(frozen=True, slots=True)
class Host:
    """Memory of a machine, in bytes; `resident` is the resident memory of this process."""

    name: str
    total: int
    available: int
    resident: int


SHARD_BYTES: Final = 8 << 10
"""Memory of a loaded shard in addition to its segments and the rows of its delta."""


@dataclass(frozen=True, slots=True)
class SearcherStats:
    """Statistics of a searcher.

    `index_lag_ms`: recent index lags per tenant, newest last, of messages that came after the
    searcher's start. `replayed`: messages per tenant that were in the log before.
    """

    shards: tuple[ShardStats, ...]
    watermarks: Mapping[int, int]
    searches: int
    applied: int
    index_lag_ms: Mapping[str, tuple[float, ...]]
    replayed: Mapping[str, int]
    failed: Mapping[ShardId, str]
    stale: Mapping[ShardId, str]
    """Shards that serve an older manifest, and what is corrupt in the newest one."""
    host: Host
    resident_bytes: int
    """Accounted bytes in memory; as of the last count, if the request was for one tenant."""
    resident_bytes_max: int
