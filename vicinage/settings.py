"""Frozen settings, grouped by component, read once at start.

Sources are arguments, `VICINAGE_*` and `vicinage.toml`. Every field has a unit in its name or its
description, a default, bounds, and a line in docs/reference/settings.md.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

CONFIG: Final = "VICINAGE_CONFIG"
"""Environment variable that names the settings file; `--config` sets it, also for child processes."""
Port = Annotated[int, Field(ge=0, le=65_535)]


def config_path() -> Path:
    """Returns the path of the settings file: the named one, or vicinage.toml in the working directory.

    The file need not exist.
    """
    return Path(os.environ.get(CONFIG) or "vicinage.toml")


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewaySettings(_Group):
    """query: the HTTP API."""

    host: str = Field(default="127.0.0.1", description="address that the API listens on")
    port: Port = Field(default=8080, description="HTTP port of the API")
    health_port: Port = Field(
        default=0,
        description="port of /healthz, /readyz and /metrics alone; 0: three after the API's",
    )
    connections_max: int = Field(
        default=4_096,
        ge=16,
        le=65_536,
        description="open connections; fewer if the limit of open files is low; at the limit, a new connection replaces the one idle longest",
    )
    timeout_ms: int = Field(
        default=10_000, ge=1, le=600_000, description="deadline of a request without timeout_ms"
    )
    k_max: int = Field(default=1_000, ge=1, le=16_384, description="largest k of a search")
    body_bytes_max: int = Field(default=64 << 20, ge=1 << 10, description="largest request body")
    in_flight_max: int = Field(
        default=256,
        ge=1,
        description="requests in flight before 429; one tenant alone has at most half of them (bronze) to four fifths (gold)",
    )
    bodies_bytes_max: int = Field(
        default=512 << 20,
        ge=1 << 10,
        description="bytes of request bodies in memory before 429; shared among tenants like gateway.in_flight_max",
    )
    answers_bytes_max: int = Field(
        default=128 << 20,
        ge=1 << 10,
        description="bytes of answers of more than 256 KiB that clients have not read yet, before 429; shared among tenants like gateway.in_flight_max",
    )
    parse_processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes that parse large bodies; started with the first large body",
    )
    parse_s: float = Field(
        default=30.0, gt=0, le=600, description="seconds that parsing one body may take"
    )
    parse_memory_bytes: int = Field(
        default=2 << 30, ge=256 << 20, description="memory of one process that parses bodies, bytes"
    )
    recall_sample_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of live searches that are repeated exactly to measure recall",
    )
    recall_samples_min: int = Field(
        default=400,
        ge=1,
        description="samples of a collection before gateway.recall_sample_share applies",
    )
    recall_cpu_share: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="share of search CPU time that the recall monitor uses at most",
    )
    embedding_cache_bytes_max: int = Field(
        default=64 << 20,
        ge=0,
        description="bytes of the cache of search texts' vectors, over all tenants; if full, evicts from the tenant that uses most; 0: off",
    )
    key_grace_s: float = Field(
        default=60.0,
        ge=0,
        le=3_600,
        description="how long a key that was looked up remains valid for searches while the catalog is unreachable",
    )
    key_failures_per_s: float = Field(
        default=5.0,
        gt=0,
        le=1_000_000,
        description="requests without a valid key that one address can send a second, with a burst of ten seconds; 429 beyond",
    )
    rerank_max: int = Field(default=100, ge=1, le=1_000, description="largest rerank of a search")
    drain_s: float = Field(
        default=10.0, ge=0, le=300, description="time for requests in flight to end at shutdown"
    )


class EmbedderSettings(_Group):
    """ingest/embedding: the embedder role."""

    url: str = Field(
        default="",
        description="base URL of the embedder; empty: the port after the gateway's, on loopback",
    )
    batch_tokens: int = Field(
        default=16_384, ge=256, description="tokens (padded) in one model call"
    )
    queue_tokens: int = Field(default=2_000_000, ge=1_024, description="waiting tokens before 429")
    threads: int = Field(
        default=0, ge=0, le=256, description="threads of a model call; 0: calibrated at start"
    )
    runtime: Literal["auto", "torch", "onnx"] = Field(
        default="auto",
        description="runtime of local models; auto: torch if it is installed, else ONNX Runtime",
    )
    precision: str = Field(
        default="auto",
        pattern="^(auto|float32|bfloat16|float16)$",
        description="precision of local models; auto: calibrated at start",
    )
    cosine_floor: float = Field(
        default=0.995,
        ge=0,
        le=1,
        description="smallest mean cosine to float32 vectors that a precision must reach",
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="device of the embedder: cpu, cuda or cuda:N",
    )
    model_keys: dict[str, SecretStr] = Field(
        default={}, description="bearer keys of model servers, by model name (JSON)"
    )


class RerankSettings(_Group):
    """query/rerank.py: reranking of the best hits by a cross-encoder, for searches that request it."""

    model: str = Field(
        default="",
        description="folder of a cross-encoder (sentence-transformers) that the embedder serves; empty: none",
    )
    url: str = Field(
        default="",
        description="base URL of a server with the `/rerank` of text-embeddings-inference; empty: the embedder, if rerank.model is set",
    )
    key: SecretStr = Field(
        default=SecretStr(""), description="bearer key of the server at rerank.url"
    )


class IngestSettings(_Group):
    """ingest: documents to vectors."""

    text_bytes_max: int = Field(
        default=1 << 20,
        ge=1,
        le=8 << 20,
        description="largest text of one document, bytes of UTF-8",
    )
    id_bytes_max: int = Field(
        default=512, ge=1, le=4_096, description="longest document id, bytes of UTF-8"
    )
    metadata_bytes_max: int = Field(
        default=16 << 10,
        ge=2,
        le=1 << 20,
        description="largest metadata of one document, bytes of JSON",
    )
    passages_max: int = Field(
        default=10_000,
        ge=1,
        description="largest number of passages of one document; its rows take at most 12 MiB in total",
    )
    passage_tokens: int = Field(
        default=200,
        ge=16,
        description="target length of a passage, tokens; at most the model's window",
    )
    passage_overlap_tokens: int = Field(
        default=30, ge=0, description="tokens that consecutive passages share"
    )
    batch_bytes: int = Field(
        default=4 << 20, ge=1 << 10, description="bytes read from the documents log in one step"
    )
    batch_passages: int = Field(
        default=512,
        ge=1,
        description="largest number of passages in one model call; fewer if the model is slow",
    )
    discover_s: float = Field(
        default=1.0, gt=0, le=60, description="interval of discovering new tenants' topics"
    )
    partitions: int = Field(
        default=1, ge=1, le=1_024, description="partitions of a new tenant's documents topic"
    )
    recommit_s: float = Field(
        default=600.0,
        ge=1,
        description="interval of committing an idle partition's position again; less than the broker's offsets.retention.minutes",
    )
    metrics_port: Port = Field(
        default=0,
        description="port of the /metrics of ingest and indexer; 0: two after the gateway's",
    )


class IndexerSettings(_Group):
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
        description="bytes of one segment's index, beside its vectors, above which `auto` uses ivfpq; 0: no bound",
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
        description="how long ingest must have passed a deletion before compaction forgets it; longer than an append takes",
    )
    keep_sealed_s: float = Field(
        default=86_400.0,
        ge=3_600,
        description="how long records of the vectors log are kept after every shard of the slot has sealed them",
    )
    keep_sealed_share: float = Field(
        default=0.5,
        ge=0,
        description="largest size of a slot's sealed records, as a share of its segments' bytes; at least keep_sealed_bytes; SQLite only",
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
        description="largest size of each partition's records that ingest has passed for a minute; SQLite only (on Kafka: the topic's retention.bytes)",
    )
    superseded_age_s: float = Field(
        default=30.0,
        ge=0,
        description="how long replaced objects are kept; for backups of a running platform, longer than a copy of the store takes",
    )
    lease_s: float = Field(
        default=15.0, gt=1, description="duration of an indexer's lease on a slot without renewal"
    )
    orphan_age_s: float = Field(
        default=3_600.0,
        gt=0,
        description="age after which an object that no manifest and no unfinished work names is deleted",
    )
    second_copies: Literal["never", "unlogged", "always"] = Field(
        default="unlogged",
        description="segments whose passages are stored twice to allow repair; unlogged: those with rows that are not in the vectors log, such as rows copied by a reindex",
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
        description="FAISS threads of one build (seal, compaction, reindex); 0: half of the cores; a seal can run beside a compaction",
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="device that builds indexes: cpu, cuda (every GPU) or cuda:N",
    )


class SearcherSettings(_Group):
    """query/searcher: the searcher role."""

    threads: int = Field(default=1, ge=1, le=256, description="threads that search")
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="device that searches: cpu, cuda (every GPU) or cuda:N",
    )
    queue_max: int = Field(
        default=2_048,
        ge=1,
        description="waiting searches before 429; one tenant alone has at most half of them (bronze) to four fifths (gold)",
    )
    batch_max: int = Field(default=64, ge=1, description="largest number of searches in one batch")
    adopt_s: float = Field(
        default=0.5, gt=0, le=60, description="interval of reading new manifests"
    )
    resident_bytes_max: int = Field(
        default=0,
        ge=0,
        description="bytes of loaded segments and deltas, counting every mapped page; beyond it, least recently used shards are unloaded; 0: half of the machine's memory",
    )
    scan_rows_max: int = Field(
        default=50_000,
        ge=0,
        description="largest number of passages of a shard that are scanned instead of an index that misses the recall objective; 0: the index is always used",
    )
    scan_cpu_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest share of the search threads' time for such scans",
    )


class KafkaSettings(_Group):
    """vicinage/log: authentication of every Kafka client, and its verification of the brokers."""

    security: Literal["plaintext", "tls", "sasl", "sasl-tls"] = Field(
        default="plaintext",
        description="plaintext, tls (with kafka.cert_file: mTLS), sasl, or sasl-tls",
    )
    mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        default="", description="SASL mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
    )
    username: str = Field(
        default="", description="SASL user; with kafka.token_url the OAuth client id"
    )
    password: SecretStr = Field(
        default=SecretStr(""),
        description="SASL password; with kafka.token_url the OAuth client secret",
    )
    token_file: str = Field(
        default="",
        description="file with an OAUTHBEARER token that another program renews; read at each connection",
    )
    token_url: str = Field(
        default="", description="OAuth token endpoint (client credentials), for OAUTHBEARER"
    )
    token_scope: str = Field(default="", description="OAuth scope to request; empty: none")
    ca_file: str = Field(
        default="",
        description="PEM file of the authorities that sign the brokers' certificates; empty: the system's",
    )
    cert_file: str = Field(
        default="", description="PEM file of the client's certificate chain, for mTLS"
    )
    key_file: str = Field(default="", description="PEM file of the client's private key, for mTLS")
    key_password: SecretStr = Field(default=SecretStr(""), description="password of kafka.key_file")
    mac_keys: tuple[SecretStr, ...] = Field(
        default=(),
        description="keys (JSON list, 16 bytes or more each) of MACs on internal records: the first signs, each verifies",
    )
    mac_required: bool = Field(
        default=False,
        description="whether an internal record without a MAC is quarantined; set it once indexer.keep_sealed_s has passed with kafka.mac_keys set",
    )
    check_hostname: bool = Field(
        default=True,
        description="whether a broker's certificate must name the host of the connection",
    )


class AuditSettings(_Group):
    """tenants: the audit chain."""

    key_file: str = Field(
        default="",
        description="file of the key of the audit records' MACs, the same on every node and out of reach of those who can write to the catalog; made at the first start; empty: DATA/audit.key",
    )


class Settings(BaseSettings):
    """All settings. Components receive only the values that they use, never the whole object."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="VICINAGE_", env_nested_delimiter="__"
    )

    data: Path = Field(
        default=Path("data"),
        description="directory of the embedded platform",
    )
    log_url: str = Field(
        default="", description="sqlite:///PATH or kafka://HOST:PORT; empty: DATA/log.db"
    )
    catalog_url: SecretStr = Field(
        default=SecretStr(""), description="SQLAlchemy URL; empty: SQLite in DATA/catalog.db"
    )
    store_url: str = Field(
        default="", description="directory, file://, s3://, gs:// or abfs:// URL; empty: DATA/store"
    )
    store_cache_bytes_max: int = Field(
        default=64 << 30,
        ge=1 << 20,
        description="bytes of a remote store's objects kept in DATA/cache on each node",
    )
    slots: int = Field(
        default=8,
        ge=1,
        le=4_096,
        description="partitions of the vectors log; fixed when the platform is made",
    )
    audit: AuditSettings = AuditSettings()
    kafka: KafkaSettings = KafkaSettings()
    gateway: GatewaySettings = GatewaySettings()
    embedder: EmbedderSettings = EmbedderSettings()
    rerank: RerankSettings = RerankSettings()
    ingest: IngestSettings = IngestSettings()
    indexer: IndexerSettings = IndexerSettings()
    searcher: SearcherSettings = SearcherSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Returns the sources by precedence: arguments, the environment, the file."""
        del dotenv_settings, file_secret_settings
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, toml_file=config_path()),
        )

    def resolved(self) -> "Settings":
        """Returns the settings with every empty URL derived from `data`."""
        data = self.data.absolute()
        fill: dict[str, Any] = {
            "data": data,
            "log_url": self.log_url or f"sqlite:///{data}/log.db",
            "catalog_url": SecretStr(
                self.catalog_url.get_secret_value() or f"sqlite:///{data}/catalog.db"
            ),
            "store_url": self.store_url or str(data / "store"),
        }
        if not self.embedder.url:
            host = "127.0.0.1" if self.gateway.host in ("0.0.0.0", "::") else self.gateway.host  # noqa: S104  (compared, not bound)
            fill["embedder"] = self.embedder.model_copy(
                update={"url": f"http://{host}:{self.gateway.port + 1}"}
            )
        return self.model_copy(update=fill)
