"""Documents: what a write, a read and a deletion send and answer."""

from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ingest.ids import fault_of, fault_of_new
from ingest.preparing import DOCUMENTS_MAX, REJECTED_MAX
from ingest.validation import (
    METADATA_DEPTH_MAX,
    METADATA_KEY_BYTES_MAX,
    ValidationError,
    check_text,
    checked_metadata,
)
from query.api.bounds import DELETE_MAX
from query.api.models.base import AtMost, RequestModel, ResponseModel, default_of
from query.api.models.common import Count, Filter, TokenText, WaitFor
from tenants.models import DIMENSION_MAX
from vicinage.settings import IngestSettings

_LIMITS: Final = IngestSettings()
DOCUMENT_EXAMPLE: Final[dict[str, Any]] = {
    "id": "guide-7",
    "text": "Vicinage finds nearest neighbors.",
    "metadata": {"lang": "en", "year": 2026},
}


def _checked_id(text: str) -> str:
    if (fault := fault_of(text, default_of("ingest.id_bytes_max"))) is not None:
        raise ValueError(fault)
    return text


def _checked_new_id(text: str) -> str:
    if (fault := fault_of_new(text, default_of("ingest.id_bytes_max"))) is not None:
        raise ValueError(fault)
    return text


def _checked_text(text: str) -> str:
    try:
        check_text("text", text, default_of("ingest.text_bytes_max"))
    except ValidationError as fault:
        raise ValueError(str(fault)) from None
    return text


def _checked_metadata(value: dict[str, Any]) -> dict[str, Any]:
    try:
        checked_metadata(value, _LIMITS, exact=True)
    except ValidationError as fault:
        raise ValueError(str(fault)) from None
    return value


DocumentId = Annotated[str, AtMost("ingest.id_bytes_max"), Field(min_length=1)]
Text = Annotated[str, AtMost("ingest.text_bytes_max"), Field(min_length=1)]
Vector = Annotated[list[float], Field(min_length=1, max_length=DIMENSION_MAX)]


class Document(RequestModel):
    """A document: it replaces the document of its ID as a whole."""

    model_config = ConfigDict(json_schema_extra={"examples": [DOCUMENT_EXAMPLE]})
    id: Annotated[DocumentId, AfterValidator(_checked_new_id)] = Field(
        description=(
            "Its ID, in bytes of UTF-8, without control characters. No part between slashes is "
            "`.` or `..`."
        ),
        examples=["guide-7"],
    )
    text: Annotated[Text, AfterValidator(_checked_text)] | None = Field(
        default=None,
        description=(
            "Its text, in bytes of UTF-8, with at least one visible character. It is split into "
            "passages, unless it comes with a vector."
        ),
        examples=["Vicinage finds nearest neighbors."],
    )
    passages: (
        Annotated[
            list[Annotated[Text, AfterValidator(_checked_text)]],
            AtMost("ingest.passages_max"),
            Field(min_length=1),
        ]
        | None
    ) = Field(
        default=None,
        description="Instead of `text`: the passages, together at most as long as a text.",
        examples=[["The first passage.", "The second."]],
    )
    vector: Vector | None = Field(
        default=None,
        description=(
            "The vector of a document of one passage, of the collection's dimension: finite, and "
            "not zero with cosine, which normalizes it."
        ),
        examples=[[0.1, 0.2, 0.3, 0.4]],
    )
    vectors: Annotated[list[Vector], AtMost("ingest.passages_max"), Field(min_length=1)] | None = (
        Field(
            default=None,
            description=(
                "One vector for each passage. Without texts, a vector is a passage without a text."
            ),
            examples=[[[0.1, 0.2, 0.3, 0.4]]],
        )
    )
    metadata: Annotated[dict[str, Any], AfterValidator(_checked_metadata)] | None = Field(
        default=None,
        description=(
            "Facts to filter on: at most `ingest.metadata_bytes_max` bytes of JSON and "
            f"{METADATA_DEPTH_MAX} levels. Keys have 1 to {METADATA_KEY_BYTES_MAX} bytes and do "
            "not start with `$`. Integers have at most 64 bits."
        ),
        examples=[{"lang": "en", "year": 2026}],
    )
    collection: str | None = Field(
        default=None,
        description="Allowed if it repeats the path's collection.",
        examples=["articles"],
    )
    tenant: str | None = Field(
        default=None, description="Allowed if it repeats the key's tenant.", examples=["acme"]
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.text is not None and self.passages is not None:
            raise ValueError("send text or passages, not both")
        if self.vector is not None and self.vectors is not None:
            raise ValueError("send vector or vectors, not both")
        vectors = [self.vector] if self.vector is not None else self.vectors
        if self.text is None and self.passages is None and vectors is None:
            raise ValueError("send text, passages or a vector")
        if self.passages is not None:
            size = sum(len(p.encode()) for p in self.passages)
            if size > default_of("ingest.text_bytes_max"):
                raise ValueError("the passages together are longer than a text may be")
        texts = self.passages if self.passages is not None else [self.text] if self.text else None
        if vectors is not None and texts is not None and len(vectors) != len(texts):
            raise ValueError("send one vector for each passage")
        return self


class WriteDocumentsRequest(RequestModel):
    """Documents to write. One that is invalid is rejected and does not stop the others."""

    documents: Annotated[list[Document], Field(max_length=DOCUMENTS_MAX)] = Field(
        description="The documents; of two with one ID, the last one counts."
    )


class RejectedDocument(ResponseModel):
    """A document that was not accepted."""

    id: str | None = Field(
        description="Its ID, truncated; null if it has none.", examples=["guide-9"]
    )
    reason: str = Field(
        description="Why it was rejected.",
        examples=["vector: 3 numbers; the collection's dimension is 384"],
    )
    field: str | None = Field(description="The field at fault, if one is.", examples=["vector"])


class WriteDocumentsAnswer(ResponseModel):
    """The accepted documents are durable; wait for `token` to search them."""

    accepted: Count = Field(description="Number of accepted documents.", examples=[1])
    rejected: Annotated[list[RejectedDocument], Field(max_length=REJECTED_MAX)] = Field(
        description=f"Rejected documents, the first {REJECTED_MAX}.", examples=[[]]
    )
    token: TokenText | None = Field(
        description="Token of the write; null if nothing was accepted.", examples=["0-41"]
    )


class StoredPassage(ResponseModel):
    """A passage of a document."""

    passage: Count = Field(description="Number of the passage, from 0.", examples=[0])
    text: str | None = Field(
        description="Its text; null if the document came as vectors alone.",
        examples=["Vicinage finds nearest neighbors."],
    )
    start: int | None = Field(
        description="Its start in the text, in characters; null if unknown.", examples=[0]
    )
    end: int | None = Field(
        description="Its end in the text, in characters; null if unknown.", examples=[33]
    )


class StoredDocument(ResponseModel):
    """A document as it is searchable now."""

    id: str = Field(description="Its ID.", examples=["guide-7"])
    version: Count = Field(
        description="Its version: a later write has a greater one.", examples=[41984]
    )
    metadata: dict[str, Any] | None = Field(
        description="Its metadata; null without any.", examples=[{"lang": "en"}]
    )
    passages: list[StoredPassage] = Field(description="Its passages, in order.")


class DeleteDocumentsRequest(RequestModel):
    """Documents to delete: exactly one of `ids` and `filter`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"ids": ["guide-8", "guide-9"]},
                {"filter": {"year": {"$lt": 2020}}, "wait_for": "latest"},
            ]
        }
    )
    ids: (
        Annotated[
            list[Annotated[DocumentId, AfterValidator(_checked_id)]],
            Field(max_length=DELETE_MAX),
        ]
        | None
    ) = Field(default=None, description="IDs of documents.", examples=[["guide-8", "guide-9"]])
    filter: Filter | None = Field(
        default=None,
        description=(
            "Deletes the documents that pass it now; documents written later stay. It cannot be "
            f"empty, and matches at most {DELETE_MAX} documents, else nothing is deleted."
        ),
        examples=[{"year": {"$lt": 2020}}],
    )
    wait_for: WaitFor | None = Field(
        default=None,
        description="With a filter: waits until this write is covered.",
        examples=["latest"],
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("send ids or a filter")
        if self.filter == {}:
            raise ValueError("an empty filter would delete everything")
        return self


class DeleteDocumentsAnswer(ResponseModel):
    """The deletion is durable; wait for `token` to see it."""

    accepted: Count = Field(description="Number of accepted deletions.", examples=[2])
    token: TokenText | None = Field(
        description="Token of the deletion; null if nothing was to be deleted.",
        examples=["0-42"],
    )
    matched: Count | None = Field(
        default=None, description="With a filter: number of documents that passed it."
    )
    judged: TokenText | None = Field(
        default=None, description="With a filter: the token up to which it was evaluated."
    )
