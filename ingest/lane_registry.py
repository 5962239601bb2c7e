"""The lanes of the partitions that this ingest reads: catalog rows, and the records read.

`ingest/lanes.py` decides and `LaneScheduler` schedules. The thread that reads the log opens, closes
and drops rows. The worker that writes a lane's rows moves its position.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from ingest.jobs import Job, Need, Target, jobs_of
from ingest.lanes import LaneView
from ingest.scheduler import Task
from tenants.entities import IngestLane, LaneState, Tenant
from tenants.ingest_lanes import IngestLanes
from tenants.registry import Registry
from vicinage.clock import Clock
from vicinage.errors import Conflict
from vicinage.faults import crash_point
from vicinage.log import Log, TopicPartition
from vicinage.metrics import gauge
from vicinage.settings import IngestSettings
from vicinage.telemetry import events

BYTES_MAX: Final = 64 << 20
"""Bytes read and not yet parsed, over all lanes."""

_event = events("ingest")
_lanes = gauge("vicinage_ingest_lanes")


@dataclass(slots=True, eq=False)
class Lane:
    """One generation's lane in one partition: its row, and the end offset of its parsed records."""

    tenant: Tenant
    tp: TopicPartition
    row: IngestLane
    read: int
    unparsed: Iterator[Job] | None = None
    reading: bool = False
    reads_batches: bool = False
    """True while the model is available: batches are read then, else single records."""
    rest_until: float = 0.0
    turn: int = 0
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def target(self) -> Target:
        """The lane's generation."""
        return self.row.collection, self.row.generation


def lane_of(task: Task) -> Lane | None:
    """Returns the lane that the task belongs to; None for a partition's own task."""
    return task.source if isinstance(task.source, Lane) else None


class LaneRegistry:
    """The lanes of this ingest's partitions."""

    def __init__(
        self,
        rows: IngestLanes,
        log: Log,
        registry: Registry,
        settings: IngestSettings,
        clock: Clock,
    ) -> None:
        self._rows = rows
        self._log = log
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._lanes: dict[TopicPartition, dict[Target, Lane]] = {}
        self._turns = 0
        self._changing = threading.RLock()
        """Held while lanes are opened, closed or compared; otherwise catalog and memory agree."""
        self.changes = 0
        """Counts loaded lanes: a new lane's generation may receive no more writes."""

    def __iter__(self) -> Iterator[Lane]:
        with self._changing:
            found = [lane for lanes in self._lanes.values() for lane in lanes.values()]
        return iter(found)

    def in_turn(self) -> list[Lane]:
        """Returns the lanes, the least recently read first."""
        return sorted(self, key=lambda lane: lane.turn)

    def move_to_end(self, lane: Lane) -> None:
        """Makes the lane the last of `in_turn`."""
        self._turns += 1
        lane.turn = self._turns

    def __len__(self) -> int:
        with self._changing:
            return sum(map(len, self._lanes.values()))

    def of(self, tp: TopicPartition) -> Mapping[Target, Lane]:
        """Returns the lanes of a partition."""
        with self._changing:
            return dict(self._lanes.get(tp, {}))

    def adopt(self, tps: Iterable[TopicPartition]) -> None:
        """Loads the lanes that the catalog has of these partitions. Raises Unavailable."""
        with self._changing:
            if not (known := set(tps)):
                return
            present = {t.name: t for t in self._registry.tenants()}
            for row in self._rows.every():
                tp = (f"vicinage.docs.{row.tenant}", row.partition)
                if tp in known and row.tenant in present:
                    self._keep(present[row.tenant], tp, row)

    def compare(self, tps: Iterable[TopicPartition]) -> None:
        """Loads lanes that another ingest opened, and drops those of deleted tenants.

        Raises Conflict if a known lane has no row: another ingest is running. Raises Unavailable.
        """
        with self._changing:
            rows = {
                (f"vicinage.docs.{r.tenant}", r.partition, r.collection, r.generation): r
                for r in self._rows.every()
            }
            for lane in self:
                if (*lane.tp, *lane.target) not in rows:
                    raise Conflict(
                        f"a lane of {lane.tp[0]}/{lane.tp[1]} was deleted: "
                        "another ingest is running"
                    )
            present = {t.name: t for t in self._registry.tenants()}
            if ownerless := [row for row in rows.values() if row.tenant not in present]:
                self._rows.drop(ownerless)
            known = set(tps)
            for (topic, partition, *target), row in rows.items():
                tp = (topic, partition)
                if tp in known and row.tenant in present and tuple(target) not in self.of(tp):
                    self._keep(present[row.tenant], tp, row)

    def _keep(self, tenant: Tenant, tp: TopicPartition, row: IngestLane) -> Lane:
        lane = Lane(tenant, tp, row, row.position)
        self._lanes.setdefault(tp, {})[lane.target] = lane
        self.changes += 1
        _lanes.set(len(self))
        return lane

    def open(
        self,
        tenant: Tenant,
        tp: TopicPartition,
        needs: Mapping[Target, Need],
        *,
        state: LaneState,
        reason: str,
    ) -> None:
        """Opens a lane for each generation from its first record on; durable on return.

        Raises Unavailable and Conflict.
        """
        with self._changing:
            rows = [
                IngestLane(
                    tenant.name,
                    t[0],
                    t[1],
                    tp[1],
                    need.first,
                    need.generation.model or "",
                    state=state,
                    reason=reason,
                )
                for t, need in needs.items()
            ]
            opened = self._rows.open(rows)
            crash_point("ingest.after_lane_opened")
            for row in opened:
                self._keep(tenant, tp, row)
                _event.warning(
                    "generation.detached",
                    tenant=row.tenant,
                    collection=row.collection,
                    generation=row.generation,
                    partition=row.partition,
                    position=row.position,
                    model=row.model,
                    state=row.state,
                    reason=row.reason,
                )

    def move(self, lane: Lane, position: int, state: LaneState, reason: str = "") -> None:
        """Stores the lane's position; durable on return.

        Raises Unavailable, and Conflict unless the lane is over.
        """
        with lane.lock:
            try:
                lane.row = self._rows.move(lane.row, position=position, state=state, reason=reason)
            except Conflict:
                if not lane.over:
                    raise

    def check(self, lane: Lane) -> None:
        """Raises Conflict if the catalog has another position: another ingest is running."""
        with lane.lock:
            rows = self._rows.of(lane.tenant.name, lane.row.collection, [lane.row.generation])
            found = [r.position for r in rows if r.partition == lane.row.partition]
            if found != [lane.row.position] and not lane.over:
                raise Conflict(
                    f"another ingest wrote a lane of {lane.tp[0]}/{lane.tp[1]}",
                    expected=lane.row.position,
                )

    def close(self, lane: Lane) -> None:
        """Deletes a lane that has caught up; the partition's own jobs write its generation again.

        Raises Unavailable and Conflict.
        """
        with self._changing:
            self._rows.close(lane.row)
            crash_point("ingest.after_lane_closed")
            self._forget(lane)
            row = lane.row
            _event.info(
                "generation.reattached",
                tenant=row.tenant,
                collection=row.collection,
                generation=row.generation,
                partition=row.partition,
                position=row.position,
            )

    def drop(self, lanes: list[Lane]) -> None:
        """Deletes lanes of generations that receive no more writes. Raises Unavailable."""
        with self._changing:
            self._rows.drop([lane.row for lane in lanes])
            for lane in lanes:
                self._forget(lane)
                row = lane.row
                _event.info(
                    "lane.dropped",
                    tenant=row.tenant,
                    collection=row.collection,
                    generation=row.generation,
                    partition=row.partition,
                )

    def forget(self, tp: TopicPartition) -> list[Lane]:
        """Forgets the lanes of a partition that is no longer read; returns them.

        Their catalog rows stay.
        """
        with self._changing:
            gone = list(self.of(tp).values())
            for lane in gone:
                self._forget(lane)
            return gone

    def _forget(self, lane: Lane) -> None:
        lane.over = True
        lanes = self._lanes[lane.tp]
        del lanes[lane.target]
        if not lanes:
            del self._lanes[lane.tp]
        _lanes.set(len(self))

    def next_job(self, lane: Lane, until: int) -> Job | None:
        """Returns the lane's next records below `until` as a job, None if there are none.

        Raises Unavailable, and Refused if the log no longer has the records.
        """
        while lane.read < until:
            if lane.unparsed is None:
                lane.unparsed = self._jobs(lane, until)
            if (job := next(lane.unparsed, None)) is not None:
                return job
            lane.unparsed = None
        return None

    def _jobs(self, lane: Lane, until: int) -> Iterator[Job]:
        share = BYTES_MAX // max(1, len(self))
        bytes_max = min(self._settings.batch_bytes, share) if lane.reads_batches else 1
        read_after = self._clock.monotonic()
        records = self._log.read(*lane.tp, lane.read, bytes_max=bytes_max)
        below = [record for record in records if record.offset < until]
        # The partition was read up to `until` before. An offset without a record now is a marker,
        # or its record was compacted away.
        end = below[-1].offset + 1 if below and len(below) == len(records) else until
        view = LaneView(self._registry, lane.target)
        return jobs_of(
            lane.tenant,
            lane.tp,
            below,
            view,
            self._settings,
            read_after=read_after,
            start=lane.read,
            end=end,
            only=lane.target,
        )
