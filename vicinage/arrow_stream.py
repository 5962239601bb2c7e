"""Reads Arrow IPC streams from untrusted clients, message by message, and checks claims first.

A compressed buffer begins with its claimed decompressed length, and Arrow allocates that much at
once: a megabyte can claim a terabyte. So the claims of each batch are summed first, from its header
(format: Message.fbs and Schema.fbs of Apache Arrow, columnar format 1.x). Messages of an older
metadata version are refused: in V4 the compression may be declared in the message's custom metadata
instead (Arrow 0.17).
"""

import struct
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import pyarrow as pa

from vicinage.errors import Refused

_HEADER: Final = 2
"""Field of a Message: the batch's own table."""
_NODES, _BUFFERS, _COMPRESSION = 1, 2, 3
"""Fields of a RecordBatch."""
_NOT_COMPRESSED: Final = -1
"""Length prefix of a buffer that is not compressed, in a compressed batch."""


COLUMNS_MAX: Final = 32
BATCHES_MAX: Final = 1_000
"""Largest number of record batches in one stream: each costs about 100 µs, however small."""
DECODED_FLOOR: Final = 16 << 20
"""Decompressed bytes that a stream of any size may have."""
DECODED_RATIO: Final = 32
"""Further decompressed bytes per byte of the stream.

Text compresses about 10:1; only artificial data compresses 1000:1.
"""


def read_stream(
    value: bytes, *, bytes_max: int, rows_max: int
) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Returns the schema and the fully validated batches of one Arrow stream.

    Raises Refused for bytes that are not a complete stream. Raises it, too, before decoding a batch
    that would exceed `bytes_max`, the bound for the stream's size (DECODED_FLOOR, DECODED_RATIO),
    or `rows_max` in total.
    """
    bytes_max = min(bytes_max, DECODED_FLOOR + DECODED_RATIO * len(value))
    try:
        source = pa.BufferReader(value)
        messages = pa.ipc.MessageReader.open_stream(source)
        schema = _schema(messages.read_next_message())
        batches = _batches(messages, schema, bytes_max, rows_max)
    except StopIteration:
        raise Refused("the body is not an Arrow IPC stream: it is empty", field="body") from None
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
        first = (str(error).splitlines() or ["unreadable"])[0][:200]
        raise Refused(
            f"the body is not a complete Arrow IPC stream: {first}", field="body"
        ) from error
    if (n := len(value) - source.tell()) > 0:
        raise Refused(
            f"{n} bytes follow the end of the Arrow stream: send one stream", field="body"
        )
    return schema, batches


def _schema(message: Any) -> pa.Schema:
    # NOTE: pyarrow's function does not check the message's type, and reads beyond its end: a crash.
    if message.type != "schema":
        raise Refused(
            f"the Arrow stream begins with a {message.type}, not with its schema", field="body"
        )
    _check_version(message)
    schema = pa.ipc.read_schema(message)
    if not schema.names:  # NOTE: reading the names also detects one that is not UTF-8
        raise Refused("the Arrow stream has no columns", field="body")
    if len(schema) > COLUMNS_MAX:
        raise Refused(
            f"the Arrow stream has more than {COLUMNS_MAX} columns", field="body", limit=COLUMNS_MAX
        )
    return schema


def _check_version(message: Any) -> None:
    if message.metadata_version != pa.ipc.MetadataVersion.V5:
        raise Refused(
            f"the Arrow stream has metadata version {message.metadata_version.name}: write it "
            "with V5 (Arrow 1.0 or later)",
            field="body",
        )


def _batches(
    messages: Any, schema: pa.Schema, bytes_max: int, rows_max: int
) -> list[pa.RecordBatch]:
    found: list[pa.RecordBatch] = []
    n_bytes = n_rows = 0
    for message in messages:
        if message.type != "record batch":
            raise Refused(
                f"the Arrow stream has a {message.type}: send plain columns", field="body"
            )
        _check_version(message)
        if len(found) == BATCHES_MAX:
            raise Refused(
                f"the Arrow stream has more than {BATCHES_MAX} record batches: write fewer and "
                "larger ones",
                field="body",
                limit=BATCHES_MAX,
            )
        n_bytes += claimed_bytes(message)
        if n_bytes > bytes_max:
            raise Refused(
                f"the Arrow stream is larger than {bytes_max} bytes once decompressed",
                field="body",
                limit=bytes_max,
            )
        batch = pa.ipc.read_record_batch(message, schema)
        n_rows += batch.num_rows
        if n_rows > rows_max:
            raise Refused(
                f"the Arrow stream has more than {rows_max} rows", field="body", limit=rows_max
            )
        batch.validate(full=True)
        found.append(batch)
    return found


def claimed_of(value: bytes) -> int:
    """Returns the claimed memory of a stream's record batches, bytes; 0 if it is not a stream."""
    try:
        messages = pa.ipc.MessageReader.open_stream(value)
        return sum(
            claimed_bytes(m) for m in islice(messages, BATCHES_MAX) if m.type == "record batch"
        )
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError, Refused):
        return 0  # `read_stream` raises the error


def claimed_bytes(message: Any) -> int:
    """Returns the memory that a record batch claims in its header and its buffers' prefixes, bytes.

    A column may have a length but no buffer (lists of nulls): a value counts as at least one byte.
    """
    header = _Table.root(message.metadata.to_pybytes()).table(_HEADER)
    body = memoryview(message.body)
    n_values = sum(length for length, _ in header.pairs(_NODES))
    if header.offset_of(_COMPRESSION) is None:
        return max(n_values, len(body))
    return max(n_values, sum(_claim(body, *pair) for pair in header.pairs(_BUFFERS)))


def _claim(body: memoryview, offset: int, length: int) -> int:
    if length == 0:
        return 0
    (claimed,) = struct.unpack_from("<q", body, offset)
    if claimed == _NOT_COMPRESSED:
        return length
    if claimed < 0:
        raise Refused("a buffer of the Arrow stream claims a negative length", field="body")
    return int(claimed)


@dataclass(frozen=True, slots=True)
class _Table:
    """A flatbuffers table at byte `at` of `data`.

    It begins with the signed offset back to its vtable, which has the offset of each field.
    """

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, _u32(data, 0))

    def offset_of(self, field: int) -> int | None:
        """Returns the field's position in `data`; None if it is omitted."""
        (back,) = struct.unpack_from("<i", self.data, self.at)
        vtable = self.at - back
        size, slot = _u16(self.data, vtable), 4 + 2 * field
        step = _u16(self.data, vtable + slot) if slot + 2 <= size else 0
        return self.at + step if step else None

    def table(self, field: int) -> "_Table":
        """Returns the table that the field points to."""
        return _Table(self.data, self._pointed(field))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """Returns the field's vector of pairs of int64."""
        start = self._pointed(field)
        numbers = struct.unpack_from(f"<{2 * _u32(self.data, start)}q", self.data, start + 4)
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _pointed(self, field: int) -> int:
        at = self.offset_of(field)
        if at is None:
            raise ValueError(f"a header lacks field {field}")
        return at + _u32(self.data, at)


def _u16(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", data, at)[0])


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
