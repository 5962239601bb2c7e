"""★ The clients: one for threads, one for asyncio.

Both run `operations.py`; each adds only how a call is sent and how it waits.
"""

import asyncio
import contextlib
import importlib.util
import time
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from types import TracebackType
from typing import Any, Self

import httpx2

from vicinage_client import documents as pack
from vicinage_client import operations as op
from vicinage_client import requests as make
from vicinage_client import results as read
from vicinage_client.errors import InvalidArgument, VicinageError
from vicinage_client.operations import OnRejected, Steps, T
from vicinage_client.requests import Call
from vicinage_client.results import CollectionFacts, Deleted, Document, SearchResult, Written

Documents = Iterable[Mapping[str, Any]]


class Client:
    """A client of one platform with one key. Safe for use by many threads.

    Requests that get 429, 502, 503 or no answer are sent again as Retry-After says, until
    `timeout_s` has passed. Writes are safe to repeat: a document replaces the document of its id.

    Every method raises a VicinageError: InvalidArgument before anything is sent, else the error of
    the platform's answer. No error and no `repr` contains the key.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = 30.0) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._http = httpx2.Client(base_url=url, headers=make.headers(key), timeout=timeout_s)

    def __repr__(self) -> str:
        return f"Client({self._url!r})"

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
        """Returns the k best passages for a text or a vector.

        `wait_for`: a token, a Written, a Deleted, or what a Kafka producer got back: the search
        sees that write. `vector`: one vector, a list or a one-dimensional array. `mode`: "dense"
        (by vectors), "lexical" (by the text's words, without a model) or "hybrid" (by both; a
        `vector` beside the text takes the place of the text's own). `fusion`, for hybrid:
        {"method": "weighted", "dense_weight": 0.75} (the default) or {"method": "rrf"}. `rerank`:
        that many of the best are scored again, each together with the text, by the platform's
        cross-encoder, where it has one.
        """
        call = make.search(
            collection, text, vector, k, filter, wait_for, include,
            exact=exact, timeout_ms=timeout_ms, mode=mode, fusion=fusion, rerank=rerank,
        )  # fmt: skip
        return self._run(op.search(call))

    def search_batch(
        self, collection: str, searches: Iterable[Mapping[str, Any] | str]
    ) -> list[SearchResult]:
        """Returns the answers of many searches, in their order: each a text, or a mapping of `search`'s arguments.

        Raises the error of the first search that has one.
        """
        return self._run(op.search_batch(collection, searches))

    def upsert(
        self,
        collection: str,
        documents: Documents,
        *,
        batch: int = 500,
        progress: bool = False,
        on_rejected: OnRejected = "raise",
    ) -> Written:
        """Writes any number of documents in batches; returns when all are durable.

        Pass `.token` to a search to see them.

        Rejected documents do not stop the others: after the last batch, DocumentsRejected names
        them, or the result does with `on_rejected="return"`. An error during the upload has
        `written`: what is durable by then.
        """
        op.check_on_rejected(on_rejected)
        with _bar(documents, shown=progress) as advance:
            total = self._run(
                op.upsert(collection, _told(pack.batches(documents, batch), advance), read.NOTHING)
            )
        return op.settled(total, on_rejected)

    def delete(
        self,
        collection: str,
        ids: Iterable[str] | None = None,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002  (the API's own word)
        wait_for: Any = None,
    ) -> Deleted:
        """Deletes documents by `ids`, or those that pass a `filter`.

        Pass `.token` to a search to see the deletion.

        A deletion by filter covers everything that was acknowledged before it, and what `wait_for`
        names.
        """
        return self._run(op.delete(collection, ids, filter, wait_for))

    def get(self, collection: str, document_id: str, *, wait_for: Any = None) -> Document:
        """Returns one document as it is searchable now. Raises NotFound."""
        return self._run(op.get(collection, document_id, wait_for))

    def get_many(
        self, collection: str, ids: Iterable[str], *, wait_for: Any = None
    ) -> dict[str, Document]:
        """Returns the documents that exist, by id."""
        return self._run(op.get_many(collection, ids, wait_for))

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
        exist_ok: bool = False,
    ) -> CollectionFacts:
        """Creates a collection. Raises Conflict if the name is taken.

        For texts, name an embedding `model` or use the platform's default. For your own vectors,
        name their `dimension`. `metric`: cosine (default), dot or euclidean. `objectives`: recall,
        freshness_ms, latency_ms. `exist_ok`: returns an existing collection if it is as described
        here.
        """
        call = make.create_collection(name, model, dimension, metric, index, shards, objectives)
        return self._run(op.create_collection(call, exist_ok=exist_ok))

    def collections(self) -> tuple[CollectionFacts, ...]:
        """Returns all collections of this key's tenant."""
        return self._run(op.collections())

    def collection(self, name: str) -> CollectionFacts:
        """Returns the contents of a collection and its measured quality."""
        return self._run(op.collection(name))

    def wait(
        self,
        collection: str,
        wait_for: Any = "latest",
        *,
        timeout_s: float = 60.0,
        progress: bool = False,
    ) -> CollectionFacts:
        """Returns the collection's facts when a write is searchable in it.

        Raises Timeout with the reason if it is not.

        `wait_for`: as in `search`; "latest" is everything acknowledged to this tenant so far.
        `progress`: shows a bar on stderr of the records that are still ahead.
        """
        with _countdown(shown=progress) as ahead:
            return self._run(op.wait(collection, wait_for, timeout_s, ahead, time.monotonic))

    def delete_collection(self, name: str) -> None:
        """Deletes a collection with all its documents."""
        self._run(op.delete_collection(name))

    def dead_letters(self, *, after: int = -1, limit: int = 100) -> list[Mapping[str, Any]]:
        """Returns records of this tenant that could not be accepted, with their reasons."""
        return self._run(op.dead_letters(after, limit))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            call = next(steps)
            while True:
                try:
                    answer = self._send(call)
                except VicinageError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, call: Call) -> Any:
        if self._http.is_closed:
            raise InvalidArgument("this client is closed: make another")
        attempts = make.Attempts(call, self._timeout_s)
        content = call.content()
        while True:
            try:
                answer = self._http.request(
                    call.method, call.path, timeout=attempts.left_s(), **content
                )
                pause_s = attempts.answered(answer.status_code, answer.headers.get("retry-after"))
            except httpx2.TransportError as error:
                pause_s = attempts.failed(error, self._url)
            if pause_s is None:
                return make.outcome(call, answer.status_code, answer.content)
            time.sleep(pause_s)


class AsyncClient:
    """The same for asyncio.

    It may be used in several event loops, one after the other or at once: each has its connections.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = 30.0) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._headers = make.headers(key)
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    def __repr__(self) -> str:
        return f"AsyncClient({self._url!r})"

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
            collection, text, vector, k, filter, wait_for, include,
            exact=exact, timeout_ms=timeout_ms, mode=mode, fusion=fusion, rerank=rerank,
        )  # fmt: skip
        return await self._run(op.search(call))

    async def search_batch(
        self, collection: str, searches: Iterable[Mapping[str, Any] | str]
    ) -> list[SearchResult]:
        """See Client.search_batch."""
        return await self._run(op.search_batch(collection, searches))

    async def upsert(
        self,
        collection: str,
        documents: Documents | AsyncIterable[Mapping[str, Any]],
        *,
        batch: int = 500,
        progress: bool = False,
        on_rejected: OnRejected = "raise",
    ) -> Written:
        """See Client.upsert. `documents` may be an asynchronous iterable."""
        op.check_on_rejected(on_rejected)
        with _bar(documents, shown=progress) as advance:
            if isinstance(documents, AsyncIterable):
                total = await self._upsert_drawn(collection, documents, batch, advance)
            else:
                bodies = _told(pack.batches(documents, batch), advance)
                total = await self._run(op.upsert(collection, bodies, read.NOTHING))
        return op.settled(total, on_rejected)

    async def _upsert_drawn(
        self, collection: str, documents: AsyncIterable[Mapping[str, Any]], batch: int, advance: Any
    ) -> Written:
        total, batcher = read.NOTHING, pack.Batcher(batch)
        try:
            async for document in documents:
                if (full := batcher.add(document)) is not None:
                    total = await self._run(op.upsert(collection, _told([full], advance), total))
        except VicinageError as error:
            error.written = error.written or total
            raise
        rest = batcher.flush()
        return await self._run(op.upsert(collection, _told([rest] if rest else [], advance), total))

    async def delete(
        self,
        collection: str,
        ids: Iterable[str] | None = None,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002  (the API's own word)
        wait_for: Any = None,
    ) -> Deleted:
        """See Client.delete."""
        return await self._run(op.delete(collection, ids, filter, wait_for))

    async def get(self, collection: str, document_id: str, *, wait_for: Any = None) -> Document:
        """See Client.get."""
        return await self._run(op.get(collection, document_id, wait_for))

    async def get_many(
        self, collection: str, ids: Iterable[str], *, wait_for: Any = None
    ) -> dict[str, Document]:
        """See Client.get_many."""
        return await self._run(op.get_many(collection, ids, wait_for))

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
        exist_ok: bool = False,
    ) -> CollectionFacts:
        """See Client.create_collection."""
        call = make.create_collection(name, model, dimension, metric, index, shards, objectives)
        return await self._run(op.create_collection(call, exist_ok=exist_ok))

    async def collections(self) -> tuple[CollectionFacts, ...]:
        """See Client.collections."""
        return await self._run(op.collections())

    async def collection(self, name: str) -> CollectionFacts:
        """See Client.collection."""
        return await self._run(op.collection(name))

    async def wait(
        self,
        collection: str,
        wait_for: Any = "latest",
        *,
        timeout_s: float = 60.0,
        progress: bool = False,
    ) -> CollectionFacts:
        """See Client.wait."""
        with _countdown(shown=progress) as ahead:
            return await self._run(op.wait(collection, wait_for, timeout_s, ahead, time.monotonic))

    async def delete_collection(self, name: str) -> None:
        """See Client.delete_collection."""
        await self._run(op.delete_collection(name))

    async def dead_letters(self, *, after: int = -1, limit: int = 100) -> list[Mapping[str, Any]]:
        """See Client.dead_letters."""
        return await self._run(op.dead_letters(after, limit))

    async def aclose(self) -> None:
        """Closes this event loop's connections.

        Those of a loop that has ended were closed with it.
        """
        mine = self._clients.pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await mine.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _http(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx2.AsyncClient(
                base_url=self._url, headers=self._headers, timeout=self._timeout_s
            )
        return self._clients[loop]

    async def _run(self, steps: Steps[T]) -> T:
        try:
            call = next(steps)
            while True:
                try:
                    answer = await self._send(call)
                except VicinageError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, call: Call) -> Any:
        attempts = make.Attempts(call, self._timeout_s)
        content = call.content()
        while True:
            try:
                answer = await self._http().request(
                    call.method, call.path, timeout=attempts.left_s(), **content
                )
                pause_s = attempts.answered(answer.status_code, answer.headers.get("retry-after"))
            except httpx2.TransportError as error:
                pause_s = attempts.failed(error, self._url)
            if pause_s is None:
                return make.outcome(call, answer.status_code, answer.content)
            await asyncio.sleep(pause_s)


def _told(bodies: Iterable[tuple[bytes, int]], advance: Any) -> Iterator[tuple[bytes, int]]:
    """The bodies; a body's documents count as written when the next one is drawn."""
    for body, n in bodies:
        yield body, n
        advance(n)


def _check_rich() -> None:
    """Raises InvalidArgument where the bars' library is not installed: before anything is sent."""
    if importlib.util.find_spec("rich") is None:
        raise InvalidArgument(
            "progress=True needs the extra `progress`: pip install 'vicinage-client[progress]'"
        )


@contextlib.contextmanager
def _bar(documents: object, *, shown: bool) -> Iterator[Any]:
    """A progress bar on stderr where it is to be shown.

    Raises InvalidArgument without rich (extra `progress`).
    """
    if not shown:
        yield lambda _n: None
        return
    _check_rich()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = len(documents) if isinstance(documents, Sized) else None
    columns = (TextColumn("writing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("writing", total=total)
        yield lambda n: bar.advance(task, n)


@contextlib.contextmanager
def _countdown(*, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr of records that are before a write: what it is told first is the whole."""
    if not shown:
        yield lambda _ahead: None
        return
    _check_rich()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("ingesting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("ingesting", total=None)
        most = 0

        def ahead(n: int) -> None:
            nonlocal most
            most = max(most, n)
            bar.update(task, total=most, completed=most - n)

        yield ahead
