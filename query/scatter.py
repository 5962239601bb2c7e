"""Scatters a plan's queries to the searchers of its slots at once, and collects the results."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from indexer.index.snapshot import StoredDocument
from query.plan import Plan
from vicinage.clock import Deadline
from vicinage.errors import Corrupt, Unavailable, VicinageError
from vicinage.records import ShardId, ShardQuery, ShardResult
from vicinage.stats import SearcherStats


class Searcher(Protocol):
    """A searcher; the methods are the same in this process and on another node."""

    slots: frozenset[int]

    def ready(self) -> bool:
        """Returns whether the searcher has caught up with the log."""
        ...

    async def search(self, query: ShardQuery, deadline: Deadline) -> ShardResult:
        """Returns one shard's result."""
        ...

    async def reach(self, positions: Mapping[int, int], deadline: Deadline) -> dict[int, int]:
        """Waits until each slot's watermark reaches its position."""
        ...

    async def document(
        self, shard: ShardId, document_id: str, deadline: Deadline
    ) -> StoredDocument | None:
        """Returns the document as it is searchable now."""
        ...

    async def matching(
        self, shard: ShardId, condition: Mapping[str, Any], deadline: Deadline, *, limit: int
    ) -> tuple[tuple[str, int], ...]:
        """Returns (id, version) of documents that pass a filter."""
        ...

    async def stats(
        self, tenant: str | None = None, collection: str | None = None
    ) -> SearcherStats:
        """Returns statistics about what the searcher holds."""
        ...


@dataclass(frozen=True, slots=True)
class ScatterResult:
    """The results of the shards that answered, and the errors of the others."""

    shard_results: tuple[ShardResult, ...]
    failures: tuple[Unavailable, ...]

    def missing_share(self) -> float:
        """Returns the share of the shards that did not answer."""
        total = len(self.shard_results) + len(self.failures)
        return len(self.failures) / total if total else 0.0


class Searchers:
    """All searchers, by the slots that they hold."""

    def __init__(self, searchers: Sequence[Searcher]) -> None:
        self.all = tuple(searchers)
        self._by_slot = {slot: s for s in searchers for slot in s.slots}

    def holding(self, slot: int) -> Searcher:
        """Returns the searcher of a slot. Raises Unavailable."""
        found = self._by_slot.get(slot)
        if found is None:
            raise Unavailable(f"no searcher holds slot {slot}", dependency="searcher")
        return found

    async def scatter(self, plan: Plan, deadline: Deadline) -> ScatterResult:
        """Queries every shard; a shard that fails or is late is missing from the result.

        Never waits beyond the deadline. Raises the first failure if no shard answered. Raises at
        once an error that every shard would raise (Refused, Overloaded).
        """
        if len(plan.queries) == 1:  # most collections have one shard: no task for it
            outcomes = [await self._search(plan.queries[0], deadline)]
        else:
            outcomes = await asyncio.gather(
                *(self._search(query, deadline) for query in plan.queries)
            )
        failures = tuple(o for o in outcomes if isinstance(o, Unavailable))
        if len(failures) == len(outcomes):
            raise failures[0]
        return ScatterResult(tuple(o for o in outcomes if isinstance(o, ShardResult)), failures)

    async def _search(self, query: ShardQuery, deadline: Deadline) -> ShardResult | Unavailable:
        """Returns the shard's result, or the error that explains why it is missing."""
        try:
            return await self.holding(query.shard.slot).search(query, deadline)
        except Unavailable as missing:
            return missing
        except Corrupt:
            return Unavailable(
                "a shard failed its checksum and is not served",
                dependency="searcher",
                retry_after_s=5,
            )

    async def reach(self, positions: Mapping[int, int], deadline: Deadline) -> None:
        """Waits until every slot is searchable up to its position. Raises DeadlineExceeded."""
        by_searcher: dict[Searcher, dict[int, int]] = {}
        for slot, offset in positions.items():
            by_searcher.setdefault(self.holding(slot), {})[slot] = offset
        await asyncio.gather(*(s.reach(wanted, deadline) for s, wanted in by_searcher.items()))

    async def stats(
        self,
        tenant: str | None = None,
        collection: str | None = None,
        *,
        slots: Collection[int] | None = None,
    ) -> list[SearcherStats]:
        """Returns the statistics of all searchers, or of those that hold one of `slots`.

        Omits a searcher that is unavailable. If `collection` is given, it is counted exactly.
        """
        chosen = [s for s in self.all if slots is None or s.slots & set(slots)]
        outcomes = await asyncio.gather(
            *(s.stats(tenant, collection) for s in chosen), return_exceptions=True
        )
        for o in outcomes:
            if isinstance(o, BaseException) and not isinstance(o, VicinageError):
                raise o
        return [o for o in outcomes if isinstance(o, SearcherStats)]
