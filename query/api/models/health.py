"""Health and readiness."""

from typing import Literal

from pydantic import Field

from query.api.models.base import ResponseModel
from query.api.models.common import Count


class Alive(ResponseModel):
    """The process answers."""

    status: Literal["ok"] = Field(description="Always `ok`.", examples=["ok"])


class PartReadiness(ResponseModel):
    """Readiness of a part of the platform."""

    ready: bool = Field(description="Whether the part works now.", examples=[True])


class IngestReadiness(PartReadiness):
    """Readiness of ingest."""

    halted_partitions: Count | None = Field(
        default=None, description="Partitions that ingest does not read until an operator decides."
    )


class SearcherReadiness(PartReadiness):
    """Readiness of the searchers."""

    searchers: Count = Field(description="Number of searchers.", examples=[1])


class Parts(ResponseModel):
    """Readiness of each part of the platform."""

    catalog: PartReadiness = Field(description="The catalog.")
    log: PartReadiness = Field(description="The log.")
    ingest: IngestReadiness = Field(description="Ingest.")
    searcher: SearcherReadiness = Field(description="The searchers.")
    embedder: PartReadiness = Field(
        description="The embedder: only searches by text and documents of text need it."
    )


class Ready(ResponseModel):
    """Whether a write, a wait and a search would succeed now."""

    ready: bool = Field(
        description="Whether all parts but the embedder are ready.", examples=[True]
    )
    parts: Parts = Field(description="The parts, measured within the last seconds.")
