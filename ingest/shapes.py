"""Checks the types of a document's fields, up to the first wrong one. Pure.

Checks lengths before contents: the elements of a list that is too long are not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ingest.validation import DocumentLimits, ValidationError

FIELDS: Final = ("id", "tenant", "collection", "text", "passages", "vector", "vectors", "metadata")
NAME_SHOWN: Final = 80
_NUMBERS: Final = frozenset({int, float})


@dataclass(frozen=True, slots=True)
class Body:
    """The fields of a document in JSON, with checked types. `vectors` includes a lone `vector`."""

    id: str
    tenant: str | None
    collection: str | None
    text: str | None
    passages: list[str] | None
    vectors: Sequence[list[float]] | None
    metadata: dict[str, Any] | None


def typed_fields(value: object, limits: DocumentLimits) -> Body:
    """Returns the document's fields.

    Raises ValidationError with the first field that is unknown or has a wrong type or length.
    """
    if not isinstance(value, dict):
        raise ValidationError("document", "must be a JSON object")
    if (unknown := next((name for name in value if name not in FIELDS), None)) is not None:
        raise ValidationError(unknown[:NAME_SHOWN], f"unknown field; known are {', '.join(FIELDS)}")
    document_id = _string(value, "id")
    if document_id is None:
        raise ValidationError("id", "a document needs an id: a string that is not empty")
    return Body(
        document_id,
        _string(value, "tenant"),
        _string(value, "collection"),
        _string(value, "text"),
        _passages(value.get("passages"), limits.settings.passages_max),
        _vectors(value, limits),
        _object(value, "metadata"),
    )


def _string(value: Mapping[str, Any], name: str) -> str | None:
    found = value.get(name)
    if found is None or isinstance(found, str):
        return found
    raise ValidationError(name, "must be a string")


def _object(value: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    found = value.get(name)
    if found is None or isinstance(found, dict):
        return found
    raise ValidationError(name, "must be an object")


def _passages(value: object, n_max: int) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValidationError("passages", "must be a list of strings")
    if not 1 <= len(value) <= n_max:
        raise ValidationError("passages", f"{len(value)} passages; 1 to {n_max} in a document")
    for i, passage in enumerate(value):
        if not isinstance(passage, str):
            raise ValidationError(f"passages.{i}", "must be a string")
    return value


def _vectors(value: Mapping[str, Any], limits: DocumentLimits) -> Sequence[list[float]] | None:
    one, many = value.get("vector"), value.get("vectors")
    if one is not None and many is not None:
        raise ValidationError("vector", "send vector or vectors, not both")
    if one is not None:
        return (_vector(one, "vector", limits.dimension),)
    if many is None:
        return None
    if not isinstance(many, list):
        raise ValidationError("vectors", "must be a list of lists of numbers")
    if not 1 <= len(many) <= limits.settings.passages_max:
        raise ValidationError(
            "vectors", f"{len(many)} vectors; 1 to {limits.settings.passages_max} in a document"
        )
    for i, vector in enumerate(many):
        _vector(vector, f"vectors.{i}", limits.dimension)
    return many


def _vector(value: object, name: str, dimension: int) -> list[float]:
    if not isinstance(value, list):
        raise ValidationError(name, "must be a list of numbers")
    if len(value) != dimension:
        raise ValidationError(
            name, f"{len(value)} numbers; the collection's dimension is {dimension}"
        )
    if not set(map(type, value)) <= _NUMBERS:  # no booleans, no null
        wrong = next(i for i, number in enumerate(value) if type(number) not in _NUMBERS)
        raise ValidationError(f"{name}.{wrong}", "must be a number")
    return value
