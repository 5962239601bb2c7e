"""What is left of each host's memory, in bytes and in passages. Pure over a Snapshot."""

from collections.abc import Iterable
from dataclasses import dataclass

from capacity.snapshot import Snapshot
from vicinage.stats import ShardStats


@dataclass(frozen=True, slots=True)
class ByDimension:
    """What a passage of one dimension takes in memory, the mean over `n` of them, and how many more would fit if all were of it."""

    dimension: int
    n: int
    bytes_per_passage: float
    passages_left: int


@dataclass(frozen=True, slots=True)
class Headroom:
    """Of one host. `left_bytes` is what is left once every shard of its searchers lies in memory; 0: they take turns already.

    `passages_left` are those of the dimension that takes the most bytes, so at least as many fit; None if no passage was measured.
    `at_most`: some shards that are not in memory are not counted yet, so `left_bytes` may be less.
    """

    resource: str
    host: str
    total_bytes: int
    used_bytes: int
    available_bytes: int
    limit_bytes: int
    held_bytes: int
    not_resident_bytes: int
    left_bytes: int
    at_most: bool
    passages_left: int | None
    by_dimension: tuple[ByDimension, ...]


def host_memory(snapshot: Snapshot) -> tuple[Headroom, ...]:
    """For each host: what its searchers may hold, hold, and would hold with every shard in memory.

    The bound is the lesser of what `searcher.resident_bytes_max` leaves and of what the operating system says can be had.
    """
    each = bytes_per_passage(snapshot)
    rows: list[Headroom] = []
    for host in snapshot.hosts:
        here = [m for m in snapshot.memory if m.host == host.name]
        limit, held = sum(m.resident_bytes_max for m in here), sum(m.resident_bytes for m in here)
        waiting = sum(m.not_resident_bytes for m in here)
        left = max(0, min(host.available, limit - held) - waiting)
        fits = tuple(ByDimension(d, n, round(b, 1), int(left / b)) for d, (n, b) in sorted(each.items()))
        rows.append(
            Headroom(
                resource="host_memory",
                host=host.name,
                total_bytes=host.total,
                used_bytes=host.resident,
                available_bytes=host.available,
                limit_bytes=limit,
                held_bytes=held,
                not_resident_bytes=waiting,
                left_bytes=left,
                at_most=any(m.at_least for m in here),
                passages_left=min((f.passages_left for f in fits), default=None),
                by_dimension=fits,
            )
        )
    return tuple(rows)


def bytes_per_passage(snapshot: Snapshot) -> dict[int, tuple[int, float]]:
    """Dimension → passages that were measured, and bytes that each takes in memory on the mean."""
    shards: dict[int, list[ShardStats]] = {}
    for s in snapshot.shards:
        if s.shard in snapshot.dimensions:
            shards.setdefault(snapshot.dimensions[s.shard], []).append(s)
    found: dict[int, tuple[int, float]] = {}
    for dimension, of_it in shards.items():
        n, size = measured(of_it)
        if n:
            found[dimension] = (n, size / n)
    return found


def measured(shards: Iterable[ShardStats]) -> tuple[int, int]:
    """Passages whose bytes are known, and those bytes: living ones in memory; of other shards those that are in segments."""
    n = size = 0
    for s in shards:
        n += s.passages if s.resident else s.segment_passages
        size += s.host_bytes if s.resident else s.store_bytes
    return n, size
