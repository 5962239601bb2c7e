"""The base of all groups of settings."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Port = Annotated[int, Field(ge=0, le=65_535)]


class Group(BaseModel):
    """A group of settings: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
