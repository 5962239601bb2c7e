"""What is left of each host's memory, in bytes and in passages. Pure over a Snapshot."""

from dataclasses import dataclass

from capacity.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Headroom:
    """`passages_left` is an estimate from `bytes_per_passage`, the mean over the `n` passages in memory on all hosts; None without any."""

    resource: str
    host: str
    total_bytes: int
    used_bytes: int
    left_bytes: int
    bytes_per_passage: float | None
    n: int
    passages_left: int | None


def host_memory(snapshot: Snapshot) -> tuple[Headroom, ...]:
    """For each host, the memory that its operating system says can still be had, beside what our accounted bytes take."""
    resident = [s for s in snapshot.shards if s.resident]
    n = sum(s.passages for s in resident)
    each = sum(s.host_bytes for s in resident) / n if n else None
    return tuple(
        Headroom(
            resource="host_memory",
            host=host.name,
            total_bytes=host.total,
            used_bytes=host.resident,
            left_bytes=host.available,
            bytes_per_passage=round(each, 1) if each else None,
            n=n,
            passages_left=int(host.available / each) if each else None,
        )
        for host in snapshot.hosts
    )
