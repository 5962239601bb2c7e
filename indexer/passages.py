"""Reading single passages out of a batch: columns are unwrapped once, so that a hit costs microseconds, and copies nothing else."""

from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa

from vicinage.records import Floats, Hit
from vicinage.wire import first_rows


class Passages:
    """The rows of a vectors message or of a segment, by number. Immutable; safe for many threads."""

    __slots__ = ("_ends", "_ids", "_metadata", "_numbers", "_starts", "_texts", "_versions")

    def __init__(self, batch: pa.RecordBatch) -> None:
        ids, versions, _, passages, texts, starts, ends, metadata = batch.columns[:8]
        self._ids, self._texts, self._metadata = ids, texts, metadata
        self._versions, self._numbers = versions.to_numpy(), passages.to_numpy()
        self._starts, self._ends = starts, ends

    def hit(self, row: int, score: float, include: frozenset[str], vector: Floats) -> Hit:
        """The hit at `row`, with what `include` asks for; `vector` float32 [d] is copied if it is among that."""
        with_text = "text" in include
        return Hit(
            self._ids[row].as_py(),
            int(self._numbers[row]),
            score,
            int(self._versions[row]),
            self._texts[row].as_py() if with_text else None,
            self.metadata(row) if "metadata" in include else None,
            vector.copy() if "vector" in include else None,
            self._starts[row].as_py() if with_text else None,
            self._ends[row].as_py() if with_text else None,
        )

    def id(self, row: int) -> str:
        """The document of the passage at `row`."""
        name: str = self._ids[row].as_py()
        return name

    def metadata(self, row: int) -> Mapping[str, Any]:
        """The metadata of that document, which stands in its first row."""
        text = self._metadata[row - max(0, int(self._numbers[row]))].as_py()
        found: Mapping[str, Any] = orjson.loads(text) if text else {}
        return found

    def extent(self, row: int) -> tuple[str | None, int | None, int | None]:
        """Its text, and where in the document that begins and ends."""
        return self._texts[row].as_py(), self._starts[row].as_py(), self._ends[row].as_py()


def metadata_of(batch: pa.RecordBatch) -> list[Mapping[str, Any]]:
    """Each row's metadata, that of its document's first row; what is the same is parsed once."""
    texts = batch.column("metadata").dictionary_encode()
    parsed: list[Mapping[str, Any]] = [orjson.loads(t) if t else {} for t in texts.dictionary.to_pylist()]
    nothing: Mapping[str, Any] = {}
    found = texts.indices.take(pa.array(first_rows(batch))).to_pylist()
    return [nothing if i is None else parsed[i] for i in found]
