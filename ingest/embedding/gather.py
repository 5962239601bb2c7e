"""Batches query texts for the embedder: while one call is in progress, the next texts gather.

Costs nothing when idle; when busy, the waiting texts share the cost of an HTTP call. Law 7: each
call takes texts from the waiting tenants by weight, so that no tenant's load delays another's text.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from ingest.embedding import Lane
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, Refused, Unavailable, VicinageError
from vicinage.fair import FairQueue
from vicinage.records import Floats
from vicinage.tenant_context import TenantContext

CALLS_MAX: Final = 1
"""Calls in progress at once. A second call while the first is in the model makes both smaller."""
WAITING_MAX: Final = 1_024
GATHER_MAX: Final = 64
QUANTUM: Final = 1
"""A text that fits the window costs one: a tenant's turn has as many texts as its weight."""
CHARS_PER_TOKEN: Final = 4
_INPUT: Final = re.compile(r"input\.(\d{1,4})")
"""The field in which the embedder names a refused text."""


class AsyncEmbedder(Protocol):
    """An asynchronous embedder that receives the batches."""

    @property
    def window_tokens(self) -> int:
        """Longest text that the model takes, special tokens not counted."""
        ...

    async def embed_async(
        self,
        texts: Sequence[str],
        *,
        tenant: TenantContext,
        lane: Lane = Lane.QUERY,
        deadline: Deadline | None = None,
    ) -> Floats:
        """Returns float32 [n, d]."""
        ...

    async def aclose(self) -> None:
        """Closes its connections. Idempotent."""
        ...


@dataclass(slots=True, eq=False)
class _Question:
    text: str
    tenant: TenantContext
    deadline: Deadline
    answer: asyncio.Future[Floats]


class GatheringEmbedder:
    """One model for many concurrent callers on one event loop."""

    def __init__(self, embedder: AsyncEmbedder) -> None:
        self._embedder = embedder
        self._waiting: FairQueue[_Question] = FairQueue(cost_max=WAITING_MAX, quantum=QUANTUM)
        self._calls: set[asyncio.Task[None]] = set()

    async def embed_query(self, text: str, *, tenant: TenantContext, deadline: Deadline) -> Floats:
        """Returns float32 [d]. Raises as Embedder.embed does."""
        question = _Question(text, tenant, deadline, asyncio.get_running_loop().create_future())
        self._waiting.put(tenant.name, [(question, self._cost(text))], weight=tenant.weight)
        self._go()
        try:
            return await asyncio.wait_for(question.answer, deadline.left_s())
        except TimeoutError:
            raise DeadlineExceeded(
                "the text was not embedded in time", dependency="embedder"
            ) from None

    async def aclose(self) -> None:
        """Closes the connections. Idempotent."""
        await self._embedder.aclose()

    def _cost(self, text: str) -> int:
        """Returns the cost of a text in its tenant's turn: its estimated windows, at least one."""
        return max(1, len(text) // (CHARS_PER_TOKEN * self._embedder.window_tokens))

    def _go(self) -> None:
        while self._waiting.cost and len(self._calls) < CALLS_MAX:
            # Leaves out texts whose deadline passed or whose caller disconnected meanwhile.
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
            # Every future is settled, whatever the outcome of the call.
            for q in gathered:
                _settle(q, Unavailable("the question was not embedded", dependency="embedder"))

    async def _ask(self, gathered: list[_Question]) -> None:
        # One call for many tenants: it has the sum of their weights, and the first one's name.
        weights = {q.tenant.name: q.tenant.weight for q in gathered}
        try:
            vectors = await self._embedder.embed_async(
                [q.text for q in gathered],
                tenant=TenantContext(gathered[0].tenant.name, sum(weights.values())),
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
        """Refuses the text at fault alone, and embeds the others again.

        If the server does not name the text, bisects the batch: one text among 64 costs about
        twelve calls, not 64.
        """
        named = _INPUT.fullmatch(refused.field or "")
        bad = gathered[int(named[1])] if named and int(named[1]) < len(gathered) else None
        if bad is None and len(gathered) > 1:
            half = len(gathered) // 2
            await self._ask(gathered[:half])
            await self._ask(gathered[half:])
            return
        await self._refuse_or_split(bad or gathered[0], refused)
        if rest := [q for q in gathered if not q.answer.done()]:
            await self._ask(rest)

    async def _refuse_or_split(self, question: _Question, refused: Refused) -> None:
        """Refuses a text, unless it may be too long.

        A text that may be too long is embedded in windows, all in one call, and gets their mean.
        """
        windows = windows_of(question.text, self._embedder.window_tokens)
        if len(windows) == 1:
            _settle(question, Refused(refused.detail, field="text", limit=refused.limit))
            return
        try:
            vectors = await self._embedder.embed_async(
                windows, tenant=question.tenant, deadline=question.deadline
            )
        except VicinageError as error:
            _settle(question, error)
        else:
            if not question.answer.done():
                question.answer.set_result(_mean(vectors, [len(w) for w in windows]))


def windows_of(text: str, window_tokens: int) -> list[str]:
    """Returns the text in parts of at most `window_tokens` bytes, split at white space. Pure.

    Splits within a word if there is no white space in the second half of a part. A server does not
    report tokens; a part fits because its tokens never outnumber its bytes.
    """
    parts: list[str] = []
    left = text.strip()
    while len(left.encode()) > window_tokens:
        head = left.encode()[:window_tokens].decode(errors="ignore") or left[0]
        at = max(head.rfind(" "), head.rfind("\n"))
        cut = at if at > len(head) // 2 else len(head)
        parts.append(left[:cut].strip())
        left = left[cut:].strip()
    return [part for part in (*parts, left) if part]


def _mean(vectors: Floats, weights: list[int]) -> Floats:
    """Returns the weighted mean of rows, float32 [d], scaled to the mean length of the rows.

    So the mean of normalized rows is normalized.
    """
    total = np.average(vectors, axis=0, weights=weights)
    length = float(np.linalg.norm(total))
    wanted = float(np.average([np.linalg.norm(v) for v in vectors], weights=weights))
    mean: Floats = (total * (wanted / length) if length else total).astype(np.float32)
    return mean


def _settle(question: _Question, error: BaseException) -> None:
    if not question.answer.done():
        question.answer.set_exception(error)
