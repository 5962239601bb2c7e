"""Settings of ingest: the embedder, and documents to vectors."""

from typing import Literal

from pydantic import Field, SecretStr

from vicinage.settings.group import Group, Port


class EmbedderSettings(Group):
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

    def model_key(self, model: str) -> str | None:
        """Returns the bearer key of a model's server; None if it has none, or an empty one."""
        key = self.model_keys.get(model)
        return key.get_secret_value() if key else None


class IngestSettings(Group):
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
        description=(
            "largest number of passages of one document; its rows take at most 12 MiB in total"
        ),
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
        description=(
            "interval of committing an idle partition's position again; less than the broker's "
            "offsets.retention.minutes"
        ),
    )
    metrics_port: Port = Field(
        default=0,
        description="port of the /metrics of ingest and indexer; 0: two after the gateway's",
    )
