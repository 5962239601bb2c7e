"""Bytes to documents. Pure: data in, `Document` or `Rejected(reason, field)` out.

Whatever is wrong with one document is said of that one; the rest of its batch goes through. `ingest/validation.py` has the limits,
`ingest/columns.py` the same for Arrow streams.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ingest.shapes import shaped
from ingest.validation import (
    DocumentLimits,
    Inexact,
    ValidationError,
    check_id,
    check_passages,
    check_size,
    check_text,
    checked_metadata,
    checked_vectors,
)
from vicinage.errors import Refused
from vicinage.exact_json import Exactly, Part
from vicinage.records import Document, Floats, Rejected
from vicinage.wire import load_json

Entry = Document | Rejected


def parse_json(value: object, rules: DocumentLimits, *, tenant: str, exactly: Exactly | Part | None = None) -> Entry:
    """Returns one decoded JSON value as a document of `rules.collection`.

    `exactly`: its text, for integers beyond 64 bits; without it, whole numbers beyond them are rejected.
    """
    try:
        try:
            return _parsed(value, rules, tenant)
        except Inexact:
            if exactly is None:
                raise
            return _parsed(exactly.value, rules, tenant, exact=True)
    except Refused as refused:
        return Rejected(refused.detail, field=refused.field, id=_id_of(value), collection=rules.collection)
    except ValidationError as bad:
        return Rejected(f"{bad.field}: {bad}", field=bad.field, id=_id_of(value), collection=rules.collection)


def _parsed(value: object, rules: DocumentLimits, tenant: str, *, exact: bool = False) -> Document:
    body = shaped(value, rules)
    if body.tenant not in (None, tenant):
        raise ValidationError("tenant", "the document names another tenant than its key or topic")
    if body.collection not in (None, rules.collection):
        raise ValidationError("collection", "the document names another collection than the request")
    check_id(body.id, rules.limits)
    metadata = checked_metadata(body.metadata, rules.limits, exact=exact)
    return fitted(body.id, body.text, body.passages, body.vectors, metadata, rules)


def parse_ndjson(data: bytes, rules: DocumentLimits, *, tenant: str) -> list[Entry]:
    """One document a line; a line that is not JSON is rejected alone."""
    return [
        _parse_line(number, line, rules, tenant) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()
    ]


def _parse_line(number: int, line: bytes, rules: DocumentLimits, tenant: str) -> Entry:
    try:
        value = load_json(line, field=f"line {number}")
        return parse_json(value, rules, tenant=tenant, exactly=Exactly(line))
    except Refused as refused:
        return Rejected(refused.detail, field=refused.field)


def fitted(
    document_id: str,
    text: str | None,
    passages: Sequence[str | None] | None,
    given: Sequence[Sequence[float]] | Floats | None,
    metadata: Mapping[str, Any],
    rules: DocumentLimits,
) -> Document:
    """A document whose parts fit together, or ValidationError."""
    limits = rules.limits
    if text is not None and passages is not None:
        raise ValidationError("text", "send text or passages, not both")
    if text is None and passages is None and given is None:
        raise ValidationError("text", "send text, passages or a vector")
    if text is not None:
        check_text("text", text, limits.text_bytes_max)
    if passages is not None:
        check_passages(passages, limits)
    vectors = given if isinstance(given, np.ndarray) or given is None else checked_vectors(given, rules)
    if vectors is None and not rules.takes_text:
        raise ValidationError("text", "this collection has no embedding model: send vectors")
    if rules.moving and text is None and passages is None:
        raise ValidationError(
            "text", "the collection is being moved to another model: send text with the vectors until that is done"
        )
    if vectors is not None:
        expected = len(passages) if passages is not None else 1 if text is not None else len(vectors)
        if len(vectors) != expected or len(vectors) == 0:
            raise ValidationError("vectors", f"{len(vectors)} vectors for {expected} passages")
        if len(vectors) > limits.passages_max:
            raise ValidationError("vectors", f"{len(vectors)} vectors; at most {limits.passages_max} in a document")
    kept = tuple(p for p in passages if p is not None) if passages is not None else None
    document = Document(rules.collection, document_id, text, kept, vectors, metadata)
    check_size(document, rules)
    return document


def _id_of(value: object) -> str | None:
    found = value.get("id") if isinstance(value, dict) else None
    return found[:128] if isinstance(found, str) else None
