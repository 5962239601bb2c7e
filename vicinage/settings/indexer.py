"""Settings of the indexer: sealing, compaction, trimming and repair."""

from typing import Literal

from pydantic import Field

from vicinage.settings.group import Group


class IndexerSettings(Group):
    """indexer: sealing and compaction."""

    seal_passages: int = Field(
        default=10_000, ge=1, description="unsealed passages of a shard that make it seal"
    )
    seal_bytes: int = Field(
        default=64 << 20, ge=1, description="unsealed bytes of a shard that make it seal"
    )
    seal_age_s: float = Field(
        default=300.0, gt=0, description="age of the oldest unsealed record that makes a shard seal"
    )
    replay_records_max: int = Field(
        default=50_000,
        ge=1,
        description="messages that a slot replays at a restart before lagging shards are sealed",
    )
    flat_max: int = Field(
        default=2_000,
        ge=1,
        description="passages of a segment up to which `auto` builds no index and searches exactly",
    )
    index_bytes_max: int = Field(
        default=0,
        ge=0,
        description=(
            "bytes of one segment's index, beside its vectors, above which `auto` uses ivfpq; 0: "
            "no bound"
        ),
    )
    segments_max: int = Field(
        default=4, ge=1, description="segments of a shard above which it compacts"
    )
    dead_share_max: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="share of deleted passages above which a shard compacts",
    )
    erase_s: float = Field(
        default=86_400.0,
        ge=3_600,
        description="age of a segment after which any deleted row makes its shard compact",
    )
    tombstone_age_s: float = Field(
        default=3_600.0,
        ge=100,
        description=(
            "how long ingest must have passed a deletion before compaction forgets it; longer "
            "than an append takes"
        ),
    )
    keep_sealed_s: float = Field(
        default=86_400.0,
        ge=3_600,
        description=(
            "how long records of the vectors log are kept after every shard of the slot has "
            "sealed them"
        ),
    )
    keep_sealed_share: float = Field(
        default=0.5,
        ge=0,
        description=(
            "largest size of a slot's sealed records, as a share of its segments' bytes; at "
            "least keep_sealed_bytes; SQLite only"
        ),
    )
    keep_sealed_bytes: int = Field(
        default=4 << 20,
        ge=0,
        description="bytes of a slot's sealed records that are kept even if its segments are small",
    )
    keep_documents_s: float = Field(
        default=3_600.0,
        ge=300,
        description="how long records of documents logs are kept after ingest has passed them",
    )
    keep_documents_bytes: int = Field(
        default=4 << 20,
        ge=0,
        description=(
            "largest size of each partition's records that ingest has passed for a minute; "
            "SQLite only (on Kafka: the topic's retention.bytes)"
        ),
    )
    superseded_age_s: float = Field(
        default=30.0,
        ge=0,
        description=(
            "how long replaced objects are kept; for backups of a running platform, longer than "
            "a copy of the store takes"
        ),
    )
    lease_s: float = Field(
        default=15.0, gt=1, description="duration of an indexer's lease on a slot without renewal"
    )
    orphan_age_s: float = Field(
        default=3_600.0,
        gt=0,
        description=(
            "age after which an object that no manifest and no unfinished work names is deleted"
        ),
    )
    second_copies: Literal["never", "unlogged", "always"] = Field(
        default="unlogged",
        description=(
            "segments whose passages are stored twice to allow repair; unlogged: those with rows "
            "that are not in the vectors log, such as rows copied by a reindex"
        ),
    )
    quarantine_s: float = Field(
        default=7 * 86_400.0,
        ge=0,
        description="how long the bytes of a damaged object are kept after its segment was rebuilt",
    )
    scrub_per_minute: float = Field(
        default=6.0,
        ge=0,
        le=6_000,
        description="objects of segments that the scrub verifies a minute; 0: none",
    )
    scrub_bytes_s: int = Field(
        default=1 << 20, ge=1 << 10, description="mean rate of the scrub, bytes a second"
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description=(
            "FAISS threads of one build (seal, compaction, reindex); 0: half of the cores; a "
            "seal can run beside a compaction"
        ),
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="device that builds indexes: cpu, cuda (every GPU) or cuda:N",
    )
