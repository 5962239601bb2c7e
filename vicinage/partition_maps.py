"""Partition maps: the partitions of a documents topic over time, and versions derived from them.

Pure. A version orders all writes of one document. Within one map a document has one home partition,
whose offsets order its writes; across maps the newer map wins
(docs/decisions/027-partition-maps.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vicinage.errors import Refused
from vicinage.records import OFFSET_BITS, PARTITION_BITS, Position
from vicinage.routing import home_of

EPOCHS_MAX: Final = 256
"""Largest number of maps of one tenant's topic over its life: eight bits of a version."""
PARTITIONS_MAX: Final = 1 << PARTITION_BITS


@dataclass(frozen=True, slots=True)
class PartitionMap:
    """One division of a documents topic; its index among the tenant's maps is the map epoch.

    `starts[p]` is the offset in partition p from which this map applies.
    """

    topic_id: str
    partitions: int
    starts: tuple[int, ...]


def pack_version(epoch: int, position: Position) -> int:
    """Returns the int64 ≥ 0 that orders the writes of one document.

    It orders by map epoch, then offset, then partition.
    """
    assert 0 <= epoch < EPOCHS_MAX, epoch
    return (epoch << (OFFSET_BITS + PARTITION_BITS)) | position.version()


def unpack_version(version: int) -> tuple[int, Position]:
    """Returns the map epoch and the position of the record that wrote this version."""
    offset = (version >> PARTITION_BITS) & ((1 << OFFSET_BITS) - 1)
    return version >> (OFFSET_BITS + PARTITION_BITS), Position(
        version & (PARTITIONS_MAX - 1), offset
    )


def epoch_of(
    maps: Sequence[PartitionMap], position: Position, collection: str, document_id: str
) -> int | None:
    """Returns the map epoch of a document's record at `position` of the newest map's topic.

    Considers the maps of that topic under which the partition is the document's home. Returns the
    first of these that exists:

    1. the map that applies at this offset, or if it is not among them the next one, because the
       producer may know added partitions before they are recorded;
    2. the newest map that applied before, because the producer may not know them yet;
    3. the oldest map.

    Returns None if the partition is the document's home under no map, and 0 if there are no maps.
    """
    if not maps:
        return 0
    topic_id = maps[-1].topic_id
    own = [epoch for epoch, each in enumerate(maps) if each.topic_id == topic_id]
    home = [
        e for e in own if home_of(collection, document_id, maps[e].partitions) == position.partition
    ]
    now = counting(maps, position)
    if now is not None and now not in home and now + 1 in home:
        return now + 1
    before = [e for e in home if now is not None and e <= now]
    if before:
        return before[-1]
    return home[0] if home else None


def counting(maps: Sequence[PartitionMap], position: Position) -> int | None:
    """Returns the epoch of the map that applies at this position, or None.

    The position is one of the newest map's topic.
    """
    topic_id, p = maps[-1].topic_id, position.partition
    found = [
        e
        for e, m in enumerate(maps)
        if m.topic_id == topic_id and p < m.partitions and m.starts[p] <= position.offset
    ]
    return found[-1] if found else None


def is_at_home(
    maps: Sequence[PartitionMap], position: Position, collection: str, document_id: str
) -> bool:
    """Returns whether the partition is the document's home under the newest map."""
    return not maps or home_of(collection, document_id, maps[-1].partitions) == position.partition


def until(maps: Sequence[PartitionMap], topic_id: str | None) -> Sequence[PartitionMap]:
    """Returns the maps up to the last one of that topic.

    Its records may be written under any of them.
    """
    n = len(maps)
    while topic_id is not None and n and maps[n - 1].topic_id != topic_id:
        n -= 1
    return maps[:n] or maps


def version_of(
    maps: Sequence[PartitionMap], position: Position, collection: str, document_id: str
) -> int:
    """Returns the version of a document's record.

    Raises Refused, which names the right partition.
    """
    epoch = epoch_of(maps, position, collection, document_id)
    if epoch is None:
        n = maps[-1].partitions
        home = home_of(collection, document_id, n)
        raise Refused(
            f"partition {position.partition} is not this document's: Kafka's default partitioner "
            "(murmur2) puts the key"
            f" {collection}/{document_id} into partition {home} of {n}. Produce with that key and "
            "partitioner (librdkafka:"
            " partitioner=murmur2_random)",
            field="partition",
        )
    return pack_version(epoch, position)


def check_partitions(partitions: int) -> None:
    """Raises Refused beyond PARTITIONS_MAX, which the format of versions limits."""
    if partitions > PARTITIONS_MAX:
        raise Refused(
            f"a documents topic has at most {PARTITIONS_MAX} partitions, not {partitions}",
            field="partitions",
            limit=PARTITIONS_MAX,
        )


def grown(newest: PartitionMap, partitions: int, ends: Sequence[int]) -> PartitionMap:
    """Returns the map that follows `newest` once its topic has more partitions.

    `ends` are the end offsets of the partitions that it had. Raises Refused beyond PARTITIONS_MAX.
    """
    assert len(ends) == newest.partitions < partitions
    check_partitions(partitions)
    return PartitionMap(newest.topic_id, partitions, (*ends, *(0,) * (partitions - len(ends))))
