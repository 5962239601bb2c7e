"""A shard as a search sees it at one moment, and documents as they are stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from indexer.backends import Mask
from indexer.index.delta import DeltaView
from indexer.index.segment import Segment
from tenants.entities import Manifest
from vicinage.records import Floats


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """One passage of a stored document."""

    text: str | None
    start: int | None
    end: int | None
    vector: Floats


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as it is searchable now."""

    id: str
    version: int
    passages: tuple[StoredPassage, ...]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All that a search needs, as of one moment. `alive[i]` None: all rows of segment i."""

    segments: tuple[Segment, ...]
    alive: tuple[Mask | None, ...]
    delta: DeltaView
    watermark: int
    manifest: Manifest
    documents: int
    rows: int
    changes: int
    """Changes of the passages so far: two searches with an equal number saw the same passages."""
    rows_scanned: int
    """Rows that every query is compared with: of the delta, and of segments without an index."""
