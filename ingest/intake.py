"""Appends POSTed batches to the tenant's documents log, as a data team's own producer does.

Guarantee 2: the token is returned once the records are durable in the log.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ingest.documents import Entry
from ingest.identity import header_of, judged_header
from ingest.preparing import Prepared, prepared
from tenants.entities import Collection, Tenant
from vicinage.errors import NotFound, Unavailable
from vicinage.log import Log, Record
from vicinage.partition_maps import PartitionMap
from vicinage.records import Position, Rejected, Token
from vicinage.routing import document_key, home_of
from vicinage.wire import ARROW

GROWTH_S: Final = 5.0
"""Longest wait, in seconds, for a topic to grow after its new partition map is recorded."""
POLL_S: Final = 0.05
LISTED_S: Final = 30.0
"""Maximum age, in seconds, of a listing of the topics; the log renews it within seconds."""
CONTENT_TYPE: Final = ("content-type", ARROW.encode())


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of a batch.

    `token` is None if nothing was accepted. `rejected` has the first rejections if there are many.
    """

    accepted: int
    rejected: tuple[Rejected, ...]
    token: Token | None


def accept(
    log: Log,
    tenant: Tenant,
    collection: Collection,
    entries: Sequence[Entry],
    *,
    now_ms: int,
    partitions: int | None = None,
) -> Accepted:
    """Appends the batch's documents, in order; durable on return. Reports the rejected ones.

    `partitions` is the number in the newest partition map; None means the topic's number.
    """
    n = partitions or partitions_of(log, tenant)
    batch = prepared(entries, collection.name, collection.generation().dimension, n)
    return append(log, tenant, collection, batch, now_ms=now_ms)


def append(
    log: Log, tenant: Tenant, collection: Collection, batch: Prepared, *, now_ms: int
) -> Accepted:
    """Appends the records of a body, in order; durable on return."""
    headers = (CONTENT_TYPE, header_of(collection))
    positions: list[Position] = []
    for partition, values in batch.records:
        records = [Record(value, headers=headers, event_time_ms=now_ms) for value in values]
        positions.extend(Position(partition, o) for o in _append(log, tenant, partition, records))
    return Accepted(
        batch.accepted, batch.rejected, Token.covering(positions) if positions else None
    )


def partitions_of(log: Log, tenant: Tenant) -> int:
    """Returns the number of partitions of the tenant's documents topic."""
    return log.topics(tenant.documents_topic).get(tenant.documents_topic, 1)


def divided_over(log: Log, tenant: Tenant, maps: Sequence[PartitionMap]) -> int:
    """Returns the number of partitions that writes are divided over.

    It is the newest map's number, the same in all gateways. A topic that was created again has no
    map until its ingest is resumed. Until then it is the topic's number, which its producers use.
    Raises Unavailable.
    """
    if not maps:
        return partitions_of(log, tenant)
    topic, newest = tenant.documents_topic, maps[-1]
    now = log.topics(topic, max_age_s=LISTED_S).get(topic, newest.partitions)
    if (
        now == newest.partitions
        or log.topic_ids(topic).get(topic, newest.topic_id) == newest.topic_id
    ):
        return newest.partitions
    return now


def delete(
    log: Log,
    tenant: Tenant,
    collection: Collection,
    ids: Iterable[str],
    *,
    judged: Mapping[str, int] | None = None,
    now_ms: int,
    partitions: int | None = None,
) -> Token:
    """Appends the deletions; durable on return. Deleting a missing document is not an error.

    With `judged`, id → version, a deletion applies only to versions up to the given one.
    `partitions` as for `accept`.
    """
    n = partitions or partitions_of(log, tenant)
    homes: dict[int, list[Record]] = {}
    for i in ids:
        headers = (
            header_of(collection),
            *([judged_header(judged[i])] if judged is not None else []),
        )
        record = Record(None, document_key(collection.name, i), headers, now_ms)
        homes.setdefault(home_of(collection.name, i, n), []).append(record)
    positions: list[Position] = []
    for partition, records in sorted(homes.items()):
        positions.extend(Position(partition, o) for o in _append(log, tenant, partition, records))
    return Token.covering(positions)


def _append(log: Log, tenant: Tenant, partition: int, records: list[Record]) -> list[int]:
    """Appends to the tenant's documents log.

    Raises Unavailable if the topic is missing, because the request is not at fault.
    """
    try:
        return _append_to_new(log, tenant.documents_topic, partition, records)
    except NotFound as missing:
        raise Unavailable(
            f"the documents topic {tenant.documents_topic!r} is missing: "
            "an operator must create it again",
            dependency="log",
            retry_after_s=30,
        ) from missing


def _append_to_new(log: Log, topic: str, partition: int, records: list[Record]) -> list[int]:
    """Appends; waits up to GROWTH_S for a partition of the map that the topic does not have yet.

    Raises NotFound.
    """
    end = time.monotonic() + GROWTH_S
    while True:
        try:
            return log.append(topic, partition, records)
        except NotFound:
            if log.partitions(topic) > partition or time.monotonic() > end:
                raise
            time.sleep(POLL_S)
