"""Ingest's positions in the documents topics: from the log, or else from the catalog's copy."""

from collections.abc import Sequence

from tenants.entities import Group
from tenants.positions import PREFIX
from tenants.registry import Registry
from vicinage.log import Log, TopicPartition


def ingested(
    log: Log, registry: Registry, tps: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Returns ingest's position in each partition: the log's, else the catalog's copy.

    The copy counts only if it is of the same topic. A partition from which nothing was ever
    ingested is absent. Raises Unavailable.
    """
    found = log.committed(Group.INGEST, tps)
    missing = {tp for tp in tps if tp not in found}
    if not missing:
        return found
    tenants = {tp[0].removeprefix(PREFIX) for tp in missing}
    kept = {
        s.topic_partition(): s
        for s in registry.positions.of(next(iter(tenants)) if len(tenants) == 1 else None)
        if s.topic_partition() in missing and s.state != "resuming" and s.position
    }
    if not kept:
        return found
    # The log may now have another topic of that name, with no ingested records: the catalog's
    # position is of the earlier one.
    ids = log.topic_ids(PREFIX)
    return found | {tp: s.position for tp, s in kept.items() if ids.get(tp[0]) == s.topic_id}
