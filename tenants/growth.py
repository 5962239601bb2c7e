"""Growth of a documents topic.

`set_partitions` records the growth in the catalog before it grows the topic. `sync_partition_map`
records growth that another program has already done. Ingest calls `sync_partition_map` and
`finish_growth` every `ingest.discover_s`, for tenants whose topic and newest map differ.
"""

import math
from dataclasses import dataclass

from tenants.entities import Tenant
from tenants.registry import Registry
from vicinage.errors import Conflict, Refused
from vicinage.log import Log
from vicinage.partition_maps import PartitionMap, check_partitions, grown


def sync_partition_map(
    registry: Registry, log: Log, tenant: Tenant, *, actor: str
) -> tuple[PartitionMap, ...]:
    """Returns the tenant's partition maps, with one added if its topic has grown.

    Durable on return. Ignores a topic whose identity differs from the newest map's: `vicinage
    tenant resume-ingest` records it. Raises NotFound if there is no topic, Unavailable, and Refused
    if the topic has too many partitions.
    """
    topic = tenant.documents_topic
    maps = registry.partition_maps(tenant.name)
    n, topic_id = log.partitions(topic), log.topic_ids(topic).get(topic)
    if not maps:
        check_partitions(n)
        made = PartitionMap(str(topic_id), n, (0,) * n)
    elif maps[-1].topic_id != topic_id or n <= maps[-1].partitions:
        return maps
    else:
        made = grown(maps[-1], n, [log.end(topic, p) for p in range(maps[-1].partitions)])
    try:
        registry.append_partition_map(tenant.name, made, epoch=len(maps), actor=actor)
    except Conflict:
        registry.refresh()  # another process recorded its map first, which is valid
    return registry.partition_maps(tenant.name)


@dataclass(frozen=True, slots=True)
class GrowthPlan:
    """The effect of `set_partitions`: the partitions before (`partitions`) and after (`wanted`).

    `moved_ratio` is the share of documents whose partition changes (0 to 1).
    """

    partitions: int
    wanted: int
    moved_ratio: float
    done: bool


def plan(registry: Registry, log: Log, tenant: Tenant, wanted: int, *, actor: str) -> GrowthPlan:
    """Returns the effect of growth to `wanted` partitions.

    Records earlier growth that the catalog does not have yet, and changes nothing else. Raises
    Refused if `wanted` is below the present number (Kafka cannot remove partitions), and Conflict
    if the topic was created again.
    """
    registry.refresh()
    newest = sync_partition_map(registry, log, tenant, actor=actor)[-1]
    if log.topic_ids(tenant.documents_topic).get(tenant.documents_topic) != newest.topic_id:
        raise Conflict(
            f"the documents topic of {tenant.name} was created again: `vicinage tenant "
            "resume-ingest` first"
        )
    if wanted < newest.partitions:
        raise Refused(
            f"{tenant.documents_topic} has {newest.partitions} partitions, and none can be removed",
            field="partitions",
            limit=newest.partitions,
        )
    stay = newest.partitions / math.lcm(newest.partitions, wanted)
    return GrowthPlan(newest.partitions, wanted, 1 - stay, done=False)


def set_partitions(
    registry: Registry, log: Log, tenant: Tenant, wanted: int, *, actor: str
) -> GrowthPlan:
    """Records the next map in the catalog, then grows the topic to it. Durable on return.

    The order matters: the map is recorded before any producer can write a record under it. A
    second call completes growth that a crash interrupted. Raises as `plan` does, Conflict if
    another process recorded a map meanwhile, Unavailable, and Refused beyond PARTITIONS_MAX.
    """
    planned = plan(registry, log, tenant, wanted, actor=actor)
    maps = registry.partition_maps(tenant.name)
    if wanted > maps[-1].partitions:
        ends = [log.end(tenant.documents_topic, p) for p in range(maps[-1].partitions)]
        registry.append_partition_map(
            tenant.name, grown(maps[-1], wanted, ends), epoch=len(maps), actor=actor
        )
    finish_growth(log, tenant, registry.partition_maps(tenant.name)[-1])
    return GrowthPlan(planned.partitions, wanted, planned.moved_ratio, done=True)


def finish_growth(log: Log, tenant: Tenant, newest: PartitionMap) -> None:
    """Grows the topic to its newest map, after a crash between recording and growing.

    Idempotent.
    """
    topic = tenant.documents_topic
    if log.topic_ids(topic).get(topic) == newest.topic_id:
        log.add_partitions(topic, newest.partitions)
