"""Dead letters: records that could not be accepted."""

from typing import Annotated

from pydantic import Field

from ingest.dead_letters import REJECTED_MAX, VALUE_BYTES_MAX
from ingest.replay import AT_ONCE_MAX
from query.api.bounds import LIMIT_DEFAULT, LIMIT_MAX, OFFSET_MAX
from query.api.models.base import RequestModel, ResponseModel
from query.api.models.common import Count, Milliseconds, TokenText

LetterPosition = Annotated[int, Field(ge=0, le=OFFSET_MAX)]


class LetterRejection(ResponseModel):
    """A rejected document of a record."""

    reason: str = Field(description="Why it was rejected.", examples=["id: 513 bytes; at most 512"])
    field: str | None = Field(description="The field at fault, if one is.", examples=["id"])
    id: str | None = Field(description="Its ID, truncated; null if it has none.", examples=[None])


class DeadLetter(ResponseModel):
    """A record that could not be accepted, with its original bytes."""

    position: LetterPosition = Field(
        description="Position of the letter in the tenant's dead-letter topic.", examples=[7]
    )
    reason: str = Field(description="Why the first document was rejected.", examples=["no JSON"])
    field: str | None = Field(description="The field at fault, if one is.", examples=["body"])
    id: str | None = Field(description="ID of the first rejected document.", examples=["guide-9"])
    collection: str | None = Field(
        description="The collection that the record names.", examples=["articles"]
    )
    rejected: Annotated[list[LetterRejection], Field(max_length=REJECTED_MAX)] = Field(
        description=f"Rejected documents of the record, the first {REJECTED_MAX}."
    )
    n_rejected: Count = Field(description="Number of rejected documents.", examples=[1])
    topic: str | None = Field(
        description="Topic of the original record; null if this record is no letter of ingest.",
        examples=["vicinage.docs.acme"],
    )
    partition: Count | None = Field(description="Partition of the original.", examples=[0])
    offset: Count | None = Field(description="Offset of the original.", examples=[41])
    event_time_ms: Milliseconds | None = Field(
        description="Event time of the original, in Unix milliseconds.", examples=[1767225600000]
    )
    headers: list[Annotated[list[str | None], Field(min_length=2, max_length=2)]] = Field(
        description="Headers of the original: pairs of name and value.", examples=[[]]
    )
    key_base64: str | None = Field(description="Key of the original.", examples=["YS9i"])
    value_base64: str | None = Field(description="Value of the original.", examples=["e30="])
    value_truncated: bool = Field(
        description=f"The value was longer than {VALUE_BYTES_MAX} bytes and is truncated.",
        examples=[False],
    )


class DeadLettersAnswer(ResponseModel):
    """Dead letters, oldest first."""

    letters: list[DeadLetter] = Field(description="The letters.")
    next: LetterPosition | None = Field(
        description="Position of the last letter: continue with `after`; null at the end.",
        examples=[7],
    )


class PageParameters(RequestModel):
    """The query parameters of a list of dead letters."""

    after: Annotated[int, Field(ge=-1, le=OFFSET_MAX)] = Field(
        default=-1, description="Position of the last letter that is known.", examples=[7]
    )
    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX)] = Field(
        default=LIMIT_DEFAULT, description="Largest number of letters.", examples=[100]
    )


class ReplayRequest(RequestModel):
    """Letters to replay: from the first to the last position."""

    first: LetterPosition | None = Field(
        default=0, alias="from", description="Position of the first letter.", examples=[0]
    )
    last: LetterPosition | None = Field(
        default=None,
        alias="to",
        description="Position of the last letter; without it, the newest.",
        examples=[9],
    )


class ReplayAnswer(ResponseModel):
    """Counts of replayed letters, and where to continue."""

    replayed: Count = Field(
        description=f"Letters whose originals were written again, at most {AT_ONCE_MAX}.",
        examples=[9],
    )
    skipped: Count = Field(
        description="Letters without an original that could be written.", examples=[1]
    )
    token: TokenText | None = Field(
        description="Token of the writes; null without any.", examples=["0-41"]
    )
    to: int | None = Field(
        description="Position of the last letter of the request, for the next one.", examples=[9]
    )
    next: LetterPosition | None = Field(
        description="Continue with `from` at this position, until it is null.", examples=[None]
    )


class PurgeRequest(RequestModel):
    """Letters to remove."""

    last: LetterPosition = Field(
        alias="to", description="Position of the last letter that is removed.", examples=[9]
    )


class PurgeAnswer(ResponseModel):
    """Number of removed letters."""

    purged: Count = Field(description="Number of removed letters.", examples=[10])
