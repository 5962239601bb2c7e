"""Progress bars on stderr, with the library rich (extra `progress`)."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from vicinage_client.errors import InvalidArgument

Advance = Callable[[int], Any]


def counted(bodies: Iterable[tuple[bytes, int]], advance: Advance) -> Iterator[tuple[bytes, int]]:
    """Yields the bodies; counts a body's documents as written when the next body is requested."""
    for body, n in bodies:
        yield body, n
        advance(n)


@contextlib.contextmanager
def writing_bar(documents: object, *, shown: bool) -> Iterator[Advance]:
    """Shows a bar of written documents; yields the function that advances it.

    Raises InvalidArgument without rich.
    """
    if not shown:
        yield lambda _n: None
        return
    total = len(documents) if isinstance(documents, Sized) else None
    with _bar("writing", total) as (bar, task):
        yield lambda n: bar.advance(task, n)


@contextlib.contextmanager
def waiting_bar(*, shown: bool) -> Iterator[Advance]:
    """Shows a bar of the records before a write; yields the function that sets their number.

    The first number is the total. Raises InvalidArgument without rich.
    """
    if not shown:
        yield lambda _ahead: None
        return
    with _bar("ingesting", None) as (bar, task):
        most = 0

        def set_ahead(n: int) -> None:
            nonlocal most
            most = max(most, n)
            bar.update(task, total=most, completed=most - n)

        yield set_ahead


@contextlib.contextmanager
def _bar(title: str, total: int | None) -> Iterator[tuple[Any, Any]]:
    if importlib.util.find_spec("rich") is None:  # before any request is sent
        raise InvalidArgument(
            "progress=True needs the extra `progress`: pip install 'vicinage-client[progress]'"
        )
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar, bar.add_task(title, total=total)
