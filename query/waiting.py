"""Reports records that wait for a model: ingest's lanes, as tenants and operators may see them."""

from typing import Final, TypedDict

from tenants.entities import IngestLane
from tenants.registry import Registry
from vicinage.errors import NotFound
from vicinage.log import Log


class Waiting(TypedDict):
    """Records of one partition that wait for a generation's model.

    `state` is away (the model does not answer) or behind (ingest is processing the records).
    `records_at_most` counts all records of the partition from the first that waits, including those
    of other collections. `server` and `reason` may name internal addresses, so only operators may
    see them.
    """

    tenant: str
    collection: str
    generation: int
    partition: int
    model: str
    state: str
    since_ms: int
    records_at_most: int
    server: str
    reason: str


FOR_OPERATORS: Final = ("tenant", "server", "reason")


def waiting(
    registry: Registry, log: Log, tenant: str | None, collection: str | None = None
) -> list[Waiting]:
    """Returns the waiting records by lane, with the operators' fields. Blocks. Raises Unavailable.

    Covers one tenant, or all tenants if `tenant` is None.
    """
    lanes = registry.lanes.every() if tenant is None else registry.lanes.of(tenant, collection)
    found = [(lane, _records(log, lane)) for lane in lanes]
    return [_fact(registry, lane, n) for lane, n in found if n]


def _records(log: Log, lane: IngestLane) -> int:
    try:
        return max(0, log.end(f"vicinage.docs.{lane.tenant}", lane.partition) - lane.position)
    except NotFound:
        return 0  # the topic is deleted


def for_tenant(fact: Waiting) -> dict[str, object]:
    """Returns the fact without the fields that only operators may see."""
    return {name: value for name, value in fact.items() if name not in FOR_OPERATORS}


def _fact(registry: Registry, lane: IngestLane, n: int) -> Waiting:
    return Waiting(
        tenant=lane.tenant,
        collection=lane.collection,
        generation=lane.generation,
        partition=lane.partition,
        model=lane.model,
        state=lane.state,
        since_ms=lane.since_ms,
        records_at_most=n,
        server=_server(registry, lane.model),
        reason=lane.reason,
    )


def _server(registry: Registry, model: str) -> str:
    try:
        entry = registry.model(model)
    except NotFound:
        return "unknown"
    return entry.location if entry.kind != "local" else "the platform's embedder"
