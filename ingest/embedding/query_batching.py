"""Batches query texts for the embedder: texts that arrive during a call form the next one.

Costs nothing when idle; when busy, the pending texts share the cost of an HTTP call. Guarantee 7:
each call takes texts from the tenants by weight, so that no tenant's load delays another's text.
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
PENDING_MAX: Final = 1_024
BATCH_MAX: Final = 64
"""Texts in one call."""
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
class _Pending:
    """A query text that is not embedded yet, and the future of its vector."""

    text: str
    tenant: TenantContext
    deadline: Deadline
    vector: asyncio.Future[Floats]

    def complete(self, vector: Floats) -> None:
        """Settles the future with the vector, unless it is settled."""
        if not self.vector.done():
            self.vector.set_result(vector)

    def fail(self, error: BaseException) -> None:
        """Settles the future with the error, unless it is settled."""
        if not self.vector.done():
            self.vector.set_exception(error)


class BatchingEmbedder:
    """One model for many concurrent callers on one event loop."""

    def __init__(self, embedder: AsyncEmbedder) -> None:
        self._embedder = embedder
        self._queue: FairQueue[_Pending] = FairQueue(cost_max=PENDING_MAX, quantum=QUANTUM)
        self._calls: set[asyncio.Task[None]] = set()

    async def embed_query(self, text: str, *, tenant: TenantContext, deadline: Deadline) -> Floats:
        """Returns float32 [d]. Raises as Embedder.embed does."""
        pending = _Pending(text, tenant, deadline, asyncio.get_running_loop().create_future())
        self._queue.put(tenant.name, [(pending, self._cost(text))], weight=tenant.weight)
        self._start_calls()
        try:
            return await asyncio.wait_for(pending.vector, deadline.left_s())
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

    def _start_calls(self) -> None:
        while self._queue.cost and len(self._calls) < CALLS_MAX:
            # Leaves out texts whose deadline passed or whose caller disconnected meanwhile.
            batch = [p for p in self._queue.take(BATCH_MAX) if not p.vector.done()]
            if batch:
                call = asyncio.create_task(self._embed_and_settle(batch))
                self._calls.add(call)
                call.add_done_callback(self._end_call)

    def _end_call(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._start_calls()

    async def _embed_and_settle(self, batch: list[_Pending]) -> None:
        try:
            await self._embed(batch)
        finally:
            # Every future is settled, whatever the outcome of the call.
            for pending in batch:
                pending.fail(Unavailable("the text was not embedded", dependency="embedder"))

    async def _embed(self, batch: list[_Pending]) -> None:
        # One call for many tenants: it has the sum of their weights, and the first one's name.
        weights = {p.tenant.name: p.tenant.weight for p in batch}
        try:
            vectors = await self._embedder.embed_async(
                [p.text for p in batch],
                tenant=TenantContext(batch[0].tenant.name, sum(weights.values())),
                deadline=Deadline(max(p.deadline.at for p in batch)),
            )
        except Refused as refused:
            await self._embed_without_refused(batch, refused)
        except VicinageError as error:
            for pending in batch:
                pending.fail(error)
        else:
            for pending, vector in zip(batch, vectors, strict=True):
                pending.complete(vector)

    async def _embed_without_refused(self, batch: list[_Pending], refused: Refused) -> None:
        """Refuses the text at fault alone, and embeds the others again.

        If the server does not name the text, bisects the batch: one text among 64 costs about
        twelve calls, not 64.
        """
        named = _INPUT.fullmatch(refused.field or "")
        at_fault = batch[int(named[1])] if named and int(named[1]) < len(batch) else None
        if at_fault is None and len(batch) > 1:
            half = len(batch) // 2
            await self._embed(batch[:half])
            await self._embed(batch[half:])
            return
        await self._refuse_or_split(at_fault or batch[0], refused)
        if rest := [p for p in batch if not p.vector.done()]:
            await self._embed(rest)

    async def _refuse_or_split(self, pending: _Pending, refused: Refused) -> None:
        """Refuses a text, unless it may be too long.

        A text that may be too long is embedded in windows, all in one call, and gets their mean.
        """
        windows = windows_of(pending.text, self._embedder.window_tokens)
        if len(windows) == 1:
            pending.fail(Refused(refused.detail, field="text", limit=refused.limit))
            return
        try:
            vectors = await self._embedder.embed_async(
                windows, tenant=pending.tenant, deadline=pending.deadline
            )
        except VicinageError as error:
            pending.fail(error)
        else:
            pending.complete(_mean(vectors, [len(w) for w in windows]))


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
        end = at if at > len(head) // 2 else len(head)
        parts.append(left[:end].strip())
        left = left[end:].strip()
    return [part for part in (*parts, left) if part]


def _mean(vectors: Floats, weights: list[int]) -> Floats:
    """Returns the weighted mean of rows, float32 [d], scaled to the mean length of the rows.

    So the mean of normalized rows is normalized.
    """
    total = np.average(vectors, axis=0, weights=weights)
    length = float(np.linalg.norm(total))
    mean_length = float(np.average([np.linalg.norm(v) for v in vectors], weights=weights))
    mean: Floats = (total * (mean_length / length) if length else total).astype(np.float32)
    return mean
