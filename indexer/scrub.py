"""The scrub: verifies objects of segments, a few per minute, to find bit rot before a search does.

`pause_s` decides the pace. A pass visits the held slots in the order of the segments' random ids. A
new process starts at a random id, so that frequent restarts still cover every object.
"""

import uuid
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from indexer.index.objects import Damaged, Role
from indexer.repair import verified
from indexer.seal import Builder
from tenants.entities import SegmentRef
from vicinage.clock import Clock
from vicinage.errors import Unavailable
from vicinage.metrics import counter
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings
from vicinage.telemetry import events

PASS_S: Final = 60.0
"""The least time between starts of passes: each reads every manifest."""

_event = events("indexer")
_scrubbed = counter("vicinage_indexer_scrubbed_total")


def pause_s(n_bytes: int, settings: IndexerSettings) -> float:
    """Returns the seconds to wait after an object of `n_bytes`. Pure."""
    return max(60 / settings.scrub_per_minute, n_bytes / settings.scrub_bytes_s)


class Scrub:
    """Verifies objects in turn. One thread calls `next`; another runs what it returns."""

    def __init__(self, builder: Builder, clock: Clock) -> None:
        self._builder = builder
        self._clock = clock
        self._left: deque[tuple[ShardId, SegmentRef, Role]] = deque()
        self._from = uuid.uuid4().hex
        self._due = self._pass_due = -1e9

    def next(self, slots: Collection[int]) -> Callable[[], None] | None:
        """Returns the verification of the next object, if one is due. Raises Unavailable."""
        now = self._clock.monotonic()
        settings = self._builder.settings
        if not settings.scrub_per_minute or now < self._due:
            return None
        if not self._left and now >= self._pass_due:
            self._pass_due = now + PASS_S
            self._begin(slots)
        while self._left:
            shard, ref, role = self._left.popleft()
            if shard.slot in slots:
                self._due = now + pause_s(ref.objects[role].bytes, settings)
                return partial(self.verify, shard, ref, role)
        return None

    def _begin(self, slots: Collection[int]) -> None:
        _, manifests = self._builder.manifests.changed_since(0, sorted(slots))
        every = sorted(
            ((ref.id, m.shard, ref) for m in manifests for ref in m.segments),
            key=lambda each: each[0],
        )
        rotated = [e for e in every if e[0] >= self._from] + [e for e in every if e[0] < self._from]
        self._left.extend((shard, ref, role) for _, shard, ref in rotated for role in ref.objects)

    def verify(self, shard: ShardId, ref: SegmentRef, role: Role) -> None:
        """Verifies an object and reports damage.

        An object that no manifest names any more may be gone.
        """
        try:
            self._verify(shard, ref, role)
        except Unavailable as away:
            self._left.appendleft((shard, ref, role))
            _event.warning("scrub.waited", reason=str(away))
        else:
            _scrubbed.inc()

    def _verify(self, shard: ShardId, ref: SegmentRef, role: Role) -> None:
        try:
            verified(ref, role, self._builder.store)
        except Damaged as damaged:
            self._builder.loading().note(shard, ref, damaged)
