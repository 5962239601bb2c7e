"""Waits until ingest has passed a token's positions. Blocks.

A token is positions in the tenant's documents log. Once ingest has committed beyond them, and the
lanes of the generation are beyond them, their rows are in the vectors log (guarantee 3).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tenants.entities import Generation, Group, IngestLane, Tenant
from tenants.ingested import ingested
from tenants.provisioning import VECTORS_TOPIC
from tenants.registry import Registry
from vicinage.clock import Deadline
from vicinage.errors import DeadlineExceeded, NotFound, Refused
from vicinage.log import Log
from vicinage.records import LATEST, Position, Token

POLL_S: Final = 0.5
"""Interval at which a wait checks whether it was abandoned."""
LANE_POLL_S: Final = (0.02, 0.2)
"""First and greatest interval at which a wait reads the position of a lane of ingest."""


@dataclass(frozen=True, slots=True)
class IngestWait:
    """A wait for one generation of a tenant. `abandoned` is set when no request waits any more."""

    log: Log
    registry: Registry
    tenant: Tenant
    generation: Generation
    deadline: Deadline
    abandoned: threading.Event

    def run(self, token: Token) -> tuple[Token, dict[int, int]]:
        """Waits for the token; returns it, and slot → the vectors log's end at that time.

        LATEST is resolved to the last position of each partition. Raises DeadlineExceeded with the
        resolved token, Unavailable, and Refused for a position that the log never assigned.
        """
        resolved = Token(tuple(self._latest())) if token == LATEST else token
        with naming(resolved):
            for position in resolved.positions:
                self._check_assigned(position)
                self._wait_for_commit(position)
                self._wait_for_lane(position)
        return resolved, {slot: self.log.end(VECTORS_TOPIC, slot) for slot in self.generation.slots}

    def _latest(self) -> list[Position]:
        """Returns the last position of each partition of the topic that has one."""
        topic = self.tenant.documents_topic
        try:  # read now: a partition that was just added may have records
            partitions = self.log.partitions(topic)
        except NotFound:
            return []
        extents = self.log.extents([(topic, p) for p in range(partitions)])
        return [Position(p, end - 1) for (_, p), (_, end) in extents.items() if end]

    def _check_assigned(self, position: Position) -> None:
        """Refuses a position that no write has, so that it occupies no thread."""
        try:
            end = self.log.end(self.tenant.documents_topic, position.partition)
        except NotFound:
            end = 0
        if position.offset >= end:
            raise Refused(
                f"wait_for names position {position.partition}-{position.offset}, "
                "which no write has",
                field="wait_for",
            )

    def _wait_for_commit(self, position: Position) -> None:
        while not self.abandoned.is_set() and not self._is_committed(position):
            if self.deadline.passed():
                records = max(1, self._records_ahead(position))
                raise DeadlineExceeded(
                    f"position {position.partition}-{position.offset} was not ingested in time: "
                    f"{records} records are to be ingested up to it{self._halted(position)}",
                    dependency="ingest",
                    ahead=records,
                )

    def _is_committed(self, position: Position) -> bool:
        """Returns whether ingest is beyond the position, after at most POLL_S."""
        topic, wait_s = self.tenant.documents_topic, min(POLL_S, self.deadline.left_s())
        if self.log.wait_committed(
            Group.INGEST, topic, position.partition, position.offset, wait_s=wait_s
        ):
            return True
        tp = (topic, position.partition)  # the log may have lost it; the catalog has it too
        return ingested(self.log, self.registry, [tp]).get(tp, 0) > position.offset

    def _records_ahead(self, position: Position) -> int:
        tp = (self.tenant.documents_topic, position.partition)
        committed = ingested(self.log, self.registry, [tp])
        return position.offset + 1 - committed.get(tp, self.log.begin(*tp))

    def _halted(self, position: Position) -> str:
        """Returns why ingest does not read the partition, for the tenant; empty if it does."""
        for state in self.registry.positions.not_reading(self.tenant.name):
            if state.partition == position.partition and state.state == "halted":
                return f": its partition is halted ({state.kind}), until an operator resumes it"
        return ""

    def _wait_for_lane(self, position: Position) -> None:
        """Waits until the generation's lane is beyond the position, if it has one there.

        Raises DeadlineExceeded. Ingest is committed beyond the position: a lane in which its record
        still waits is in the catalog.
        """
        wait_s = LANE_POLL_S[0]
        while (lane := self._lane_behind(position)) is not None:
            if self.deadline.passed():
                raise DeadlineExceeded(
                    f"position {position.partition}-{position.offset} was not ingested in time: "
                    f"documents of {lane.collection!r} wait for the model {lane.model!r}",
                    dependency="ingest",
                    ahead=position.offset + 1 - lane.position,
                )
            if self.abandoned.wait(min(wait_s, self.deadline.left_s())):
                return
            wait_s = min(2 * wait_s, LANE_POLL_S[1])

    def _lane_behind(self, position: Position) -> IngestLane | None:
        g = self.generation
        for lane in self.registry.lanes.of(self.tenant.name, g.collection, [g.number]):
            if lane.partition == position.partition and lane.position <= position.offset:
                return lane
        return None


@contextmanager
def naming(token: Token) -> Iterator[None]:
    """Names the token in a DeadlineExceeded, so that the next wait continues with the same."""
    try:
        yield
    except DeadlineExceeded as late:
        late.waited_for = str(token)
        raise
