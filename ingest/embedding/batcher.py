"""Selects the texts of the next model call: query texts first, documents fairly. Pure.

Texts of similar lengths share a call. Calls are short enough that a query text never waits long
behind one. Calls of documents are shorter while query texts arrive. Documents get a call after
STARVE_AFTER calls of query texts in a row.
"""

from dataclasses import dataclass
from typing import Any, Final

from ingest.embedding import Lane
from vicinage.fair import FairQueue
from vicinage.tenant_context import TenantContext

STARVE_AFTER: Final = 8
BUSY_SHARE: Final = 0.5
"""Share of a call's length that a call of documents has while query texts arrive."""
QUANTUM_TOKENS: Final = 512
CALL_TOKENS_MIN: Final = 256


@dataclass(slots=True, eq=False)
class Item:
    """A waiting text: its token ids, its request, and its row in the request."""

    tokens: list[int]
    request: Any
    row: int


class Batcher:
    """A fair queue per lane. Not thread-safe: the owner holds a lock."""

    def __init__(self, *, queue_tokens: int, batch_tokens: int) -> None:
        self._lanes = {
            lane: FairQueue[Item](cost_max=queue_tokens, quantum=QUANTUM_TOKENS) for lane in Lane
        }
        self._batch_tokens = batch_tokens
        self._call_tokens = batch_tokens
        self._query_calls_in_a_row = 0

    def put(self, tenant: TenantContext, lane: Lane, items: list[Item]) -> None:
        """Queues a request's texts, shortest first, to minimize padding. Raises Overloaded."""
        ordered = sorted(items, key=lambda item: len(item.tokens))
        costed = [(item, len(item.tokens)) for item in ordered]
        self._lanes[lane].put(tenant.name, costed, weight=tenant.weight)

    def take(self) -> list[Item]:
        """Returns the texts of the next model call, by length; [] if none wait."""
        queries, documents = self._lanes[Lane.QUERY], self._lanes[Lane.DOCUMENT]
        starving = documents.cost and self._query_calls_in_a_row >= STARVE_AFTER
        if queries.cost and not starving:
            self._query_calls_in_a_row += 1
            items = queries.take(self._call_tokens)
        else:
            busy = self._query_calls_in_a_row > 0
            self._query_calls_in_a_row = 0
            items = documents.take(
                int(self._call_tokens * BUSY_SHARE) if busy else self._call_tokens
            )
        return sorted(items, key=lambda item: len(item.tokens))

    def waiting_tokens(self) -> int:
        """Returns the tokens that wait in both lanes."""
        return sum(lane.cost for lane in self._lanes.values())

    def aim(self, tokens_per_s: float, call_s: float) -> None:
        """Sizes calls to last about `call_s` seconds at the measured speed of the model."""
        self._call_tokens = max(
            CALL_TOKENS_MIN, min(self._batch_tokens, int(tokens_per_s * call_s))
        )
        for lane in self._lanes.values():
            lane.cost_per_s = tokens_per_s
