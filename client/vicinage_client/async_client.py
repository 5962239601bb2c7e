"""★ The client for asyncio. `client.py` has the one for threads.

Both run `operations.py`; each adds only how a call is sent and how it waits.
"""

import asyncio
import time
import weakref
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from vicinage_client import documents as pack
from vicinage_client import operations as op
from vicinage_client import requests as make
from vicinage_client import results as read
from vicinage_client.client import Documents
from vicinage_client.errors import VicinageError
from vicinage_client.operations import OnRejected, Steps, T
from vicinage_client.progress import Advance, counted, waiting_bar, writing_bar
from vicinage_client.requests import Call
from vicinage_client.results import CollectionFacts, Deleted, Document, SearchResult, Written


class AsyncClient:
    """A client for asyncio: the methods of `Client`, as coroutines.

    One client may serve several event loops, also at once: each has its own connections.
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
        with writing_bar(documents, shown=progress) as advance:
            if isinstance(documents, AsyncIterable):
                total = await self._upsert_stream(collection, documents, batch, advance)
            else:
                bodies = counted(pack.batches(documents, batch), advance)
                total = await self._run(op.upsert(collection, bodies, read.NOTHING))
        return op.settled(total, on_rejected)

    async def _upsert_stream(
        self,
        collection: str,
        documents: AsyncIterable[Mapping[str, Any]],
        batch: int,
        advance: Advance,
    ) -> Written:
        total, batcher = read.NOTHING, pack.Batcher(batch)
        try:
            async for document in documents:
                if (full := batcher.add(document)) is not None:
                    total = await self._run(op.upsert(collection, counted([full], advance), total))
        except VicinageError as error:
            error.written = error.written or total
            raise
        rest = batcher.flush()
        return await self._run(
            op.upsert(collection, counted([rest] if rest else [], advance), total)
        )

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
        with waiting_bar(shown=progress) as set_ahead:
            return await self._run(
                op.wait(collection, wait_for, timeout_s, set_ahead, time.monotonic)
            )

    async def delete_collection(self, name: str) -> None:
        """See Client.delete_collection."""
        await self._run(op.delete_collection(name))

    async def dead_letters(self, *, after: int = -1, limit: int = 100) -> list[Mapping[str, Any]]:
        """See Client.dead_letters."""
        return await self._run(op.dead_letters(after, limit))

    async def aclose(self) -> None:
        """Closes this event loop's connections.

        The connections of a loop that has ended were closed with it.
        """
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

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
