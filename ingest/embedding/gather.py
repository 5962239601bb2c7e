"""Questions on their way to the embedder: while one call is under way, the next ones gather and go as one.

Costs nothing when idle, and spreads the cost of the HTTP call over all who wait when busy.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ingest.embedding import Lane
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Overloaded, Refused, VicinageError
from vicinage.records import Floats

CALLS_MAX: Final = 2
"""Calls under way at once: one in the model, one on its way."""
WAITING_MAX: Final = 1_024
GATHER_MAX: Final = 64


class AsyncEmbedder(Protocol):
    """What is gathered for."""

    async def embed_async(
        self,
        texts: Sequence[str],
        *,
        tenant: str,
        lane: Lane = Lane.QUERY,
        weight: int = 1,
        deadline: Deadline | None = None,
    ) -> Floats:
        """float32 [n, d]."""
        ...


@dataclass(slots=True, eq=False)
class _Question:
    text: str
    tenant: str
    weight: int
    deadline: Deadline
    answer: asyncio.Future[Floats]


class GatheringEmbedder:
    """One model, asked by many at once, on one event loop."""

    def __init__(self, embedder: AsyncEmbedder) -> None:
        self._embedder = embedder
        self._waiting: list[_Question] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def embed_query(self, text: str, *, tenant: str, weight: int, deadline: Deadline) -> Floats:
        """float32 [d]. Raises as Embedder.embed does."""
        if len(self._waiting) >= WAITING_MAX:
            raise Overloaded("too many questions wait to be embedded", retry_after_s=1.0)
        question = _Question(text, tenant, weight, deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        self._go()
        try:
            return await asyncio.wait_for(question.answer, deadline.left_s())
        except TimeoutError:
            raise DeadlineExceeded("the text was not embedded in time", dependency="embedder") from None

    def _go(self) -> None:
        while self._waiting and len(self._calls) < CALLS_MAX:
            gathered, self._waiting = self._waiting[:GATHER_MAX], self._waiting[GATHER_MAX:]
            call = asyncio.create_task(self._call(gathered))
            self._calls.add(call)
            call.add_done_callback(self._landed)

    def _landed(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._go()

    async def _call(self, gathered: list[_Question]) -> None:
        # The call is made in the name of the first: one tenant's turn carries the others along.
        first, latest = gathered[0], max(q.deadline.at for q in gathered)
        try:
            vectors = await self._embedder.embed_async(
                [q.text for q in gathered],
                tenant=first.tenant,
                weight=max(q.weight for q in gathered),
                deadline=Deadline(latest),
            )
        except Refused as refused:
            await self._one_by_one(gathered, refused)
        except VicinageError as error:
            for q in gathered:
                _settle(q, error)
        else:
            for q, vector in zip(gathered, vectors, strict=True):
                if not q.answer.done():
                    q.answer.set_result(vector)

    async def _one_by_one(self, gathered: list[_Question], refused: Refused) -> None:
        """One bad text must not spoil the others' call."""
        if len(gathered) == 1:
            _settle(gathered[0], refused)
            return
        for q in gathered:
            await self._call([q])


def _settle(question: _Question, error: Exception) -> None:
    if not question.answer.done():
        question.answer.set_exception(error)
