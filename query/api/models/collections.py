"""Collections: creation, objectives, and the facts that are known of one."""

from typing import Annotated, Final

from pydantic import ConfigDict, Field

from query.api.bounds import (
    FRESHNESS_MS_MAX,
    LATENCY_MS_MAX,
    RECALL_MAX,
    RECALL_MIN,
)
from query.api.models.base import AtMost, RequestModel, ResponseModel
from query.api.models.common import (
    CollectionName,
    Count,
    Milliseconds,
    ModelName,
    Ratio,
    TenantName,
)
from query.quality.interval import ALPHA, METHOD
from query.quality.windows import WINDOW, Verdict, Why
from tenants.entities import LaneState, Metric
from tenants.entities import Objectives as ObjectivesEntity
from tenants.index_spec import GRAMMAR
from tenants.models import DIMENSION_MAX

_DEFAULTS: Final = ObjectivesEntity()
Recall = Annotated[float, Field(ge=RECALL_MIN, le=RECALL_MAX)]
FreshnessMs = Annotated[int, Field(ge=1, le=FRESHNESS_MS_MAX)]
LatencyMs = Annotated[int, Field(ge=1, le=LATENCY_MS_MAX)]
Dimension = Annotated[int, Field(ge=1, le=DIMENSION_MAX)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class ObjectivesRequest(RequestModel):
    """Objectives to set; those that are not named keep their value or get the default."""

    recall: Recall | None = Field(
        default=None,
        description=f"Recall@k to keep; 1 makes every search exact. Default: {_DEFAULTS.recall}.",
        examples=[0.95],
    )
    freshness_ms: FreshnessMs | None = Field(
        default=None,
        description=f"Milliseconds until a write is searchable. Default: {_DEFAULTS.freshness_ms}.",
        examples=[1000],
    )
    latency_ms: LatencyMs | None = Field(
        default=None,
        description=f"Milliseconds that a search may take. Default: {_DEFAULTS.latency_ms}.",
        examples=[100],
    )


class CreateCollectionRequest(RequestModel):
    """A collection to create."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "articles",
                    "metric": "cosine",
                    "index": "auto",
                    "shards": 1,
                    "objectives": {"recall": 0.95, "freshness_ms": 1000, "latency_ms": 100},
                },
                {"name": "vectors", "dimension": 384},
            ]
        }
    )
    name: CollectionName = Field(
        description="Its name: the first character is a letter or a digit.", examples=["articles"]
    )
    model: ModelName | None = Field(
        default=None,
        description="An embedding model of the registry; without it, the default model.",
        examples=["all-minilm-l6-v2"],
    )
    dimension: Dimension | None = Field(
        default=None,
        description="The dimension of its vectors; without a model, the tenant sends vectors.",
        examples=[384],
    )
    metric: Metric | None = Field(
        default="cosine", description="How vectors compare.", examples=["cosine"]
    )
    index: str | None = Field(
        default="auto", description=f"The index: {GRAMMAR}.", examples=["auto"]
    )
    shards: Annotated[int, Field(ge=1), AtMost("slots")] | None = Field(
        default=1, description="Number of shards.", examples=[1]
    )
    objectives: ObjectivesRequest | None = Field(
        default=None, description="Its service objectives."
    )


class UpdateCollectionRequest(RequestModel):
    """Objectives to change."""

    objectives: ObjectivesRequest = Field(description="The objectives to change; others stay.")


class Objectives(ResponseModel):
    """The service objectives of a collection."""

    recall: Recall = Field(description="Recall@k to keep.", examples=[0.95])
    freshness_ms: FreshnessMs = Field(
        description="Milliseconds until a write is searchable.", examples=[1000]
    )
    latency_ms: LatencyMs = Field(
        description="Milliseconds that a search may take.", examples=[100]
    )


class Counts(ResponseModel):
    """Numbers of what a collection holds, as of the watermark."""

    documents: Count = Field(description="Live documents.", examples=[120])
    passages: Count = Field(description="Live passages.", examples=[480])
    at_least: bool = Field(
        description="The numbers are lower bounds: a shard did not answer or is not counted yet.",
        examples=[False],
    )


class ShardCounts(ResponseModel):
    """Shards that were asked for these facts, and those that answered."""

    asked: Count = Field(description="Shards of the live generation.", examples=[1])
    answered: Count = Field(description="Shards that answered.", examples=[1])


class ModelWait(ResponseModel):
    """Records of one partition that wait for a generation's model."""

    collection: str = Field(description="The collection.", examples=["articles"])
    generation: Count = Field(description="The generation.", examples=[1])
    partition: Count = Field(description="The partition of the documents topic.", examples=[0])
    model: str = Field(description="The model.", examples=["all-minilm-l6-v2"])
    state: LaneState = Field(
        description="`unavailable`: the model does not answer; `behind`: they are processed.",
        examples=["unavailable"],
    )
    since_ms: Milliseconds = Field(
        description="When that began, in Unix milliseconds.", examples=[1767225600000]
    )
    records_at_most: Count = Field(
        description="Records of the partition from the first that waits.", examples=[12]
    )


class CollectionFreshness(ResponseModel):
    """Freshness of a collection."""

    lag_ms: Milliseconds | None = Field(
        description=(
            "Age of the oldest accepted record that is not searchable yet; null while unknown."
        ),
        examples=[0],
    )
    waiting: list[ModelWait] | None = Field(
        description="Waits for a model; null while the catalog or the log does not answer.",
        examples=[[]],
    )


class RecallWindow(ResponseModel):
    """The window of samples that a recall figure is measured on."""

    number: Count = Field(description="Number of the window.", examples=[1])
    began_ms: Milliseconds = Field(
        description="When it began, in Unix milliseconds.", examples=[1767225600000]
    )
    ended_ms: Milliseconds | None = Field(
        description="When it ended; null while it is open.", examples=[None]
    )
    began_because: Why = Field(description="Why it began.", examples=["first"])
    samples_max: Count = Field(description="Samples at which it ends.", examples=[WINDOW])
    method: str = Field(description="The method of the interval.", examples=[METHOD])
    alpha: Ratio = Field(
        description="The probability that the interval ever misses the truth.", examples=[ALPHA]
    )


class BelowObjective(ResponseModel):
    """The proof that an index misses its objective at its greatest effort."""

    since_ms: Milliseconds = Field(
        description="When it was proven, in Unix milliseconds.", examples=[1767225600000]
    )
    recall: Ratio = Field(description="The recall that was measured.", examples=[0.88])
    interval: Interval = Field(description="Its interval.", examples=[[0.85, 0.91]])
    n: Count = Field(description="Samples.", examples=[400])


class IndexBelowObjective(BelowObjective):
    """The proof that an index misses its objective, and the scans of searches since."""

    searches: dict[str, Count] = Field(
        description="Searches by outcome: scanned, or the bound that prevented the scan.",
        examples=[{"scanned": 12}],
    )


class MeasuredRecall(ResponseModel):
    """Recall that was measured on sampled live searches."""

    tenant: str = Field(description="The tenant.", examples=["acme"])
    collection: str = Field(description="The collection.", examples=["articles"])
    generation: Count = Field(description="The generation.", examples=[1])
    k: Count = Field(description="The most frequent k.", examples=[10])
    recall: Ratio = Field(description="Mean recall@k.", examples=[0.97])
    interval: Interval = Field(
        description="Interval of the mean, valid under continuous watching.",
        examples=[[0.95, 0.99]],
    )
    n: Count = Field(description="Samples of the judged window.", examples=[400])
    samples: Count = Field(description="Samples in all.", examples=[400])
    target: Recall = Field(description="The objective.", examples=[0.95])
    verdict: Verdict = Field(
        description="`breach`: the interval lies below the objective.", examples=["ok"]
    )
    window: RecallWindow = Field(description="The window of samples.")
    correction: float = Field(
        description="What live recall adds to the effort's aim.", examples=[0.0]
    )
    below_objective: BelowObjective | None = Field(
        description="The proof that the index misses the objective; null without one.",
        examples=[None],
    )
    discarded: Count = Field(
        description="Samples discarded because the index changed meanwhile.", examples=[0]
    )
    dropped: Count = Field(description="Samples dropped because the queue was full.", examples=[0])


class CurveEnd(ResponseModel):
    """The end of an effort curve."""

    effort: Count = Field(description="The greatest measured effort.", examples=[512])
    recall: Ratio = Field(description="Recall at that effort.", examples=[0.99])
    n_calibration_queries: Count = Field(
        description="Recent searches that it was measured on; 0: generated ones.", examples=[256]
    )


class IndexFacts(ResponseModel):
    """The index of a collection."""

    spec: str = Field(description="The index that was asked for.", examples=["auto"])
    kinds: list[str] = Field(description="Kinds of its segments.", examples=[["hnsw"]])
    segments: Count = Field(description="Number of segments.", examples=[1])
    delta_passages: Count = Field(
        description="Passages newer than the segments, searched exactly.", examples=[12]
    )
    host_bytes: Count = Field(description="Bytes in memory.", examples=[4096])
    resident: bool = Field(description="Whether every shard is in memory.", examples=[True])
    scanned_passages: Count | None = Field(
        description="Passages that every search scans; null while a shard is not in memory.",
        examples=[12],
    )
    curve: CurveEnd | None = Field(
        description="End of the effort curve with the least recall; null without an index.",
        examples=[None],
    )
    below_objective: IndexBelowObjective | None = Field(
        description="The proof that the index misses the objective; null without one.",
        examples=[None],
    )


class CollectionFacts(ResponseModel):
    """A collection: what was set, and what was measured."""

    tenant: TenantName = Field(description="Its tenant.", examples=["acme"])
    name: CollectionName = Field(description="Its name.", examples=["articles"])
    model: str | None = Field(
        description="Its embedding model; null if the tenant sends vectors.",
        examples=["all-minilm-l6-v2"],
    )
    dimension: Dimension = Field(description="Dimension of its vectors.", examples=[384])
    metric: Metric = Field(description="How vectors compare.", examples=["cosine"])
    objectives: Objectives = Field(description="Its service objectives.")
    counts: Counts = Field(description="What it holds.")
    shards: ShardCounts = Field(description="Shards that answered.")
    freshness: CollectionFreshness = Field(description="How fresh it is.")
    recall: MeasuredRecall | None = Field(
        description="Its measured recall; null until it is measured.", examples=[None]
    )
    generation: Count = Field(description="The live generation.", examples=[1])
    building: list[Count] = Field(
        description="Generations that a reindex builds, or that are kept for a rollback.",
        examples=[[]],
    )
    index: IndexFacts = Field(description="Its index.")


class CollectionsAnswer(ResponseModel):
    """The tenant's collections."""

    collections: list[CollectionFacts] = Field(description="The collections.")


class DeletedAnswer(ResponseModel):
    """Name of the deleted object."""

    deleted: str = Field(description="The name of what was deleted.", examples=["articles"])


class ConfirmParameters(RequestModel):
    """The query parameter that confirms a deletion."""

    confirm: str = Field(
        description="The name of what is deleted, once more: the path alone does not decide.",
        examples=["articles"],
    )
