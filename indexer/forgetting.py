"""Decides when a deletion may be forgotten: once no older write can arrive any more. Pure.

Observations form consecutive rounds. A round begins with ingest's committed positions and the ends
of the partitions. It is over once ingest has been beyond those ends for `age_s`. Then deletions
below the round's positions are past. Ingest has long passed every record that was in the log when
it passed them. That holds in every partition and under every partition map
(docs/decisions/007-tombstone-removal.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vicinage.partition_maps import PartitionMap, unpack_version


@dataclass(frozen=True, slots=True)
class Observation:
    """One observation, by partition: ingest's committed positions, and the ends of the topic."""

    committed: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RoundState:
    """The state of the rounds of a tenant's topic.

    `below`: by partition, deletions at lower offsets are past; () while none is. `round`: the
    observation that began the current round. `reached_s`: when ingest was first observed beyond its
    ends (monotonic). `last`: the committed positions observed last.
    """

    below: tuple[int, ...]
    round: Observation
    reached_s: float | None
    last: tuple[int, ...]


def after_observation(
    before: RoundState | None, seen: Observation, *, now: float, age_s: float
) -> RoundState:
    """Returns the state after one more observation."""
    if (
        before is None
        or len(seen.committed) < len(before.last)
        or not _beyond(seen.committed, before.last)
    ):
        return _round((), seen, now)  # the first observation, or the topic was created again
    reached_s = before.reached_s
    if reached_s is None and _beyond(seen.committed, before.round.ends):
        reached_s = now
    if reached_s is not None and now - reached_s >= age_s:
        return _round(before.round.committed, seen, now)
    return RoundState(before.below, before.round, reached_s, seen.committed)


def is_past(known: RoundState, maps: Sequence[PartitionMap], version: int) -> bool:
    """Returns whether a deletion with this version may be forgotten.

    If the topic was created again, no record of the earlier topic can arrive once a round of the
    new one is over.
    """
    epoch, position = unpack_version(version)
    if known.below and epoch < len(maps) and maps[epoch].topic_id != maps[-1].topic_id:
        return True
    return (
        position.partition < len(known.below) and position.offset < known.below[position.partition]
    )


def _round(below: tuple[int, ...], seen: Observation, now: float) -> RoundState:
    return RoundState(
        below, seen, now if _beyond(seen.committed, seen.ends) else None, seen.committed
    )


def _beyond(positions: Sequence[int], ends: Sequence[int]) -> bool:
    return all(position >= end for position, end in zip(positions, ends, strict=False))
