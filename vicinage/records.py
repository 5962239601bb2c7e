"""Values that packages pass to each other, frozen. `wire.py` encodes them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from vicinage.errors import Refused
from vicinage.filters import Filter

Floats = NDArray[np.float32]
"""float32; each use states the shape, [d] or [n, d]."""

Mode = Literal["dense", "lexical", "hybrid"]
"""The ranking of passages: by vectors (dense), by words (lexical), or by both (hybrid)."""

Bound = Literal["rows", "cpu"]
"""The bound that keeps a search from scanning passages: their number, or the share of CPU time."""

PARTITION_BITS: Final = 10
"""A documents topic has at most 1,024 partitions."""
OFFSET_BITS: Final = 45
"""A version packs map epoch (8 bits), offset (45 bits) and partition (10 bits) into one int64."""

POSITIONS_FORM: Final = r"[0-9]{1,4}-[0-9]{1,16}(\.[0-9]{1,4}-[0-9]{1,16}){0,1023}"
_TOKEN: Final = re.compile(POSITIONS_FORM)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The partition and offset of one record of a topic, as Kafka acknowledges it."""

    partition: int
    offset: int

    def version(self) -> int:
        """Returns the version of a record here under the first partition map.

        It orders by offset, then partition.
        """
        return (self.offset << PARTITION_BITS) | self.partition


@dataclass(frozen=True, slots=True)
class Token:
    """A token that a write returns and a search can wait for: the last position per partition.

    Its text is `partition-offset`, joined by dots, so a (partition, offset) that Kafka acknowledged
    *is* a token.
    """

    positions: tuple[Position, ...]

    def __str__(self) -> str:
        return ".".join(f"{p.partition}-{p.offset}" for p in self.positions)

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Parses the text of a token. Raises Refused(field="wait_for")."""
        if not isinstance(text, str) or not _TOKEN.fullmatch(text):
            raise Refused(
                "wait_for is not a valid token: send the token that a write returned",
                field="wait_for",
            )
        pairs = (part.split("-") for part in text.split("."))
        return cls(tuple(Position(int(p), int(o)) for p, o in pairs))

    @classmethod
    def covering(cls, positions: Sequence[Position]) -> "Token":
        """Returns the smallest token that waits for all `positions`."""
        last: dict[int, int] = {}
        for p in positions:
            last[p.partition] = max(last.get(p.partition, -1), p.offset)
        return cls(tuple(Position(p, o) for p, o in sorted(last.items())))


LATEST: Final = Token(())
"""Waits for every write acknowledged to the tenant before the wait begins; its text is `latest`."""


@dataclass(frozen=True, slots=True)
class Document:
    """A valid document, as its tenant sent it.

    Exactly one of `text` and `passages` is set, or only `vectors`. `vectors` is float32 [n, d], one
    row per passage, if the tenant computed them. `metadata_json` is the metadata as JSON text, or
    None without metadata; the constructor serializes the metadata if it is not given.
    """

    collection: str
    id: str
    text: str | None = None
    passages: tuple[str, ...] | None = None
    vectors: Floats | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metadata_json: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.metadata and self.metadata_json is None:
            object.__setattr__(self, "metadata_json", orjson.dumps(self.metadata).decode())


@dataclass(frozen=True, slots=True)
class Deletion:
    """A document to delete."""

    collection: str
    id: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record or document that cannot be ingested, with a reason that a person can act on."""

    reason: str
    field: str | None = None
    id: str | None = None
    collection: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document's text: `text == document.text[start:end]` (characters)."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, order=True)
class ShardId:
    """The part of one generation of a collection in one slot."""

    tenant: str
    collection: str
    generation: int
    slot: int

    def __str__(self) -> str:
        return f"{self.tenant}/{self.collection}/{self.generation}/{self.slot}"


@dataclass(frozen=True, slots=True)
class ShardQuery:
    """One or more searches of one shard.

    - `vectors`: float32 [n, d], L2-normalized under cosine; [n, 0] in mode lexical.
    - `filter`: the filter that the request parsed; None passes every passage.
    - `effort`: None lets the shard choose the effort for its objective.
    - `exact`: True scans everything (ground truth).
    - `include`: a subset of {"text", "metadata", "vector"}.
    - `catalog`: the catalog version of the plan; the searcher answers once it has seen it.
    - `recall`: None means the collection's objective.
    - `scan`: True if live searches prove that the index misses the objective at its greatest
      effort. The searcher may then scan passages instead, within its bounds.
    - `texts`: the text of each search in modes lexical and hybrid. Hybrid ranks by vectors and by
      words separately, in one snapshot.
    """

    shard: ShardId
    vectors: Floats
    k: int
    filter: Filter | None = None
    effort: int | None = None
    exact: bool = False
    include: frozenset[str] = frozenset({"text", "metadata"})
    catalog: int = 0
    recall: float | None = None
    scan: bool = False
    mode: Mode = "dense"
    texts: tuple[str, ...] = ()


# NOTE: a tuple, because a frozen dataclass takes four times as long to make, for every hit.
class Hit(NamedTuple):
    """One passage found.

    `score` is greater for nearer passages: cosine, dot product, or minus the squared distance; BM25
    in mode lexical. For a fused hit, `score` is the fused score; `dense_score` and `lexical_score`
    are the scores in the lists that contained it.
    """

    document_id: str
    passage: int
    score: float
    version: int
    text: str | None = None
    metadata: Mapping[str, Any] | None = None
    vector: Floats | None = None
    start: int | None = None
    end: int | None = None
    dense_score: float | None = None
    lexical_score: float | None = None


@dataclass(frozen=True, slots=True)
class ShardResult:
    """One shard's answer to a ShardQuery.

    - `hits[i]`: the hits of search i by vectors, best first, at most k; () in mode lexical.
    - `lexical[i]`: the hits of search i by words; `lexical` is () in mode dense.
    - `watermark`: the vectors-log offset (exclusive) up to which the shard's snapshot is complete.
    - `n_calibration_queries`: the number of recent queries of the collection that the effort curves
      were measured on, the least over the segments that chose an effort; 0: generated queries.
    - `changes`: how often the shard's passages have changed; writes to other shards of the slot
      move the watermark, too.
    - `greatest`: each of those segments was searched at its greatest measured effort.
    - `scanned`: passages that were scanned instead of an index, as the query allowed.
    - `unscanned`: the bound because of which an index was searched nevertheless.
    """

    shard: ShardId
    hits: tuple[tuple[Hit, ...], ...]
    watermark: int
    effort: int
    lexical: tuple[tuple[Hit, ...], ...] = ()
    n_calibration_queries: int = 0
    changes: int = 0
    greatest: bool = False
    scanned: int = 0
    unscanned: Bound | None = None


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One stored object: its path, its size, and the SHA-256 that its bytes must have."""

    path: str
    bytes: int
    sha256: str
