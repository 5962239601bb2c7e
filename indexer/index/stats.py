"""Counts what a shard holds, from one snapshot. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np

from indexer.index.segment import Segment
from indexer.index.snapshot import Snapshot
from vicinage.records import ShardId
from vicinage.stats import CurveEnd, ShardStats


def shard_stats(
    shard: ShardId, snapshot: Snapshot, host_bytes: int, scans: Mapping[str, int]
) -> ShardStats:
    """Returns the counts of the shard; `scans` are its searches by outcome of a scan."""
    segments = snapshot.segments
    alive = sum(
        len(segment) if mask is None else int(np.count_nonzero(mask))
        for segment, mask in zip(segments, snapshot.alive, strict=True)
    )
    delta = int(np.count_nonzero(snapshot.delta.alive))
    return ShardStats(
        shard=shard,
        documents=snapshot.documents,
        passages=alive + delta,
        delta_passages=delta,
        segments=len(segments),
        kinds=tuple(segment.ref.kind for segment in segments),
        host_bytes=host_bytes,
        store_bytes=sum(segment.ref.bytes() for segment in segments),
        watermark=snapshot.watermark,
        manifest_version=snapshot.manifest.version,
        segment_passages=sum(map(len, segments)),
        scanned_passages=snapshot.rows_scanned,
        curve=_curve_end(segments),
        scans=scans,
    )


def _curve_end(segments: Sequence[Segment]) -> CurveEnd | None:
    """Returns the end of the segments' effort curve with the least recall; None without curves."""
    ends = [
        CurveEnd(*s.ref.curve[-1], s.ref.n_calibration_queries) for s in segments if s.ref.curve
    ]
    return min(ends, key=lambda end: end.recall, default=None)
