"""The clients: one for threads, one for asyncio. Both only send what `requests.py` makes and read what `results.py` reads."""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from types import TracebackType
from typing import Any, Self

import httpx

from vicinage_client import requests as make
from vicinage_client import results as read
from vicinage_client.requests import Call
from vicinage_client.results import CollectionFacts, Document, SearchResult, Written

Documents = Iterable[Mapping[str, Any]]


class Client:
    """Speaks to one platform with one key. Safe for many threads.

    Requests that were refused for load (429), or met a part that is away (503) or nobody at all, are tried again, as Retry-After
    says, until `timeout_s` is up. Writes are safe to repeat: a document replaces the one of its id.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=timeout_s)

    def search(
        self,
        collection: str,
        text: str | None = None,
        *,
        vector: Any = None,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002  (the API's own word)
        wait_for: Any = None,
        include: Sequence[str] | None = None,
        exact: bool = False,
        timeout_ms: int | None = None,
        mode: str | None = None,
        fusion: Mapping[str, Any] | None = None,
        rerank: int | None = None,
    ) -> SearchResult:
        """The k best passages for a text or a vector. `wait_for`: a token, a Written, or what a Kafka producer got back.

        `mode`: "dense" (by vectors, the default), "lexical" (by the text's words, without a model) or "hybrid" (by both; a
        `vector` beside the text takes the place of the text's own). `fusion`, of hybrid alone: {"method": "rrf"}, the default,
        or {"method": "weighted", "dense_weight": 0.5}. `rerank`: so many of the best are read again, each with the text, by the
        platform's cross-encoder, where it has one; the k best of those come in its order.
        """
        call = make.search(
            collection,
            text,
            vector,
            k,
            filter,
            wait_for,
            include,
            exact=exact,
            timeout_ms=timeout_ms,
            mode=mode,
            fusion=fusion,
            rerank=rerank,
        )
        return read.search_result(self._send(call))

    def upsert(self, collection: str, documents: Documents, *, batch: int = 500, progress: bool = False) -> Written:
        """Write documents, however many, in batches; returns when all are durable. Hand `.token` to a search to see them."""
        total = read.NOTHING
        with _bar(documents, shown=progress) as advance:
            for run in make.batches(documents, batch):
                total = read.written(total, self._send(make.upsert(collection, run)))
                advance(len(run))
        return total

    def delete(self, collection: str, ids: Sequence[str]) -> str | None:
        """Forget documents; the token of the deletion."""
        return read.token(self._send(make.delete(collection, ids)))

    def get(self, collection: str, document_id: str, *, wait_for: Any = None) -> Document:
        """One document as it is searchable now. Raises NotFound."""
        return read.document(self._send(make.document(collection, document_id, wait_for)))

    def create_collection(
        self,
        name: str,
        *,
        model: str | None = None,
        dimension: int | None = None,
        metric: str | None = None,
        index: str | None = None,
        shards: int | None = None,
        objectives: Mapping[str, Any] | None = None,
    ) -> CollectionFacts:
        """Make a collection.

        Of texts: with an embedding `model` (the platform's default unless named). Of your own vectors: with their
        `dimension`. `metric`: cosine (default), dot or euclidean. `objectives`: recall, freshness_ms, latency_ms.
        """
        call = make.create_collection(name, model, dimension, metric, index, shards, objectives)
        return read.collection(self._send(call))

    def collections(self) -> tuple[CollectionFacts, ...]:
        """All collections of this key's tenant."""
        return read.collections(self._send(Call("GET", "/v1/collections")))

    def collection(self, name: str) -> CollectionFacts:
        """What a collection holds, and what was measured of it."""
        return read.collection(self._send(Call("GET", make.collection(name))))

    def delete_collection(self, name: str) -> None:
        """Delete a collection with all its documents."""
        self._send(Call("DELETE", make.collection(name)))

    def dead_letters(self, *, after: int = -1, limit: int = 100) -> list[Mapping[str, Any]]:
        """Records of this tenant that could not be taken, with their reasons."""
        return read.letters(self._send(make.dead_letters(after, limit)))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call) -> Any:
        attempts = make.Attempts(call, self._timeout_s)
        while True:
            try:
                answer = self._http.request(call.method, call.path, timeout=attempts.left_s(), **call.content())
                pause_s = attempts.answered(answer.status_code, answer.headers.get("retry-after"))
            except httpx.TransportError as error:
                pause_s = attempts.failed(error, self._http.base_url)
            if pause_s is None:
                return make.outcome(answer.status_code, answer.content)
            time.sleep(pause_s)


class AsyncClient:
    """The same for asyncio."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=timeout_s)

    async def search(
        self,
        collection: str,
        text: str | None = None,
        *,
        vector: Any = None,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002  (the API's own word)
        wait_for: Any = None,
        include: Sequence[str] | None = None,
        exact: bool = False,
        timeout_ms: int | None = None,
        mode: str | None = None,
        fusion: Mapping[str, Any] | None = None,
        rerank: int | None = None,
    ) -> SearchResult:
        """See Client.search."""
        call = make.search(
            collection,
            text,
            vector,
            k,
            filter,
            wait_for,
            include,
            exact=exact,
            timeout_ms=timeout_ms,
            mode=mode,
            fusion=fusion,
            rerank=rerank,
        )
        return read.search_result(await self._send(call))

    async def upsert(
        self, collection: str, documents: Documents, *, batch: int = 500, progress: bool = False
    ) -> Written:
        """See Client.upsert."""
        total = read.NOTHING
        with _bar(documents, shown=progress) as advance:
            for run in make.batches(documents, batch):
                total = read.written(total, await self._send(make.upsert(collection, run)))
                advance(len(run))
        return total

    async def delete(self, collection: str, ids: Sequence[str]) -> str | None:
        """See Client.delete."""
        return read.token(await self._send(make.delete(collection, ids)))

    async def get(self, collection: str, document_id: str, *, wait_for: Any = None) -> Document:
        """See Client.get."""
        return read.document(await self._send(make.document(collection, document_id, wait_for)))

    async def create_collection(
        self,
        name: str,
        *,
        model: str | None = None,
        dimension: int | None = None,
        metric: str | None = None,
        index: str | None = None,
        shards: int | None = None,
        objectives: Mapping[str, Any] | None = None,
    ) -> CollectionFacts:
        """See Client.create_collection."""
        call = make.create_collection(name, model, dimension, metric, index, shards, objectives)
        return read.collection(await self._send(call))

    async def collections(self) -> tuple[CollectionFacts, ...]:
        """See Client.collections."""
        return read.collections(await self._send(Call("GET", "/v1/collections")))

    async def collection(self, name: str) -> CollectionFacts:
        """See Client.collection."""
        return read.collection(await self._send(Call("GET", make.collection(name))))

    async def delete_collection(self, name: str) -> None:
        """See Client.delete_collection."""
        await self._send(Call("DELETE", make.collection(name)))

    async def dead_letters(self, *, after: int = -1, limit: int = 100) -> list[Mapping[str, Any]]:
        """See Client.dead_letters."""
        return read.letters(await self._send(make.dead_letters(after, limit)))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(self, call: Call) -> Any:
        attempts = make.Attempts(call, self._timeout_s)
        while True:
            try:
                answer = await self._http.request(call.method, call.path, timeout=attempts.left_s(), **call.content())
                pause_s = attempts.answered(answer.status_code, answer.headers.get("retry-after"))
            except httpx.TransportError as error:
                pause_s = attempts.failed(error, self._http.base_url)
            if pause_s is None:
                return make.outcome(answer.status_code, answer.content)
            await asyncio.sleep(pause_s)


@contextlib.contextmanager
def _bar(documents: Documents, *, shown: bool) -> Iterator[Any]:
    """A progress bar on stderr where rich is installed (extra `progress`); else nothing."""
    if not shown:
        yield lambda _n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = len(documents) if isinstance(documents, Sized) else None
    columns = (TextColumn("writing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("writing", total=total)
        yield lambda n: bar.advance(task, n)
