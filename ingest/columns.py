"""Parses the columns of Arrow bodies into documents.

A fault in a column refuses the stream; a fault in a row rejects that row. Vectors are checked and
normalized for the whole batch at once, never row by row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from ingest.document_vectors import DocumentVectors
from ingest.documents import Entry, checked_document
from ingest.validation import (
    DocumentLimits,
    Inexact,
    ValidationError,
    check_id,
    check_values,
    checked_metadata,
)
from vicinage.errors import Refused
from vicinage.exact_json import Exactly
from vicinage.records import Floats, Rejected
from vicinage.settings import IngestSettings
from vicinage.wire import decode_documents

VALUES_MAX: Final = 500_000
"""Passages, or vectors, in one record batch: each takes at least 50 bytes as a Python object."""
_COLUMNS: Final = frozenset(
    {"id", "collection", "text", "passages", "vector", "vectors", "metadata"}
)


def parse_arrow_body(data: bytes, limits: DocumentLimits) -> list[Entry]:
    """Returns the documents of a POSTed Arrow stream. Raises Refused."""
    name, batches = decode_documents(data)
    if name not in (None, limits.collection):
        raise Refused("the stream names another collection than the request", field="collection")
    return parse_arrow(batches, limits)


def parse_arrow(batches: Sequence[pa.RecordBatch], limits: DocumentLimits) -> list[Entry]:
    """Returns the rows of Arrow batches as documents. Raises Refused for a wrong schema."""
    try:
        return [entry for batch in batches for entry in _parse_batch(batch, limits)]
    except (pa.ArrowException, MemoryError) as error:
        raise Refused(f"the columns cannot be read: {str(error)[:200]}", field="body") from error


def _parse_batch(batch: pa.RecordBatch, limits: DocumentLimits) -> Iterator[Entry]:
    _check_schema(batch.schema, limits.dimension)
    ids = batch.column("id").to_pylist()
    texts = _strings(batch, "text")
    passages = _Passages.of(batch, limits.settings)
    metadata = _strings(batch, "metadata")
    vectors = DocumentVectors.flat(*_vectors(batch, limits.dimension), limits)
    for i in range(batch.num_rows):
        try:
            check_id(ids[i], limits.settings)
            own_vectors = vectors.row(i)
            facts = _parsed_metadata(metadata[i], limits.settings)
            yield checked_document(ids[i], texts[i], passages.row(i), own_vectors, facts, limits)
        except ValidationError as bad:
            known = ids[i][:128] if isinstance(ids[i], str) else None
            yield Rejected(
                f"{bad.field}: {bad}", field=bad.field, id=known, collection=limits.collection
            )


@dataclass(frozen=True, slots=True)
class _Passages:
    """The passages of each row, converted to Python strings row by row, within the limits."""

    column: pa.Array | None
    counts: list[int | None]
    n_max: int

    @classmethod
    def of(cls, batch: pa.RecordBatch, settings: IngestSettings) -> "_Passages":
        """Returns the batch's passages. Raises Refused for more than VALUES_MAX."""
        if "passages" not in batch.schema.names:
            return cls(None, [], settings.passages_max)
        column = batch.column("passages")
        counts = pc.list_value_length(column)
        _check_count("passages", counts)
        return cls(column, counts.to_pylist(), settings.passages_max)

    def row(self, i: int) -> list[str | None] | None:
        """Returns the row's passages, None if it has none. Raises ValidationError for too many."""
        if self.column is None or (n := self.counts[i]) is None:
            return None
        if n > self.n_max:
            raise ValidationError("passages", f"{n} passages; 1 to {self.n_max} in a document")
        found: list[str | None] = self.column[i].as_py()
        return found


def _check_count(name: str, counts: pa.Array) -> None:
    """Raises Refused if the lists of a column hold more than VALUES_MAX values together."""
    n = pc.sum(counts).as_py() or 0
    if n > VALUES_MAX:
        raise Refused(
            f"the column {name!r} has {n} {name} in one batch; at most {VALUES_MAX}",
            field=name,
            limit=VALUES_MAX,
        )


def _check_schema(schema: pa.Schema, dimension: int) -> None:
    """Raises Refused unless the columns are those of documents."""
    names = set(schema.names)
    if unknown := sorted(names - _COLUMNS):
        raise Refused(
            f"unknown column {unknown[0]!r}; known are {', '.join(sorted(_COLUMNS))}",
            field=unknown[0],
        )
    if len(names) != len(schema.names):
        raise Refused("a column occurs twice", field="body")
    if "id" not in names:
        raise Refused("the stream has no column 'id'", field="id")
    for name in ("id", "collection", "text", "metadata"):
        if name in names and not (
            pa.types.is_string(schema.field(name).type)
            or pa.types.is_large_string(schema.field(name).type)
        ):
            raise Refused(
                f"column {name!r} must be utf8, not {schema.field(name).type}", field=name
            )
    if "passages" in names and not _list_of(schema.field("passages").type, pa.types.is_string):
        raise Refused("column 'passages' must be list<utf8>", field="passages")
    for name, levels in (("vector", 1), ("vectors", 2)):
        if name in names and not _floats_deep(schema.field(name).type, levels):
            raise Refused(
                f"column {name!r} must hold lists of floats, not {schema.field(name).type}",
                field=name,
            )
        if name in names and (width := _width(schema.field(name).type, levels)) not in (
            None,
            dimension,
        ):
            # Checked before the lists are read: a few bytes can claim billions of empty lists.
            raise Refused(
                f"a vector has {width} numbers; the collection's dimension is {dimension}",
                field=name,
                limit=dimension,
            )


def _list_of(kind: pa.DataType, inner: Any) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and bool(inner(kind.value_type))


def _floats_deep(kind: pa.DataType, levels: int) -> bool:
    if levels == 0:
        return bool(pa.types.is_floating(kind))
    return _list_of(kind, lambda inner: _floats_deep(inner, levels - 1))


def _width(kind: pa.DataType, levels: int) -> int | None:
    """Returns the size of the innermost lists if their type fixes it, else None.

    Returns 0 for lists of lists whose outer fixed size is 0.
    """
    if levels == 2:
        return (
            0
            if pa.types.is_fixed_size_list(kind) and kind.list_size == 0
            else _width(kind.value_type, 1)
        )
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None


def _strings(batch: pa.RecordBatch, name: str) -> list[str | None]:
    return batch.column(name).to_pylist() if name in batch.schema.names else [None] * batch.num_rows


def _vectors(batch: pa.RecordBatch, dimension: int) -> tuple[Floats | None, list[int]]:
    """Returns all vectors of the batch, float32 [m, d], and the number of vectors of each row."""
    n = batch.num_rows
    names = [name for name in ("vector", "vectors") if name in batch.schema.names]
    if not names:
        return None, [0] * n
    if len(names) > 1:
        raise Refused("send the column vector or vectors, not both", field="vector")
    column = batch.column(names[0])
    if names[0] == "vectors":
        lengths = pc.list_value_length(column)
        _check_count("vectors", lengths)
        counts = [c or 0 for c in lengths.to_pylist()]
        column = column.flatten()
    else:
        valid = column.is_valid()
        counts = [int(v) for v in valid.to_pylist()]
        column = column.filter(valid)
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if lengths and lengths != [dimension]:
        wrong = next(length for length in lengths if length != dimension)
        raise Refused(
            f"a vector has {wrong} numbers; the collection's dimension is {dimension}",
            field=names[0],
            limit=dimension,
        )
    flat = pc.fill_null(column.flatten(), float("nan")).cast(pa.float32())
    return flat.to_numpy(zero_copy_only=False).reshape(-1, dimension), counts


def _parsed_metadata(
    text: str | None, settings: IngestSettings
) -> tuple[Mapping[str, Any], str | None]:
    """Returns the metadata and its JSON text.

    The text is unchanged unless a number needed exact parsing. Raises ValidationError.
    """
    if not text:
        return {}, None
    if (size := len(text.encode())) > settings.metadata_bytes_max:
        raise ValidationError("metadata", f"{size} bytes; at most {settings.metadata_bytes_max}")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValidationError("metadata", f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValidationError("metadata", "is not a JSON object")
    if not value:
        return {}, None
    try:
        check_values(value)
    except Inexact:
        exact = Exactly(text).value
        return exact, checked_metadata(exact, settings, exact=True)
    return value, text
