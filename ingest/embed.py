"""The documents of a job chunked into passages, each with its vector: the tenant's own, or the embedder's.

A model's server may refuse a text for ever. Its document alone is given up then: what is refused together is asked in parts, and
a text that is refused alone is believed of a server that takes HARMLESS. What was not answered in time is asked for in smaller
calls (`ingest/embedding/batch_size.py`).
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
from tenants.entities import CLASS_WEIGHT, Generation, Tenant
from vicinage.clock import Clock
from vicinage.errors import DeadlineExceeded, Refused, Unavailable
from vicinage.records import Document, Floats, Passage
from vicinage.wire import MESSAGE_BYTES_MAX, rows_bytes

Key = tuple[int, str | None]
"""A write, by its identity, and a model."""
FAILURES_MAX: Final = 5
"""A text that a server fails on so often, over about a second, is at fault, if the server answers HARMLESS."""
HARMLESS: Final = "hello"
"""A server that refuses this refuses everything: it is unwell, and no document is at fault."""


class Chunker(Protocol):
    """Chunks a text into passages that its model reads whole."""

    def chunk(self, text: str) -> list[Passage]:
        """At least one passage, in order; `text[start:end]` each."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """Texts for a model to embed in one go, and where each one's vector belongs: whose it is and which passage."""

    model: str
    texts: list[str]
    places: list[tuple[Key, int]]


@dataclass(slots=True)
class Embedded:
    """The passages of a job's writes for one model and their vectors, as far as they are made.

    `calls` are still to be made; None until the documents are chunked. `refused` has the reason of each write that is given up.
    """

    pieces: dict[Key, list[Passage | None]] = field(default_factory=dict)
    vectors: dict[Key, Floats] = field(default_factory=dict)
    calls: deque[Call] | None = None
    refused: dict[int, str] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    """How often the model's server failed on a text of the write that was asked alone."""

    def bytes(self, write: Write, generation: Generation) -> int:
        """What the write's rows take in a message of this generation."""
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
        """Make no more of this write for this model."""
        self.refused[write] = reason
        if self.calls is not None:
            self.calls = deque(left for call in self.calls if (left := _without(call, write)).texts)


class Vectors:
    """Chunks and embeds, by the collection's models. Safe for many threads."""

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
        """Chunks every document of the job that a generation of this model takes. A no-op for what is chunked already.

        Raises Unavailable where the model's tokenizer is missing.
        """
        if made.calls is None:
            made.calls = deque(self._chunk_all(job, model, made))

    def embed(self, job: Job, made: Embedded, stopping: Callable[[], bool]) -> None:
        """Completes `made`, which is chunked: the vectors of its passages.

        Raises Unavailable or Overloaded where the embedder is away or busy, and Unavailable once `stopping()`. What was made
        until then is kept in `made`, and the next call continues from there.
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
        """Make the first call no larger than its model answers in time."""
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
        """Ask a refused call in parts; give up the document of a text that is refused alone. Raises Unavailable."""
        assert made.calls is not None
        if len(call.texts) == 1:
            made.calls.appendleft(call)
            self._check_well(tenant, call.model)
            made.give_up(call.places[0][0][0], f"the model's server refuses it: {refused.detail}")
        else:
            made.calls.extendleft(reversed(_parts(call, refused)))

    def _isolate(self, tenant: Tenant, made: Embedded, failed: ServerFailed) -> None:
        """Ask a call that the server fails on in parts; give up the document of a text that it fails on again and again.

        Raises Unavailable while it is the server that is unwell, and FAILURES_MAX - 1 times for a text by itself.
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
            made.give_up(write, f"the model's server answered 500 to it {FAILURES_MAX} times, and well to another text")
        else:
            made.calls.popleft()
            made.calls.extendleft(reversed(_halves(call)))

    def _check_well(self, tenant: Tenant, model: str) -> None:
        try:
            self._asked(tenant, model, [HARMLESS])
        except Refused as unwell:
            raise Unavailable(f"the embedder refuses everything: {unwell}", dependency="embedder") from unwell

    def _chunk_all(self, job: Job, model: str | None, made: Embedded) -> Iterator[Call]:
        """Chunks every document for the model; yields the call that its passages need, if any."""
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
        """Chunks the write's passages for the generation's model; gives it up where no message can hold its rows."""
        document, key = write.document, (id(write), generation.model)
        if document is None or key in made.pieces:
            return
        if takes_given(write, generation):
            assert document.vectors is not None
            made.pieces[key] = _given_pieces(document)
            made.vectors[key] = document.vectors
        else:
            assert generation.model is not None, "text without a model is rejected when it is parsed"
            made.pieces[key] = _chunk_pieces(document, self._chunker(generation.model))
        size = made.bytes(write, generation)
        if size > MESSAGE_BYTES_MAX:
            n = len(made.pieces[key])
            made.give_up(id(write), f"its {n} passages make {size} bytes; at most {MESSAGE_BYTES_MAX} in a document")

    def _chunker(self, model: str) -> Chunker:
        """A model whose tokenizer is not to be had is as good as away: it may be installed or mended while its documents wait."""
        try:
            return self._chunker_for(model)
        except Refused as missing:
            raise Unavailable(missing.detail, dependency="embedder") from missing

    def _asked(self, tenant: Tenant, model: str, texts: list[str]) -> Floats:
        return self._embedder_for(model).embed(
            texts, tenant=tenant.name, lane=Lane.DOCUMENT, weight=CLASS_WEIGHT[tenant.priority]
        )


def _parts(call: Call, refused: Refused) -> list[Call]:
    """A refused call without, and with only, the text that the server names (field `input.<number>`); else its halves."""
    n = len(call.texts)
    name, _, number = (refused.field or "").partition(".")
    named = int(number) if name == "input" and number.isdecimal() and int(number) < n else None
    bounds = [0, n // 2, n] if named is None else sorted({0, named, named + 1, n})
    return [Call(call.model, call.texts[a:b], call.places[a:b]) for a, b in pairwise(bounds)]


def _halves(call: Call) -> list[Call]:
    half = len(call.texts) // 2
    return [Call(call.model, call.texts[a:b], call.places[a:b]) for a, b in ((0, half), (half, len(call.texts)))]


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
    assert document.text is not None or document.passages is not None, "else it is rejected when it is parsed"
    if document.text is not None:
        return list(chunker.chunk(document.text))
    return [piece for passage in document.passages or () for piece in chunker.chunk(passage)]
