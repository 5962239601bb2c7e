"""Creates and deletes tenants and collections: rows in the catalog, and topics in the log."""

import hashlib
from functools import partial
from typing import Final

from tenants.entities import (
    Class,
    Collection,
    Metric,
    Objectives,
    Tenant,
    dead_topic,
    documents_topic,
)
from tenants.growth import sync_partition_map
from tenants.registry import Place, Registry
from vicinage.errors import Refused
from vicinage.log import Log
from vicinage.partition_maps import check_partitions

VECTORS_TOPIC: Final = "vicinage.vectors"
HEALTH_TOPIC: Final = "vicinage.health"
"""Topic of empty probe records: partition 0 for gateways, partition 1 for ingest."""
HEALTH_RETENTION_MS: Final = 60_000
DEAD_LETTERS_MS: Final = 30 * 86_400_000
"""Retention of dead letters: 30 days."""


def ensure_vectors(log: Log, slots: int) -> None:
    """Creates the vectors log with `slots` partitions. Raises Refused if it has another number."""
    check_settings(log, VECTORS_TOPIC)
    found = log.ensure_topic(VECTORS_TOPIC, slots)
    if found != slots:
        raise Refused(
            f"this platform was created with {found} slots, not {slots}: set slots = {found}",
            field="slots",
            limit=found,
        )


def create_tenant(
    registry: Registry,
    log: Log,
    name: str,
    *,
    priority: Class = "silver",
    partitions: int = 1,
    actor: str,
) -> Tenant:
    """Creates a tenant with its documents and dead-letter topics.

    Raises Refused, and creates nothing, if a topic of that name exists with invalid settings or
    with too many partitions.
    """
    check_settings(log, documents_topic(name), dead_topic(name))
    check_partitions(log.topics(documents_topic(name)).get(documents_topic(name), 0))
    tenant = registry.create_tenant(name, priority=priority, actor=actor)
    ensure_topics(log, tenant, partitions)
    sync_partition_map(registry, log, tenant, actor=actor)
    return tenant


def check_settings(log: Log, *topics: str) -> None:
    """Raises Refused for an existing topic with invalid settings; the error says what to set."""
    for topic, problems in log.topic_problems(topics).items():
        raise Refused(
            f"topic {topic!r} exists with invalid settings: {'; '.join(problems)}", field="topic"
        )


def ensure_topics(log: Log, tenant: Tenant, partitions: int = 1) -> None:
    """Creates the tenant's topics.

    Idempotent: each user of the topics calls it, also after a crash.
    """
    log.ensure_topic(tenant.documents_topic, partitions)
    log.ensure_topic(tenant.dead_topic, 1, retention_ms=DEAD_LETTERS_MS)


def delete_tenant(registry: Registry, log: Log, name: str, *, actor: str) -> Tenant:
    """Deletes the tenant, its collections and its topics; in the catalog first.

    A second call for a deleted tenant deletes topics that a crash left behind.
    """
    registry.refresh()
    tenant = registry.deleted_tenant(name) or registry.delete_tenant(name, actor=actor)
    log.delete_topic(tenant.documents_topic)
    log.delete_topic(tenant.dead_topic)
    return tenant


def create_collection(
    registry: Registry,
    log: Log,
    tenant: str,
    name: str,
    *,
    model: str | None = None,
    dimension: int | None = None,
    metric: Metric = "cosine",
    index: str = "auto",
    shards: int = 1,
    objectives: Objectives | None = None,
    slots_total: int,
    actor: str,
) -> Collection:
    """Creates a collection and places its shards on slots."""
    return registry.create_collection(
        tenant,
        name,
        model=model,
        dimension=dimension,
        metric=metric,
        index=index,
        place=placer(log, tenant, name, shards, slots_total),
        first_offsets=partial(documents_ends, log, registry.tenant(tenant).documents_topic),
        objectives=objectives,
        actor=actor,
    )


def documents_ends(log: Log, topic: str) -> tuple[int, ...]:
    """Returns the end offset of each partition of a documents topic.

    Returns () for a topic that does not exist yet.
    """
    return tuple(log.end(topic, partition) for partition in range(log.topics(topic).get(topic, 0)))


def placer(log: Log, tenant: str, collection: str, shards: int, slots_total: int) -> Place:
    """Returns the function that places a new generation (see `registry.Place`)."""
    if not 1 <= shards <= slots_total:
        raise Refused(
            f"shards is 1 to {slots_total}, the number of slots", field="shards", limit=slots_total
        )

    def chosen(generation: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        slots = place(tenant, collection, generation, shards, slots_total)
        # Read before the generation is in the catalog: its first row cannot have a lower offset.
        return slots, tuple(log.end(VECTORS_TOPIC, slot) for slot in slots)

    return chosen


def place(
    tenant: str, collection: str, generation: int, shards: int, slots_total: int
) -> tuple[int, ...]:
    """Returns the slots of a generation's shards.

    They are consecutive, from the one that the hash of its name selects.
    """
    name = f"{tenant}/{collection}/{generation}".encode()
    first = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") % slots_total
    return tuple((first + i) % slots_total for i in range(shards))
