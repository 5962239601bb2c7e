"""The nouns that travel between rooms. Frozen values; their bytes are made in `wire.py`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from vicinage.errors import Refused

Floats = NDArray[np.float32]
"""float32; shape [d] or [n, d] as the user says."""

Mode = Literal["dense", "lexical", "hybrid"]
"""What passages are ranked by: their vectors, their words, or both."""

Bound = Literal["rows", "cpu"]
"""What keeps a search from comparing passages one by one in place of an index: their number, or the share of time."""

PARTITION_BITS: Final = 10
"""A documents topic has at most 1,024 partitions."""
OFFSET_BITS: Final = 45
"""A version packs map epoch (8 bits), offset (45 bits) and partition (10 bits) into one int64."""

_TOKEN: Final = re.compile(r"[0-9]{1,4}-[0-9]{1,16}(\.[0-9]{1,4}-[0-9]{1,16}){0,1023}")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """One record's place in a topic, as Kafka acknowledges it."""

    partition: int
    offset: int

    def version(self) -> int:
        """Returns the version of a record here under the first partition map: offset, then partition."""
        return (self.offset << PARTITION_BITS) | self.partition


@dataclass(frozen=True, slots=True)
class Token:
    """What a write returns and a search can wait for: the last position written, per partition.

    Its text is `partition-offset`, joined by dots, so the (partition, offset) that Kafka acknowledged *is* a token.
    """

    positions: tuple[Position, ...]

    def __str__(self) -> str:
        return ".".join(f"{p.partition}-{p.offset}" for p in self.positions)

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token that `str(token)` wrote. Raises Refused(field="wait_for")."""
        if not isinstance(text, str) or not _TOKEN.fullmatch(text):
            raise Refused(
                "wait_for is not a token of ours: send back the token that a write returned", field="wait_for"
            )
        pairs = (part.split("-") for part in text.split("."))
        return cls(tuple(Position(int(p), int(o)) for p, o in pairs))

    @classmethod
    def covering(cls, positions: Sequence[Position]) -> "Token":
        """The smallest token that waits for all `positions`."""
        last: dict[int, int] = {}
        for p in positions:
            last[p.partition] = max(last.get(p.partition, -1), p.offset)
        return cls(tuple(Position(p, o) for p, o in sorted(last.items())))


LATEST: Final = Token(())
"""Waits for everything that was acknowledged to the tenant before the wait begins; its text is `latest`."""


@dataclass(frozen=True, slots=True)
class Document:
    """A valid document, as its tenant sent it. Exactly one of `text` and `passages` is set, or only `vectors`.

    `vectors` is float32 [n, d] where the tenant computed them: one row per passage. `metadata_json` is the metadata as
    JSON text, None where there is none; a document that is made without it serializes its metadata.
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
    """A document to be forgotten."""

    collection: str
    id: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """One record or one document that cannot be taken, with the reason a person can act on."""

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
    """One collection's part, of one generation, in one slot."""

    tenant: str
    collection: str
    generation: int
    slot: int

    def __str__(self) -> str:
        return f"{self.tenant}/{self.collection}/{self.generation}/{self.slot}"


@dataclass(frozen=True, slots=True)
class ShardQuery:
    """One or more questions to one shard.

    `vectors` float32 [n, d] (L2-normalised under cosine). `filter` is the JSON filter object, already validated, or
    None. `effort` None means: the shard's own choice for its objective. `exact` True scans everything (ground truth).
    `include` is a subset of {"text", "metadata", "vector"}. `catalog` is the catalog version that the plan was made on:
    the searcher has seen at least that much of the catalog before it answers. `recall` None means: the collection's objective.
    `scan` True means: live searches prove that the index misses the objective at its greatest effort; passages may be compared one by
    one in its place, within the searcher's bounds.

    `texts` has each question's text where `mode` is lexical (then `vectors` is [n, 0]) or hybrid (then both are ranked, each by
    itself, in one snapshot).
    """

    shard: ShardId
    vectors: Floats
    k: int
    filter: Mapping[str, Any] | None = None
    effort: int | None = None
    exact: bool = False
    include: frozenset[str] = frozenset({"text", "metadata"})
    catalog: int = 0
    recall: float | None = None
    scan: bool = False
    mode: Mode = "dense"
    texts: tuple[str, ...] = ()


# NOTE: a tuple: it is made for every passage of every answer, and a frozen dataclass takes four times as long.
class Hit(NamedTuple):
    """One passage found. `score`: greater is nearer (cosine, dot product, or minus the squared distance; of words BM25).

    Of a fused hit it is the fused score, and `dense_score` and `lexical_score` are those of the lists that it stood in.
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
    """One shard's answer to a ShardQuery: `hits[i]` are the best of question i by their vectors, best first, at most k.

    `lexical[i]` are those by their words; () in mode dense. In mode lexical each of `hits` is ().
    `watermark` is the vectors-log offset (exclusive) up to which the shard's snapshot is complete.
    `n_calibration_queries`: on how many recent queries of the collection the effort curves were measured, the least over the
    segments that chose an effort; 0: generated queries. `changes`: how often the shard's passages
    have changed; writes to other shards of the slot move the watermark, too.
    `greatest`: each of those segments was searched at its greatest measured effort. `scanned`: passages that were compared one by
    one in place of an index, as the query allowed. `unscanned`: why an index was searched all the same.
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
    """One stored object: where it is and what its bytes must hash to."""

    path: str
    bytes: int
    sha256: str
