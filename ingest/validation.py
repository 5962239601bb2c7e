"""Checks documents against their limits. Pure.

A check that fails raises `ValidationError` with the field and the reason.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from ingest.ids import fault_of_new
from tenants.entities import Collection
from vicinage.exact_json import may_be_rounded
from vicinage.records import Document
from vicinage.settings import IngestSettings
from vicinage.texts import is_blank
from vicinage.vectors import Squares
from vicinage.wire import MESSAGE_BYTES_MAX, rows_bytes

METADATA_DEPTH_MAX: Final = 8
METADATA_KEY_BYTES_MAX: Final = 128
NOTHING_TO_READ: Final = "is empty: it has white space, control and invisible characters alone"
_PLAIN: Final = (str, int, type(None))
"""Types of most values; they need no check."""
VECTOR_FAULTS: Final = (
    "",
    "holds NaN, infinity, or a number beyond float32",
    "is zero, and the cosine of zero is not defined",
    "is so long that its products overflow float32",
)


class ValidationError(Exception):
    """A document violates a limit; `field` names the part at fault."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    """Limits of a document: its collection's dimension and metric, and the platform's limits.

    `moving`: a generation of another model is being built; it embeds the text itself.
    """

    collection: str
    dimension: int
    metric: str
    takes_text: bool
    settings: IngestSettings
    moving: bool = False

    @classmethod
    def of(cls, collection: Collection, settings: IngestSettings) -> "DocumentLimits":
        """Returns the limits of a collection's live generation."""
        live = collection.generation()
        return cls(
            collection.name,
            live.dimension,
            live.metric,
            live.model is not None,
            settings,
            collection.moving(),
        )


def check_id(document_id: object, settings: IngestSettings) -> None:
    """Raises ValidationError unless a document may have this id (`ingest/ids.py`)."""
    if (fault := fault_of_new(document_id, settings.id_bytes_max)) is not None:
        raise ValidationError("id", fault)


def check_text(name: str, text: str, bytes_max: int) -> None:
    """Raises ValidationError if the text is blank, too long, or not valid Unicode."""
    if is_blank(text):
        raise ValidationError(name, "is empty" if not text.strip() else NOTHING_TO_READ)
    size = _utf8_bytes(name, text)
    if size > bytes_max:
        raise ValidationError(name, f"{size} bytes; at most {bytes_max}")


def check_passages(passages: Sequence[str | None], settings: IngestSettings) -> None:
    """Raises ValidationError for no passages, too many, or more than `text_bytes_max` together."""
    if not 1 <= len(passages) <= settings.passages_max:
        raise ValidationError(
            "passages", f"{len(passages)} passages; 1 to {settings.passages_max} in a document"
        )
    left = settings.text_bytes_max
    for i, passage in enumerate(passages):
        check_text(f"passages.{i}", passage or "", left)
        left -= len((passage or "").encode())


def check_size(document: Document, limits: DocumentLimits) -> None:
    """Raises ValidationError if no message can hold the document's rows.

    The number of rows of a text is not known before it is chunked; it counts as one.
    """
    texts = document.passages if document.passages is not None else (document.text or "",)
    n = len(document.vectors) if document.vectors is not None else len(texts)
    text_bytes = sum(len(t.encode()) for t in texts)
    size = rows_bytes(
        document.id,
        n,
        limits.dimension,
        text_bytes=text_bytes,
        metadata_json=document.metadata_json,
    )
    if size > MESSAGE_BYTES_MAX:
        name = (
            "vectors"
            if document.vectors is not None
            else "passages"
            if document.passages is not None
            else "text"
        )
        raise ValidationError(name, f"the document makes {size} bytes; at most {MESSAGE_BYTES_MAX}")


def _utf8_bytes(name: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise ValidationError(name, "holds half of a surrogate pair: not valid Unicode") from None


def vector_faults(squares: Squares, metric: str) -> NDArray[np.uint8]:
    """Returns uint8 [n]: each vector's fault as an index in VECTOR_FAULTS; 0 for a valid vector.

    `squares` are the vectors' squared lengths, float64 [n]. A squared length is finite exactly if
    each number of its float32 vector is finite.
    """
    bad = squares == 0 if metric == "cosine" else squares > np.finfo(np.float32).max / 4
    faults = np.where(bad, np.uint8(2 if metric == "cosine" else 3), np.uint8(0))
    faults[~np.isfinite(squares)] = 1
    return faults


class Inexact(ValidationError):
    """A number of the metadata may be a rounded integer beyond 64 bits: parse its text exactly."""


def checked_metadata(
    metadata: dict[str, Any] | None, settings: IngestSettings, *, exact: bool = False
) -> str | None:
    """Returns the metadata as JSON, None if there is none.

    `exact`: integers of any length were parsed as integers. Raises ValidationError for a key or
    value that cannot be stored and filtered on, and Inexact only without `exact`.
    """
    if not metadata:
        return None
    try:
        text = orjson.dumps(metadata)  # first: the size limit bounds the number of values to check
    except (orjson.JSONEncodeError, TypeError, RecursionError) as error:
        hint = " (send it as a string)" if "64-bit" in str(error) else ""
        raise ValidationError("metadata", f"cannot be kept: {error}{hint}") from None
    if len(text) > settings.metadata_bytes_max:
        raise ValidationError(
            "metadata", f"{len(text)} bytes; at most {settings.metadata_bytes_max}"
        )
    check_values(metadata, exact=exact)
    return text.decode()


def check_values(metadata: Mapping[str, Any], *, exact: bool = False) -> None:
    """Raises ValidationError for a key or a value that cannot be stored and filtered on.

    Raises Inexact only without `exact`.
    """
    _check_value(metadata, METADATA_DEPTH_MAX, exact=exact)


def _check_value(value: object, depth: int, *, exact: bool) -> None:
    if depth == 0 and value and isinstance(value, dict | list):
        raise ValidationError("metadata", f"is nested deeper than {METADATA_DEPTH_MAX}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if (
                len(key.encode(errors="replace")) > METADATA_KEY_BYTES_MAX
                or not key
                or key.startswith("$")
            ):
                raise ValidationError(
                    "metadata",
                    f"the key {key[:40]!r} is empty, begins with '$', "
                    f"or is over {METADATA_KEY_BYTES_MAX} bytes",
                )
            if not isinstance(inner, _PLAIN):
                _check_value(inner, depth - 1, exact=exact)
    elif isinstance(value, list):
        for inner in value:
            if not isinstance(inner, _PLAIN):
                _check_value(inner, depth - 1, exact=exact)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValidationError("metadata", "holds NaN or infinity")
    elif isinstance(value, float) and not exact and may_be_rounded(value):
        raise Inexact("metadata", "holds an integer beyond 64 bits: send it as a string")
