"""Chunks and embeds a job's documents. A vector is the tenant's own or comes from the embedder.

A model's server may refuse a text permanently. Then only that text's document is given up: a
refused call is bisected until the text is alone. A refusal of one text counts only while the
server accepts HARMLESS. After a timeout, calls get smaller (`ingest/embedding/batch_size.py`).
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol

import numpy as np

from ingest.embedding import Embedder, Lane, ServerFailed
from ingest.embedding.batch_size import BatchSizer
from ingest.jobs import Job, Write, takes_given
from tenants.entities import Generation, Tenant
from vicinage.clock import Clock
from vicinage.errors import DeadlineExceeded, Refused, Unavailable
from vicinage.records import Document, Floats, Passage
from vicinage.wire import MESSAGE_BYTES_MAX, rows_bytes

Key = tuple[int, str | None]
"""The `id()` of a write, and a model."""
FAILURES_MAX: Final = 5
"""Failures of the server on one text before its document is given up, over about a second.

The server must embed HARMLESS after the last of them.
"""
HARMLESS: Final = "hello"
"""A server that refuses this text refuses everything: the server is at fault, not a document."""


class Chunker(Protocol):
    """Chunks a text into passages that fit the model's window."""

    def chunk(self, text: str) -> list[Passage]:
        """Returns at least one passage, in order; each is `text[start:end]`."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """Texts that a model embeds in one call.

    `places` has the destination of each vector: the write and the number of the passage.
    """

    model: str
    texts: list[str]
    places: list[tuple[Key, int]]


@dataclass(slots=True)
class Embedded:
    """Passages of a job's writes for one model, and the vectors that are embedded so far.

    `calls` are the calls that remain; None until the documents are chunked. `refused` has the
    reason for each write that is given up.
    """

    pieces: dict[Key, list[Passage | None]] = field(default_factory=dict)
    vectors: dict[Key, Floats] = field(default_factory=dict)
    calls: deque[Call] | None = None
    refused: dict[int, str] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    """Failures of the model's server on calls with one text, by write."""

    def bytes(self, write: Write, generation: Generation) -> int:
        """Returns the size of the write's rows in a message of this generation."""
        if write.document is None:
            return rows_bytes(write.id, 1, 0)
        pieces = self.pieces[id(write), generation.model]
        text_bytes = sum(len(p.text.encode()) for p in pieces if p is not None)
        return rows_bytes(
            write.id,
            len(pieces),
            generation.dimension,
            text_bytes=text_bytes,
            metadata_json=write.document.metadata_json,
        )

    def give_up(self, write: int, reason: str) -> None:
        """Gives the write up for this model, and removes its texts from the remaining calls."""
        self.refused[write] = reason
        if self.calls is not None:
            self.calls = deque(left for call in self.calls if (left := _without(call, write)).texts)


class Vectors:
    """Chunks and embeds with the collection's models. Safe for many threads."""

    def __init__(
        self,
        embedder_for: Callable[[str], Embedder],
        chunker_for: Callable[[str], Chunker],
        batch_passages: int,
        clock: Clock,
    ) -> None:
        self._embedder_for = embedder_for
        self._chunker_for = chunker_for
        self._sizer = BatchSizer(batch_passages)
        self._clock = clock

    def chunk(self, job: Job, model: str | None, made: Embedded) -> None:
        """Chunks every document of the job that goes to a generation of this model.

        A no-op if they are chunked already. Raises Unavailable if the model's tokenizer is missing.
        """
        if made.calls is None:
            made.calls = deque(self._chunk_all(job, model, made))

    def embed(self, job: Job, made: Embedded, stopping: Callable[[], bool]) -> None:
        """Completes the vectors of `made`, which must be chunked.

        Raises Unavailable if the embedder is away or once `stopping()` is true, and Overloaded if
        it is busy. `made` keeps the vectors embedded so far; the next call continues from there.
        """
        while made.calls:
            if stopping():
                raise Unavailable("this work is given up", dependency="ingest")
            self._split(made.calls)
            try:
                vectors = self._timed(job.tenant, made.calls[0])
            except Refused as refused:
                self._narrow(job.tenant, made, made.calls.popleft(), refused)
            except ServerFailed as failed:
                self._isolate(job.tenant, made, failed)
            else:
                _keep(made, made.calls.popleft(), vectors)

    def _split(self, calls: deque[Call]) -> None:
        """Splits the first call so that it is no larger than its model answers in time."""
        first = calls[0]
        n = self._sizer.size(first.model)
        if len(first.texts) > n:
            calls[0] = Call(first.model, first.texts[n:], first.places[n:])
            calls.appendleft(Call(first.model, first.texts[:n], first.places[:n]))

    def _timed(self, tenant: Tenant, call: Call) -> Floats:
        start, n = self._clock.monotonic(), len(call.texts)
        try:
            vectors = self._asked(tenant, call.model, call.texts)
        except DeadlineExceeded:
            self._sizer.late(call.model, n)
            raise
        self._sizer.took(call.model, n, self._clock.monotonic() - start)
        return vectors

    def _narrow(self, tenant: Tenant, made: Embedded, call: Call, refused: Refused) -> None:
        """Splits a refused call; gives up the document of a text that is refused alone.

        Raises Unavailable if the server refuses HARMLESS too.
        """
        assert made.calls is not None
        if len(call.texts) == 1:
            made.calls.appendleft(call)
            self._check_well(tenant, call.model)
            made.give_up(call.places[0][0][0], f"the model's server refuses it: {refused.detail}")
        else:
            made.calls.extendleft(reversed(_parts(call, refused)))

    def _isolate(self, tenant: Tenant, made: Embedded, failed: ServerFailed) -> None:
        """Bisects a call that the server fails on; gives up the document of a text at fault.

        Raises Unavailable while the server is at fault, and for the first FAILURES_MAX - 1
        failures of a call with one text.
        """
        assert made.calls is not None
        call = made.calls[0]
        write, alone = call.places[0][0][0], len(call.texts) == 1
        if alone:
            made.failures[write] = made.failures.get(write, 0) + 1
            if made.failures[write] < FAILURES_MAX:
                raise failed
        try:
            self._asked(tenant, call.model, [HARMLESS])
        except Refused:
            raise failed from None
        if alone:
            made.give_up(
                write,
                f"the model's server answered 500 to it {FAILURES_MAX} times, and well to another text",
            )
        else:
            made.calls.popleft()
            made.calls.extendleft(reversed(_halves(call)))

    def _check_well(self, tenant: Tenant, model: str) -> None:
        try:
            self._asked(tenant, model, [HARMLESS])
        except Refused as unwell:
            raise Unavailable(
                f"the embedder refuses everything: {unwell}", dependency="embedder"
            ) from unwell

    def _chunk_all(self, job: Job, model: str | None, made: Embedded) -> Iterator[Call]:
        """Chunks every document for the model; yields a call for the passages to embed, if any."""
        for write in job.writes:
            for generation in job.targets(write) if write.document is not None else ():
                if generation.model == model:
                    self._chunk(write, generation, made)
        wanted = [
            (key, i)
            for key, pieces in made.pieces.items()
            if key not in made.vectors and key[0] not in made.refused
            for i in range(len(pieces))
        ]
        if wanted:
            assert model is not None, "text without a model is rejected when it is parsed"
            yield Call(model, [_text(made, place) for place in wanted], wanted)

    def _chunk(self, write: Write, generation: Generation, made: Embedded) -> None:
        """Chunks the write for the generation's model; gives it up if its rows exceed a message."""
        document, key = write.document, (id(write), generation.model)
        if document is None or key in made.pieces:
            return
        if takes_given(write, generation):
            assert document.vectors is not None
            made.pieces[key] = _given_pieces(document)
            made.vectors[key] = document.vectors
        else:
            assert generation.model is not None, (
                "text without a model is rejected when it is parsed"
            )
            made.pieces[key] = _chunk_pieces(document, self._chunker(generation.model))
        size = made.bytes(write, generation)
        if size > MESSAGE_BYTES_MAX:
            n = len(made.pieces[key])
            made.give_up(
                id(write),
                f"its {n} passages make {size} bytes; at most {MESSAGE_BYTES_MAX} in a document",
            )

    def _chunker(self, model: str) -> Chunker:
        """Returns the model's chunker. Raises Unavailable if its tokenizer is missing.

        The model counts as away: it may be installed or repaired while its documents wait.
        """
        try:
            return self._chunker_for(model)
        except Refused as missing:
            raise Unavailable(missing.detail, dependency="embedder") from missing

    def _asked(self, tenant: Tenant, model: str, texts: list[str]) -> Floats:
        return self._embedder_for(model).embed(texts, tenant=tenant.context, lane=Lane.DOCUMENT)


def _parts(call: Call, refused: Refused) -> list[Call]:
    """Splits a refused call around the text that the server names (field `input.<number>`).

    Returns its halves if the server names none.
    """
    n = len(call.texts)
    name, _, number = (refused.field or "").partition(".")
    named = int(number) if name == "input" and number.isdecimal() and int(number) < n else None
    bounds = [0, n // 2, n] if named is None else sorted({0, named, named + 1, n})
    return [Call(call.model, call.texts[a:b], call.places[a:b]) for a, b in pairwise(bounds)]


def _halves(call: Call) -> list[Call]:
    half = len(call.texts) // 2
    return [
        Call(call.model, call.texts[a:b], call.places[a:b])
        for a, b in ((0, half), (half, len(call.texts)))
    ]


def _without(call: Call, write: int) -> Call:
    kept = [i for i, (key, _) in enumerate(call.places) if key[0] != write]
    if len(kept) == len(call.places):
        return call
    return Call(call.model, [call.texts[i] for i in kept], [call.places[i] for i in kept])


def _text(made: Embedded, place: tuple[Key, int]) -> str:
    piece = made.pieces[place[0]][place[1]]
    assert piece is not None, "what is embedded has a text"
    return piece.text


def _keep(made: Embedded, call: Call, vectors: Floats) -> None:
    for (key, i), vector in zip(call.places, vectors, strict=True):
        if key not in made.vectors:
            made.vectors[key] = np.empty((len(made.pieces[key]), len(vector)), np.float32)
        made.vectors[key][i] = vector


def _given_pieces(document: Document) -> list[Passage | None]:
    assert document.vectors is not None
    if document.passages is not None:
        return [Passage(p, 0, len(p)) for p in document.passages]
    if document.text is not None:
        return [Passage(document.text, 0, len(document.text))]
    return [None] * len(document.vectors)


def _chunk_pieces(document: Document, chunker: Chunker) -> list[Passage | None]:
    assert document.text is not None or document.passages is not None, (
        "else it is rejected when it is parsed"
    )
    if document.text is not None:
        return list(chunker.chunk(document.text))
    return [piece for passage in document.passages or () for piece in chunker.chunk(passage)]
