"""The shards that are served: those of every generation that is building, ready or live."""

from tenants.entities import Generation
from tenants.registry import Registry
from vicinage.errors import NotFound
from vicinage.records import ShardId


def serving(registry: Registry, tenant: str | None = None) -> dict[ShardId, Generation]:
    """Returns every served shard, of the platform or of a tenant, with its generation."""
    return {
        shard: g
        for c in registry.collections(tenant)
        for g in c.generations
        for shard in g.shards()
    }


def generation_of(registry: Registry, shard: ShardId) -> Generation | None:
    """Returns the shard's generation; None if it is deleted or retired (its rows are unused)."""
    try:
        return registry.collection(shard.tenant, shard.collection).generation(shard.generation)
    except (NotFound, KeyError):
        return None
