"""Writes a job's results: rows and dead letters, then the position after them (guarantee 3)."""

from ingest import dead_letters
from ingest.fencing import Fence
from ingest.lane_registry import LaneRegistry, lane_of
from ingest.position_store import PositionStore
from ingest.rows import messages, rejections
from ingest.scheduler import Task
from tenants.entities import Group
from tenants.provisioning import VECTORS_TOPIC
from vicinage.faults import crash_point
from vicinage.log import Log


class Writer:
    """Appends and commits. Safe for many threads, one per source."""

    def __init__(
        self, log: Log, positions: PositionStore, lanes: LaneRegistry, fence: Fence
    ) -> None:
        self._log = log
        self._positions = positions
        self._lanes = lanes
        self._fence = fence

    def append(self, task: Task) -> int:
        """Appends the task's rows and dead letters; durable on return.

        Returns the number of rejected documents.
        """
        job, embedded = task.job, task.embedded()
        rejected = rejections(job, embedded)
        for slot, record in messages(job, embedded):
            crash_point("ingest.before_append")
            self._fence.check(task)
            self._log.append(VECTORS_TOPIC, slot, [record])
        self._fence.check(task)
        if rejected:
            dead_letters.append(self._log, job.tenant, rejected)
        return len(rejected)

    def commit(self, task: Task) -> None:
        """Stores the position after the task's records; durable on return.

        The position is that of the task's lane, if it has one, else of its partition.
        """
        crash_point("ingest.between_append_and_commit")
        job, lane = task.job, lane_of(task)
        if lane is None:
            self._log.commit(Group.INGEST, {job.tp: job.end})
            self._positions.committed({job.tp: job.end})
        else:
            self._lanes.move(lane, job.end, "behind")
            lane.reads_batches = True
        crash_point("ingest.after_commit")
