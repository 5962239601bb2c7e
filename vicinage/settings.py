"""Frozen settings, one group per room, read once at start from arguments, `VICINAGE_*` and `vicinage.toml`.

Every field has a unit in its name or a plain meaning, a default, bounds, and a line in docs/reference/settings.md.
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
"""The environment variable that names the settings' file; `--config` sets it for this process and those it starts."""
Port = Annotated[int, Field(ge=0, le=65_535)]


def config_path() -> Path:
    """Returns the settings' file: the one named, else vicinage.toml in the working directory, whether it exists or not."""
    return Path(os.environ.get(CONFIG) or "vicinage.toml")


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewaySettings(_Group):
    """query: the HTTP API."""

    host: str = "127.0.0.1"
    port: Port = Field(default=8080, description="HTTP port of the API")
    health_port: Port = Field(
        default=0, description="port of /healthz, /readyz and /metrics alone; 0: three after the API's"
    )
    connections_max: int = Field(
        default=4_096,
        ge=16,
        le=65_536,
        description="connections at once, fewer where the limit of open files is low; one more takes the place of the one idle longest",
    )
    timeout_ms: int = Field(default=10_000, ge=1, le=600_000, description="deadline of a request that names none")
    k_max: int = Field(default=1_000, ge=1, le=16_384, description="largest k a search may ask for")
    body_bytes_max: int = Field(default=64 << 20, ge=1 << 10, description="largest request body")
    in_flight_max: int = Field(
        default=256,
        ge=1,
        description="requests served at once before 429; a tenant alone holds half of them (bronze) to four fifths (gold)",
    )
    bodies_bytes_max: int = Field(
        default=512 << 20,
        ge=1 << 10,
        description="bytes of bodies held at once before 429, shared as requests are",
    )
    answers_bytes_max: int = Field(
        default=128 << 20,
        ge=1 << 10,
        description="bytes of answers of more than 256 KiB that are not read yet, held at once before 429, shared as requests are",
    )
    parse_processes: int = Field(
        default=1, ge=1, le=64, description="processes that parse large bodies; they start with the first one"
    )
    parse_s: float = Field(default=30.0, gt=0, le=600, description="seconds that parsing one body may take")
    parse_memory_bytes: int = Field(
        default=2 << 30, ge=256 << 20, description="bytes of memory that a process which parses bodies may have"
    )
    recall_sample_share: float = Field(
        default=0.01, ge=0, le=1, description="share of live searches checked against exact"
    )
    recall_samples_min: int = Field(
        default=400, ge=1, description="samples a collection is brought to before the share applies"
    )
    recall_cpu_share: float = Field(default=0.02, gt=0, le=1, description="share of time the recall monitor may work")
    embedding_cache_bytes_max: int = Field(
        default=64 << 20,
        ge=0,
        description="bytes of vectors of questions asked before, of all tenants; when full, who holds most gives room; 0: off",
    )
    key_away_s: float = Field(
        default=60.0,
        ge=0,
        le=3_600,
        description="how long after it was looked up a key still searches while the catalog cannot be reached",
    )
    key_failures_per_s: float = Field(
        default=5.0,
        gt=0,
        le=1_000_000,
        description="requests without a valid key that an address may send, ten seconds' worth at once; beyond, they get 429",
    )
    rerank_max: int = Field(default=100, ge=1, le=1_000, description="most hits that a question may have read again")
    drain_s: float = Field(default=10.0, ge=0, le=300, description="time that in-flight requests get at shutdown")


class EmbedderSettings(_Group):
    """ingest/embedding: the embedder role."""

    url: str = Field(
        default="", description="base URL of the embedder; empty: the port after the gateway's, on loopback"
    )
    batch_tokens: int = Field(default=16_384, ge=256, description="tokens (padded) in one model call")
    queue_tokens: int = Field(default=2_000_000, ge=1_024, description="tokens that may wait before 429")
    threads: int = Field(default=0, ge=0, le=256, description="threads of a model call; 0: calibrated at start")
    runtime: Literal["auto", "torch", "onnx"] = Field(
        default="auto", description="what computes local models; auto: torch where it is installed, else ONNX Runtime"
    )
    precision: str = Field(default="auto", pattern="^(auto|float32|bfloat16|float16)$")
    cosine_floor: float = Field(
        default=0.995, ge=0, le=1, description="least mean cosine to float32 that a precision must keep"
    )
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="what embeds: cpu, cuda or cuda:N")
    model_keys: dict[str, SecretStr] = Field(
        default={}, description="bearer keys of models that have a server of their own, by model name (JSON)"
    )


class RerankSettings(_Group):
    """query/rerank.py: reading the best hits again with a cross-encoder, for questions that ask for it."""

    model: str = Field(
        default="",
        description="folder of a cross-encoder (sentence-transformers) that the embedder serves; empty: none",
    )
    url: str = Field(
        default="",
        description="base URL of a server with the `/rerank` of text-embeddings-inference; empty: the embedder, if rerank.model is set",
    )
    key: SecretStr = Field(default=SecretStr(""), description="bearer key of the server at rerank.url")


class IngestSettings(_Group):
    """ingest: documents in."""

    text_bytes_max: int = Field(
        default=1 << 20, ge=1, le=8 << 20, description="largest text of one document, bytes of UTF-8"
    )
    id_bytes_max: int = Field(default=512, ge=1, le=4_096, description="longest document id, bytes of UTF-8")
    metadata_bytes_max: int = Field(
        default=16 << 10, ge=2, le=1 << 20, description="largest metadata of one document, bytes of JSON"
    )
    passages_max: int = Field(
        default=10_000, ge=1, description="most passages of one document, whose rows take at most 12 MiB in all"
    )
    passage_tokens: int = Field(
        default=200, ge=16, description="tokens a passage aims at (never over the model's window)"
    )
    passage_overlap_tokens: int = Field(default=30, ge=0, description="tokens that neighbouring passages share")
    batch_bytes: int = Field(default=4 << 20, ge=1 << 10, description="bytes read from the documents log in one step")
    batch_passages: int = Field(
        default=512, ge=1, description="passages embedded in one call at most; fewer where the model is slow"
    )
    discover_s: float = Field(default=1.0, gt=0, le=60, description="how often new tenants' topics are looked for")
    partitions: int = Field(default=1, ge=1, le=1_024, description="partitions of a new tenant's documents topic")
    recommit_s: float = Field(
        default=600.0,
        ge=1,
        description="how often an idle partition's position is committed again; less than the broker's offsets.retention.minutes",
    )
    metrics_port: Port = Field(
        default=0, description="port of the /metrics of ingest and indexer; 0: two after the gateway's"
    )


class IndexerSettings(_Group):
    """indexer: sealing and compaction."""

    seal_passages: int = Field(default=10_000, ge=1, description="unsealed passages of a shard that make it seal")
    seal_bytes: int = Field(default=64 << 20, ge=1, description="unsealed bytes of a shard that make it seal")
    seal_age_s: float = Field(
        default=300.0, gt=0, description="age of the oldest unsealed record that makes a shard seal"
    )
    replay_records_max: int = Field(
        default=50_000, ge=1, description="messages a slot may replay at a restart before its laggards seal"
    )
    flat_max: int = Field(default=2_000, ge=1, description="passages up to which `auto` stays exact")
    index_bytes_max: int = Field(
        default=0,
        ge=0,
        description="bytes that `auto` may spend on one segment's index, beside its vectors, before it takes smaller codes (ivfpq); 0: no bound",
    )
    segments_max: int = Field(default=4, ge=1, description="segments of a shard above which it compacts")
    dead_share_max: float = Field(
        default=0.25, gt=0, le=1, description="share of deleted passages above which a shard compacts"
    )
    erase_s: float = Field(
        default=86_400.0,
        ge=3_600,
        description="age of a segment beyond which its shard compacts as soon as any of its rows is deleted, whatever their share",
    )
    tombstone_age_s: float = Field(
        default=3_600.0,
        ge=100,
        description="how long ingest must have been beyond a deletion before it is forgotten: longer than an append takes to reach the log",
    )
    keep_sealed_s: float = Field(
        default=86_400.0,
        ge=3_600,
        description="how long the vectors log is kept once every shard of its slot has it in segments",
    )
    keep_sealed_share: float = Field(
        default=0.5,
        ge=0,
        description="what is kept of a slot's vectors log, sealed, takes at most this share of the bytes of the slot's segments (and may take keep_sealed_bytes); SQLite alone",
    )
    keep_sealed_bytes: int = Field(
        default=4 << 20,
        ge=0,
        description="bytes of a slot's vectors log that may be kept though its segments are small",
    )
    keep_documents_s: float = Field(
        default=3_600.0,
        ge=300,
        description="how long records of documents logs are kept once ingest has done with them",
    )
    keep_documents_bytes: int = Field(
        default=4 << 20,
        ge=0,
        description="bytes of each partition of a documents log that are kept at most, once ingest has done with them for a minute; SQLite alone (on Kafka: the topic's retention.bytes)",
    )
    superseded_age_s: float = Field(
        default=30.0,
        ge=0,
        description="how long objects are kept that compaction, a repair or a reindex has replaced; set it longer than copying the store takes where backups are made while the platform runs",
    )
    lease_s: float = Field(
        default=15.0, gt=1, description="how long an indexer's lease on a slot lasts without renewal"
    )
    orphan_age_s: float = Field(
        default=3_600.0,
        gt=0,
        description="age after which an object that neither a manifest nor unfinished work names is swept",
    )
    second_copies: Literal["never", "unlogged", "always"] = Field(
        default="unlogged",
        description="segments whose passages are stored twice, so that damaged ones can be rebuilt: unlogged: those with rows that the vectors log does not have, as a reindex copies them",
    )
    quarantine_s: float = Field(
        default=7 * 86_400.0,
        ge=0,
        description="how long the bytes of a damaged object are kept for a person to look at, once its segment was rebuilt",
    )
    scrub_per_minute: float = Field(
        default=6.0, ge=0, le=6_000, description="objects of segments that are read and verified a minute; 0: none"
    )
    scrub_bytes_s: int = Field(
        default=1 << 20, ge=1 << 10, description="bytes a second that the scrub reads, over a while"
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="FAISS threads of one build (seal, compaction, reindex); 0: half of the cores; a seal may run beside a compaction",
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="what builds indexes: cpu, cuda (every GPU) or cuda:N",
    )


class SearcherSettings(_Group):
    """indexer: the searcher role."""

    threads: int = Field(default=1, ge=1, le=256, description="threads that search")
    device: str = Field(
        default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="what searches: cpu, cuda (every GPU) or cuda:N"
    )
    queue_max: int = Field(
        default=2_048,
        ge=1,
        description="questions that may wait before 429; a tenant alone holds half of them (bronze) to four fifths (gold)",
    )
    batch_max: int = Field(default=64, ge=1, description="questions gathered into one call")
    adopt_s: float = Field(default=0.5, gt=0, le=60, description="how often new manifests are looked for")
    resident_bytes_max: int = Field(
        default=0,
        ge=0,
        description="bytes of segments and deltas in memory, as if every mapped page were touched; beyond it, who was not asked for longest is let go of; 0: half of the machine's",
    )
    scan_rows_max: int = Field(
        default=50_000,
        ge=0,
        description="passages of a shard compared one by one, at most, in place of an index that live searches prove to miss the recall objective; 0: the index is always used",
    )
    scan_cpu_share: float = Field(
        default=0.1, ge=0, le=1, description="share of the search threads' time that such scans may take together"
    )


class KafkaSettings(_Group):
    """vicinage/log: how every Kafka client proves who it is, and checks the brokers."""

    security: Literal["plaintext", "tls", "sasl", "sasl-tls"] = Field(
        default="plaintext", description="plaintext, tls (with kafka.cert_file: mTLS), sasl, or sasl-tls"
    )
    mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        default="", description="SASL mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
    )
    username: str = Field(default="", description="SASL user; with kafka.token_url the OAuth client id")
    password: SecretStr = Field(
        default=SecretStr(""), description="SASL password; with kafka.token_url the OAuth client secret"
    )
    token_file: str = Field(
        default="",
        description="file with an OAUTHBEARER token that another program keeps fresh, read at each connection",
    )
    token_url: str = Field(default="", description="OAuth token endpoint (client credentials), for OAUTHBEARER")
    token_scope: str = Field(default="", description="OAuth scope to request; empty: none")
    ca_file: str = Field(
        default="", description="PEM file of the authorities that sign the brokers' certificates; empty: the system's"
    )
    cert_file: str = Field(default="", description="PEM file of the client's certificate chain, for mTLS")
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
        default=True, description="whether a broker's certificate must name the host that is connected to"
    )


class AuditSettings(_Group):
    """tenants: the audit chain."""

    key_file: str = Field(
        default="",
        description="file of the key of the audit records' MACs, the same on every node and out of reach of those who can write to the catalog; made at the first start; empty: DATA/audit.key",
    )


class Settings(BaseSettings):
    """Everything that can be set. Components receive the few values they use, never this whole."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="VICINAGE_", env_nested_delimiter="__")

    data: Path = Field(
        default=Path("data"),
        description="directory of the embedded platform",
    )
    log_url: str = Field(default="", description="sqlite:///PATH or kafka://HOST:PORT; empty: DATA/log.db")
    catalog_url: SecretStr = Field(
        default=SecretStr(""), description="SQLAlchemy URL; empty: SQLite in DATA/catalog.db"
    )
    store_url: str = Field(default="", description="directory, file://, s3://, gs:// or abfs:// URL; empty: DATA/store")
    store_cache_bytes_max: int = Field(
        default=64 << 30, ge=1 << 20, description="bytes of a remote store's objects kept in DATA/cache on each node"
    )
    slots: int = Field(
        default=8, ge=1, le=4_096, description="partitions of the vectors log; fixed when the platform is made"
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
        """Arguments first, then the environment, then the file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_path())

    def resolved(self) -> "Settings":
        """The same, with every empty URL filled in from `data`."""
        data = self.data.absolute()
        fill: dict[str, Any] = {
            "data": data,
            "log_url": self.log_url or f"sqlite:///{data}/log.db",
            "catalog_url": SecretStr(self.catalog_url.get_secret_value() or f"sqlite:///{data}/catalog.db"),
            "store_url": self.store_url or str(data / "store"),
        }
        if not self.embedder.url:
            host = "127.0.0.1" if self.gateway.host in ("0.0.0.0", "::") else self.gateway.host  # noqa: S104  (compared, not bound)
            fill["embedder"] = self.embedder.model_copy(update={"url": f"http://{host}:{self.gateway.port + 1}"})
        return self.model_copy(update=fill)
