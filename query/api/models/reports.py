"""Reports to operators: capacity and freshness."""

from typing import Literal

from pydantic import Field

from query.api.models.base import ResponseModel
from query.api.models.collections import ModelWait
from query.api.models.common import Count, Milliseconds
from tenants.entities import Class


class CapacityHolding(ResponseModel):
    """Holdings of a collection or a tenant."""

    tenant: str = Field(description="The tenant.", examples=["acme"])
    documents: Count = Field(description="Live documents.", examples=[120])
    passages: Count = Field(description="Live passages.", examples=[480])
    at_least: bool = Field(description="The numbers are lower bounds.", examples=[False])
    host_bytes: Count = Field(description="Accounted bytes in memory.", examples=[4096])
    store_bytes: Count = Field(description="Bytes in the object store.", examples=[8192])


class CollectionCapacity(CapacityHolding):
    """Holdings of a collection."""

    collection: str = Field(description="The collection.", examples=["articles"])
    bytes_per_passage: float | None = Field(
        description="Mean bytes of a passage in memory; null if none was measured.",
        examples=[1700.5],
    )


class TenantCapacity(CapacityHolding):
    """Holdings of a tenant."""

    priority: Class = Field(alias="class", description="Its class.", examples=["silver"])
    records: Count = Field(description="Records kept in its documents log.", examples=[120])


class DimensionCapacity(ResponseModel):
    """Memory of passages of one dimension."""

    dimension: Count = Field(description="The dimension.", examples=[384])
    n: Count = Field(description="Passages that were measured.", examples=[480])
    bytes_per_passage: float = Field(description="Mean bytes of a passage.", examples=[1700.5])
    passages_left: Count = Field(
        description="Passages that fit if all have this dimension.", examples=[100000]
    )


class HostHeadroom(ResponseModel):
    """Headroom of one host."""

    resource: str = Field(description="The resource.", examples=["memory"])
    host: str = Field(description="The host.", examples=["node-1"])
    total_bytes: Count = Field(description="Memory of the host.", examples=[8589934592])
    used_bytes: Count = Field(description="Memory of the searchers.", examples=[1073741824])
    available_bytes: Count = Field(description="Available memory.", examples=[4294967296])
    limit_bytes: Count = Field(
        description="`searcher.resident_bytes_max` of its searchers.", examples=[4294967296]
    )
    held_bytes: Count = Field(description="Accounted bytes in memory.", examples=[4096])
    not_resident_bytes: Count = Field(
        description="Bytes that shards not in memory would take.", examples=[0]
    )
    left_bytes: Count = Field(description="Bytes that are left.", examples=[4294963200])
    at_most: bool = Field(
        description="Some shards are not counted yet: less may be left.", examples=[False]
    )
    passages_left: Count | None = Field(
        description="Passages that fit at least; null if none was measured.", examples=[100000]
    )
    by_dimension: list[DimensionCapacity] = Field(description="The same by dimension.")


class DiskUse(ResponseModel):
    """Disk in use."""

    log_bytes: Count | None = Field(
        description="Bytes of the log; null on Kafka, where brokers store it.", examples=[8192]
    )
    store_bytes: Count = Field(description="Bytes in the object store.", examples=[8192])


class Retention(ResponseModel):
    """Retention of data beside live data."""

    kept: str = Field(description="The data.", examples=["dead letters"])
    age_s: float = Field(description="Seconds after its last use.", examples=[2592000.0])
    bytes_max: Count | None = Field(
        description="Bytes beyond which it is deleted earlier; null: no such bound.",
        examples=[None],
    )


class Rate(ResponseModel):
    """A rate over a window."""

    per_s: float = Field(description="Events per second.", examples=[1.5])
    window_s: float = Field(description="Seconds of the window.", examples=[60.0])


class Rates(ResponseModel):
    """Rates of the platform's work."""

    searches: Rate = Field(description="Searches of shards.")
    applied_passages: Rate = Field(description="Passages that searchers applied.")


class CapacityReport(ResponseModel):
    """Holdings of every tenant and collection, and the headroom that is left."""

    at_ms: Milliseconds = Field(
        description="When it was measured, in Unix milliseconds.", examples=[1767225600000]
    )
    collections: list[CollectionCapacity] = Field(description="What each collection holds.")
    tenants: list[TenantCapacity] = Field(description="What each tenant holds.")
    headroom: list[HostHeadroom] = Field(description="What is left on each host.")
    disk: list[DiskUse] = Field(description="Disk in use.")
    retention: list[Retention] = Field(description="How long data is kept beside live data.")
    rates: Rates = Field(description="Rates of the platform's work.")
    methods: dict[str, str] = Field(
        description="How each figure is measured.",
        examples=[{"store_bytes": "sizes of the objects that the manifests name"}],
    )


class OperatorModelWait(ModelWait):
    """Records that wait for a model, with the facts that only operators may see."""

    tenant: str = Field(description="The tenant.", examples=["acme"])
    server: str = Field(description="The model's server.", examples=["http://127.0.0.1:8000/v1"])
    reason: str = Field(description="Why they wait.", examples=["connection refused"])


IngestState = Literal["reading", "waiting", "resuming", "halted"]


class PartitionReading(ResponseModel):
    """A partition that ingest does not read."""

    partition: Count = Field(description="The partition.", examples=[0])
    state: str = Field(description="Its state.", examples=["halted"])
    kind: str | None = Field(description="Why it is halted.", examples=["position_lost"])
    reason: str | None = Field(description="Why, in words.", examples=["the topic was recreated"])
    since_ms: Milliseconds = Field(
        description="When that began, in Unix milliseconds.", examples=[1767225600000]
    )
    position: int = Field(description="The next offset that is not ingested.", examples=[41])


class TenantFreshness(ResponseModel):
    """Freshness of a tenant."""

    tenant: str = Field(description="The tenant.", examples=["acme"])
    lag_ms: Milliseconds | None = Field(
        description="The greatest freshness lag of its collections; null while one is unknown.",
        examples=[0],
    )
    p50_ms: float | None = Field(
        description="Median of recent index lags; null without any.", examples=[12.5]
    )
    p99_ms: float | None = Field(
        description="99th percentile of recent index lags; null without any.", examples=[40.0]
    )
    n: Count = Field(description="Number of those index lags.", examples=[200])
    replayed: Count = Field(description="Messages replayed when a searcher started.", examples=[0])
    waiting: list[OperatorModelWait] = Field(description="Waits for a model.", examples=[[]])
    ingest: IngestState = Field(description="Whether ingest reads its topic.", examples=["reading"])
    partitions: list[PartitionReading] = Field(
        description="Partitions that ingest does not read.", examples=[[]]
    )
