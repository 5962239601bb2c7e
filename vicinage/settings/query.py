"""Settings of searches: the gateway, reranking, and searchers."""

from pydantic import Field, SecretStr

from vicinage.settings.group import Group, Port


class GatewaySettings(Group):
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
        description=(
            "open connections; fewer if the limit of open files is low; at the limit, a new "
            "connection replaces the one idle longest"
        ),
    )
    timeout_ms: int = Field(
        default=10_000, ge=1, le=600_000, description="deadline of a request without timeout_ms"
    )
    k_max: int = Field(default=1_000, ge=1, le=16_384, description="largest k of a search")
    body_bytes_max: int = Field(default=64 << 20, ge=1 << 10, description="largest request body")
    in_flight_max: int = Field(
        default=256,
        ge=1,
        description=(
            "requests in flight before 429; one tenant alone has at most half of them (bronze) "
            "to four fifths (gold)"
        ),
    )
    bodies_bytes_max: int = Field(
        default=512 << 20,
        ge=1 << 10,
        description=(
            "bytes of request bodies in memory before 429; shared among tenants like "
            "gateway.in_flight_max"
        ),
    )
    answers_bytes_max: int = Field(
        default=128 << 20,
        ge=1 << 10,
        description=(
            "bytes of answers of more than 256 KiB that clients have not read yet, before 429; "
            "shared among tenants like gateway.in_flight_max"
        ),
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
        description=(
            "bytes of the cache of search texts' vectors, over all tenants; if full, evicts from "
            "the tenant that uses most; 0: off"
        ),
    )
    key_grace_s: float = Field(
        default=60.0,
        ge=0,
        le=3_600,
        description=(
            "how long a key that was looked up remains valid for searches while the catalog is "
            "unreachable"
        ),
    )
    key_failures_per_s: float = Field(
        default=5.0,
        gt=0,
        le=1_000_000,
        description=(
            "requests without a valid key that one address can send a second, with a burst of "
            "ten seconds; 429 beyond"
        ),
    )
    rerank_max: int = Field(default=100, ge=1, le=1_000, description="largest rerank of a search")
    drain_s: float = Field(
        default=10.0, ge=0, le=300, description="time for requests in flight to end at shutdown"
    )


class RerankSettings(Group):
    """query/rerank.py: reranking of the best hits by a cross-encoder, if a search requests it."""

    model: str = Field(
        default="",
        description=(
            "folder of a cross-encoder (sentence-transformers) that the embedder serves; empty: "
            "none"
        ),
    )
    url: str = Field(
        default="",
        description=(
            "base URL of a server with the `/rerank` of text-embeddings-inference; empty: the "
            "embedder, if rerank.model is set"
        ),
    )
    key: SecretStr = Field(
        default=SecretStr(""), description="bearer key of the server at rerank.url"
    )


class SearcherSettings(Group):
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
        description=(
            "waiting searches before 429; one tenant alone has at most half of them (bronze) to "
            "four fifths (gold)"
        ),
    )
    batch_max: int = Field(default=64, ge=1, description="largest number of searches in one batch")
    adopt_s: float = Field(
        default=0.5, gt=0, le=60, description="interval of reading new manifests"
    )
    resident_bytes_max: int = Field(
        default=0,
        ge=0,
        description=(
            "bytes of loaded segments and deltas, counting every mapped page; beyond it, least "
            "recently used shards are unloaded; 0: half of the machine's memory"
        ),
    )
    scan_rows_max: int = Field(
        default=50_000,
        ge=0,
        description=(
            "largest number of passages of a shard that are scanned instead of an index that "
            "misses the recall objective; 0: the index is always used"
        ),
    )
    scan_cpu_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest share of the search threads' time for such scans",
    )
