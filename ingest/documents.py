"""Bytes to documents. Pure: data in, `Document`, `Deletion` or `Rejected(reason, field)` out.

Whatever is wrong with one document is said of that one; the rest of its batch goes through.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from tenants.entities import Collection
from vicinage.errors import Refused
from vicinage.records import Document, Floats, Rejected
from vicinage.settings import IngestSettings
from vicinage.wire import decode_documents, load_json

Entry = Document | Rejected
METADATA_DEPTH_MAX: Final = 8
METADATA_KEY_BYTES_MAX: Final = 128
_ARROW_COLUMNS: Final = frozenset({"id", "collection", "text", "passages", "vector", "vectors", "metadata"})


class _Body(BaseModel):
    """A document as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    tenant: str | None = None
    collection: str | None = None
    text: str | None = None
    passages: list[str] | None = None
    vector: list[float] | None = None
    vectors: list[list[float]] | None = None
    metadata: dict[str, Any] | None = None


class _Bad(Exception):
    """One rule broken."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


@dataclass(frozen=True, slots=True)
class Rules:
    """What a document must keep to: its collection's dimension and metric, and the platform's limits."""

    collection: str
    dimension: int
    metric: str
    takes_text: bool
    limits: IngestSettings

    @classmethod
    def of(cls, collection: Collection, limits: IngestSettings) -> "Rules":
        """The rules of a collection's live generation."""
        live = collection.generation()
        return cls(collection.name, live.dimension, live.metric, live.model is not None, limits)


def parse_json(value: object, rules: Rules, *, tenant: str) -> Entry:
    """One decoded JSON value as a document of `rules.collection`."""
    try:
        body = _Body.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "document"
        return Rejected(f"{name}: {first['msg']}", field=name, id=_id_of(value), collection=rules.collection)
    try:
        if body.tenant not in (None, tenant):
            raise _Bad("tenant", "the document names another tenant than its key or topic")
        if body.collection not in (None, rules.collection):
            raise _Bad("collection", "the document names another collection than the request")
        _check_id(body.id, rules.limits)
        return _document(
            body.id, body.text, body.passages, _given(body), _checked_metadata(body.metadata, rules.limits), rules
        )
    except _Bad as bad:
        return Rejected(f"{bad.field}: {bad}", field=bad.field, id=body.id[:128], collection=rules.collection)


def parse_ndjson(data: bytes, rules: Rules, *, tenant: str) -> list[Entry]:
    """One document a line; a line that is not JSON is rejected alone."""
    return [
        _parse_line(number, line, rules, tenant) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()
    ]


def _parse_line(number: int, line: bytes, rules: Rules, tenant: str) -> Entry:
    try:
        return parse_json(load_json(line, field=f"line {number}"), rules, tenant=tenant)
    except Refused as refused:
        return Rejected(refused.detail, field=refused.field)


def parse_arrow(batches: Sequence[pa.RecordBatch], rules: Rules) -> list[Entry]:
    """The rows of Arrow batches as documents. Raises Refused where the schema itself is wrong."""
    return [entry for batch in batches for entry in _parse_batch(batch, rules)]


def parse_arrow_body(data: bytes, rules: Rules) -> list[Entry]:
    """A POSTed Arrow stream."""
    name, batches = decode_documents(data)
    if name not in (None, rules.collection):
        raise Refused("the stream names another collection than the request", field="collection")
    return parse_arrow(batches, rules)


def _parse_batch(batch: pa.RecordBatch, rules: Rules) -> Iterator[Entry]:
    check_arrow_schema(batch.schema)
    n = batch.num_rows
    ids = batch.column("id").to_pylist()
    texts = _strings(batch, "text")
    passages = batch.column("passages").to_pylist() if "passages" in batch.schema.names else [None] * n
    metadata = _strings(batch, "metadata")
    vectors, counts = _arrow_vectors(batch, rules.dimension)
    at = np.concatenate([[0], np.cumsum(counts)])
    bad_rows = _bad_vectors(vectors, rules.metric) if vectors is not None else {}
    unit = _unit(vectors, rules.metric) if vectors is not None else None
    for i in range(n):
        given = unit[at[i] : at[i + 1]] if unit is not None and counts[i] else None
        try:
            _check_id(ids[i], rules.limits)
            for row in range(at[i], at[i + 1]) if bad_rows else ():
                if row in bad_rows:
                    raise _Bad("vector", bad_rows[row])
            facts = _parsed_metadata(metadata[i], rules.limits)
            yield _document(ids[i], texts[i], passages[i], given, facts, rules)
        except _Bad as bad:
            known = ids[i][:128] if isinstance(ids[i], str) else None
            yield Rejected(f"{bad.field}: {bad}", field=bad.field, id=known, collection=rules.collection)


def check_arrow_schema(schema: pa.Schema) -> None:
    """Raise Refused unless the columns are those of documents."""
    names = set(schema.names)
    if unknown := sorted(names - _ARROW_COLUMNS):
        raise Refused(f"unknown column {unknown[0]!r}; known are {', '.join(sorted(_ARROW_COLUMNS))}", field=unknown[0])
    if len(names) != len(schema.names):
        raise Refused("a column stands twice", field="body")
    if "id" not in names:
        raise Refused("the stream has no column 'id'", field="id")
    for name in ("id", "collection", "text", "metadata"):
        if name in names and not (
            pa.types.is_string(schema.field(name).type) or pa.types.is_large_string(schema.field(name).type)
        ):
            raise Refused(f"column {name!r} must be utf8, not {schema.field(name).type}", field=name)
    if "passages" in names and not _list_of(schema.field("passages").type, pa.types.is_string):
        raise Refused("column 'passages' must be list<utf8>", field="passages")
    for name, levels in (("vector", 1), ("vectors", 2)):
        if name in names and not _floats_deep(schema.field(name).type, levels):
            raise Refused(f"column {name!r} must hold lists of floats, not {schema.field(name).type}", field=name)


def _list_of(kind: pa.DataType, inner: Any) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and bool(inner(kind.value_type))


def _floats_deep(kind: pa.DataType, levels: int) -> bool:
    if levels == 0:
        return bool(pa.types.is_floating(kind))
    return _list_of(kind, lambda inner: _floats_deep(inner, levels - 1))


def _strings(batch: pa.RecordBatch, name: str) -> list[str | None]:
    return batch.column(name).to_pylist() if name in batch.schema.names else [None] * batch.num_rows


def _arrow_vectors(batch: pa.RecordBatch, dimension: int) -> tuple[Floats | None, list[int]]:
    """All vectors of the batch, float32 [m, d], and how many belong to each row."""
    n = batch.num_rows
    names = [name for name in ("vector", "vectors") if name in batch.schema.names]
    if not names:
        return None, [0] * n
    if len(names) > 1:
        raise Refused("send the column vector or vectors, not both", field="vector")
    column = batch.column(names[0])
    if names[0] == "vectors":
        counts = [c or 0 for c in pc.list_value_length(column).to_pylist()]
        column = column.flatten()
    else:
        valid = column.is_valid()
        counts = [int(v) for v in valid.to_pylist()]
        column = column.filter(valid)
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if lengths and lengths != [dimension]:
        wrong = next(length for length in lengths if length != dimension)
        raise Refused(
            f"a vector has {wrong} numbers; the collection's dimension is {dimension}", field=names[0], limit=dimension
        )
    flat = pc.fill_null(column.flatten(), float("nan")).cast(pa.float32())
    return flat.to_numpy(zero_copy_only=False).reshape(-1, dimension), counts


def _given(body: _Body) -> Sequence[Sequence[float]] | None:
    if body.vector is not None and body.vectors is not None:
        raise _Bad("vector", "send vector or vectors, not both")
    return [body.vector] if body.vector is not None else body.vectors


def _document(
    document_id: str,
    text: str | None,
    passages: Sequence[str | None] | None,
    given: Sequence[Sequence[float]] | Floats | None,
    metadata: Mapping[str, Any],
    rules: Rules,
) -> Document:
    """A document whose parts fit together, or _Bad."""
    limits = rules.limits
    if text is not None and passages is not None:
        raise _Bad("text", "send text or passages, not both")
    if text is None and passages is None and given is None:
        raise _Bad("text", "send text, passages or a vector")
    if text is not None:
        _check_text("text", text, limits.text_bytes_max)
    if passages is not None:
        _check_passages(passages, limits)
    vectors = given if isinstance(given, np.ndarray) or given is None else _checked_vectors(given, rules)
    if vectors is None and not rules.takes_text:
        raise _Bad("text", "this collection has no embedding model: send vectors")
    if vectors is not None:
        expected = len(passages) if passages is not None else 1 if text is not None else len(vectors)
        if len(vectors) != expected or len(vectors) == 0:
            raise _Bad("vectors", f"{len(vectors)} vectors for {expected} passages")
        if len(vectors) > limits.passages_max:
            raise _Bad("vectors", f"{len(vectors)} vectors; at most {limits.passages_max} in a document")
    kept = tuple(p for p in passages if p is not None) if passages is not None else None
    return Document(rules.collection, document_id, text, kept, vectors, metadata)


def _check_id(document_id: object, limits: IngestSettings) -> None:
    if not isinstance(document_id, str) or not document_id:
        raise _Bad("id", "a document needs an id: a string that is not empty")
    size = _utf8_bytes("id", document_id)
    if size > limits.id_bytes_max:
        raise _Bad("id", f"{size} bytes; at most {limits.id_bytes_max}")
    if not document_id.isprintable():
        raise _Bad("id", "holds a control or unprintable character")


def _check_text(name: str, text: str, bytes_max: int) -> None:
    if not text.strip():
        raise _Bad(name, "is empty")
    size = _utf8_bytes(name, text)
    if size > bytes_max:
        raise _Bad(name, f"{size} bytes; at most {bytes_max}")


def _check_passages(passages: Sequence[str | None], limits: IngestSettings) -> None:
    if not 1 <= len(passages) <= limits.passages_max:
        raise _Bad("passages", f"{len(passages)} passages; 1 to {limits.passages_max} in a document")
    left = limits.text_bytes_max
    for i, passage in enumerate(passages):
        _check_text(f"passages.{i}", passage or "", left)
        left -= len((passage or "").encode())


def _utf8_bytes(name: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise _Bad(name, "holds half of a surrogate pair: not valid Unicode") from None


def _checked_vectors(given: Sequence[Sequence[float]], rules: Rules) -> Floats:
    for vector in given:
        if len(vector) != rules.dimension:
            raise _Bad("vector", f"{len(vector)} numbers; the collection's dimension is {rules.dimension}")
    with np.errstate(over="ignore"):
        vectors = np.asarray(given, dtype=np.float64).astype(np.float32).reshape(-1, rules.dimension)
    for reason in _bad_vectors(vectors, rules.metric).values():
        raise _Bad("vector", reason)
    return _unit(vectors, rules.metric)


def _bad_vectors(vectors: Floats, metric: str) -> dict[int, str]:
    """Row → why it cannot be indexed."""
    finite = np.isfinite(vectors).all(axis=1)
    bad = {int(i): "holds NaN, infinity, or a number beyond float32" for i in np.flatnonzero(~finite)}
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    if metric == "cosine":
        bad |= {
            int(i): "is zero, and the cosine of zero is not defined" for i in np.flatnonzero(finite & (squares == 0))
        }
    else:
        too_long = finite & (squares > np.finfo(np.float32).max / 4)
        bad |= {int(i): "is so long that its products overflow float32" for i in np.flatnonzero(too_long)}
    return bad


def _unit(vectors: Floats, metric: str) -> Floats:
    """float32 [n, d], of length 1 under cosine. Bad rows come back as they are; they are rejected by their number."""
    if metric != "cosine" or not len(vectors):
        return vectors
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    with np.errstate(all="ignore"):
        unit: Floats = (vectors / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)
    return unit


def _parsed_metadata(text: str | None, limits: IngestSettings) -> Mapping[str, Any]:
    if not text:
        return {}
    if len(text) > limits.metadata_bytes_max:
        raise _Bad("metadata", f"{len(text)} bytes; at most {limits.metadata_bytes_max}")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _Bad("metadata", f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _Bad("metadata", "is not a JSON object")
    return _checked_metadata(value, limits)


def _checked_metadata(metadata: dict[str, Any] | None, limits: IngestSettings) -> Mapping[str, Any]:
    if not metadata:
        return {}
    _check_value(metadata, METADATA_DEPTH_MAX)
    try:
        size = len(orjson.dumps(metadata))
    except (orjson.JSONEncodeError, TypeError, RecursionError) as error:
        raise _Bad("metadata", f"cannot be kept: {error}") from None
    if size > limits.metadata_bytes_max:
        raise _Bad("metadata", f"{size} bytes; at most {limits.metadata_bytes_max}")
    return metadata


def _check_value(value: object, depth: int) -> None:
    if depth < 0:
        raise _Bad("metadata", f"is nested deeper than {METADATA_DEPTH_MAX}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if len(key.encode(errors="replace")) > METADATA_KEY_BYTES_MAX or not key or key.startswith("$"):
                raise _Bad(
                    "metadata",
                    f"the key {key[:40]!r} is empty, begins with '$', or is over {METADATA_KEY_BYTES_MAX} bytes",
                )
            _check_value(inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _Bad("metadata", "holds NaN or infinity")


def _id_of(value: object) -> str | None:
    found = value.get("id") if isinstance(value, dict) else None
    return found[:128] if isinstance(found, str) else None
