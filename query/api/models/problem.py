"""The problem document (RFC 9457) that every error is answered with."""

from typing import Annotated

from pydantic import Field

from query.api.models.base import ResponseModel


class Problem(ResponseModel):
    """An error: what it is, and what to change or when to retry."""

    type: Annotated[str, Field(pattern="^urn:vicinage:problem:[a-z-]+$")] = Field(
        description="The kind of the error, which never changes: decide by it.",
        examples=["urn:vicinage:problem:refused"],
    )
    title: str = Field(
        description="The kind of the error in words.", examples=["The request was refused"]
    )
    status: Annotated[int, Field(ge=400, le=599)] = Field(
        description="The HTTP status.", examples=[400]
    )
    detail: str = Field(
        description="What is wrong with this request, for a person to read.",
        examples=["k is 0; it goes from 1 to 1000"],
    )
    field: str | None = Field(
        default=None,
        description="The field, parameter or header to change.",
        examples=["k"],
    )
    limit: str | float | None = Field(
        default=None, description="The bound that the request exceeds.", examples=[1]
    )
    retry_after_s: float | None = Field(
        default=None,
        description="Seconds after which to retry; the header Retry-After has them rounded up.",
    )
    dependency: str | None = Field(
        default=None, description="The part of the platform that does not answer."
    )
    ahead: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Records before the token that the request waited for."
    )
    wait_for: str | None = Field(
        default=None, description="The token that the request waited for: send it to wait again."
    )
    request_id: str | None = Field(
        default=None, description="Names the operators' event of an internal error."
    )
