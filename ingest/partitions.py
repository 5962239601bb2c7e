"""The partitions that this ingest reads: their reader, and each one's progress."""

import threading
from collections.abc import Callable, Iterator
from typing import Final

from ingest.jobs import Job
from ingest.scheduler import Scheduler
from vicinage.clock import Clock
from vicinage.errors import Unavailable
from vicinage.log import Halt, Log, LogRecord, TopicPartition
from vicinage.log.halts import Halts
from vicinage.metrics import gauge
from vicinage.settings import IngestSettings
from vicinage.telemetry import events

IN_FLIGHT: Final = 2
"""Jobs of one partition that are not written yet; it is not read further until there are fewer."""
RETRY_S: Final = 0.5
"""Longest pause, in seconds, before the log is read again after it was unavailable."""

_event = events("ingest")
_halted = gauge("vicinage_ingest_halted_partitions")


class Partitions:
    """The partitions that are read.

    Owned by the thread that reads the log; parser threads change `unparsed` and `routed`.
    """

    def __init__(
        self,
        log: Log,
        scheduler: Scheduler,
        settings: IngestSettings,
        clock: Clock,
        stopping: threading.Event,
    ) -> None:
        self.reader = log.reader({})
        self.positions: dict[TopicPartition, int] = {}
        """Offset up to which the records of each partition were taken from the reader."""
        self.topic_ids: dict[str, str] = {}
        """Identity of each topic; a topic that is created again under its name is another topic."""
        self.unparsed: dict[TopicPartition, Iterator[Job]] = {}
        """Records of a partition that were read and are not yet parsed into jobs."""
        self.routed: dict[TopicPartition, int] = {}
        """Offset up to which each partition's records are queued as its tasks, or left to lanes."""
        self.paused: set[TopicPartition] = set()
        """Partitions that are not read until their queue has room."""
        self.halts = Halts(_event, _halted)
        self._scheduler = scheduler
        self._settings = settings
        self._clock = clock
        self._stopping = stopping
        self.read_after = self._polled = clock.monotonic()
        """Start of the poll before the last one: the last poll's records were read after it."""

    def poll(self, wait_s: float, idle_s: float) -> dict[TopicPartition, list[LogRecord]]:
        """Returns new records by partition, after `wait_s` or `idle_s` at most.

        Returns none while the log is unavailable.
        """
        self.read_after, self._polled = self._polled, self._clock.monotonic()
        try:
            polled = self.reader.poll(
                bytes_max=self._settings.batch_bytes, wait_s=min(wait_s, idle_s)
            )
        except Unavailable as error:
            _event.warning("log.read_failed", reason=str(error))
            self._stopping.wait(min(wait_s, RETRY_S))
            return {}
        self.halts.update(self.reader.halted())
        found: dict[TopicPartition, list[LogRecord]] = {}
        for record in polled:
            found.setdefault((record.topic, record.partition), []).append(record)
        return found

    def read(self, tp: TopicPartition, halt: Halt | None = None) -> None:
        """Reads the partition from its position on."""
        self.reader.add(*tp, self.positions[tp], topic_id=self.topic_ids[tp[0]], halt=halt)

    def move(self, tp: TopicPartition, position: int) -> None:
        """Sets the position of a partition without records in progress."""
        self.positions[tp] = self.routed[tp] = position

    def drop(self, tp: TopicPartition) -> None:
        """Stops reading the partition. Its jobs in progress are completed."""
        self.reader.remove(*tp)
        del self.positions[tp]
        self.unparsed.pop(tp, None)

    def pause(self, tp: TopicPartition) -> None:
        """Stops reading the partition until `resume_paused` finds room in its queue."""
        self.reader.remove(*tp)
        self.paused.add(tp)

    def resume_paused(self) -> None:
        """Resumes reading partitions whose records are all parsed and whose queue has room."""
        for tp in [tp for tp in self.paused if tp not in self.unparsed and self.has_room(tp)]:
            self.paused.remove(tp)
            if tp in self.positions:
                self.read(tp)

    def has_room(self, tp: TopicPartition) -> bool:
        """Returns whether the partition's queue has room for another job."""
        return self._scheduler.of(tp) < IN_FLIGHT

    def is_idle(self, tp: TopicPartition) -> bool:
        """Returns whether everything that was read of the partition is written and committed."""
        return tp not in self.paused and tp not in self.unparsed and self._scheduler.of(tp) == 0

    def forget_routed(self, is_gone: Callable[[TopicPartition], bool]) -> None:
        """Forgets the routed offsets of partitions that are gone."""
        for tp in [tp for tp in list(self.routed) if is_gone(tp)]:
            self.routed.pop(tp, None)

    def by_topic(self, topic: str) -> list[TopicPartition]:
        """Returns the partitions of this topic that are read."""
        return [tp for tp in self.positions if tp[0] == topic]
