"""When a deletion may be forgotten: once everything that could bring its document back is long ingested. Pure.

Rounds follow one another. A round begins with the positions that ingest has committed and the ends of the partitions;
it is over once ingest has been beyond those ends for `age_s`. Then deletions below the round's positions are past:
whatever was in the log when ingest had passed them has itself been passed, long ago, in every partition and under every
partition map (docs/decisions/007-tombstone-removal.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vicinage.partition_maps import PartitionMap, unpack_version


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found, by partition: the positions of ingest, then the ends of the topic."""

    committed: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Passed:
    """What is known of a tenant's topic.

    `below`: deletions at lower offsets are past; () while none is.

    `round` is what the current round began with, `reached_s` when ingest was first seen beyond its
    ends (monotonic).
    """

    below: tuple[int, ...]
    round: Seen
    reached_s: float | None
    last: tuple[int, ...]


def passed(before: Passed | None, seen: Seen, *, now: float, age_s: float) -> Passed:
    """Returns what is known after one more look."""
    if (
        before is None
        or len(seen.committed) < len(before.last)
        or not _beyond(seen.committed, before.last)
    ):
        return _round((), seen, now)  # nothing known yet, or the topic has begun anew
    reached_s = before.reached_s
    if reached_s is None and _beyond(seen.committed, before.round.ends):
        reached_s = now
    if reached_s is not None and now - reached_s >= age_s:
        return _round(before.round.committed, seen, now)
    return Passed(before.below, before.round, reached_s, seen.committed)


def is_past(known: Passed, maps: Sequence[PartitionMap], version: int) -> bool:
    """Returns whether a deletion with this version may be forgotten.

    Of a topic that was created again, no earlier record can come again once a round of the new one
    is over.
    """
    epoch, position = unpack_version(version)
    if known.below and epoch < len(maps) and maps[epoch].topic_id != maps[-1].topic_id:
        return True
    return (
        position.partition < len(known.below) and position.offset < known.below[position.partition]
    )


def _round(below: tuple[int, ...], seen: Seen, now: float) -> Passed:
    return Passed(below, seen, now if _beyond(seen.committed, seen.ends) else None, seen.committed)


def _beyond(positions: Sequence[int], ends: Sequence[int]) -> bool:
    return all(position >= end for position, end in zip(positions, ends, strict=False))
