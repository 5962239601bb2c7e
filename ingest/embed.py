"""Chunks and embeds a job's documents. Vectors come from the tenant or from the embedder.

A model's server may refuse a text permanently. Then only that text's document is rejected: a
refused call is bisected until the text is alone. A refusal of one text counts only while the
server accepts KNOWN_TEXT. After a timeout, calls get smaller (`ingest/embedding/batch_size.py`).
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol

import numpy as np

from ingest.embedding import Embedder, Lane, ServerFailed
from ingest.embedding.batch_size import BatchSizer
from ingest.jobs import Job, Write, uses_document_vectors
from tenants.entities import Generation, Tenant
from vicinage.clock import Clock
from vicinage.errors import DeadlineExceeded, Refused, Unavailable
from vicinage.records import Document, Floats, Passage
from vicinage.wire import MESSAGE_BYTES_MAX, rows_bytes

Key = tuple[int, str | None]
"""The `id()` of a write, and a model."""
FAILURES_MAX: Final = 5
"""Failures of the server on one text before its document is rejected, over about a second.

The server must embed KNOWN_TEXT after the last of them.
"""
KNOWN_TEXT: Final = "hello"
"""If a server refuses this text, the server is at fault, not a document."""


class Chunker(Protocol):
    """Chunks a text into passages that fit the model's window."""

    def chunk(self, text: str) -> list[Passage]:
        """Returns at least one passage, in order; each is `text[start:end]`."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """Texts that a model embeds in one call.

    `destinations` has the destination of each vector: the write and the number of the passage.
    """

    model: str
    texts: list[str]
    destinations: list[tuple[Key, int]]


@dataclass(slots=True)
class Embedded:
    """Passages of a job's writes for one model, and the vectors that are embedded so far.

    `calls` are the calls that remain; None until the documents are chunked. `refused` has the
    reason for each rejected write.
    """

    passages: dict[Key, list[Passage | None]] = field(default_factory=dict)
    vectors: dict[Key, Floats] = field(default_factory=dict)
    calls: deque[Call] | None = None
    refused: dict[int, str] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    """Failures of the model's server on calls with one text, by write."""

    def bytes(self, write: Write, generation: Generation) -> int:
        """Returns the size of the write's rows in a message of this generation."""
        if write.document is None:
            return rows_bytes(write.id, 1, 0)
        passages = self.passages[id(write), generation.model]
        text_bytes = sum(len(p.text.encode()) for p in passages if p is not None)
        return rows_bytes(
            write.id,
            len(passages),
            generation.dimension,
            text_bytes=text_bytes,
            metadata_json=write.document.metadata_json,
        )

    def reject(self, write: int, reason: str) -> None:
        """Rejects the write for this model, and removes its texts from the remaining calls."""
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

    def chunk(self, job: Job, model: str | None, embedded: Embedded) -> None:
        """Chunks every document of the job that goes to a generation of this model.

        A no-op if they are chunked already. Raises Unavailable if the model's tokenizer is missing.
        """
        if embedded.calls is None:
            embedded.calls = deque(self._chunk_all(job, model, embedded))

    def embed(self, job: Job, embedded: Embedded, stopping: Callable[[], bool]) -> None:
        """Completes the vectors of `embedded`, which must be chunked.

        Raises Unavailable if the embedder is unavailable or once `stopping()` is true, and
        Overloaded if it is busy. `embedded` keeps its vectors; the next call continues from there.
        """
        while embedded.calls:
            if stopping():
                raise Unavailable("this work is canceled", dependency="ingest")
            self._split(embedded.calls)
            try:
                vectors = self._timed(job.tenant, embedded.calls[0])
            except Refused as refused:
                self._split_refused(job.tenant, embedded, embedded.calls.popleft(), refused)
            except ServerFailed as failed:
                self._bisect_failed(job.tenant, embedded, failed)
            else:
                _store(embedded, embedded.calls.popleft(), vectors)

    def _split(self, calls: deque[Call]) -> None:
        """Splits the first call so that its model can complete it in time."""
        first = calls[0]
        n = self._sizer.size(first.model)
        if len(first.texts) > n:
            calls[0] = Call(first.model, first.texts[n:], first.destinations[n:])
            calls.appendleft(Call(first.model, first.texts[:n], first.destinations[:n]))

    def _timed(self, tenant: Tenant, call: Call) -> Floats:
        start, n = self._clock.monotonic(), len(call.texts)
        try:
            vectors = self._call_embedder(tenant, call.model, call.texts)
        except DeadlineExceeded:
            self._sizer.late(call.model, n)
            raise
        self._sizer.took(call.model, n, self._clock.monotonic() - start)
        return vectors

    def _split_refused(
        self, tenant: Tenant, embedded: Embedded, call: Call, refused: Refused
    ) -> None:
        """Splits a refused call; rejects the document of a text that is refused alone.

        Raises Unavailable if the server refuses KNOWN_TEXT too.
        """
        assert embedded.calls is not None
        if len(call.texts) == 1:
            embedded.calls.appendleft(call)
            self._check_server(tenant, call.model)
            embedded.reject(
                call.destinations[0][0][0], f"the model's server refuses it: {refused.detail}"
            )
        else:
            embedded.calls.extendleft(reversed(_parts(call, refused)))

    def _bisect_failed(self, tenant: Tenant, embedded: Embedded, failed: ServerFailed) -> None:
        """Bisects a call that the server fails on; rejects the document of a text at fault.

        Raises Unavailable while the server is at fault, and for the first FAILURES_MAX - 1
        failures of a call with one text.
        """
        assert embedded.calls is not None
        call = embedded.calls[0]
        write, alone = call.destinations[0][0][0], len(call.texts) == 1
        if alone:
            embedded.failures[write] = embedded.failures.get(write, 0) + 1
            if embedded.failures[write] < FAILURES_MAX:
                raise failed
        try:
            self._call_embedder(tenant, call.model, [KNOWN_TEXT])
        except Refused:
            raise failed from None
        if alone:
            embedded.reject(
                write,
                f"the model's server returned 500 for it {FAILURES_MAX} times, "
                "and embeds another text",
            )
        else:
            embedded.calls.popleft()
            embedded.calls.extendleft(reversed(_halves(call)))

    def _check_server(self, tenant: Tenant, model: str) -> None:
        try:
            self._call_embedder(tenant, model, [KNOWN_TEXT])
        except Refused as refused:
            raise Unavailable(
                f"the embedder refuses every text: {refused}", dependency="embedder"
            ) from refused

    def _chunk_all(self, job: Job, model: str | None, embedded: Embedded) -> Iterator[Call]:
        """Chunks every document for the model; yields a call for the passages to embed, if any."""
        for write in job.writes:
            for generation in job.targets(write) if write.document is not None else ():
                if generation.model == model:
                    self._chunk(write, generation, embedded)
        wanted = [
            (key, i)
            for key, passages in embedded.passages.items()
            if key not in embedded.vectors and key[0] not in embedded.refused
            for i in range(len(passages))
        ]
        if wanted:
            assert model is not None, "text without a model is rejected when it is parsed"
            yield Call(model, [_text(embedded, destination) for destination in wanted], wanted)

    def _chunk(self, write: Write, generation: Generation, embedded: Embedded) -> None:
        """Chunks the write for the generation's model; rejects it if its rows exceed a message."""
        document, key = write.document, (id(write), generation.model)
        if document is None or key in embedded.passages:
            return
        if uses_document_vectors(write, generation):
            assert document.vectors is not None
            embedded.passages[key] = _document_passages(document)
            embedded.vectors[key] = document.vectors
        else:
            assert generation.model is not None, (
                "text without a model is rejected when it is parsed"
            )
            embedded.passages[key] = _chunked_passages(document, self._chunker(generation.model))
        size = embedded.bytes(write, generation)
        if size > MESSAGE_BYTES_MAX:
            n = len(embedded.passages[key])
            embedded.reject(
                id(write),
                f"its {n} passages make {size} bytes; at most {MESSAGE_BYTES_MAX} in a document",
            )

    def _chunker(self, model: str) -> Chunker:
        """Returns the model's chunker. Raises Unavailable if its tokenizer is missing.

        The model counts as unavailable: it may be repaired while its documents wait.
        """
        try:
            return self._chunker_for(model)
        except Refused as missing:
            raise Unavailable(missing.detail, dependency="embedder") from missing

    def _call_embedder(self, tenant: Tenant, model: str, texts: list[str]) -> Floats:
        return self._embedder_for(model).embed(texts, tenant=tenant.context, lane=Lane.DOCUMENT)


def _parts(call: Call, refused: Refused) -> list[Call]:
    """Splits a refused call around the text that the server names (field `input.<number>`).

    Returns its halves if the server names none.
    """
    n = len(call.texts)
    name, _, number = (refused.field or "").partition(".")
    named = int(number) if name == "input" and number.isdecimal() and int(number) < n else None
    bounds = [0, n // 2, n] if named is None else sorted({0, named, named + 1, n})
    return [Call(call.model, call.texts[a:b], call.destinations[a:b]) for a, b in pairwise(bounds)]


def _halves(call: Call) -> list[Call]:
    half = len(call.texts) // 2
    return [
        Call(call.model, call.texts[a:b], call.destinations[a:b])
        for a, b in ((0, half), (half, len(call.texts)))
    ]


def _without(call: Call, write: int) -> Call:
    kept = [i for i, (key, _) in enumerate(call.destinations) if key[0] != write]
    if len(kept) == len(call.destinations):
        return call
    return Call(call.model, [call.texts[i] for i in kept], [call.destinations[i] for i in kept])


def _text(embedded: Embedded, destination: tuple[Key, int]) -> str:
    passage = embedded.passages[destination[0]][destination[1]]
    assert passage is not None, "passages that a model embeds have a text"
    return passage.text


def _store(embedded: Embedded, call: Call, vectors: Floats) -> None:
    for (key, i), vector in zip(call.destinations, vectors, strict=True):
        if key not in embedded.vectors:
            embedded.vectors[key] = np.empty((len(embedded.passages[key]), len(vector)), np.float32)
        embedded.vectors[key][i] = vector


def _document_passages(document: Document) -> list[Passage | None]:
    assert document.vectors is not None
    if document.passages is not None:
        return [Passage(p, 0, len(p)) for p in document.passages]
    if document.text is not None:
        return [Passage(document.text, 0, len(document.text))]
    return [None] * len(document.vectors)


def _chunked_passages(document: Document, chunker: Chunker) -> list[Passage | None]:
    assert document.text is not None or document.passages is not None, (
        "otherwise it is rejected when it is parsed"
    )
    if document.text is not None:
        return list(chunker.chunk(document.text))
    return [part for passage in document.passages or () for part in chunker.chunk(passage)]
