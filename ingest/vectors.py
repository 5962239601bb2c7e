"""The documents of a job cut into passages, each with its vector: the tenant's own, or the embedder's."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ingest.embedding import Embedder, Lane
from ingest.jobs import Job, Write
from tenants.entities import CLASS_WEIGHT, Tenant
from vicinage.errors import Refused, Unavailable
from vicinage.records import Document, Floats, Passage

Key = tuple[int, str | None]
"""A write, by its identity, and a model."""


class Cutter(Protocol):
    """Cuts a text into passages that its model reads whole."""

    def cut(self, text: str) -> list[Passage]:
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
    """Of each write and model: its passages and their vectors, as far as they are made; `calls` are still to be made.

    `calls` is None until the documents are cut.
    """

    pieces: dict[Key, list[Passage | None]] = field(default_factory=dict)
    vectors: dict[Key, Floats] = field(default_factory=dict)
    calls: deque[Call] | None = None


class Vectors:
    """Cuts and embeds, by the collection's models. Safe for many threads."""

    def __init__(
        self,
        embedder_for: Callable[[str], Embedder],
        cutter_for: Callable[[str], Cutter],
        batch_passages: int,
    ) -> None:
        self._embedder_for = embedder_for
        self._cutter_for = cutter_for
        self._batch_passages = batch_passages

    def make(self, job: Job, made: Embedded, stopping: Callable[[], bool]) -> None:
        """Complete `made`: passages and vectors of every document, for each model that a serving generation of it uses.

        Raises Unavailable or Overloaded where an embedder is away or busy, and Unavailable once `stopping()`; what was made
        until then is kept in `made`, and the next try goes on from there.
        """
        if made.calls is None:
            made.calls = deque(self._cut_all(job, made))
        while made.calls:
            if stopping():
                raise Unavailable("ingest is stopping", dependency="ingest")
            vectors = self._asked(job.tenant, made.calls[0])
            _keep(made, made.calls.popleft(), vectors)

    def _cut_all(self, job: Job, made: Embedded) -> Iterator[Call]:
        """Cut every document; the calls that its passages need."""
        wanted: defaultdict[str, list[tuple[Key, int]]] = defaultdict(list)
        for write in job.writes:
            if write.document is not None:
                for model in {g.model for g in write.collection.generations}:
                    self._cut(write, write.document, model, made, wanted)
        n = self._batch_passages
        for model, places in wanted.items():
            for part in (places[i : i + n] for i in range(0, len(places), n)):
                yield Call(model, [_text(made, place) for place in part], part)

    def _cut(
        self,
        write: Write,
        document: Document,
        model: str | None,
        made: Embedded,
        wanted: defaultdict[str, list[tuple[Key, int]]],
    ) -> None:
        key = (id(write), model)
        if document.vectors is not None:
            made.pieces[key] = _given_pieces(document)
            made.vectors[key] = document.vectors
            return
        assert model is not None, "text without a model is rejected when it is parsed"
        made.pieces[key] = _cut_pieces(document, self._cutter(model))
        wanted[model].extend((key, i) for i in range(len(made.pieces[key])))

    def _cutter(self, model: str) -> Cutter:
        """A model whose tokenizer is not to be had is as good as away: it may be installed or mended while its documents wait."""
        try:
            return self._cutter_for(model)
        except Refused as missing:
            raise Unavailable(missing.detail, dependency="embedder") from missing

    def _asked(self, tenant: Tenant, call: Call) -> Floats:
        return self._embedder_for(call.model).embed(
            call.texts, tenant=tenant.name, lane=Lane.DOCUMENT, weight=CLASS_WEIGHT[tenant.priority]
        )


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


def _cut_pieces(document: Document, cutter: Cutter) -> list[Passage | None]:
    if document.text is not None:
        return list(cutter.cut(document.text))
    return [piece for passage in document.passages or () for piece in cutter.cut(passage)]
