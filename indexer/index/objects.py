"""Reads the objects of a segment from the store: verifies their bytes and their format."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexer.index import lexical
from tenants.entities import Fault, SegmentRef
from tenants.index_spec import parse
from vicinage.errors import Corrupt, NotFound, Refused
from vicinage.store import Store
from vicinage.wire import vectors_schema

DOCUMENT_COLUMNS: Final = {
    "high": pa.uint64(),
    "low": pa.uint64(),
    "first": pa.int32(),
    "count": pa.int32(),
    "version": pa.int64(),
    "deleted_id": pa.utf8(),
}
"""Columns of the documents object."""
T = TypeVar("T")
Role = str
"""The role of an object in its segment: passages, documents, index or lexical."""


class Damaged(Corrupt):
    """An object of a segment that cannot be used."""

    def __init__(self, detail: str, *, path: str, role: Role, fault: Fault) -> None:
        super().__init__(detail, path=path)
        self.role = role
        self.fault: Fault = fault


@dataclass(frozen=True, slots=True)
class Keys:
    """Document ids as 128-bit hashes, in two halves: uint64 [n] each."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    @classmethod
    def of(cls, ids: Iterable[str]) -> "Keys":
        """Returns the keys of these ids."""
        digests = b"".join(hashlib.blake2b(i.encode(), digest_size=16).digest() for i in ids)
        halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
        return cls(halves[:, 0].copy(), halves[:, 1].copy())

    def find(self, keys: "Keys") -> NDArray[np.int64]:
        """Returns the index of each key among these, which must be sorted; −1 for an absent key."""
        found = np.full(len(keys.high), -1, np.int64)
        if len(self.high) == 0:
            return found
        positions = np.searchsorted(self.high, keys.high)
        open_ = np.arange(len(positions))
        while len(open_):  # again only where two documents share the high half
            open_ = open_[positions[open_] < len(self.high)]
            at = positions[open_]
            same = self.high[at] == keys.high[open_]
            hit = same & (self.low[at] == keys.low[open_])
            found[open_[hit]] = at[hit]
            open_ = open_[same & ~hit]
            positions[open_] += 1
        return found


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a segment, sorted by key: rows [first, first + count) at `version`.

    `count` 0 means deleted; `deleted` has the ids of those documents by index.
    """

    keys: Keys
    first: NDArray[np.int32]
    count: NDArray[np.int32]
    version: NDArray[np.int64]
    deleted: Mapping[int, str]

    def deletes(self) -> pa.RecordBatch:
        """Returns the deletions as `segment_writer.write` takes them."""
        positions = list(self.deleted)
        names = pa.array([self.deleted[p] for p in positions], pa.utf8())
        return pa.record_batch(
            {"document_id": names, "version": pa.array(self.version[positions], pa.int64())}
        )


OnDamage = Callable[[Damaged], None]


def opened(
    ref: SegmentRef,
    role: Role,
    store: Store,
    read: Callable[[Path], T],
    barred: frozenset[str] = frozenset(),
) -> T:
    """Returns `read(file)` for the segment's object once it is verified.

    Raises Damaged, Unavailable.
    """
    stored = ref.objects[role]
    fault: Fault = "corrupt"
    try:
        if stored.path in barred:
            raise Corrupt(f"object {stored.path} is in quarantine", path=stored.path)
        if old := outdated(ref).get(role):
            fault = "format"
            raise Corrupt(f"older format: {old}", path=stored.path)
        file = store.fetch(stored)
        fault = "format"  # these are the bytes that were written
        return read(file)
    except NotFound as lost:
        raise Damaged(lost.detail, path=stored.path, role=role, fault="lost") from lost
    except Corrupt as corrupt:
        raise Damaged(corrupt.detail, path=stored.path, role=role, fault=fault) from corrupt


def outdated(ref: SegmentRef) -> dict[Role, str]:
    """Returns the objects that this version does not read, and why, from the manifest alone.

    Pure.
    """
    found: dict[Role, str] = {}
    if "lexical" in ref.objects and not ref.objects["lexical"].path.endswith(f"/{lexical.FILE}"):
        found["lexical"] = (
            f"its words are in {Path(ref.objects['lexical'].path).name}; this version reads "
            f"{lexical.FILE}"
        )
    try:
        parse(ref.kind)
    except Refused:
        if "index" in ref.objects:
            found["index"] = f"this version reads no index of kind {ref.kind[:80]!r}"
    return found


def read_passages(path: Path, n: int) -> pa.RecordBatch:
    """Returns the `n` rows of a segment, memory-mapped. Raises Corrupt."""
    rows = _read(path)
    if rows.num_rows != n:
        raise Corrupt(
            f"{path.name} has {rows.num_rows} rows, its manifest says {n}", path=str(path)
        )
    if _columns(rows.schema) != _columns(vectors_schema(_dimension(rows.schema))):
        raise Corrupt(
            f"older format: the columns of {path.name} are {', '.join(rows.schema.names)}",
            path=str(path),
        )
    return rows


def read_documents(path: Path) -> Documents:
    """Returns the documents of a segment. Raises Corrupt."""
    found = _read(path)
    if not DOCUMENT_COLUMNS.items() <= dict(_columns(found.schema)).items():
        raise Corrupt(
            f"older format: the columns of {path.name} are {', '.join(found.schema.names)}",
            path=str(path),
        )
    column = {
        name: found.column(name).to_numpy(zero_copy_only=False)
        for name in ("high", "low", "first", "count", "version")
    }
    gone = np.flatnonzero(column["count"] == 0)
    names = found.column("deleted_id").take(pa.array(gone)).to_pylist()
    deleted = dict(zip(gone.tolist(), names, strict=True))
    return Documents(
        Keys(column["high"], column["low"]),
        column["first"],
        column["count"],
        column["version"],
        deleted,
    )


def converted(path: Path) -> pa.RecordBatch:
    """Returns the rows of a segment that an older version wrote; columns that it lacks are null.

    Raises Corrupt.
    """
    rows = _read(path)
    schema = vectors_schema(_dimension(rows.schema))
    try:
        columns = [_column(rows, field) for field in schema]
    except (pa.ArrowException, KeyError) as error:
        raise Corrupt(
            f"the columns of {path.name} cannot be converted: {error}", path=str(path)
        ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(rows: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name in rows.schema.names:
        return rows.column(field.name).cast(field.type)
    if not field.nullable:
        raise KeyError(field.name)
    return pa.nulls(rows.num_rows, field.type)


def _columns(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in schema]


def _dimension(schema: pa.Schema) -> int:
    """Returns the dimension of the vectors; 1 without a column of vectors: the schemas differ."""
    found = schema.field("vector").type if "vector" in schema.names else None
    return int(found.list_size) if found is not None and pa.types.is_fixed_size_list(found) else 1


def _read(path: Path) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.num_record_batches != 1:
            raise Corrupt(
                f"{path.name} has {reader.num_record_batches} batches, not one", path=str(path)
            )
        return reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise Corrupt(f"{path.name} cannot be read: {error}", path=str(path)) from error
