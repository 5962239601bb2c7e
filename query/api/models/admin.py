"""Administration: tenants, keys, embedding models, reindex jobs and audit records."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from query.api.bounds import EXPIRES_S_MAX, LIMIT_DEFAULT, LIMIT_MAX, OFFSET_MAX
from query.api.models.base import AtMost, RequestModel, ResponseModel
from query.api.models.collections import Dimension
from query.api.models.common import (
    CollectionName,
    Count,
    Milliseconds,
    ModelName,
    Ratio,
    TenantName,
)
from tenants.entities import Class, JobState, Scope, TenantState
from tenants.index_spec import GRAMMAR
from tenants.models import LOCATION_MAX, PROMPT_MAX, WINDOW_MAX, WINDOW_MIN
from vicinage.partition_maps import PARTITIONS_MAX

KIND = Literal["local", "openai"]
Window = Annotated[int, Field(ge=WINDOW_MIN, le=WINDOW_MAX)]
Prompt = Annotated[str, Field(max_length=PROMPT_MAX)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$", examples=["0" * 64])]


class CreateTenantRequest(RequestModel):
    """A tenant to create."""

    name: TenantName = Field(description="Its name, which is never reused.", examples=["acme"])
    priority: Class | None = Field(
        default="silver",
        alias="class",
        description="Its class: fair-share weight and order of load shedding.",
        examples=["silver"],
    )


class CreatedTenant(ResponseModel):
    """A new tenant, with its first key."""

    tenant: TenantName = Field(description="Its name.", examples=["acme"])
    priority: Class = Field(alias="class", description="Its class.", examples=["silver"])
    key: str = Field(
        description="Its first key (read and write), which is shown only here.",
        examples=["vk_5d41402abc4b2a76_SECRET"],
    )
    topic: str = Field(description="Its documents topic.", examples=["vicinage.docs.acme"])


class UpdateTenantRequest(RequestModel):
    """A change of a tenant."""

    priority: Class = Field(alias="class", description="Its class.", examples=["gold"])


class TenantFacts(ResponseModel):
    """A tenant."""

    tenant: TenantName = Field(description="Its name.", examples=["acme"])
    priority: Class = Field(alias="class", description="Its class.", examples=["silver"])
    state: TenantState = Field(description="Its state.", examples=["active"])
    collections: list[CollectionName] = Field(
        description="Names of its collections.", examples=[["articles"]]
    )
    topic: str = Field(description="Its documents topic.", examples=["vicinage.docs.acme"])
    created_ms: Milliseconds = Field(
        description="When it was created, in Unix milliseconds.", examples=[1767225600000]
    )


class DryRunRequest(RequestModel):
    """Whether to change anything."""

    dry_run: bool | None = Field(
        default=False, description="Answers the effect and changes nothing.", examples=[True]
    )


class Resumption(ResponseModel):
    """The resumption of one partition."""

    partition: Count = Field(description="The partition.", examples=[0])
    kind: str = Field(description="Why it was halted.", examples=["position_lost"])
    reason: str = Field(description="Why, in words.", examples=["the topic was recreated"])
    position: int = Field(description="The next offset that was not ingested.", examples=[41])
    resume_at: int | None = Field(description="Where it resumes; null: by itself.", examples=[120])
    skipped: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        description="Offsets [from, to) that are never ingested; null if there are none.",
        examples=[[41, 120]],
    )
    skipped_records: int | None = Field(
        description="Number of skipped records; null if unknown.", examples=[79]
    )
    effect: str = Field(description="The effect in words.", examples=["79 records are skipped"])


class ResumptionPlan(ResponseModel):
    """The effect of resuming a tenant's halted partitions."""

    tenant: TenantName = Field(description="The tenant.", examples=["acme"])
    topic_id: str | None = Field(
        description="Identity of its topic; null: the topic is created again first.",
        examples=["1f"],
    )
    n_partitions: Count = Field(description="Partitions of the topic.", examples=[1])
    new_topic: bool = Field(
        description="The topic has another identity than before.", examples=[False]
    )
    partitions: list[Resumption] = Field(description="The halted partitions.")


class SetPartitionsRequest(RequestModel):
    """The number of partitions that a documents topic is to have."""

    partitions: Annotated[int, Field(ge=1, le=PARTITIONS_MAX)] = Field(
        description="Number of partitions; it can only grow.", examples=[4]
    )
    dry_run: bool | None = Field(
        default=False, description="Answers the effect and changes nothing.", examples=[True]
    )


class GrowthPlan(ResponseModel):
    """The effect of a growth of the documents topic."""

    partitions: Count = Field(description="Partitions before.", examples=[1])
    wanted: Count = Field(description="Partitions after.", examples=[4])
    moved_ratio: Ratio = Field(
        description="Share of documents whose partition changes.", examples=[0.75]
    )
    done: bool = Field(description="Whether the change was made.", examples=[False])


class TenantParameters(RequestModel):
    """The query parameter that selects one tenant."""

    tenant: str | None = Field(
        default=None, description="Only this tenant; without it, all.", examples=["acme"]
    )


class RecallParameters(TenantParameters):
    """The query parameters that select one tenant or one collection."""

    collection: str | None = Field(
        default=None, description="Only collections of this name.", examples=["articles"]
    )


class CreateKeyRequest(RequestModel):
    """A key to create."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"tenant": "acme", "scopes": ["read", "write"], "expires_s": 7776000},
                {"scopes": ["operate"]},
            ]
        }
    )
    tenant: str | None = Field(
        default=None, description="Its tenant; null for an operator's key.", examples=["acme"]
    )
    scopes: Annotated[list[Scope], Field(min_length=1)] = Field(
        description="`read`, `write` or both for a tenant; only `operate` for an operator.",
        examples=[["read", "write"]],
    )
    expires_s: Annotated[int, Field(ge=1, le=EXPIRES_S_MAX)] | None = Field(
        default=None,
        description="Seconds until it expires; without it, never.",
        examples=[7776000],
    )


class KeyFacts(ResponseModel):
    """A key, without its secret."""

    id: str = Field(description="Its ID.", examples=["5d41402abc4b2a76"])
    tenant: str | None = Field(
        description="Its tenant; null for an operator's key.", examples=["acme"]
    )
    scopes: list[Scope] = Field(description="Its scopes.", examples=[["read", "write"]])
    created_ms: Milliseconds = Field(
        description="When it was created, in Unix milliseconds.", examples=[1767225600000]
    )
    expires_ms: Milliseconds | None = Field(
        description="When it expires; null: never.", examples=[None]
    )
    revoked_ms: Milliseconds | None = Field(
        description="When it was revoked; null if it was not.", examples=[None]
    )


class CreatedKey(KeyFacts):
    """A new key."""

    key: str = Field(
        description="The key itself, which is shown only here.",
        examples=["vk_5d41402abc4b2a76_SECRET"],
    )


class RegisterModelRequest(RequestModel):
    """An embedding model to add to the registry; entries never change."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "own/model",
                    "kind": "openai",
                    "location": "http://127.0.0.1:8000/v1",
                    "dimension": 768,
                    "window_tokens": 512,
                },
                {"name": "local-model", "kind": "local", "location": "/models/own"},
            ]
        }
    )
    name: ModelName = Field(description="Its name.", examples=["own/model"])
    kind: KIND = Field(
        description="`local`: files; `openai`: a server that speaks the OpenAI embeddings API.",
        examples=["openai"],
    )
    location: Annotated[str, Field(min_length=1, max_length=LOCATION_MAX)] = Field(
        description="`package:MODULE`, a path, or a server's base URL.",
        examples=["http://127.0.0.1:8000/v1"],
    )
    dimension: Dimension | None = Field(
        default=None,
        description="Dimension of its vectors; required for `openai`.",
        examples=[768],
    )
    window_tokens: Window | None = Field(
        default=None,
        description="Its longest input, in tokens; required for `openai`.",
        examples=[512],
    )
    normalized: bool | None = Field(
        default=None,
        description="Whether its vectors are scaled to unit length; without it, as its files say.",
        examples=[True],
    )
    query_prompt: Prompt | None = Field(
        default=None, description="Text before every search text.", examples=["query: "]
    )
    document_prompt: Prompt | None = Field(
        default=None, description="Text before every passage.", examples=["passage: "]
    )
    check: bool | None = Field(
        default=True,
        description="Whether the model is loaded, or its server called, first.",
        examples=[True],
    )


class EmbeddingModelFacts(ResponseModel):
    """An entry of the model registry."""

    name: ModelName = Field(description="Its name.", examples=["own/model"])
    kind: Literal["local", "openai", "oip"] = Field(description="Its kind.", examples=["openai"])
    location: str = Field(description="Where it is.", examples=["http://127.0.0.1:8000/v1"])
    dimension: Dimension = Field(description="Dimension of its vectors.", examples=[768])
    window_tokens: Window = Field(description="Its longest input, in tokens.", examples=[512])
    normalized: bool = Field(
        description="Whether its vectors are scaled to unit length.", examples=[True]
    )
    query_prompt: str = Field(description="Text before every search text.", examples=[""])
    document_prompt: str = Field(description="Text before every passage.", examples=[""])
    retired: bool = Field(
        description="No new collection or generation may use it.", examples=[False]
    )


class AuditParameters(RequestModel):
    """The query parameters of the list of audit records."""

    after: Annotated[int, Field(ge=0, le=OFFSET_MAX)] = Field(
        default=0, description="Number of the last record that is known.", examples=[100]
    )
    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX)] = Field(
        default=LIMIT_DEFAULT, description="Largest number of records.", examples=[100]
    )


class AuditRecordFacts(ResponseModel):
    """An audit record: one change."""

    seq: Annotated[int, Field(ge=1)] = Field(description="Its number, from 1.", examples=[1])
    at_ms: Milliseconds = Field(
        description="When the change was made, in Unix milliseconds.", examples=[1767225600000]
    )
    actor: str = Field(description="The key that made it.", examples=["operator/5d41402abc4b2a76"])
    action: str = Field(description="The change.", examples=["tenant.create"])
    subject: str = Field(description="What was changed.", examples=["acme"])
    before: str | None = Field(
        description="The facts before, a JSON object; null without any.", examples=[None]
    )
    after: str | None = Field(
        description="The facts after, a JSON object; null without any.",
        examples=['{"name": "acme"}'],
    )
    previous: Hash = Field(description="Hash of the record before it.")
    hash: Hash = Field(description="SHA-256 of the record and of the hash before it.")
    mac: str | None = Field(
        description="MAC of the hash with the audit key; null if there was no key.",
        examples=[None],
    )


class VerifyAuditRequest(RequestModel):
    """An earlier newest record that the chain must contain."""

    seq: Annotated[int, Field(ge=1, le=OFFSET_MAX)] | None = Field(
        default=1, description="Its number; read only with `hash`.", examples=[1]
    )
    hash: str | None = Field(
        default=None, description="Its hash; without it, nothing is compared.", examples=["0" * 64]
    )


class VerifiedAudit(ResponseModel):
    """The chain is whole."""

    records: Count = Field(description="Number of records.", examples=[12])
    compared: bool = Field(description="Whether the given record was compared.", examples=[False])
    checked: str = Field(
        description="What was checked and what was not, in words.",
        examples=["every hash; no MAC, because there is no key"],
    )
    seq: Count = Field(description="Number of the newest record.", examples=[12])
    hash: Hash = Field(description="Hash of the newest record: keep both.")
    keyed_from: int | None = Field(
        description="The first record whose MAC was checked; null if none was.", examples=[None]
    )


class StartReindexRequest(RequestModel):
    """A reindex to start: a collection, and what changes."""

    tenant: str = Field(description="The tenant.", examples=["acme"])
    collection: str = Field(description="The collection.", examples=["articles"])
    index: str | None = Field(
        default=None,
        description=f"The index: {GRAMMAR}. Without it, it stays.",
        examples=["hnsw:M=32,efc=80"],
    )
    model: str | None = Field(
        default=None,
        description="An embedding model of the registry. Without it, it stays.",
        examples=["all-minilm-l6-v2"],
    )
    shards: Annotated[int, Field(ge=1), AtMost("slots")] | None = Field(
        default=None, description="Number of shards. Without it, it stays.", examples=[2]
    )


class ReindexJob(ResponseModel):
    """A reindex job."""

    id: str = Field(description="Its ID.", examples=["r1"])
    tenant: str = Field(description="The tenant.", examples=["acme"])
    collection: str = Field(description="The collection.", examples=["articles"])
    state: JobState = Field(description="Its state.", examples=["building"])
    index: str = Field(description="The index of the next generation.", examples=["auto"])
    model: str | None = Field(
        description="The model of the next generation; null if the tenant sends vectors.",
        examples=["all-minilm-l6-v2"],
    )
    shards: Count = Field(description="Shards of the next generation.", examples=[2])
    generation: Count | None = Field(
        description="The generation that it builds; null before it begins.", examples=[2]
    )
    done: Count = Field(description="Work that is done.", examples=[10])
    total: Count = Field(description="Work in all.", examples=[100])
    error: str | None = Field(description="Why it failed; null if it did not.", examples=[None])
    created_ms: Milliseconds = Field(
        description="When it was started, in Unix milliseconds.", examples=[1767225600000]
    )
