"""Results, as frozen values."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from vicinage_client import errors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage found. `score`: greater is nearer.

    In mode hybrid it is the fused score; `dense_score` and `lexical_score` are the scores before
    fusion.
    """

    document_id: str
    passage: int
    score: float
    text: str | None = None
    metadata: Mapping[str, Any] | None = None
    vector: list[float] | None = None
    start: int | None = None
    end: int | None = None
    dense_score: float | None = None
    lexical_score: float | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits, best first, with their freshness.

    `degraded` states what is missing; None if the result is complete.
    """

    hits: tuple[Hit, ...]
    freshness: Mapping[str, Any]
    generation: int
    effort: int
    degraded: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Rejection:
    """One document that was rejected, with the reason."""

    id: str | None
    reason: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a write.

    Pass `token` to a search to see the write; None if nothing was accepted. `rejected` has at most
    REJECTED_MAX reasons; `n_rejected` counts all.
    """

    accepted: int
    rejected: tuple[Rejection, ...]
    token: str | None
    n_rejected: int = 0


@dataclass(frozen=True, slots=True)
class Deleted:
    """The result of a deletion.

    Pass `token` to a search to see the deletion; None if nothing was deleted. `matched` and
    `judged` are set by deletions by filter: how many documents passed it, and up to which position
    of the documents log it was evaluated.
    """

    accepted: int
    token: str | None
    matched: int | None = None
    judged: str | None = None


NOTHING = Written(0, (), None)
NOTHING_DELETED = Deleted(0, None)
REJECTED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of a stored document."""

    passage: int
    text: str | None
    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it is searchable now."""

    id: str
    version: int
    metadata: Mapping[str, Any]
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class CollectionFacts:
    """Facts of a collection; `raw` is the complete answer."""

    name: str
    counts: Mapping[str, int]
    generation: int
    raw: Mapping[str, Any] = field(repr=False)


def search_result(body: Mapping[str, Any]) -> SearchResult:
    """Parses the answer's JSON."""
    hits = tuple(_of(Hit, hit) for hit in body["hits"])
    return SearchResult(
        hits, body["freshness"], body["generation"], body["effort"], body["degraded"]
    )


def written(before: Written, body: Mapping[str, Any], sent: int) -> Written:
    """Returns the sum of `before` and of one more batch of `sent` documents.

    Its token waits for all of them.
    """
    room = REJECTED_MAX - len(before.rejected)
    rejected = tuple(_of(Rejection, r) for r in body.get("rejected", ())[:room])
    return Written(
        before.accepted + body["accepted"],
        before.rejected + rejected,
        latest((before.token, body.get("token"))),
        before.n_rejected + sent - body["accepted"],
    )


def deleted(before: Deleted, body: Mapping[str, Any]) -> Deleted:
    """Returns the sum of `before` and of one more call."""
    return Deleted(
        before.accepted + body["accepted"],
        latest((before.token, body.get("token"))),
        body.get("matched"),
        body.get("judged"),
    )


def search_results(content: bytes, n: int) -> "list[SearchResult | errors.VicinageError]":
    """Returns the results of a batch of `n` searches, or their errors, in the searches' order."""
    found: list[SearchResult | errors.VicinageError] = [
        errors.Unavailable("the answer of this search did not arrive; send it again")
        for _ in range(n)
    ]
    for line in content.split(b"\n"):
        if line.strip():
            body = json.loads(line)
            problem = body.get("problem")
            index = body["index"]
            found[index] = (
                search_result(body)
                if problem is None
                else errors.of(problem.get("status", 500), problem)
            )
    return found


def latest(tokens: Iterable[str | None]) -> str | None:
    """Returns the token that waits for all of `tokens`: the highest offset of each partition."""
    last: dict[int, int] = {}
    for token in tokens:
        for part in (token or "").split("."):
            partition, dash, offset = part.partition("-")
            if dash:
                last[int(partition)] = max(last.get(int(partition), -1), int(offset))
    return ".".join(f"{p}-{o}" for p, o in sorted(last.items())) or None


def document(body: Mapping[str, Any]) -> Document:
    """Parses the answer's JSON."""
    return Document(
        body["id"],
        body["version"],
        body["metadata"],
        tuple(_of(Passage, p) for p in body["passages"]),
    )


def collection(body: Mapping[str, Any]) -> CollectionFacts:
    """Parses the answer's JSON."""
    return CollectionFacts(body["name"], body["counts"], body["generation"], body)


def differences(existing: CollectionFacts, wanted: Mapping[str, Any]) -> list[str]:
    """Returns the fields of `wanted` (a creation's body) in which the collection differs."""
    raw = existing.raw
    found = {
        **raw,
        "index": raw.get("index", {}).get("spec"),
        "shards": raw.get("shards", {}).get("asked"),
    }
    objectives = raw.get("objectives", {})
    return [
        name
        for name, value in wanted.items()
        if (
            any(objectives.get(k) != v for k, v in value.items())
            if name == "objectives"
            else found.get(name) != value
        )
    ]


def collections(body: Mapping[str, Any]) -> tuple[CollectionFacts, ...]:
    """Parses the answer's JSON."""
    return tuple(collection(c) for c in body["collections"])


def letters(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Parses the answer's JSON."""
    found: list[Mapping[str, Any]] = body["letters"]
    return found


def _of(kind: type[T], given: Mapping[str, Any]) -> T:
    """Returns a value of `kind`; ignores fields that a newer platform added."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: v for k, v in given.items() if k in known})
