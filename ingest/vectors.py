"""The documents of a job cut into passages, each with its vector: the tenant's own, or the embedder's."""

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from ingest.embedding import Embedder, Lane
from ingest.jobs import Job, Write
from tenants.entities import CLASS_WEIGHT, Tenant
from vicinage.errors import Overloaded, Unavailable
from vicinage.records import Document, Floats, Passage
from vicinage.telemetry import events

RETRY_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
_event = events("ingest")


class Cutter(Protocol):
    """Cuts a text into passages that its model reads whole."""

    def cut(self, text: str) -> list[Passage]:
        """At least one passage, in order; `text[start:end]` each."""
        ...


@dataclass(slots=True)
class Embedded:
    """Of each (write, model): its passages and their vectors."""

    pieces: dict[tuple[int, str | None], list[Passage | None]] = field(default_factory=dict)
    vectors: dict[tuple[int, str | None], Floats] = field(default_factory=dict)
    wanted: defaultdict[str, list[tuple[int, str | None]]] = field(default_factory=lambda: defaultdict(list))


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

    def of(self, job: Job, stopping: threading.Event) -> Embedded:
        """Passages and vectors of every document, for each model that a serving generation of it uses.

        An embedder that is away or busy is waited out; raises Unavailable or Overloaded once `stopping` is set meanwhile.
        """
        made = Embedded()
        for write in job.writes:
            if write.document is not None:
                for model in {g.model for g in write.collection.generations}:
                    self._cut(write, model, made)
        for model, asked in made.wanted.items():
            texts = [p.text for key in asked for p in made.pieces[key] if p is not None]
            vectors = self._embedded(job.tenant, model, texts, stopping)
            at = 0
            for key in asked:
                n = len(made.pieces[key])
                made.vectors[key] = vectors[at : at + n]
                at += n
        return made

    def _cut(self, write: Write, model: str | None, made: Embedded) -> None:
        document = write.document
        assert document is not None
        key = (id(write), model)
        if document.vectors is not None:
            made.pieces[key] = _given_pieces(document)
            made.vectors[key] = document.vectors
            return
        assert model is not None, "text without a model is rejected when it is parsed"
        cutter = self._cutter_for(model)
        made.pieces[key] = _cut_pieces(document, cutter)
        made.wanted[model].append(key)

    def _embedded(self, tenant: Tenant, model: str, texts: list[str], stopping: threading.Event) -> Floats:
        parts = [
            self._patiently(tenant, model, texts[i : i + self._batch_passages], stopping)
            for i in range(0, len(texts), self._batch_passages)
        ]
        return np.concatenate(parts)

    def _patiently(self, tenant: Tenant, model: str, texts: list[str], stopping: threading.Event) -> Floats:
        """Embed, waiting out an embedder that is away or busy: the documents are safe in the log meanwhile."""
        attempt = 0
        while True:
            try:
                return self._embedder_for(model).embed(
                    texts, tenant=tenant.name, lane=Lane.DOCUMENT, weight=CLASS_WEIGHT[tenant.priority]
                )
            except (Unavailable, Overloaded) as away:
                if attempt in (0, len(RETRY_S)):
                    _event.warning("waiting for the embedder", model=model, tenant=tenant.name, reason=str(away))
                if stopping.wait(RETRY_S[min(attempt, len(RETRY_S) - 1)]):
                    raise
                attempt += 1


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
