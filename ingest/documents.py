"""Parses documents in JSON into `Document` or `Rejected(reason, field)`. Pure.

A fault rejects its own document alone; the rest of the batch is accepted. `ingest/validation.py`
has the limits. `ingest/columns.py` parses Arrow streams.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ingest.document_vectors import DocumentVectors
from ingest.shapes import Body, typed_fields
from ingest.validation import (
    DocumentLimits,
    Inexact,
    ValidationError,
    check_id,
    check_passages,
    check_size,
    check_text,
    checked_metadata,
)
from vicinage.errors import Refused
from vicinage.exact_json import Exactly, Part
from vicinage.records import Document, Floats, Rejected
from vicinage.wire import load_json

Entry = Document | Rejected
ID_SHOWN: Final = 128
"""Characters of a rejected document's id that are kept."""


def parse_json(
    value: object, limits: DocumentLimits, *, tenant: str, exactly: Exactly | Part | None = None
) -> Entry:
    """Returns one decoded JSON value as a document of `limits.collection`.

    `exactly` is the JSON text, for integers beyond 64 bits; without it they are rejected.
    """
    return parse_all([(value, exactly)], limits, tenant=tenant)[0]


def parse_all(
    values: Iterable[tuple[object, Exactly | Part | None]], limits: DocumentLimits, *, tenant: str
) -> list[Entry]:
    """Returns each value of a request as `parse_json` does.

    Checks and normalizes the vectors of all documents at once.
    """
    read = [_read(value, exactly, limits, tenant) for value, exactly in values]
    vectors = DocumentVectors.of(
        [r[0].vectors for r in read if not isinstance(r, Rejected)], limits
    )
    rows = iter(range(len(read)))
    return [
        r if isinstance(r, Rejected) else _checked_document(*r, vectors, next(rows), limits)
        for r in read
    ]


def _read(
    value: object, exactly: Exactly | Part | None, limits: DocumentLimits, tenant: str
) -> "_Read | Rejected":
    """Returns the fields and the metadata as JSON, or why the document is rejected."""
    try:
        try:
            return _checked(value, limits, tenant)
        except Inexact:
            if exactly is None:
                raise
            return _checked(exactly.value, limits, tenant, exact=True)
    except Refused as refused:
        return Rejected(
            refused.detail, field=refused.field, id=_id_of(value), collection=limits.collection
        )
    except ValidationError as bad:
        return _rejected(bad, _id_of(value), limits)


def _checked(value: object, limits: DocumentLimits, tenant: str, *, exact: bool = False) -> "_Read":
    body = typed_fields(value, limits)
    if body.tenant not in (None, tenant):
        raise ValidationError("tenant", "the document names another tenant than its key or topic")
    if body.collection not in (None, limits.collection):
        raise ValidationError(
            "collection", "the document names another collection than the request"
        )
    check_id(body.id, limits.settings)
    return body, checked_metadata(body.metadata, limits.settings, exact=exact)


_Read = tuple[Body, str | None]


def _checked_document(
    body: Body,
    metadata_json: str | None,
    vectors: DocumentVectors,
    row: int,
    limits: DocumentLimits,
) -> Entry:
    try:
        own_vectors = vectors.row(row)
        return checked_document(
            body.id,
            body.text,
            body.passages,
            own_vectors,
            (body.metadata or {}, metadata_json),
            limits,
        )
    except ValidationError as bad:
        return _rejected(bad, body.id[:ID_SHOWN], limits)


def _rejected(bad: ValidationError, document_id: str | None, limits: DocumentLimits) -> Rejected:
    return Rejected(
        f"{bad.field}: {bad}", field=bad.field, id=document_id, collection=limits.collection
    )


def parse_ndjson(data: bytes, limits: DocumentLimits, *, tenant: str) -> list[Entry]:
    """Returns one document per line; a line that is not JSON is rejected alone."""
    lines = [
        _load_line(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()
    ]
    parsed = iter(
        parse_all([line for line in lines if not isinstance(line, Rejected)], limits, tenant=tenant)
    )
    return [line if isinstance(line, Rejected) else next(parsed) for line in lines]


def _load_line(number: int, line: bytes) -> tuple[object, Exactly] | Rejected:
    try:
        return load_json(line, field=f"line {number}"), Exactly(line)
    except Refused as refused:
        return Rejected(refused.detail, field=refused.field)


def checked_document(
    document_id: str,
    text: str | None,
    passages: Sequence[str | None] | None,
    vectors: Floats | None,
    metadata: tuple[Mapping[str, Any], str | None],
    limits: DocumentLimits,
) -> Document:
    """Returns a document after checking its parts against each other and the limits.

    `metadata` is the value and its JSON, already checked. Raises ValidationError.
    """
    settings = limits.settings
    if text is not None and passages is not None:
        raise ValidationError("text", "send text or passages, not both")
    if text is None and passages is None and vectors is None:
        raise ValidationError("text", "send text, passages or a vector")
    if text is not None:
        check_text("text", text, settings.text_bytes_max)
    if passages is not None:
        check_passages(passages, settings)
    if vectors is None and not limits.takes_text:
        raise ValidationError("text", "this collection has no embedding model: send vectors")
    if limits.moving and text is None and passages is None:
        raise ValidationError(
            "text",
            "the collection is being moved to another model: "
            "send text with the vectors until that is done",
        )
    if vectors is not None:
        expected = (
            len(passages) if passages is not None else 1 if text is not None else len(vectors)
        )
        if len(vectors) != expected or len(vectors) == 0:
            raise ValidationError("vectors", f"{len(vectors)} vectors for {expected} passages")
        if len(vectors) > settings.passages_max:
            raise ValidationError(
                "vectors", f"{len(vectors)} vectors; at most {settings.passages_max} in a document"
            )
    kept = tuple(p for p in passages if p is not None) if passages is not None else None
    document = Document(limits.collection, document_id, text, kept, vectors, *metadata)
    check_size(document, limits)
    return document


def _id_of(value: object) -> str | None:
    found = value.get("id") if isinstance(value, dict) else None
    return found[:ID_SHOWN] if isinstance(found, str) else None
