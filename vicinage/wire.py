"""Encodes and decodes records: documents as JSON or Arrow, vectors as Arrow.

Each format has a version. Bytes from clients are never trusted: every error in them becomes Refused
with a reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from vicinage.arrow_stream import read_stream
from vicinage.errors import Corrupt, Refused
from vicinage.json_shape import check_shape
from vicinage.records import Document, Floats

ARROW: Final = "application/vnd.apache.arrow.stream"
DOCUMENTS_FORMAT: Final = b"1"
VECTORS_FORMAT: Final = b"3"
"""3: deletions are in separate messages without a vector column; before, each had a zero vector.

2: a document's metadata is only in its first row; 1: it is in each row. Readers support all three
versions and use the first row's metadata.
"""
VECTORS_FORMATS: Final = (b"1", b"2", VECTORS_FORMAT)
DECODED_BYTES_MAX: Final = 128 << 20
"""Largest claimed size of an Arrow body once decompressed."""
ROWS_MAX: Final = 10_000
"""Largest number of documents in one Arrow body."""
MESSAGE_BYTES_MAX: Final = 12 << 20
"""Largest size of one document's rows: they are in one message. Brokers accept a little more."""
ROWS_BYTES_MAX: Final = 2 * MESSAGE_BYTES_MAX
"""Largest size of a message of rows in memory."""
ROW_BYTES: Final = 48
"""Bytes of a row's numbers and of its offsets in the columns of variable length."""

VECTOR_COLUMNS: Final = (
    "document_id",
    "version",
    "event_time_ms",
    "passage",
    "text",
    "start",
    "end",
    "metadata",
    "vector",
)
DELETED: Final = -1
"""The passage number of a row that deletes its document."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A vectors message: rows of one generation in one slot."""

    tenant: str
    collection: str
    generation: int
    batch: pa.RecordBatch


def vectors_schema(dimension: int) -> pa.Schema:
    """Returns the columns of a vectors message, and of a segment's passages.

    NOTE: the rows of one version of a document are adjacent, passage 0 first. So the first row of a
    row's document is `row - passage`, in messages and segments, and only that row has the metadata.
    """
    return pa.schema(
        [
            pa.field("document_id", pa.utf8(), nullable=False),
            pa.field("version", pa.int64(), nullable=False),
            pa.field("event_time_ms", pa.int64(), nullable=False),
            pa.field("passage", pa.int32(), nullable=False),
            pa.field("text", pa.utf8()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("metadata", pa.utf8()),
            pa.field("vector", pa.list_(pa.float32(), dimension)),
        ]
    )


def deletions_schema() -> pa.Schema:
    """Returns the columns of a message of deletions.

    It has no vectors, because nulls take full space.
    """
    schema = vectors_schema(1)
    return schema.remove(schema.get_field_index("vector"))


def is_deletions(batch: pa.RecordBatch) -> bool:
    """Returns whether the batch has only deletions, and no vector column."""
    return "vector" not in batch.schema.names


def vectors_of(batch: pa.RecordBatch) -> Floats:
    """Returns the vector column, float32 [n, d], without a copy.

    The values of rows without a vector (deletions) are undefined.
    """
    column = batch.column("vector")
    d = column.type.list_size
    flat = column.values.slice(column.offset * d, len(column) * d)
    array: Floats = flat.to_numpy(zero_copy_only=False).reshape(len(column), d)
    return array


def vector_column(vectors: Floats, missing: Sequence[bool] | None = None) -> pa.FixedSizeListArray:
    """Returns float32 [n, d] as an Arrow column, without a copy."""
    d = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    mask = pa.array(missing, pa.bool_()) if missing is not None and any(missing) else None
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(pa.float32(), d), mask=mask)


def rows_bytes(
    document_id: str,
    n: int,
    dimension: int,
    *,
    text_bytes: int = 0,
    metadata_json: str | None = None,
) -> int:
    """Returns a close upper bound of the bytes that a document's `n` rows take in a message."""
    each = 4 * dimension + len(document_id.encode()) + ROW_BYTES
    return n * each + text_bytes + len((metadata_json or "").encode())


def first_rows(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Returns the first row of each row's document, int64 [n]. A deletion is its own first row."""
    passages = batch.column("passage").to_numpy()
    first: NDArray[np.int64] = np.arange(len(passages), dtype=np.int64) - np.maximum(passages, 0)
    return first


def rows_key(tenant: str, collection: str, generation: int) -> bytes:
    """Returns the key of a vectors message; neither name can contain a slash."""
    return f"{tenant}/{collection}/{generation}".encode()


def parse_rows_key(key: bytes) -> tuple[str, str, int]:
    """Parses the result of `rows_key`. Raises Corrupt for any other key."""
    try:
        tenant, collection, generation = key.decode().split("/")
        return tenant, collection, int(generation)
    except ValueError:
        raise Corrupt(
            f"{key[:80]!r} is not a key of a vectors message", path="vicinage.vectors"
        ) from None


def encode_rows(batch: pa.RecordBatch, *, tenant: str, collection: str, generation: int) -> bytes:
    """Returns the value of a vectors message: an Arrow stream of one batch."""
    names = {
        "vicinage": VECTORS_FORMAT,
        "tenant": tenant,
        "collection": collection,
        "generation": str(generation),
    }
    return _stream(batch.replace_schema_metadata(names))


def decode_rows(value: bytes) -> Rows:
    """Returns the message that `encode_rows` wrote.

    Its vectors are views of `value`, without a copy. Raises Corrupt for any other bytes, before
    they take more memory than a valid message can.
    """
    try:
        schema, batches = read_stream(
            value, bytes_max=ROWS_BYTES_MAX, rows_max=ROWS_BYTES_MAX // ROW_BYTES
        )
        names = schema.metadata or {}
        _check_columns(schema)
        [batch] = batches
        _check_rows(batch)
        return Rows(
            names[b"tenant"].decode(),
            names[b"collection"].decode(),
            int(names[b"generation"]),
            batch,
        )
    except (pa.ArrowException, Refused, OSError, KeyError, ValueError) as error:
        raise Corrupt(
            f"a vectors message cannot be read: {_line(error)}", path="vicinage.vectors"
        ) from error


def _check_columns(schema: pa.Schema) -> None:
    found = (schema.metadata or {}).get(b"vicinage")
    if found not in VECTORS_FORMATS:
        raise Corrupt(
            f"a vectors message has format {found!r}, not {VECTORS_FORMAT!r}",
            path="vicinage.vectors",
        )
    if "vector" not in schema.names:
        wanted = deletions_schema()
    else:
        vector = schema.field("vector").type
        wanted = vectors_schema(
            max(1, vector.list_size) if pa.types.is_fixed_size_list(vector) else 1
        )
    if not schema.equals(wanted):
        raise Corrupt(
            "a vectors message has other columns than its format", path="vicinage.vectors"
        )


def _check_rows(batch: pa.RecordBatch) -> None:
    """Raises Corrupt for rows that would fail a later search."""
    gone = batch.column("passage").to_numpy() == DELETED
    first = first_rows(batch)
    ids, versions = batch.column("document_id"), batch.column("version").to_numpy()
    valid = (first >= 0) & (batch.column("passage").to_numpy() >= DELETED)
    if not valid.all():
        raise Corrupt(
            "a vectors message has a passage without its document's first row",
            path="vicinage.vectors",
        )
    same = ids.equals(ids.take(pa.array(first))) and bool((versions[first] == versions).all())
    heads = batch.column("passage").to_numpy()[first]
    if not same or not ((heads == 0) | gone).all():
        raise Corrupt(
            "a vectors message has a document's rows in separate places", path="vicinage.vectors"
        )
    if is_deletions(batch):
        if not gone.all():
            raise Corrupt("a vectors message has passages without vectors", path="vicinage.vectors")
        return
    present = batch.column("vector").is_valid().to_numpy(zero_copy_only=False)
    if not (present | gone).all():
        raise Corrupt("a vectors message has a passage without a vector", path="vicinage.vectors")
    vectors = vectors_of(batch)
    # A finite sum proves finite numbers, cheaply. Otherwise check the rows: deletions' are
    # undefined.
    with np.errstate(invalid="ignore", over="ignore"):
        total = vectors.sum()
    if not np.isfinite(total) and not np.isfinite(vectors[~gone]).all():
        raise Corrupt("a vectors message has a vector that is not finite", path="vicinage.vectors")


def encode_documents(documents: Sequence[Document], *, collection: str, dimension: int) -> bytes:
    """Returns valid documents of one collection as an Arrow stream, for the documents log."""
    counts = [0 if d.vectors is None else len(d.vectors) for d in documents]
    given = [d.vectors for d in documents if d.vectors is not None]
    flat = np.concatenate(given) if given else np.zeros((0, dimension), np.float32)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    batch = pa.record_batch(
        {
            "id": pa.array([d.id for d in documents], pa.utf8()),
            "text": pa.array([d.text for d in documents], pa.utf8()),
            "passages": pa.array([d.passages for d in documents], pa.list_(pa.utf8())),
            "vectors": pa.ListArray.from_arrays(offsets, vector_column(flat)),
            "metadata": pa.array([d.metadata_json for d in documents], pa.utf8()),
        }
    )
    return _stream(
        batch.replace_schema_metadata({"vicinage": DOCUMENTS_FORMAT, "collection": collection})
    )


def decode_documents(
    value: bytes, *, rows_max: int = ROWS_MAX
) -> tuple[str | None, list[pa.RecordBatch]]:
    """Returns the collection named in the stream's metadata, if any, and its validated batches.

    Raises Refused.
    """
    schema, batches = read_stream(value, bytes_max=DECODED_BYTES_MAX, rows_max=rows_max)
    names = schema.metadata or {}
    if (found := names.get(b"vicinage", DOCUMENTS_FORMAT)) != DOCUMENTS_FORMAT:
        raise Refused(
            f"the stream's format is {found[:20]!r}; supported is {DOCUMENTS_FORMAT!r}",
            field="body",
        )
    name = names.get(b"collection")
    try:
        return (name.decode() if name else None), batches
    except UnicodeDecodeError:
        raise Refused("the stream's collection is not UTF-8", field="collection") from None


def load_json(data: bytes, *, field: str = "body") -> Any:
    """Returns the JSON value in `data`.

    Raises Refused, which names the error and its position, before making too many objects;
    MemoryError.
    """
    check_shape(data, field=field)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("Not enough memory"):
            raise MemoryError from None
        if "UTF-8: " in error.msg and (at := _first_not_utf8(data)) is not None:
            raise Refused(
                f"{field} is not UTF-8 (its byte {at}): send it encoded as UTF-8", field=field
            ) from None
        raise Refused(f"{field} is not JSON: {_line(error)}", field=field) from None


def list_field(value: Any, name: str, of: str) -> list[Any]:
    """Returns the list in the only field that a JSON body has.

    Raises Refused. `of`: what it lists, for the message.
    """
    if not isinstance(value, dict):
        raise Refused("the body is a JSON object", field="body")
    if (unknown := next((given for given in value if given != name), None)) is not None:
        raise Refused(f"unknown field {unknown[:80]!r}; known is {name}", field=unknown[:80])
    found = value.get(name)
    if not isinstance(found, list):
        raise Refused(f"{name} is missing, or no list of {of}", field=name)
    return found


def _first_not_utf8(data: bytes) -> int | None:
    """Returns the index of the first byte that is not UTF-8; None if all are."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _line(error: Exception) -> str:
    return (str(error).splitlines() or ["unreadable"])[0][:200]
