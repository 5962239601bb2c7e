"""Compaction: merges several segments into one that holds their live rows.

`pick` decides and is pure. A deletion is dropped only if every segment is merged and no older
version can arrive again: ingest passed that version long ago (decision 007).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from indexer.backends import Mask
from indexer.index.rows import newest
from indexer.index.segment import Segment
from indexer.index.segment_set import surviving
from indexer.seal import Builder
from tenants.entities import Generation, Lease, Manifest, SegmentRef
from vicinage.errors import Conflict
from vicinage.faults import crash_point
from vicinage.settings import IndexerSettings


@dataclass(frozen=True, slots=True)
class Weight:
    """The numbers of one segment that `pick` decides on."""

    id: str
    rows: int
    dead: int
    created_ms: int = 0


def pick(segments: Sequence[Weight], settings: IndexerSettings, now_ms: int = 0) -> tuple[str, ...]:
    """Returns ids of the segments to merge; () if no merge is due. Pure.

    Picks all segments if the share of dead rows exceeds `dead_share_max`, or if a segment older
    than `erase_s` has any. Deleted rows thus leave the store within `erase_s`, and a shard is
    rewritten for them at most once in that time. Else, beyond `segments_max`, picks the smallest,
    up to the first that has more than twice the rows of those before it. This is size-tiered: a row
    is rewritten about log₂(n) times.
    """
    rows, dead = sum(s.rows for s in segments), sum(s.dead for s in segments)
    overdue = any(s.dead and now_ms - s.created_ms >= 1_000 * settings.erase_s for s in segments)
    if dead and (dead > settings.dead_share_max * rows or overdue):
        return tuple(s.id for s in segments)
    if len(segments) <= settings.segments_max:
        return ()
    ordered = sorted(segments, key=lambda s: s.rows)
    least = len(segments) - settings.segments_max + 1
    chosen, total = ordered[:least], sum(s.rows for s in ordered[:least])
    for segment in ordered[least:]:
        if segment.rows > 2 * total:
            break
        chosen.append(segment)
        total += segment.rows
    return tuple(s.id for s in chosen)


def weigh(segments: Sequence[Segment]) -> tuple[list[Weight], list[Mask]]:
    """Returns the weights of loaded segments, and which documents of each survive."""
    alive = surviving(segments)
    weights = [
        Weight(
            s.ref.id,
            len(s) + s.ref.n_deletes,
            int(s.count[~a].sum()) + int(np.count_nonzero(~a & (s.count == 0))),
            s.ref.created_ms,
        )
        for s, a in zip(segments, alive, strict=True)
    ]
    return weights, alive


def compact(
    builder: Builder,
    manifest: Manifest,
    generation: Generation,
    lease: Lease,
    *,
    forgettable: Callable[[int], bool],
    now_ms: int = 0,
) -> Manifest | None:
    """Merges the segments that `pick` returns and publishes the result; None if none is due.

    Raises Conflict, Damaged.

    `forgettable(version)`: whether no record of that version or a lower one can ever arrive again.
    """
    segments = builder.loading().segments(manifest.shard, manifest.segments, generation.metric)
    weights, alive = weigh(segments)
    chosen = set(pick(weights, builder.settings, now_ms))
    if not chosen:
        return None
    everything = len(chosen) == len(segments) and generation.state == "live"
    parts = [(s, a) for s, a in zip(segments, alive, strict=True) if s.ref.id in chosen]
    live, deletes = living(parts, forgettable if everything else lambda _version: False)
    anything = live.num_rows or deletes.num_rows
    logged = logged_together([s.ref for s, _ in parts])
    writing = builder.written(manifest.shard, generation, live, deletes, lease, logged=logged)
    with writing if anything else nullcontext() as merged:
        crash_point("compact.after_put_before_swap")
        return builder.publish(
            manifest.shard, generation, lease, lambda current: _exchanged(current, chosen, merged)
        )


def logged_together(refs: Sequence[SegmentRef]) -> tuple[int, int] | None:
    """Returns the log range [start, end) that covers the records of all `refs`. Pure.

    Returns None if the range of one is unknown.
    """
    logged = [each for each in (r.logged() for r in refs) if each is not None]
    return (
        (min(first for first, _ in logged), max(end for _, end in logged))
        if refs and len(logged) == len(refs)
        else None
    )


def _exchanged(
    current: Manifest, gone: set[str], merged: SegmentRef | None
) -> tuple[SegmentRef, ...]:
    if not gone <= {s.id for s in current.segments}:
        raise Conflict(
            f"segments of {current.shard} were replaced meanwhile", found=current.version
        )
    kept = [s for s in current.segments if s.id not in gone]
    return (*([merged] if merged else []), *kept)


def living(
    parts: list[tuple[Segment, Mask]], forgettable: Callable[[int], bool]
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Returns the live rows of these segments and the deletions that are still needed."""
    rows = [s.rows.filter(pa.array(s.rows_mask(a))) for s, a in parts]
    live, _ = newest(rows)
    names: list[str] = []
    versions: list[int] = []
    for segment, alive in parts:
        for at in np.flatnonzero(alive & (segment.count == 0)):
            version = int(segment.version[at])
            if not forgettable(version):
                names.append(segment.deleted[int(at)])
                versions.append(version)
    deletes = {"document_id": pa.array(names, pa.utf8()), "version": pa.array(versions, pa.int64())}
    return live, pa.record_batch(deletes)
