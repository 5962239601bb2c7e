"""Parses a search, as JSON or as a raw vector with query parameters, into a `SearchRequest`."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from query.api.bounds import (
    BASE64_MAX,
    FILTER_BYTES_MAX,
    K_DEFAULT,
    OFFSET_MAX,
    PARTITION_MAX,
    TEXT_BYTES_MAX,
    TIMEOUT_MS_MAX,
)
from query.api.http import checked_object, integer, number, typed
from query.api.modes import VECTORS, fusion_of, mode_of, rerank_of
from query.plan import SearchRequest
from tenants.models import DIMENSION_MAX
from vicinage.errors import Refused
from vicinage.exact_json import Exactly, has_long_digits
from vicinage.filters import Filter
from vicinage.records import LATEST, Floats, Position, Token
from vicinage.settings import GatewaySettings
from vicinage.texts import is_blank
from vicinage.wire import load_json

FIELDS: Final = frozenset(
    {
        "text",
        "vector",
        "vector_base64",
        "k",
        "filter",
        "wait_for",
        "timeout_ms",
        "include",
        "exact",
        "mode",
        "fusion",
        "rerank",
    }
)
INCLUDE: Final = frozenset({"text", "metadata", "vector"})
BINARY: Final = "application/octet-stream"


def from_json(
    collection: str, value: Mapping[str, Any], settings: GatewaySettings
) -> SearchRequest:
    """Returns the validated search. Raises Refused naming the field."""
    mode = mode_of(value)
    text = typed(value, "text", str, "a string")
    if text is not None:
        check_text(text)
    k = integer(value, "k", 1, settings.k_max, K_DEFAULT)
    return SearchRequest(
        collection=collection,
        k=k,
        text=text,
        vector=_vector(value),
        filter=_filter(value.get("filter")),
        include=_include(value.get("include")),
        exact=bool(typed(value, "exact", bool, "true or false")),
        wait_for=token_of(value.get("wait_for")),
        timeout_s=integer(value, "timeout_ms", 1, TIMEOUT_MS_MAX, settings.timeout_ms) / 1000,
        mode=mode,
        fusion=fusion_of(value),
        rerank=rerank_of(value, k, settings.rerank_max),
    )


def from_binary(
    collection: str, data: bytes, parameters: Mapping[str, str], settings: GatewaySettings
) -> SearchRequest:
    """Returns the validated search of a raw vector and query parameters. Raises Refused."""
    value: dict[str, Any] = dict(parameters)
    alone = {"text"} if value.get("mode", "dense") == "dense" else set()  # the body is the vector
    checked_object(value, FIELDS - set(VECTORS) - alone)
    for name, high in (
        ("k", settings.k_max),
        ("timeout_ms", TIMEOUT_MS_MAX),
        ("rerank", settings.rerank_max),
    ):
        if name in value:
            value[name] = number(value[name], name, 1, high, 1)
    for name in ("filter", "fusion"):
        if name in value:
            value[name] = _parameter(name, value[name].encode())
    if "include" in value:
        value["include"] = [part for part in value["include"].split(",") if part]
    if "exact" in value:
        value["exact"] = {"true": True, "false": False}.get(value["exact"], value["exact"])
    return from_json(collection, {**value, "vector": _from_bytes(data, "body")}, settings)


def _parameter(name: str, data: bytes) -> Any:
    """Returns the JSON value of a query parameter, its integers exact."""
    value = load_json(data, field=name)
    return Exactly(data).value if has_long_digits(data) else value


def check_text(text: str) -> None:
    """Raises Refused for a search text that is blank, too long, or not valid Unicode."""
    if is_blank(text):
        raise Refused(
            "text is empty: it needs more than white space, control and invisible characters",
            field="text",
        )
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Refused("text holds half of a surrogate pair", field="text") from None
    if size > TEXT_BYTES_MAX:
        raise Refused(
            f"text has {size} bytes; at most {TEXT_BYTES_MAX}", field="text", limit=TEXT_BYTES_MAX
        )


def _vector(value: Mapping[str, Any]) -> Floats | None:
    given = value.get("vector")
    if isinstance(given, np.ndarray):
        return given
    if given is not None:
        return _from_list(given)
    encoded = typed(value, "vector_base64", str, "base64 of little-endian float32")
    if encoded is None:
        return None
    if len(encoded) > BASE64_MAX:
        raise Refused(
            f"vector_base64 has over {DIMENSION_MAX} numbers",
            field="vector_base64",
            limit=DIMENSION_MAX,
        )
    try:
        return _from_bytes(base64.b64decode(encoded, validate=True), "vector_base64")
    except (binascii.Error, ValueError):
        raise Refused("vector_base64 is not base64", field="vector_base64") from None


def _from_list(given: object) -> Floats:
    # The length first: there may be half a million numbers.
    if isinstance(given, list) and len(given) > DIMENSION_MAX:
        raise Refused(
            f"vector has {len(given)} numbers; at most {DIMENSION_MAX}",
            field="vector",
            limit=DIMENSION_MAX,
        )
    # Neither booleans nor null are numbers.
    if not isinstance(given, list) or not given or not set(map(type, given)) <= {int, float}:
        raise Refused("vector must be a list of numbers", field="vector")
    with np.errstate(over="ignore"):
        return np.array(given, np.float64).astype(np.float32)


def _from_bytes(data: bytes, field: str) -> Floats:
    if not data or len(data) % 4:
        raise Refused(f"{field} has {len(data)} bytes; float32 takes 4 each", field=field)
    return np.frombuffer(data, "<f4")


def _filter(given: object) -> Filter | None:
    if given is None:
        return None
    parsed = Filter.parse(given)
    if len(parsed.text) > FILTER_BYTES_MAX:
        raise Refused(
            f"a filter has at most {FILTER_BYTES_MAX} bytes", field="filter", limit=FILTER_BYTES_MAX
        )
    return parsed if given else None


def _include(given: object) -> frozenset[str]:
    if given is None:
        return frozenset({"text", "metadata"})
    if (
        not isinstance(given, list)
        or len(given) > len(INCLUDE)
        or not all(isinstance(g, str) and g in INCLUDE for g in given)
    ):
        raise Refused(f"include is a list of {', '.join(sorted(INCLUDE))}", field="include")
    return frozenset(given)


def token_of(given: object) -> Token | None:
    """Returns a token from its text, from Kafka's {partition, offset}, or from `latest`.

    Raises Refused.
    """
    if given is None:
        return None
    if given == "latest":
        return LATEST
    if isinstance(given, dict):
        partition = integer(given, "partition", 0, PARTITION_MAX, -1)
        offset = integer(given, "offset", 0, OFFSET_MAX, -1)
        if partition < 0 or offset < 0 or len(given) > 2:  # these two are there
            raise Refused("wait_for is a token, or {partition, offset}", field="wait_for")
        return Token((Position(partition, offset),))
    if not isinstance(given, str):
        raise Refused("wait_for is a token, or {partition, offset}", field="wait_for")
    return Token.parse(given)
