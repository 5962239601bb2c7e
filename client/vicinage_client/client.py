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
from vicinage_client.errors import Unreachable
from vicinage_client.requests import Call
from vicinage_client.results import CollectionFacts, Document, SearchResult, Written

Documents = Iterable[Mapping[str, Any]]


class Client:
    """Speaks to one platform with one key. Safe for many threads.

    Requests that were refused for load (429), or met a part that is away (503), are tried again until `timeout_s` is up. Writes are
    safe to repeat: a document replaces the one of its id.
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
    ) -> SearchResult:
        """The k best passages for a text or a vector. `wait_for`: a token, a Written, or what a Kafka producer got back."""
        call = make.search(collection, text, vector, k, filter, wait_for, include, exact=exact, timeout_ms=timeout_ms)
        return read.search_result(self._send(call))

    def upsert(self, collection: str, documents: Documents, *, batch: int = 500, progress: bool = False) -> Written:
        """Write documents, however many, in batches; returns when all are durable. Hand `.token` to a search to see them."""
        path, bodies = f"{make.collection(collection)}/documents", []
        with _bar(documents, shown=progress) as advance:
            for run in make.batches(documents, batch):
                bodies.append(self._send(Call("POST", path, {"documents": [make.plain(d) for d in run]})))
                advance(len(run))
        return read.written(bodies)

    def delete(self, collection: str, ids: Sequence[str]) -> str | None:
        """Forget documents; the token of the deletion."""
        answer = self._send(Call("POST", f"{make.collection(collection)}/documents:delete", {"ids": list(ids)}))
        token: str | None = answer["token"]
        return token

    def get(self, collection: str, document_id: str, *, wait_for: Any = None) -> Document:
        """One document as it is searchable now. Raises NotFound."""
        return read.document(self._send(make.document(collection, document_id, wait_for)))

    def create_collection(self, name: str, **given: Any) -> CollectionFacts:
        """Make a collection: `model` or `dimension`, `metric`, `index`, `shards`, `objectives`."""
        return read.collection(self._send(Call("POST", "/v1/collections", {"name": name, **given})))

    def collections(self) -> tuple[CollectionFacts, ...]:
        """All collections of this key's tenant."""
        return tuple(read.collection(c) for c in self._send(Call("GET", "/v1/collections"))["collections"])

    def collection(self, name: str) -> CollectionFacts:
        """What a collection holds, and what was measured of it."""
        return read.collection(self._send(Call("GET", make.collection(name))))

    def delete_collection(self, name: str) -> None:
        """Delete a collection with all its documents."""
        self._send(Call("DELETE", make.collection(name)))

    def dead_letters(self, *, after: int = -1, limit: int = 100) -> list[Mapping[str, Any]]:
        """Records of this tenant that could not be taken, with their reasons."""
        letters: list[Mapping[str, Any]] = self._send(Call("GET", f"/v1/dead-letters?after={after}&limit={limit}"))[
            "letters"
        ]
        return letters

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call) -> Any:
        end = time.monotonic() + self._timeout_s + call.wait_s
        attempt = 0
        while True:
            status, retry_after, content = self._once(call)
            pause = make.pause_s(status, retry_after, attempt)
            if pause is None or time.monotonic() + pause > end:
                if status == 0:
                    raise Unreachable(content.decode())
                return make.outcome(status, content)
            time.sleep(pause)
            attempt += 1

    def _once(self, call: Call) -> tuple[int, str | None, bytes]:
        try:
            answer = self._http.request(call.method, call.path, json=call.body, timeout=self._timeout_s + call.wait_s)
        except httpx.TransportError as error:
            return 0, None, f"{self._http.base_url}: {error or type(error).__name__}".encode()
        return answer.status_code, answer.headers.get("retry-after"), answer.content


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
    ) -> SearchResult:
        """See Client.search."""
        call = make.search(collection, text, vector, k, filter, wait_for, include, exact=exact, timeout_ms=timeout_ms)
        return read.search_result(await self._send(call))

    async def upsert(
        self, collection: str, documents: Documents, *, batch: int = 500, progress: bool = False
    ) -> Written:
        """See Client.upsert."""
        path, bodies = f"{make.collection(collection)}/documents", []
        with _bar(documents, shown=progress) as advance:
            for run in make.batches(documents, batch):
                bodies.append(await self._send(Call("POST", path, {"documents": [make.plain(d) for d in run]})))
                advance(len(run))
        return read.written(bodies)

    async def delete(self, collection: str, ids: Sequence[str]) -> str | None:
        """See Client.delete."""
        answer = await self._send(Call("POST", f"{make.collection(collection)}/documents:delete", {"ids": list(ids)}))
        token: str | None = answer["token"]
        return token

    async def get(self, collection: str, document_id: str, *, wait_for: Any = None) -> Document:
        """See Client.get."""
        return read.document(await self._send(make.document(collection, document_id, wait_for)))

    async def collection(self, name: str) -> CollectionFacts:
        """See Client.collection."""
        return read.collection(await self._send(Call("GET", make.collection(name))))

    async def create_collection(self, name: str, **given: Any) -> CollectionFacts:
        """See Client.create_collection."""
        return read.collection(await self._send(Call("POST", "/v1/collections", {"name": name, **given})))

    async def dead_letters(self, *, after: int = -1, limit: int = 100) -> list[Mapping[str, Any]]:
        """See Client.dead_letters."""
        answer = await self._send(Call("GET", f"/v1/dead-letters?after={after}&limit={limit}"))
        letters: list[Mapping[str, Any]] = answer["letters"]
        return letters

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
        end = time.monotonic() + self._timeout_s + call.wait_s
        attempt = 0
        while True:
            status, retry_after, content = await self._once(call)
            pause = make.pause_s(status, retry_after, attempt)
            if pause is None or time.monotonic() + pause > end:
                if status == 0:
                    raise Unreachable(content.decode())
                return make.outcome(status, content)
            await asyncio.sleep(pause)
            attempt += 1

    async def _once(self, call: Call) -> tuple[int, str | None, bytes]:
        try:
            answer = await self._http.request(
                call.method, call.path, json=call.body, timeout=self._timeout_s + call.wait_s
            )
        except httpx.TransportError as error:
            return 0, None, f"{self._http.base_url}: {error or type(error).__name__}".encode()
        return answer.status_code, answer.headers.get("retry-after"), answer.content


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
