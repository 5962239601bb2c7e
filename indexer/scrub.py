"""The scrub: objects of segments are read and verified, a few a minute, so that rot is found before somebody asks.

`pause_s` decides how long to rest. Each pass goes through the slots held here in the order of the segments' random ids, and a new
process begins anywhere: whoever is restarted often still comes round.
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
from vicinage.records import ShardId
from vicinage.settings import IndexerSettings
from vicinage.telemetry import counter, events

PASS_S: Final = 60.0
"""A pass begins at most so often: it reads every manifest."""

_event = events("indexer")
_scrubbed = counter(
    "vicinage_indexer_scrubbed_total", "objects of segments that were read and verified, for no other reason"
)


def pause_s(n_bytes: int, settings: IndexerSettings) -> float:
    """Seconds to rest after an object of so many bytes. Pure."""
    return max(60 / settings.scrub_per_minute, n_bytes / settings.scrub_bytes_s)


class Scrub:
    """Goes round. One thread asks for work; the work is done on another."""

    def __init__(self, builder: Builder, clock: Clock) -> None:
        self._builder = builder
        self._clock = clock
        self._left: deque[tuple[ShardId, SegmentRef, Role]] = deque()
        self._from = uuid.uuid4().hex
        self._due = self._pass_due = -1e9

    def next(self, slots: Collection[int]) -> Callable[[], None] | None:
        """The next object to verify, when it is time. Raises Unavailable."""
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
        every = sorted(((ref.id, m.shard, ref) for m in manifests for ref in m.segments), key=lambda each: each[0])
        turned = [e for e in every if e[0] >= self._from] + [e for e in every if e[0] < self._from]
        self._left.extend((shard, ref, role) for _, shard, ref in turned for role in ref.objects)

    def verify(self, shard: ShardId, ref: SegmentRef, role: Role) -> None:
        """Read an object, and note it if it is not what was written. One that no manifest names any more may be gone."""
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
