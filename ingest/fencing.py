"""Ends an ingest that another ingest has replaced, before it writes an old version again."""

import threading
from typing import Final

from ingest.lane_registry import LaneRegistry, lane_of
from ingest.scheduler import Task
from tenants.entities import Group
from vicinage.clock import Clock
from vicinage.errors import Conflict
from vicinage.log import Log

STALE_S: Final = 10.0
"""Age, in seconds, of a job's records from which each append is preceded by a check."""


class Fence:
    """Compares a task's start with the stored position. Safe for many threads."""

    def __init__(
        self, log: Log, lanes: LaneRegistry, clock: Clock, stopping: threading.Event
    ) -> None:
        self._log = log
        self._lanes = lanes
        self._clock = clock
        self._stopping = stopping

    def check(self, task: Task, after_s: float = STALE_S) -> None:
        """Raises Conflict if another ingest has done this job while this process was paused.

        Then a later deletion may be applied too, and its tombstone removed: a write now could
        restore the document (docs/decisions/007-tombstone-removal.md). The role ends, and starts
        again at the stored positions. Checks only records that were read more than `after_s` ago,
        or once this ingest stops.
        """
        job, lane = task.job, lane_of(task)
        if self._clock.monotonic() - job.read_after < after_s and not self._stopping.is_set():
            return
        if lane is not None:
            self._lanes.check(lane)
            return
        position = self._log.committed(Group.INGEST, [job.tp]).get(job.tp, 0)
        if position > job.start:
            raise Conflict(
                f"another ingest committed {position} of {job.tp[0]}/{job.tp[1]}",
                expected=job.start,
                found=position,
            )
