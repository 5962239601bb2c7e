"""Noticing that a documents topic has more partitions than its newest map, and recording the next map.

Ingest calls it every `ingest.discover_s`, for tenants whose topic looks different; so does `tenant set-partitions`.
"""

from tenants.entities import Tenant
from tenants.registry import Registry
from vicinage.errors import Conflict
from vicinage.log import Log
from vicinage.partition_maps import PartitionMap, grown


def observe(registry: Registry, log: Log, tenant: Tenant, *, actor: str) -> tuple[PartitionMap, ...]:
    """Returns the tenant's partition maps, with one added where its topic has grown. Durable on return.

    A topic of another identity than the newest map's is left alone: `vicinage tenant resume-ingest` records it.
    Raises NotFound without a topic, Unavailable, and Refused for a topic with too many partitions.
    """
    topic = tenant.documents_topic
    maps = registry.partition_maps(tenant.name)
    n, topic_id = log.partitions(topic), log.topic_ids(topic).get(topic)
    if not maps:
        made = PartitionMap(str(topic_id), n, (0,) * n)
    elif maps[-1].topic_id != topic_id or n <= maps[-1].partitions:
        return maps
    else:
        made = grown(maps[-1], n, [log.end(topic, p) for p in range(maps[-1].partitions)])
    try:
        registry.append_partition_map(tenant.name, made, epoch=len(maps), actor=actor)
    except Conflict:
        registry.refresh()  # another process was first: its map holds
    return registry.partition_maps(tenant.name)
