"""Questions on their way to the embedder: while one call is under way, the next ones gather and go as one.

Costs nothing when idle, and spreads the cost of the HTTP call over all who wait when busy. Law 7: each call takes from the
tenants that wait by their weights, so that one tenant's crowd does not delay another's question.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from ingest.embedding import Lane
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Refused, Unavailable, VicinageError
from vicinage.fair import FairQueue
from vicinage.records import Floats

CALLS_MAX: Final = 1
"""Calls under way at once. A second one, on its way while the first is in the model, only makes both smaller."""
WAITING_MAX: Final = 1_024
GATHER_MAX: Final = 64
QUANTUM: Final = 1
"""Each question costs one: a tenant's turn is as many questions as its weight."""
_INPUT: Final = re.compile(r"input\.(\d{1,4})")
"""How the embedder names the text that it refuses."""


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

    async def aclose(self) -> None:
        """Close its connections. Idempotent."""
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
        self._waiting: FairQueue[_Question] = FairQueue(cost_max=WAITING_MAX, quantum=QUANTUM)
        self._calls: set[asyncio.Task[None]] = set()

    async def embed_query(self, text: str, *, tenant: str, weight: int, deadline: Deadline) -> Floats:
        """float32 [d]. Raises as Embedder.embed does."""
        question = _Question(text, tenant, weight, deadline, asyncio.get_running_loop().create_future())
        self._waiting.put(tenant, [(question, 1)], weight=weight)
        self._go()
        try:
            return await asyncio.wait_for(question.answer, deadline.left_s())
        except TimeoutError:
            raise DeadlineExceeded("the text was not embedded in time", dependency="embedder") from None

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._embedder.aclose()

    def _go(self) -> None:
        while self._waiting.cost and len(self._calls) < CALLS_MAX:
            # Whoever gave up meanwhile (its deadline passed, its caller went away) is left out.
            gathered = [q for q in self._waiting.take(GATHER_MAX) if not q.answer.done()]
            if gathered:
                call = asyncio.create_task(self._answer(gathered))
                self._calls.add(call)
                call.add_done_callback(self._landed)

    def _landed(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._go()

    async def _answer(self, gathered: list[_Question]) -> None:
        try:
            await self._ask(gathered)
        finally:
            # Whatever happened, nobody is left waiting for this call.
            for q in gathered:
                _settle(q, Unavailable("the question was not embedded", dependency="embedder"))

    async def _ask(self, gathered: list[_Question]) -> None:
        # One call for many tenants: it weighs what they weigh together, under the first one's name.
        weights = {q.tenant: q.weight for q in gathered}
        try:
            vectors = await self._embedder.embed_async(
                [q.text for q in gathered],
                tenant=gathered[0].tenant,
                weight=sum(weights.values()),
                deadline=Deadline(max(q.deadline.at for q in gathered)),
            )
        except Refused as refused:
            await self._without_the_bad(gathered, refused)
        except VicinageError as error:
            for q in gathered:
                _settle(q, error)
        else:
            for q, vector in zip(gathered, vectors, strict=True):
                if not q.answer.done():
                    q.answer.set_result(vector)

    async def _without_the_bad(self, gathered: list[_Question], refused: Refused) -> None:
        """One bad text must not spoil the others' call: it is refused alone, and the others are asked again."""
        named = _INPUT.fullmatch(refused.field or "")
        bad = gathered[int(named[1])] if named and int(named[1]) < len(gathered) else None
        if bad is None and len(gathered) > 1:
            for q in gathered:
                await self._ask([q])
            return
        _settle(bad or gathered[0], Refused(refused.detail, field="text", limit=refused.limit))
        if rest := [q for q in gathered if not q.answer.done()]:
            await self._ask(rest)


def _settle(question: _Question, error: Exception) -> None:
    if not question.answer.done():
        question.answer.set_exception(error)
