"""`vicinage tenant resume-ingest`: where each halted partition resumes, and what it skips.

`plan` computes it; `apply` records it in one change of the catalog, with an audit record. Ingest
adopts the positions within seconds. A partition that resumes automatically after its cause is gone
(unauthorized) is left unchanged.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import delete, update

from tenants import partitions, tables
from tenants.changes import Change
from tenants.entities import Tenant
from tenants.positions import PartitionState, upsert
from tenants.provisioning import ensure_topics
from tenants.registry import Registry
from vicinage.errors import NotFound, Refused
from vicinage.log import Log
from vicinage.partition_maps import PartitionMap, check_partitions

_P: Final = tables.ingest_partitions


@dataclass(frozen=True, slots=True)
class Resumption:
    """The resumption of one partition.

    `resume_at` None: it resumes automatically. `skipped` are the offsets [from, to) that are never
    ingested, None if there are none. `skipped_records` None: the number is unknown.
    """

    partition: int
    kind: str
    reason: str
    position: int
    resume_at: int | None
    skipped: tuple[int, int] | None
    skipped_records: int | None
    effect: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The effect of a resumption.

    `topic_id` None: the topic is created again first. `new_topic`: the topic has another identity
    than before.
    """

    tenant: str
    topic_id: str | None
    n_partitions: int
    new_topic: bool
    partitions: tuple[Resumption, ...]


def plan(log: Log, registry: Registry, tenant: Tenant) -> Plan:
    """Returns what `apply` would do now; changes nothing. Raises Unavailable."""
    registry.refresh()
    topic, states = tenant.documents_topic, registry.positions.of(tenant.name)
    maps, topic_id = (
        registry.partition_maps(tenant.name),
        log.topic_ids(tenant.documents_topic).get(topic),
    )
    if maps and topic_id != maps[-1].topic_id and any(s.state == "halted" for s in states):
        n = log.partitions(topic) if topic_id else maps[-1].partitions
        known = {s.partition: s for s in states}
        found = [
            _of_new_topic(log, topic, p, known.get(p), missing=topic_id is None) for p in range(n)
        ]
        return Plan(tenant.name, topic_id, n, new_topic=True, partitions=tuple(found))
    found = [_one(log, topic, s) for s in states if s.state == "halted"]
    n = maps[-1].partitions if maps else len(states)
    return Plan(tenant.name, topic_id, n, new_topic=False, partitions=tuple(found))


def apply(log: Log, registry: Registry, tenant: Tenant, *, actor: str) -> Plan:
    """Applies the plan; durable on return.

    Raises Conflict if the topic's partitions have changed.
    """
    made = plan(log, registry, tenant)
    if made.topic_id is None and made.new_topic:
        ensure_topics(log, tenant, made.n_partitions)
        made = plan(log, registry, tenant)
    moved = [r for r in made.partitions if r.resume_at is not None]
    if not moved:
        return made
    maps = registry.partition_maps(tenant.name)
    again = made.new_topic or any(r.kind == "beyond_end" for r in moved)
    new_maps = _maps(log, tenant, made, moved, maps[-1:]) if again else []
    with registry.change(actor) as at:
        stamp = {"created_ms": at.now_ms, "row_version": at.version}
        for epoch, new_map in enumerate(new_maps, start=len(maps)):
            partitions.append(at.connection, stamp, tenant.name, new_map, epoch=epoch)
        if made.new_topic:
            _forget_offsets(at, tenant.name)
        _move_lanes(at, tenant.name, moved)
        topic_id = made.topic_id or ""
        rows = [
            PartitionState(
                tenant.name, r.partition, topic_id, r.resume_at or 0, "resuming", at.now_ms
            )
            for r in moved
        ]
        at.connection.execute(
            delete(_P).where(
                _P.c.tenant == tenant.name, _P.c.partition.in_([r.partition for r in moved])
            )
        )
        at.connection.execute(
            upsert(at.connection.dialect.name),
            [{**asdict(row), "updated_ms": at.now_ms} for row in rows],
        )
        at.note("tenant.resume_ingest", tenant.name, after=facts(made))
    registry.refresh()
    return made


def facts(made: Plan) -> dict[str, Any]:
    """Returns the plan as JSON."""
    return asdict(made)


def _maps(
    log: Log, tenant: Tenant, made: Plan, moved: Sequence[Resumption], known: Sequence[PartitionMap]
) -> list[PartitionMap]:
    """Returns maps under which records that are read again get newer versions than all before.

    Until the topic's new number of partitions is recorded, HTTP writes are partitioned by the
    newest known map. If its number differs, the topic's present records get a map of that number
    first.
    """
    topic_id, n = made.topic_id or "", made.n_partitions
    begins = {r.partition: r.resume_at for r in moved}
    check_partitions(n)
    ends = [log.end(tenant.documents_topic, p) for p in range(n)]
    starts = tuple(begin if (begin := begins.get(p)) is not None else ends[p] for p in range(n))
    if not made.new_topic or not known or known[0].partitions == n:
        return [PartitionMap(topic_id, n, starts)]
    so_far = known[0].partitions
    divided = PartitionMap(topic_id, so_far, (*starts[:so_far], *(0,) * (so_far - n)))
    return [divided, PartitionMap(topic_id, n, tuple(ends))]


def _forget_offsets(at: Change, tenant: str) -> None:
    """Resets offsets of the earlier topic: the new one's records belong to present collections."""
    c = tables.collections
    change = update(c).where(c.c.tenant == tenant, c.c.state == "active")
    at.connection.execute(change.values(first_offsets="[]", row_version=at.version))
    at.connection.execute(delete(_P).where(_P.c.tenant == tenant))


def _move_lanes(at: Change, tenant: str, moved: Sequence[Resumption]) -> None:
    """Advances lanes beyond skipped records.

    Deletes the lanes of a partition that is read from its beginning.
    """
    lane = tables.ingest_lanes
    for r in moved:
        of_it = (lane.c.tenant == tenant, lane.c.partition == r.partition)
        if r.kind in ("offset_gone", "unreadable"):
            behind = update(lane).where(*of_it, lane.c.position < r.resume_at)
            at.connection.execute(behind.values(position=r.resume_at))
        else:
            at.connection.execute(delete(lane).where(*of_it))


def _of_new_topic(
    log: Log, topic: str, partition: int, known: PartitionState | None, *, missing: bool
) -> Resumption:
    begin = 0 if missing else log.begin(topic, partition)
    position = known.position if known else 0
    effect = (
        "the topic is created again, empty"
        if missing
        else "the topic that has the name now is read from its beginning"
    )
    return Resumption(
        partition,
        "topic_missing" if missing else "topic_replaced",
        (known.reason if known else None) or "the topic was deleted and created again",
        position,
        resume_at=begin,
        skipped=None,
        skipped_records=None,
        effect=f"{effect}; records of the earlier topic from offset {position} are lost",
    )


def _one(log: Log, topic: str, state: PartitionState) -> Resumption:
    p, position = state.partition, state.position
    resume_at: int | None = None
    skipped: tuple[int, int] | None = None
    effect = "nothing: it resumes automatically once its cause is gone"
    try:
        match state.kind:
            case "offset_gone":
                resume_at = max(position, log.begin(topic, p))
                skipped, effect = (
                    (position, resume_at),
                    "retention has removed these records; reading continues after them",
                )
            case "unreadable":
                resume_at = first_readable(log, topic, p, position)
                skipped, effect = (
                    (position, resume_at),
                    "these records cannot be read; reading continues after them",
                )
            case "beyond_end":
                resume_at = log.begin(topic, p)
                effect = (
                    f"all {log.end(topic, p) - resume_at} records that the partition has are "
                    "ingested again"
                )
    except NotFound:
        pass
    skipped = skipped if skipped and skipped[1] > skipped[0] else None
    return Resumption(
        p,
        state.kind or "",
        state.reason or "",
        position,
        resume_at,
        skipped,
        skipped[1] - skipped[0] if skipped else 0,
        effect,
    )


def first_readable(log: Log, topic: str, partition: int, start: int) -> int:
    """Returns the lowest readable offset ≥ `start`, or the end if there is none.

    Bisects: about 2 log2(n) reads.
    """
    end = log.end(topic, partition)
    low, step = start, 1  # no offset below `low` is readable
    while low < end and not _readable(log, topic, partition, low):
        bad, low, step = low, min(low + step, end), step * 2
    if low == start:
        return start
    while low - bad > 1:
        middle = (bad + low) // 2
        if _readable(log, topic, partition, middle):
            low = middle
        else:
            bad = middle
    return low


def _readable(log: Log, topic: str, partition: int, offset: int) -> bool:
    try:
        log.read(topic, partition, offset, bytes_max=1)
    except Refused:
        return False
    return True
