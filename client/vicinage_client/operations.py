"""The methods of the clients as generators: they yield calls, receive answers, return the result.

Both clients run them. HTTP and waiting happen in the clients. The error of a call is thrown into
the generator.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeVar

from vicinage_client import requests as make
from vicinage_client import results as read
from vicinage_client.errors import (
    Conflict,
    DocumentsRejected,
    InvalidArgument,
    NotFound,
    Timeout,
    VicinageError,
)
from vicinage_client.requests import Call
from vicinage_client.results import CollectionFacts, Deleted, Document, SearchResult, Written

T = TypeVar("T")
Steps = Generator[Call, Any, T]
OnRejected = Literal["raise", "return"]
WAIT_S: Final = 2.0
_REJECTED: Final = ("raise", "return")


def search(call: Call) -> Steps[SearchResult]:
    """Searches once."""
    return read.search_result((yield call))


def search_batch(
    collection: str, searches: Iterable[Mapping[str, Any] | str]
) -> Steps[list[SearchResult]]:
    """Searches many times; returns the results in their order.

    Raises the error of the first search that fails.
    """
    found: list[SearchResult] = []
    for call in make.search_batches(collection, searches):
        for answer in read.search_results((yield call), len(call.body["searches"])):
            if isinstance(answer, VicinageError):
                raise answer
            found.append(answer)
    return found


def upsert(collection: str, bodies: Iterable[tuple[bytes, int]], total: Written) -> Steps[Written]:
    """Writes encoded batches; returns the sum of `total`, which was written before, and theirs.

    An error has `written`: the documents that are durable by then.
    """
    try:
        for body, n in bodies:
            total = read.written(total, (yield make.upsert(collection, body)), n)
    except VicinageError as error:
        error.written = total
        raise
    return total


def settled(total: Written, on_rejected: OnRejected) -> Written:
    """Returns `total`.

    Raises DocumentsRejected if documents were rejected, unless `on_rejected` is "return".
    """
    if total.n_rejected and on_rejected == "raise":
        raise DocumentsRejected(total)
    return total


def check_on_rejected(on_rejected: str) -> None:
    """Raises InvalidArgument for an unknown choice."""
    if on_rejected not in _REJECTED:
        raise InvalidArgument(f'on_rejected is "raise" or "return", not {on_rejected!r}')


def delete(
    collection: str, ids: Iterable[str] | None, condition: Mapping[str, Any] | None, wait_for: Any
) -> Steps[Deleted]:
    """Deletes documents by id or by filter."""
    total = read.NOTHING_DELETED
    for call in make.deletions(collection, ids, condition, wait_for):
        total = read.deleted(total, (yield call))
    return total


def get(collection: str, document_id: str, wait_for: Any) -> Steps[Document]:
    """Returns one document."""
    return read.document((yield make.document(collection, document_id, wait_for)))


def get_many(collection: str, ids: Iterable[str], wait_for: Any) -> Steps[dict[str, Document]]:
    """Returns the documents that exist, by id."""
    found: dict[str, Document] = {}
    for document_id in _list_of_ids(ids):
        try:
            found[document_id] = read.document(
                (yield make.document(collection, document_id, wait_for))
            )
        except NotFound:
            continue
    return found


def _list_of_ids(ids: Iterable[str]) -> Iterator[str]:
    if isinstance(ids, str | bytes):
        raise InvalidArgument("ids is a list of ids, not a text")
    return iter(ids)


def create_collection(call: Call, *, exist_ok: bool) -> Steps[CollectionFacts]:
    """Creates a collection; with `exist_ok`, returns an existing one if it is as described.

    Raises Conflict.
    """
    try:
        return read.collection((yield call))
    except Conflict as taken:
        if not exist_ok:
            raise
        existing = read.collection((yield Call("GET", make.collection(call.body["name"]))))
        if different := read.differences(existing, call.body):
            raise Conflict(
                f"the collection exists, and differs in {', '.join(different)}",
                problem=taken.problem,
                status=409,
            ) from taken
        return existing


def wait(
    collection: str,
    wait_for: Any,
    timeout_s: float,
    set_ahead: Callable[[int], object],
    now_s: Callable[[], float],
) -> Steps[CollectionFacts]:
    """Waits until a write is searchable, in calls of at most WAIT_S.

    `set_ahead` receives the number of records before it.
    """
    end = now_s() + timeout_s
    while True:
        left_s = end - now_s()
        try:
            return read.collection(
                (yield make.wait(collection, wait_for, max(0.001, min(WAIT_S, left_s))))
            )
        except Timeout as late:
            if isinstance(known := late.problem.get("ahead"), int):
                set_ahead(known)
            if isinstance(pinned := late.problem.get("wait_for"), str):
                # the token of "latest" at the first call: later writes are not waited for
                wait_for = pinned
            if now_s() >= end:
                raise


def collection(name: str) -> Steps[CollectionFacts]:
    """Returns the facts of a collection."""
    return read.collection((yield Call("GET", make.collection(name))))


def collections() -> Steps[tuple[CollectionFacts, ...]]:
    """Returns the facts of all collections."""
    return read.collections((yield Call("GET", "/v1/collections")))


def delete_collection(name: str) -> Steps[None]:
    """Deletes a collection with all its documents."""
    yield make.delete_collection(name)


def dead_letters(after: int, limit: int) -> Steps[list[Mapping[str, Any]]]:
    """Returns dead letters."""
    return read.letters((yield make.dead_letters(after, limit)))
