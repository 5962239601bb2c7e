"""Headroom of each host's memory, in bytes and in passages. Pure over a Snapshot."""

from collections.abc import Iterable
from dataclasses import dataclass

from capacity.snapshot import Snapshot
from vicinage.stats import ShardStats


@dataclass(frozen=True, slots=True)
class ByDimension:
    """Mean memory of a passage of one dimension, over `n` passages.

    `passages_left`: how many more passages fit if all have this dimension.
    """

    dimension: int
    n: int
    bytes_per_passage: float
    passages_left: int


@dataclass(frozen=True, slots=True)
class Headroom:
    """The headroom of one host.

    `left_bytes` is the memory left if every shard of its searchers is loaded; 0: not all fit at
    once. `passages_left` is for the dimension with the most bytes per passage, so at least as many
    fit; None if no passage was measured. `at_most`: some unloaded shards are not counted yet, so
    `left_bytes` may be less.
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
    """Returns the headroom of each host: limit, use, and use with every shard loaded.

    The bound is the lesser of the rest of `searcher.resident_bytes_max` and of the available memory
    that the operating system reports.
    """
    each = bytes_per_passage(snapshot)
    rows: list[Headroom] = []
    for host in snapshot.hosts:
        here = [m for m in snapshot.memory if m.host == host.name]
        limit, held = sum(m.resident_bytes_max for m in here), sum(m.resident_bytes for m in here)
        waiting = sum(m.not_resident_bytes for m in here)
        left = max(0, min(host.available, limit - held) - waiting)
        fits = tuple(
            ByDimension(d, n, round(b, 1), int(left / b)) for d, (n, b) in sorted(each.items())
        )
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
    """Returns dimension → number of measured passages, and their mean bytes in memory."""
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
    """Returns the number of passages with known bytes, and those bytes.

    Counts live passages and memory of loaded shards, and segments' passages and objects of others.
    """
    n = size = 0
    for s in shards:
        n += s.passages if s.resident else s.segment_passages
        size += s.host_bytes if s.resident else s.store_bytes
    return n, size
