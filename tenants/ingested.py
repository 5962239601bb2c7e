"""How far ingest is in partitions of the documents topics, also where the log has forgotten it."""

from collections.abc import Sequence

from tenants.entities import Group
from tenants.positions import PREFIX
from tenants.registry import Registry
from vicinage.log import Log, TopicPartition


def ingested(log: Log, registry: Registry, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Returns ingest's position in each partition: the log's, else the catalog's copy of the same topic's.

    A partition from which nothing was ever ingested is absent. Raises Unavailable.
    """
    found = log.committed(Group.INGEST, tps)
    missing = {tp for tp in tps if tp not in found}
    if not missing:
        return found
    tenants = {tp[0].removeprefix(PREFIX) for tp in missing}
    for state in registry.positions.of(next(iter(tenants)) if len(tenants) == 1 else None):
        maps, tp = registry.partition_maps(state.tenant), state.topic_partition()
        if tp in missing and state.state != "resuming" and maps and maps[-1].topic_id == state.topic_id:
            found[tp] = state.position
    return found
