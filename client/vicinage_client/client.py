"""★ The client for threads. `async_client.py` has the one for asyncio.

Both run `operations.py`; each adds only how a call is sent and how it waits.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import httpx2

from vicinage_client import documents as pack
from vicinage_client import operations as op
from vicinage_client import requests as make
from vicinage_client import results as read
from vicinage_client.errors import InvalidArgument, VicinageError
from vicinage_client.operations import OnRejected, Steps, T
from vicinage_client.progress import counted, waiting_bar, writing_bar
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

        `wait_for`: a token, a Written, a Deleted, or the result of a Kafka producer's send: the
        search sees that write. `vector`: one vector, a list or a one-dimensional array. `mode`:
        "dense" (by vectors), "lexical" (by the text's words, without a model) or "hybrid" (by
        both; a `vector` replaces the text's embedding). `fusion`, for hybrid: {"method":
        "weighted", "dense_weight": 0.75} (the default) or {"method": "rrf"}. `rerank`: the number
        of best hits that the platform's cross-encoder, if it has one, scores again.
        """
        call = make.search(
            collection, text, vector, k, filter, wait_for, include,
            exact=exact, timeout_ms=timeout_ms, mode=mode, fusion=fusion, rerank=rerank,
        )  # fmt: skip
        return self._run(op.search(call))

    def search_batch(
        self, collection: str, searches: Iterable[Mapping[str, Any] | str]
    ) -> list[SearchResult]:
        """Returns the results of many searches, in their order.

        A search is a text, or a mapping of `search`'s arguments. Raises the error of the first
        search that fails.
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

        Pass `.token` to a search to see them. Rejected documents do not stop the others: after the
        last batch, DocumentsRejected names them, or the result does with `on_rejected="return"`. An
        error during the upload has `written`: the documents that are durable by then.
        """
        op.check_on_rejected(on_rejected)
        with writing_bar(documents, shown=progress) as advance:
            total = self._run(
                op.upsert(
                    collection, counted(pack.batches(documents, batch), advance), read.NOTHING
                )
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

        Pass `.token` to a search to see the deletion. A deletion by filter covers everything that
        was acknowledged before it, and the write that `wait_for` names.
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

        `wait_for`: as in `search`; "latest" is everything acknowledged to this tenant so far.
        `progress`: shows a bar on stderr of the records that are still ahead. Raises Timeout, with
        the reason, after `timeout_s`.
        """
        with waiting_bar(shown=progress) as set_ahead:
            return self._run(op.wait(collection, wait_for, timeout_s, set_ahead, time.monotonic))

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
            raise InvalidArgument("this client is closed: create another one")
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
