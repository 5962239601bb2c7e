"""Types that several models share: tokens, filters, names, times."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, WithJsonSchema

from query.api.bounds import OFFSET_MAX, PARTITION_MAX
from query.api.models.base import RequestModel
from tenants.collection_rows import COLLECTION_NAME
from tenants.models import MODEL_NAME
from tenants.tenant_rows import TENANT_NAME
from vicinage import filters
from vicinage.records import POSITIONS_FORM, Token

WAIT_FOR_PATTERN: Final = f"^(latest|{POSITIONS_FORM})$"
Milliseconds = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
TokenText = Annotated[str, Field(pattern=f"^{POSITIONS_FORM}$", examples=["0-41"])]
CollectionName = Annotated[
    str, Field(pattern=f"^{COLLECTION_NAME.pattern}$", examples=["articles"])
]
TenantName = Annotated[str, Field(pattern=f"^{TENANT_NAME.pattern}$", examples=["acme"])]
ModelName = Annotated[str, Field(pattern=f"^{MODEL_NAME.pattern}$", examples=["all-minilm-l6-v2"])]


class Position(RequestModel):
    """The position of a record, as Kafka acknowledged it."""

    partition: Annotated[int, Field(ge=0, le=PARTITION_MAX)] = Field(
        description="The partition of the documents topic.", examples=[0]
    )
    offset: Annotated[int, Field(ge=0, le=OFFSET_MAX)] = Field(
        description="The offset in that partition.", examples=[41]
    )


def _check_token(text: str) -> str:
    if text != "latest":
        Token.parse(text)
    return text


WaitFor = (
    Annotated[
        str,
        AfterValidator(_check_token),
        WithJsonSchema({"type": "string", "pattern": WAIT_FOR_PATTERN, "examples": ["0-41"]}),
    ]
    | Position
)
"""A token, `latest`, or a position that Kafka acknowledged."""


def _check_filter(value: dict[str, Any]) -> dict[str, Any]:
    filters.parse(value)
    return value


FILTER_EXAMPLE: Final = {"lang": "en", "year": {"$gte": 2020}}
Filter = Annotated[
    dict[str, Any],
    AfterValidator(_check_filter),
    WithJsonSchema({"$ref": "#/components/schemas/Filter"}),
]
"""Conditions on metadata; `filters.parse` checks them, and FILTER_SCHEMAS describes them."""
_SCALARS: Final = [{"type": kind} for kind in ("string", "number", "boolean", "null")]
_LIST: Final = {
    "type": "array",
    "items": {"anyOf": _SCALARS},
    "maxItems": filters.VALUES_MAX,
}
_ORDERED: Final = {"anyOf": _SCALARS[:2]}
FILTER_SCHEMAS: Final[dict[str, Any]] = {
    "Filter": {
        "type": "object",
        "description": (
            "Conditions on metadata that must all hold. A member is a metadata field with a value "
            "or with `FilterOperators`, or one of `$and`, `$or` and `$not`. `{}` passes every "
            f"document. At most {filters.CLAUSES_MAX} clauses, {filters.DEPTH_MAX} levels, "
            f"{filters.FIELDS_MAX} fields of {filters.NAME_MAX} characters, and "
            f"{filters.VALUES_OF_ALL_MAX} values in all lists."
        ),
        "properties": {
            name: {
                "type": "array",
                "minItems": 1,
                "maxItems": filters.CLAUSES_MAX,
                "items": {"$ref": "#/components/schemas/Filter"},
                "description": f"Filters of which {which} must pass.",
            }
            for name, which in (("$and", "all"), ("$or", "any"))
        }
        | {
            "$not": {
                "$ref": "#/components/schemas/Filter",
                "description": "A filter that must not pass.",
            }
        },
        "additionalProperties": True,
        "examples": [FILTER_EXAMPLE],
    },
    "FilterOperators": {
        "type": "object",
        "description": "Comparisons of one metadata field, which must all hold.",
        "properties": {
            "$eq": {"anyOf": _SCALARS, "description": "The field is equal."},
            "$ne": {"anyOf": _SCALARS, "description": "The field is not equal, or is missing."},
            "$gt": {**_ORDERED, "description": "The field is greater."},
            "$gte": {**_ORDERED, "description": "The field is greater or equal."},
            "$lt": {**_ORDERED, "description": "The field is less."},
            "$lte": {**_ORDERED, "description": "The field is less or equal."},
            "$in": {**_LIST, "description": "The field equals one of the values."},
            "$nin": {**_LIST, "description": "The field equals none, or is missing."},
            "$exists": {
                "type": "boolean",
                "description": "Whether the field must exist; null counts.",
            },
        },
        "additionalProperties": False,
        "minProperties": 1,
        "examples": [{"$gte": 2020, "$lt": 2027}],
    },
}
"""JSON Schema of filters: the form; `filters.parse` counts what the description states."""
