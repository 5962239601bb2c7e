"""What searchers report of themselves: what they hold, what they have done, and the machine that they run on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vicinage.records import ShardId


@dataclass(frozen=True, slots=True)
class CurveEnd:
    """The end of an effort curve: recall at the greatest measured effort, ."""

    effort: int
    recall: float
    n_calibration_queries: int


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What a shard holds. `host_bytes` is accounted: delta arrays, and segments as if every page were touched.

    `exact`: documents and passages are what is searchable at the watermark; else they are lower bounds (of one that is not `resident`,
    and was not counted yet).
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
    """Passages in its segments, those too that are deleted or replaced."""
    log_bytes: int = 0
    """Of one that is not resident and was counted: bytes of its rows that no segment has."""
    scanned_passages: int = 0
    """Those that every search is compared with one by one; of one that is not resident, 0."""
    curve: CurveEnd | None = None
    """What the segment with the least measured recall reaches at its greatest effort."""
    scans: Mapping[str, int] = field(default_factory=dict)
    """Searches that were scanned in place of the index, or were not, and why, since the shard was loaded."""


@dataclass(frozen=True, slots=True)
class Host:
    """Memory of a machine, in bytes: `resident` is what this process holds of it."""

    name: str
    total: int
    available: int
    resident: int


SHARD_BYTES: Final = 8 << 10
"""What a shard in memory takes beside its segments and its delta's rows."""


@dataclass(frozen=True, slots=True)
class SearcherStats:
    """What a searcher holds and has done.

    `index_lag_ms` are recent index lags per tenant, newest last, of messages that came after the searcher's start; `replayed`
    counts per tenant the messages that were in the log by then.
    """

    shards: tuple[ShardStats, ...]
    watermarks: Mapping[int, int]
    searches: int
    applied: int
    index_lag_ms: Mapping[str, tuple[float, ...]]
    replayed: Mapping[str, int]
    failed: Mapping[ShardId, str]
    stale: Mapping[ShardId, str]
    """Shards searched as of an older manifest, and what is corrupt in the newest."""
    host: Host
    resident_bytes: int
    """Accounted bytes in memory, as of the last look where one tenant was asked about."""
    resident_bytes_max: int
