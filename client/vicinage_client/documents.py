"""Encodes documents as JSON, and packs them into request bodies. Pure.

An error names the document that cannot be sent.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from vicinage_client.errors import InvalidArgument

BATCH_MAX: Final = 10_000
"""Largest number of documents in one request."""
BATCH_BYTES: Final = 8 << 20
"""A batch is closed when it reaches this many bytes; a single document may be larger."""


class Batcher:
    """Packs encoded documents into bodies of at most `size` documents and about BATCH_BYTES."""

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= BATCH_MAX:
            raise InvalidArgument(f"batch is {size!r}; it goes from 1 to {BATCH_MAX}")
        self._size = size
        self._parts: list[bytes] = []
        self._bytes = 0

    def add(self, document: Mapping[str, Any]) -> tuple[bytes, int] | None:
        """Adds a document. Returns a body and its number of documents if that completes one."""
        self._parts.append(encoded(document))
        self._bytes += len(self._parts[-1])
        full = len(self._parts) >= self._size or self._bytes >= BATCH_BYTES
        return self.flush() if full else None

    def flush(self) -> tuple[bytes, int] | None:
        """Returns the body of the documents added since the last one, and their number.

        Returns None if there are none.
        """
        if not self._parts:
            return None
        body, n = b'{"documents":[' + b",".join(self._parts) + b"]}", len(self._parts)
        self._parts, self._bytes = [], 0
        return body, n


def batches(documents: Iterable[Mapping[str, Any]], size: int) -> Iterator[tuple[bytes, int]]:
    """Yields (body, number of documents). Reads the iterable on demand: it may be endless.

    Raises InvalidArgument, which names the document that cannot be sent.
    """
    batcher = Batcher(size)
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise InvalidArgument(
            "documents is a list, or another iterable, of documents, not a value of type"
            f" {type(documents).__name__}"
        )
    for document in documents:
        if (full := batcher.add(document)) is not None:
            yield full
    if (rest := batcher.flush()) is not None:
        yield rest


def encoded(document: Mapping[str, Any]) -> bytes:
    """Returns a document as JSON, its vectors as lists.

    Raises InvalidArgument, which names the document.
    """
    if not isinstance(document, Mapping):
        raise InvalidArgument(f"a document is a mapping with an id, not {type(document).__name__}")
    name = document.get("id")
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"a document's id is a text that is not empty, not {name!r}"[:200])
    sent = dict(document)
    for field, depth in (("vector", 1), ("vectors", 2)):
        if sent.get(field) is not None:
            sent[field] = _numbers(sent[field], depth, field, name)
    try:
        text = json.dumps(sent, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"document {name[:200]!r} cannot be sent as JSON: {fault(sent, error)}",
            document_id=name,
        ) from error


def fault(value: Any, error: Exception) -> str:
    """Returns why JSON cannot express the value, with the field; else the text of `error`."""
    is_cyclic = isinstance(error, RecursionError) or "Circular" in str(error)
    found = None if is_cyclic else _fault(value, "")
    return found or str(error) or type(error).__name__


def _fault(value: Any, path: str) -> str | None:
    """Returns the first fault within `value`, whose field is `path`; None if there is none."""
    if isinstance(value, Mapping):
        inside = ((each, f"{path}.{key}".lstrip(".")) for key, each in value.items())
        return next((found for each, name in inside if (found := _fault(each, name))), None)
    if isinstance(value, list | tuple):
        listed = (_fault(each, f"{path}[{i}]") for i, each in enumerate(value))
        return next((found for found in listed if found), None)
    return _scalar_fault(value, path)


def _scalar_fault(value: Any, path: str) -> str | None:
    if isinstance(value, str):
        lone = f"{path} has half of a surrogate pair, which is not a character"
        return None if _is_unicode(value) else lone
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is NaN or infinity"
    return None if value is None or isinstance(value, bool | int) else _type_fault(value, path)


def _type_fault(value: Any, path: str) -> str:
    kind = type(value).__name__
    if hasattr(value, "isoformat"):
        return f"{path} is a {kind}: send {path}.isoformat(), or a number"
    if hasattr(value, "tolist"):
        return f"{path} is a numpy {kind}: send {path}.tolist()"
    if isinstance(value, bytes):
        return f"{path} is bytes: send a text ({path}.decode())"
    return (
        f"{path} is a value of type {kind}: send a text, a number, a boolean, None, a list or a"
        " mapping of these"
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def vector(given: Any, field: str = "vector") -> list[float]:
    """Returns one vector as a list of finite floats. Raises InvalidArgument, also for a matrix."""
    found: list[float] = _numbers(given, 1, field, None)
    return found


def _numbers(given: Any, depth: int, field: str, document_id: str | None) -> list[Any]:
    """Returns `given` (lists, numpy or torch) as lists of finite floats, `depth` levels deep.

    Raises InvalidArgument.
    """
    try:
        return _level(given.tolist() if hasattr(given, "tolist") else given, depth)
    except (TypeError, ValueError, OverflowError) as error:
        owner = f"document {document_id[:200]!r}: " if document_id is not None else ""
        what = "a list of numbers" if depth == 1 else "a list of lists of numbers"
        raise InvalidArgument(
            f"{owner}{field} is {what}: {error}", document_id=document_id
        ) from error


def _level(given: Any, depth: int) -> list[Any]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"found {type(given).__name__}")
    if depth > 1:
        return [_level(row.tolist() if hasattr(row, "tolist") else row, depth - 1) for row in given]
    numbers = [n if type(n) is float or type(n) is int else _number(n) for n in given]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("found NaN or infinity, which JSON cannot express")
    return numbers


def _number(n: Any) -> float:
    if isinstance(n, str | bytes | list | tuple):
        raise TypeError(f"found {type(n).__name__} instead of a number")
    return float(n)
