"""Which texts go into the next model call: questions first, documents fairly, similar lengths together. Pure.

Calls are short enough that a question never waits long behind one, and shorter while questions keep coming; documents
get every STARVE_AFTER-th call even under a flood of questions.
"""

from dataclasses import dataclass
from typing import Any, Final

from ingest.embedding import Lane
from vicinage.fair import FairQueue

STARVE_AFTER: Final = 8
BUSY_SHARE: Final = 0.5
"""Of a document call's length, what is kept while questions are coming."""
QUANTUM_TOKENS: Final = 512
CALL_TOKENS_MIN: Final = 256


@dataclass(slots=True, eq=False)
class Item:
    """One text waiting: its token ids, the request it belongs to, and its place in it."""

    tokens: list[int]
    request: Any
    row: int


class Batcher:
    """Two lanes of fair queues. Not thread-safe: its owner holds a lock."""

    def __init__(self, *, queue_tokens: int, batch_tokens: int) -> None:
        self._lanes = {lane: FairQueue[Item](cost_max=queue_tokens, quantum=QUANTUM_TOKENS) for lane in Lane}
        self._batch_tokens = batch_tokens
        self._call_tokens = batch_tokens
        self._questions_in_a_row = 0

    def put(self, tenant: str, lane: Lane, items: list[Item], *, weight: int) -> None:
        """Queue a request's texts, shortest first, so that a call pads little. Raises Overloaded."""
        ordered = sorted(items, key=lambda item: len(item.tokens))
        self._lanes[lane].put(tenant, [(item, len(item.tokens)) for item in ordered], weight=weight)

    def take(self) -> list[Item]:
        """The texts of the next model call, by length; [] when nothing waits."""
        questions, documents = self._lanes[Lane.QUERY], self._lanes[Lane.DOCUMENT]
        starving = documents.cost and self._questions_in_a_row >= STARVE_AFTER
        if questions.cost and not starving:
            self._questions_in_a_row += 1
            taken = questions.take(self._call_tokens)
        else:
            busy = self._questions_in_a_row > 0
            self._questions_in_a_row = 0
            taken = documents.take(int(self._call_tokens * BUSY_SHARE) if busy else self._call_tokens)
        return sorted(taken, key=lambda item: len(item.tokens))

    def waiting_tokens(self) -> int:
        """Tokens waiting in both lanes."""
        return sum(lane.cost for lane in self._lanes.values())

    def aim(self, tokens_per_s: float, call_s: float) -> None:
        """Make calls last about `call_s`, as fast as the model turned out to be."""
        self._call_tokens = max(CALL_TOKENS_MIN, min(self._batch_tokens, int(tokens_per_s * call_s)))
        for lane in self._lanes.values():
            lane.cost_per_s = tokens_per_s
