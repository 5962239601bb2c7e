"""Ingest's positions in the log and their copy in the catalog: starts, commits and halts.

The catalog's copy takes precedence and is committed again. Kafka expires a group's positions, and
any client that may alter the group can move them. The copy is at most seconds old, and records that
are read again have no effect (guarantee 3).
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from tenants.entities import Group
from tenants.positions import PREFIX, PartitionState, Positions, State
from vicinage.clock import Clock
from vicinage.errors import NotFound, Unavailable
from vicinage.log import STICKY, Halt, Log, TopicPartition
from vicinage.telemetry import events

SAVE_S: Final = 2.0
"""Interval, in seconds, of writing changed positions to the catalog."""
_event = events("ingest")


class PositionStore:
    """Not thread-safe: one thread calls every method; any thread may call `committed`."""

    def __init__(self, log: Log, positions: Positions, clock: Clock, *, recommit_s: float) -> None:
        self._log = log
        self._positions = positions
        self._clock = clock
        self._recommit_s = recommit_s
        self._committed: dict[TopicPartition, tuple[int, float]] = {}
        """The last committed position of each partition, and the time of the commit (monotonic)."""
        self._saved: dict[TopicPartition, PartitionState] = {}
        self._waiting: frozenset[TopicPartition] = frozenset()
        self._saved_at = clock.monotonic()  # halts are known only after the first reads
        self._resumed_version = -1
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ingest-positions")
        self._writing: Future[None] | None = None

    # starts

    def starts(
        self, tps: Sequence[TopicPartition], topic_ids: Mapping[str, str]
    ) -> dict[TopicPartition, tuple[int, Halt | None]]:
        """Returns each partition's start position, and the halt that a previous process left.

        Leaves out a partition whose start the log cannot state, because it has no leader. Leaves
        out later partitions without a position too: call again for them. So a call waits for one
        such partition at most. Raises Unavailable.
        """
        if not tps:
            return {}
        in_log = self._log.committed(Group.INGEST, tps)
        saved = {
            s.topic_partition(): s
            for s in self._positions.of()
            if s.topic_id == topic_ids.get(s.topic_partition()[0])
        }
        copies = {
            tp: saved[tp]
            for tp in tps
            if tp in saved
            and (saved[tp].state == "resuming" or saved[tp].position != in_log.get(tp))
        }
        moved = [tp for tp, copy in copies.items() if tp in in_log and copy.state != "resuming"]
        log_starts = self._log_starts(moved)
        # NOTE: records below the log's start were read already: such a copy is from a catalog that
        # was restored from a backup and is older than the log.
        older = {tp for tp, start in log_starts.items() if copies[tp].position < start}
        unknown = set(moved) - log_starts.keys()
        restored = {tp: copy.position for tp, copy in copies.items() if tp not in older | unknown}
        tps = [tp for tp in tps if tp not in unknown]
        self._restore(restored, topic_ids)
        known = {tp: at for tp in tps if (at := restored.get(tp, in_log.get(tp, -1))) >= 0}
        self.committed(known)
        positions = known | self._log_starts([tp for tp in tps if tp not in known])
        found = {tp: (at, _sticky_halt(saved.get(tp))) for tp, at in positions.items()}
        for tp in restored:
            if saved[tp].state == "resuming":
                self._positions.resumed(saved[tp])
        return found

    def _restore(
        self, positions: Mapping[TopicPartition, int], topic_ids: Mapping[str, str]
    ) -> None:
        """Commits the copy's positions again, except for a replaced topic: the reader halts it."""
        if not positions:
            return
        now = self._log.topic_ids(PREFIX)
        same = {tp: at for tp, at in positions.items() if now.get(tp[0]) == topic_ids.get(tp[0])}
        if same:
            self._log.commit(Group.INGEST, same)
            _event.warning(
                "positions.restored", partitions=len(same), first=f"{min(same)[0]}/{min(same)[1]}"
            )

    def _log_starts(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the log's start of each partition, up to the first that is unavailable."""
        found: dict[TopicPartition, int] = {}
        for tp in tps:
            try:
                found[tp] = self._log.begin(*tp)
            except NotFound:
                found[tp] = 0  # the reader reports that there is no such partition
            except Unavailable as error:
                _event.warning(
                    "partition.start_failed", topic=tp[0], partition=tp[1], reason=str(error)
                )
                break
        return found

    # resumption by an operator

    def resuming(self, version: int) -> list[PartitionState]:
        """Returns the partitions that an operator resumes at a new position.

        Returns [] for a catalog version that `all_resumed` has recorded.
        """
        return [] if version == self._resumed_version else self._positions.resuming()

    def resume(self, state: PartitionState) -> None:
        """Commits the new position; the partition is read from it when this returns."""
        tp = state.topic_partition()
        self._log.commit(Group.INGEST, {tp: state.position})
        self.committed({tp: state.position})
        self._positions.resumed(state)
        self._saved.pop(tp, None)

    def all_resumed(self, version: int) -> None:
        """Records that no partition of this catalog version remains to be resumed."""
        self._resumed_version = version

    # commits

    def committed(self, positions: Mapping[TopicPartition, int]) -> None:
        """Records positions that are durable in the log."""
        now = self._clock.monotonic()
        self._committed.update({tp: (at, now) for tp, at in positions.items()})

    def is_due(self, tp: TopicPartition) -> bool:
        """Returns whether an idle partition's position must be committed again, lest it expire."""
        known = self._committed.get(tp)
        return known is not None and self._clock.monotonic() - known[1] >= self._recommit_s

    def forget(self, tp: TopicPartition) -> None:
        """Forgets a partition that is no longer read."""
        self._committed.pop(tp, None)
        self._saved.pop(tp, None)

    # the catalog's copy

    def save_changed(
        self,
        topic_ids: Mapping[str, str],
        halts: Mapping[TopicPartition, Halt],
        paused: Iterable[TopicPartition],
    ) -> None:
        """Writes changed states to the catalog in the background, every SAVE_S.

        `paused` are partitions that are not read now.
        """
        at = self._clock.monotonic()
        if self._writing is not None and not self._writing.done():
            return
        if at - self._saved_at < SAVE_S:
            return
        self._saved_at = at
        previous, self._waiting = self._waiting, frozenset(paused)
        waiting = previous & self._waiting  # in two checks in a row
        changed = [
            s
            for tp in {*self._committed, *halts}
            if (s := self._state(tp, topic_ids, halts, waiting))
        ]
        if changed:
            self._writing = self._writer.submit(self._save, changed)

    def _state(
        self,
        tp: TopicPartition,
        topic_ids: Mapping[str, str],
        halts: Mapping[TopicPartition, Halt],
        waiting: frozenset[TopicPartition],
    ) -> PartitionState | None:
        """Returns the partition's state if it differs from the catalog's."""
        if tp[0] not in topic_ids:
            return None
        halt, known = halts.get(tp), self._saved.get(tp)
        position = self._committed[tp][0] if tp in self._committed else 0
        tenant, topic_id = tp[0].removeprefix(PREFIX), topic_ids[tp[0]]
        if halt is not None:
            if known and (known.state, known.kind, known.reason) == (
                "halted",
                halt.kind,
                halt.reason,
            ):
                return None
            return PartitionState(
                tenant,
                tp[1],
                topic_id,
                halt.position,
                "halted",
                halt.since_ms,
                halt.kind,
                halt.reason,
            )
        state: State = "waiting" if tp in waiting else "reading"
        if known and (known.state, known.position, known.topic_id) == (state, position, topic_id):
            return None
        since_ms = known.since_ms if known and known.state == state else self._clock.now_ms()
        return PartitionState(tenant, tp[1], topic_id, position, state, since_ms)

    def _save(self, states: Sequence[PartitionState]) -> None:
        try:
            self._positions.save(states)
        except Unavailable as error:
            _event.warning("positions.save_failed", reason=str(error))
            return
        self._saved.update({s.topic_partition(): s for s in states})

    def close(self) -> None:
        """Stops the writer thread. Idempotent."""
        self._writer.shutdown(wait=True, cancel_futures=True)


def _sticky_halt(saved: PartitionState | None) -> Halt | None:
    """Returns the halt that a new process keeps: one that only an operator can end."""
    if (
        saved is None
        or saved.state != "halted"
        or saved.kind not in STICKY
        or saved.kind == "topic_replaced"
    ):
        return None
    return Halt(saved.kind, saved.reason or "", saved.since_ms, saved.position)
