"""Moves the positions of idle partitions: past markers, and where an operator resumes them.

A partition is idle while none of its records is in progress.
"""

from typing import Final

from ingest.lane_registry import LaneRegistry
from ingest.lane_scheduler import LaneScheduler
from ingest.partitions import Partitions
from ingest.position_store import PositionStore
from tenants.entities import Group
from tenants.registry import Registry
from vicinage.log import Log, TopicPartition

PER_CHECK: Final = 200
"""Partitions whose position is read in one check; the next check reads the following ones."""


class IdlePartitions:
    """Keeps the positions of idle partitions. Used by the thread that reads the log."""

    def __init__(
        self,
        log: Log,
        registry: Registry,
        partitions: Partitions,
        store: PositionStore,
        lane_registry: LaneRegistry,
        lanes: LaneScheduler,
    ) -> None:
        self._log = log
        self._registry = registry
        self._partitions = partitions
        self._store = store
        self._lane_registry = lane_registry
        self._lanes = lanes
        self._unchecked: list[TopicPartition] = []
        """Partitions that the current round of `commit_markers` has not reached."""

    def resume(self) -> None:
        """Moves idle partitions to the positions that `vicinage tenant resume-ingest` set."""
        version = self._registry.version
        resuming = [
            s
            for s in self._store.resuming(version)
            if s.topic_partition() in self._partitions.positions
        ]
        for state in resuming:
            tp = state.topic_partition()
            if self._partitions.is_idle(tp) and state.topic_id == self._partitions.topic_ids[tp[0]]:
                self._store.resume(state)
                self._lanes.forget(tp)
                self._lane_registry.adopt([tp])
                self._partitions.move(tp, state.position)
                self._partitions.read(tp)
        if all(self._partitions.is_idle(state.topic_partition()) for state in resuming):
            self._store.all_resumed(version)

    def commit_markers(self) -> None:
        """Commits the readers' positions, which are beyond offsets without a record.

        Otherwise a caller that waits until ingest reaches the end of a topic would wait without end
        for a transaction marker of the topic's producer. Positions that the log may forget are
        committed again, too.
        """
        if not self._unchecked:
            self._unchecked = list(self._partitions.positions)
        batch, self._unchecked = self._unchecked[:PER_CHECK], self._unchecked[PER_CHECK:]
        known, halted = self._partitions.positions, self._partitions.halts.known()
        idle = [
            tp for tp in batch if tp in known and tp not in halted and self._partitions.is_idle(tp)
        ]
        positions = {tp: self._partitions.reader.position(*tp) for tp in idle}
        moved = {tp: at for tp, at in positions.items() if at > known[tp] or self._store.is_due(tp)}
        if moved:
            self._log.commit(Group.INGEST, moved)
            self._store.committed(moved)
            for tp, at in moved.items():
                self._partitions.move(tp, at)
