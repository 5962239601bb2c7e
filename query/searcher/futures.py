"""Futures that one thread sets and another thread or an event loop waits for."""

import asyncio
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded


async def result_within(future: Future[Any], deadline: Deadline, what: str) -> Any:
    """Returns the future's result within the deadline. Raises DeadlineExceeded."""
    try:
        async with asyncio.timeout(deadline.left_s()):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise DeadlineExceeded(f"{what} was not done in time", dependency="searcher") from None


def fail(future: Future[Any], error: BaseException) -> None:
    """Fails the future, unless it is done or canceled."""
    with suppress(InvalidStateError):  # a check first would race with a cancel
        future.set_exception(error)
