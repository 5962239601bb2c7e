"""Reads single passages of a batch from the columns' buffers.

A hit costs microseconds and copies nothing but what it includes.
"""

from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa

from vicinage.records import Floats, Hit
from vicinage.wire import first_rows


class Passages:
    """The rows of a vectors message or of a segment, by number.

    Immutable; safe for many threads.
    """

    __slots__ = ("_batch", "_read")

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._read: _Columns | None = None
        """Made when a row is first read: most messages are sealed before."""

    def _columns(self) -> "_Columns":
        read = self._read
        if read is None:
            read = self._read = _Columns(self._batch)
        return read

    def hit(self, row: int, score: float, include: frozenset[str], vectors: Floats) -> Hit:
        """Returns the hit at `row` with the fields in `include`.

        Copies its row of `vectors` float32 [n, d] if the vector is included.
        """
        c = self._read or self._columns()
        text = start = end = None
        if "text" in include:
            text, start, end = c.texts[row], c.starts[row], c.ends[row]
        return Hit(
            c.ids[row],  # type: ignore[arg-type]  # never null
            c.numbers[row],
            score,
            c.versions[row],
            text,
            self.metadata(row) if "metadata" in include else None,
            vectors[row].copy() if "vector" in include else None,
            start,
            end,
        )

    def id(self, row: int) -> str:
        """Returns the id of the document at `row`."""
        name = self._columns().ids[row]
        assert name is not None, "the schema requires an id in every row"
        return name

    def name(self, row: int) -> tuple[str, int]:
        """Returns the document id and the passage's number at `row`."""
        return self.id(row), self._columns().numbers[row]

    def metadata(self, row: int) -> Mapping[str, Any]:
        """Returns the document's metadata, which is stored in its first row."""
        c = self._columns()
        text = c.metadata[row - max(0, c.numbers[row])]
        return _object(text)

    def extents(
        self, first: int, n: int
    ) -> tuple[list[str | None], list[int | None], list[int | None]]:
        """Returns the texts, starts and ends (in the document) of `n` rows from `first` on."""
        texts, starts, ends = (
            self._batch.column(name).slice(first, n).to_pylist()
            for name in ("text", "start", "end")
        )
        return texts, starts, ends


class _Columns:
    """The columns of a batch that hits are read from."""

    __slots__ = ("ends", "ids", "metadata", "numbers", "starts", "texts", "versions")

    def __init__(self, batch: pa.RecordBatch) -> None:
        ids, versions, _, passages, texts, starts, ends, metadata = batch.columns[:8]
        self.ids, self.texts, self.metadata = _Strings(ids), _Strings(texts), _Strings(metadata)
        self.versions, self.numbers = (
            memoryview(versions.to_numpy()),
            memoryview(passages.to_numpy()),
        )
        self.starts, self.ends = _numbers(starts), _numbers(ends)


class _Strings:
    """A column of text, read at a third of the cost of an Arrow scalar."""

    __slots__ = ("_bytes", "_ends", "_valid")

    def __init__(self, column: pa.StringArray) -> None:
        _, offsets, data = column.buffers()
        self._ends = (
            memoryview(offsets).cast("i")[column.offset :]
            if offsets is not None
            else memoryview(bytes(4)).cast("i")
        )
        self._bytes = memoryview(data if data is not None else b"")
        self._valid = _valid(column)

    def __getitem__(self, row: int) -> str | None:
        if self._valid is not None and not self._valid[row]:
            return None
        return str(self._bytes[self._ends[row] : self._ends[row + 1]], "utf-8")


class _Nullable:
    """A column of integers with nulls."""

    __slots__ = ("_numbers", "_valid")

    def __init__(self, numbers: memoryview, valid: memoryview) -> None:
        self._numbers, self._valid = numbers, valid

    def __getitem__(self, row: int) -> int | None:
        return self._numbers[row] if self._valid[row] else None


def _numbers(column: pa.Array) -> "memoryview | _Nullable":
    valid = _valid(column)
    return (
        memoryview(column.to_numpy())
        if valid is None
        else _Nullable(memoryview(column.fill_null(0).to_numpy()), valid)
    )


def _valid(column: pa.Array) -> memoryview | None:
    """Returns which rows have a value; None if all have."""
    return (
        memoryview(column.is_valid().to_numpy(zero_copy_only=False)) if column.null_count else None
    )


def _object(text: str | None) -> Mapping[str, Any]:
    """Returns the JSON object; {} if the text is none.

    A record that another producer appended must not fail every search.
    """
    try:
        found = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def metadata_of(batch: pa.RecordBatch) -> list[Mapping[str, Any]]:
    """Returns each row's metadata: that of its document's first row. Parses equal texts once."""
    texts = batch.column("metadata").dictionary_encode()
    parsed = [_object(text) for text in texts.dictionary.to_pylist()]
    nothing: Mapping[str, Any] = {}
    found = texts.indices.take(pa.array(first_rows(batch))).to_pylist()
    return [nothing if i is None else parsed[i] for i in found]
