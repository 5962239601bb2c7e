"""Searches: request bodies, the parameters of a raw vector, answers, and lines of a batch."""

import base64
import binascii
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, model_validator

from query.api.bounds import (
    BASE64_MAX,
    FILTER_BYTES_MAX,
    K_DEFAULT,
    TEXT_BYTES_MAX,
    TIMEOUT_MS_MAX,
)
from query.api.models.base import AtMost, RequestModel, ResponseModel, default_of
from query.api.models.common import Count, Filter, Ratio, TokenText, WaitFor
from query.api.models.problem import Problem
from query.api.search_request import check_text
from query.batch import SEARCHES_MAX
from query.plan import Fusion as FusionPlan
from query.plan import Method
from tenants.models import DIMENSION_MAX
from vicinage import filters
from vicinage.errors import Refused
from vicinage.records import Mode

Include = Literal["metadata", "text", "vector"]


def _checked_text(text: str) -> str:
    check_text(text)
    return text


def _checked_base64(text: str) -> str:
    try:
        n = len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise Refused("vector_base64 is not base64", field="vector_base64") from None
    if not n or n % 4:
        raise Refused("float32 takes 4 bytes each", field="vector_base64")
    return text


def _checked_filter(value: dict[str, Any]) -> dict[str, Any]:
    if len(filters.Filter.parse(value).text) > FILTER_BYTES_MAX:
        raise Refused(f"a filter has at most {FILTER_BYTES_MAX} bytes", field="filter")
    return value


SearchText = Annotated[
    str,
    AfterValidator(_checked_text),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": TEXT_BYTES_MAX}),
]
Timeout = Annotated[int, Field(ge=1, le=TIMEOUT_MS_MAX)]
K = Annotated[int, Field(ge=1), AtMost("gateway.k_max")]
Rerank = Annotated[int, Field(ge=1), AtMost("gateway.rerank_max")]


class Fusion(RequestModel):
    """Fusion of the scores of vectors and words, in hybrid search."""

    method: Method = Field(
        default=FusionPlan().method,
        description="`weighted`: standardized scores; `rrf`: reciprocal rank.",
        examples=["weighted"],
    )
    dense_weight: Ratio | None = Field(
        default=None,
        description=(
            "Weight of the vector score, for method `weighted`; without it, "
            f"{FusionPlan().dense_weight}."
        ),
        examples=[0.75],
    )

    @model_validator(mode="after")
    def _check_weight(self) -> Self:
        if self.method == "rrf" and self.dense_weight is not None:
            raise ValueError("dense_weight is for method weighted")
        return self


class SearchRequest(RequestModel):
    """A search by text, by vector, or by both."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "text": "how are neighbors found?",
                    "k": 3,
                    "filter": {"lang": "en"},
                    "wait_for": "0-41",
                }
            ]
        }
    )
    text: SearchText | None = Field(
        default=None,
        description=(
            f"The search text, at most {TEXT_BYTES_MAX} bytes of UTF-8 and with at least one "
            "visible character."
        ),
        examples=["how are neighbors found?"],
    )
    vector: Annotated[list[float], Field(min_length=1, max_length=DIMENSION_MAX)] | None = Field(
        default=None,
        description="The search vector, of the collection's dimension.",
        examples=[[0.1, 0.2, 0.3, 0.4]],
    )
    vector_base64: (
        Annotated[
            str,
            Field(min_length=8, max_length=BASE64_MAX),
            AfterValidator(_checked_base64),
        ]
        | None
    ) = Field(
        default=None,
        description="The search vector as base64 of little-endian float32.",
        examples=["zczMPc3MTD6amZk+zczMPg=="],
    )
    mode: Mode | None = Field(
        default="dense",
        description=(
            "`dense` (vectors) takes exactly one of `text`, `vector` and `vector_base64`; "
            "`lexical` (words, BM25) takes `text`; `hybrid` takes `text`, and optionally a vector "
            "instead of the text's own."
        ),
        examples=["dense"],
    )
    k: K | None = Field(
        default=K_DEFAULT, description="Number of passages to return.", examples=[3]
    )
    filter: Annotated[Filter, AfterValidator(_checked_filter)] | None = Field(
        default=None,
        description=f"Conditions on metadata, at most {FILTER_BYTES_MAX} bytes.",
        examples=[{"lang": "en"}],
    )
    include: Annotated[list[Include], Field(max_length=3)] | None = Field(
        default=None,
        description="Parts of the hits to return; without it, text and metadata.",
        examples=[["text", "metadata"]],
    )
    wait_for: WaitFor | None = Field(
        default=None,
        description=(
            "Waits until a write is searchable: the token that it returned, `latest` for every "
            "acknowledged write, or the position that Kafka acknowledged."
        ),
        examples=["0-41"],
    )
    timeout_ms: Timeout | None = Field(
        default=None,
        description="Deadline in milliseconds, the wait included; without it, gateway.timeout_ms.",
        examples=[default_of("gateway.timeout_ms")],
    )
    exact: bool | None = Field(
        default=False, description="Compares the vector with every passage.", examples=[False]
    )
    fusion: Fusion | None = Field(
        default=None, description="How to fuse scores; for mode `hybrid` only."
    )
    rerank: Rerank | None = Field(
        default=None,
        description=(
            "Number of hits, at least k, that the platform's cross-encoder scores again; needs "
            "`text`."
        ),
        examples=[20],
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        mode = self.mode or "dense"
        n_vectors = (self.vector is not None) + (self.vector_base64 is not None)
        if mode == "dense" and n_vectors + (self.text is not None) != 1:
            raise ValueError("dense takes exactly one of text, vector and vector_base64")
        if mode != "dense" and self.text is None:
            raise ValueError(f"{mode} needs text")
        if n_vectors > (mode != "lexical"):
            raise ValueError("send the vector once, and none for lexical")
        if mode != "hybrid" and self.fusion is not None:
            raise ValueError("fusion is for hybrid")
        if self.rerank is not None and (
            self.text is None or self.rerank < (K_DEFAULT if self.k is None else self.k)
        ):
            raise ValueError("rerank needs text, and is at least k")
        return self


class RawSearchParameters(RequestModel):
    """The query parameters of a search whose body is a vector (application/octet-stream)."""

    k: K = Field(default=K_DEFAULT, description="Number of passages to return.", examples=[3])
    mode: Literal["dense", "hybrid"] = Field(
        default="dense", description="`hybrid` also takes `text`.", examples=["dense"]
    )
    text: SearchText | None = Field(
        default=None, description="The search text, for mode `hybrid` only."
    )
    filter: str | None = Field(
        default=None,
        description="A `Filter` as JSON; the request line and headers have at most 64 KiB.",
        examples=['{"lang": "en"}'],
    )
    include: Annotated[str, Field(pattern="^(text|metadata|vector|,)*$")] | None = Field(
        default=None,
        description="Parts of the hits to return, joined by commas.",
        examples=["text,metadata"],
    )
    wait_for: str | None = Field(
        default=None, description="A token, or `latest`.", examples=["0-41"]
    )
    timeout_ms: Timeout | None = Field(
        default=None, description="Deadline in milliseconds, the wait included.", examples=[2000]
    )
    exact: Literal["true", "false"] | None = Field(
        default=None, description="Compares the vector with every passage.", examples=["false"]
    )
    fusion: str | None = Field(
        default=None,
        description="A `Fusion` as JSON, for mode `hybrid` only.",
        examples=['{"method": "rrf"}'],
    )
    rerank: Rerank | None = Field(
        default=None,
        description="Number of hits that are scored again, for mode `hybrid` only.",
        examples=[20],
    )


class Hit(ResponseModel):
    """A passage that was found."""

    document_id: str = Field(description="ID of the passage's document.", examples=["guide-7"])
    passage: Count = Field(description="Number of the passage in its document.", examples=[0])
    score: float = Field(
        description=(
            "Greater is nearer: cosine, dot product, minus the squared distance (euclidean), BM25 "
            "(lexical), the fused score (hybrid), or the cross-encoder's (rerank)."
        ),
        examples=[0.61],
    )
    dense_score: float | None = Field(
        default=None, description="The vector score before fusion or reranking."
    )
    lexical_score: float | None = Field(
        default=None, description="The BM25 score before fusion or reranking."
    )
    text: str | None = Field(
        default=None,
        description="The passage's text, if `include` has it and the document came with one.",
        examples=["Vicinage finds nearest neighbors."],
    )
    start: int | None = Field(
        default=None,
        description="Start of the passage in the document's text, in characters; null if unknown.",
        examples=[0],
    )
    end: int | None = Field(
        default=None,
        description="End of the passage in the document's text, in characters; null if unknown.",
        examples=[33],
    )
    metadata: dict[str, Any] | None = Field(
        default=None,
        description="The document's metadata, if `include` has it.",
        examples=[{"lang": "en"}],
    )
    vector: list[float] | None = Field(
        default=None,
        description="The vector as it is indexed: normalized for cosine; if `include` has it.",
    )


class SearchFreshness(ResponseModel):
    """Freshness of an answer."""

    watermark: str = Field(
        description="SLOT-OFFSET up to which each slot is complete, joined by dots.",
        examples=["3-118"],
    )
    lag_ms: Count | None = Field(
        description=(
            "Age of the oldest accepted record that is not searchable yet; null while unknown."
        ),
        examples=[0],
    )


class Degraded(ResponseModel):
    """Parts that an answer lacks, and why."""

    reason: str = Field(
        description="Why the answer is not complete, or not as good as its objective.",
        examples=["1 of 2 shards did not answer"],
    )
    missing_share: Ratio = Field(
        description="Share of the collection's shards that is missing.", examples=[0.5]
    )


class SearchAnswer(ResponseModel):
    """The best passages, with their freshness and completeness."""

    hits: list[Hit] = Field(
        description="The passages, best first; equal scores by document ID and passage."
    )
    freshness: SearchFreshness = Field(description="How fresh the answer is.")
    generation: Count = Field(description="The generation that was searched.", examples=[1])
    effort: Count = Field(
        description="The greatest effort of a segment; 0 if no index was used.", examples=[0]
    )
    degraded: Degraded | None = Field(
        description="Null for a complete answer, else what it lacks.", examples=[None]
    )


class SearchBatchRequest(RequestModel):
    """Many searches of one collection."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"searches": [{"text": "neighbors", "k": 1}, {"text": "ann", "mode": "lexical"}]}
            ]
        }
    )
    searches: Annotated[list[SearchRequest], Field(min_length=1, max_length=SEARCHES_MAX)] = Field(
        description="The searches. One that is invalid gets a problem and does not stop the others."
    )


class SearchBatchAnswer(SearchAnswer):
    """A line of a batch: the answer of one search."""

    index: Annotated[int, Field(ge=0, lt=SEARCHES_MAX)] = Field(
        description="Number of the search in the request, from 0.", examples=[0]
    )


class SearchBatchProblem(ResponseModel):
    """A line of a batch: the problem of one search."""

    index: Annotated[int, Field(ge=0, lt=SEARCHES_MAX)] = Field(
        description="Number of the search in the request, from 0.", examples=[1]
    )
    problem: Problem = Field(description="Why this search has no answer.")


class WaitParameters(RequestModel):
    """The query parameter of a read that can wait for a write."""

    wait_for: TokenText | Literal["latest"] | None = Field(
        default=None,
        description="Waits until this write is searchable: its token, or `latest`.",
        examples=["0-41"],
    )


class WaitTimeoutParameters(WaitParameters):
    """The query parameters of a read that can wait for a write, with a deadline."""

    timeout_ms: Timeout | None = Field(
        default=None,
        description="Deadline in milliseconds; without it, gateway.timeout_ms.",
        examples=[2000],
    )
